// SPDX-License-Identifier: GPL-2.0

//! The connection between the two proxies.
//!
//! * [`Address`] says where, [`Security`] says with which identity.
//! * [`connect()`] and [`Listener::accept`] give a [`Link`], after both sides proved who they are.
//! * A link splits into a [`LinkReader`] and a [`LinkWriter`] for two threads; any number of
//!   [`LinkHandle`]s can count its bytes and end it from elsewhere.
//! * [`RateLimit`] slows a writer, or several together, down to bytes per second.
//!
//! Everything that waits has a limit: see [`Limits`]. Documentation/migration.rst, chapter
//! "Security", says what the construction proves and what not.

mod address;
mod bound;
pub(crate) mod connect;
mod error;
mod handshake;
mod identity;
mod link;
mod listener;
mod rate;
mod raw_key;
mod reader;
mod records;
pub(crate) mod socket;
mod tls;
mod writer;

use std::time::Duration;

pub use address::{
    Address,
    DEFAULT_PORT,
    MAX_SOCKET_PATH, //
};
pub use bound::{
    listen_unix,
    Node, //
};
pub use connect::connect;
pub use error::Error;
pub use identity::{
    write_key,
    CertificateFiles,
    Certificates,
    Psk,
    Security, //
};
pub use link::{
    Link,
    LinkHandle, //
};
pub use listener::{
    Listener,
    Stopper, //
};
pub use rate::RateLimit;
pub use reader::LinkReader;
pub use socket::Socket;
pub use writer::LinkWriter;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the accepted connection (or from the start of [`connect()`]) to the finished link.
    pub handshake: Duration,
    /// How long a link may be without a byte: in reading from the peer to this side, in writing
    /// how long the peer may take nothing.
    pub silence: Duration,
}

impl Default for Limits {
    /// 10 s for the handshake, 30 s of silence.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            silence: Duration::from_secs(30),
        }
    }
}
