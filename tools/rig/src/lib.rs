// SPDX-License-Identifier: GPL-2.0

//! Starts real QEMUs with a guest whose memory is known, for tests of migration.
//!
//! A [`Guest`] fills pages from seeds and then, if asked to, writes to a range of them for ever, so
//! that its memory can be judged at any moment without a copy of it ([`Guest::check`]). A [`Qemu`]
//! runs it under software emulation, with a [`Qmp`] connection; nothing that is started here
//! outlives its [`Process`], not even when the test is killed. A [`Recorder`] between two QEMUs keeps
//! what the source says. Everything waits with a limit.

#![forbid(unsafe_code)]

mod code;
mod error;
mod guest;
mod memory;
mod migration;
mod process;
mod qemu;
mod qmp;
mod recorder;

pub use error::Error;
pub use guest::{
    Guest,
    Progress,
    Region,
    Write,
    Writes,
    PAGE_BYTES, //
};
pub use memory::{
    compare,
    differences, //
};
pub use migration::{
    Capability,
    Migration, //
};
pub use process::Process;
pub use qemu::{
    Boot,
    Build,
    Options,
    Qemu, //
};
pub use qmp::Qmp;
pub use recorder::{
    Recorder,
    Recording, //
};
