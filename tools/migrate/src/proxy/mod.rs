// SPDX-License-Identifier: GPL-2.0

//! The two proxies between the QEMUs of a migration.
//!
//! ```text
//! source QEMU --unix--> send ==TLS==> receive --unix--> destination QEMU
//!             <-------- return path, byte for byte <---
//! ```
//!
//! What the destination QEMU reads is byte for byte what the source QEMU wrote. The sender looks
//! for the bodies of pages in the stream and sends a digest instead of each that the receiver can
//! supply; all else travels as it is. The receiver does not understand the stream: it puts bytes
//! and pages together, in order, after it has verified the chain of hashes over them.
//!
//! Each connection of QEMU is a *channel* with a link of its own. Its threads:
//!
//! ```text
//! send     qemu-read --> hash (shared by all channels) --> encode --> link-write
//!          link-read (return path, acknowledgements, misses, filter)
//! receive  link-read --> decode --> hash (shared; also finds pages) --> qemu-write
//!          qemu-read (return path) --> link-write
//! ```
//!
//! A channel has its own dictionary of earlier pages: channels need no order among each other then,
//! at the price that a page which QEMU sends on two of them travels twice.
//!
//! # Failures
//!
//! The first error of a session closes the QEMU sockets of all its channels, without ceremony. The
//! source QEMU then reports that the migration failed and lets the guest run on; the destination
//! QEMU gives up. Nothing that the source QEMU hears is made up here: all of it comes from the
//! destination QEMU.

mod error;
mod filter;
mod handle;
mod handshake;
mod inbox;
mod limits;
mod outbox;
mod oversight;
pub mod plan;
mod pool;
mod progress;
mod qemu;
pub mod receive;
pub mod send;
mod session;
mod shelf;
mod spy;
mod stop;
mod threads;
mod window;

pub use error::Error;
pub use handle::Handle;
pub use limits::Limits;
pub use progress::{
    OpaqueNote,
    Phase,
    Progress,
    Report,
    Snapshot,
    SourceCount, //
};
pub use threads::ThreadTime;
