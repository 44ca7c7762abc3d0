// SPDX-License-Identifier: GPL-2.0

//! Where the receiver of a migration finds pages.
//!
//! * [`PageSource`] is one place that has pages, [`Sources`] is the chain of them that a receiver
//!   asks.
//! * [`store`] is the database of canonical pages on this host, [`fleet`] the same on a
//!   Valkey or Redis cluster.
//! * [`admit`] says which pages may become canonical, [`build`] reads them from disk images,
//!   memory dumps and running VMs.
//!
//! Nothing that is read is believed: neither sizes nor offsets of a file before they are checked,
//! nor pages before they are hashed.

pub mod admit;
pub mod build;
mod error;
pub mod fleet;
mod hash;
mod source;
mod sources;
pub mod store;
mod tag;
mod watch;

pub use admit::{
    Admit,
    Loaded,
    Offered,
    SourceId,
    Trust, //
};
pub use error::Error;
pub use fleet::{
    Fleet,
    FleetOptions, //
};
pub use source::PageSource;
pub use sources::{
    Notice,
    SourceCount,
    Sources, //
};
pub use store::{
    Collected,
    Limits,
    Mode,
    Settings,
    Stat,
    Store,
    Verified, //
};
pub use twinpage_wire::{
    Digest,
    Page, //
};
pub use watch::{
    Progress,
    Watch, //
};
