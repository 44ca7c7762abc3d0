// SPDX-License-Identifier: GPL-2.0

//! A connection to the peer, split into a half that reads and one that writes.
//!
//! The two halves share one TLS connection under a mutex, which is held while bytes are encrypted
//! or decrypted in memory, never while a socket is read or written. So a writer that waits for
//! room does not keep the reader from making room for the peer, and both sides may write as much
//! as they like at once.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{
    AtomicBool,
    AtomicU64,
    AtomicU8,
    Ordering, //
};
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};

use super::reader::LinkReader;
use super::records::Records;
use super::socket::Socket;
use super::writer::LinkWriter;
use super::{
    Error,
    Limits, //
};

/// What the halves and the handles of a link share.
pub(super) struct Shared {
    /// The socket.
    pub(super) socket: Socket,
    /// The TLS connection, if there is one.
    records: Option<Mutex<Records>>,
    /// The peer, for messages.
    peer: String,
    /// How the link is secured, for messages.
    security: String,
    /// How many of the halves exist.
    halves: AtomicU8,
    /// Whether this side ended the link.
    pub(super) aborted: AtomicBool,
    /// Bytes sent.
    pub(super) sent: AtomicU64,
    /// Bytes received.
    pub(super) received: AtomicU64,
}

impl Shared {
    /// The TLS connection, if there is one.
    ///
    /// A thread that panicked with the lock leaves a connection that decrypts nothing more, which
    /// is an error like others.
    pub(super) fn records(&self) -> Option<MutexGuard<'_, Records>> {
        let records = self.records.as_ref()?;
        Some(records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether TLS protects the link.
    pub(super) fn is_sealed(&self) -> bool {
        self.records.is_some()
    }

    /// Names the peer in an error, and says so if it was this side that ended the link.
    pub(super) fn explain(&self, error: io::Error) -> io::Error {
        if self.aborted.load(Ordering::Acquire) {
            let text = format!("The link to {} was ended by this side", self.peer);
            return io::Error::new(io::ErrorKind::ConnectionAborted, text);
        }
        let kind = error.kind();
        let peer = self.peer.clone();
        io::Error::new(
            kind,
            LinkError {
                peer,
                source: error,
            },
        )
    }

    /// One of the halves is gone.
    pub(super) fn drop_half(&self) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.socket.shutdown(Shutdown::Both);
        }
    }
}

/// An error of a link, with the name of the peer.
#[derive(Debug, thiserror::Error)]
#[error("The link to {peer} failed")]
pub(super) struct LinkError {
    /// The peer.
    pub(super) peer: String,
    /// What failed.
    pub(super) source: io::Error,
}

/// A connection to the peer that both sides have agreed on.
///
/// It is closed when both halves are gone. TCP forgets what is still on its way to the peer if a
/// connection is closed while bytes from the peer wait to be read, be it only the peer's own end.
/// So whoever wants the peer to get everything finishes the writer, and then reads to the end.
pub struct Link {
    reader: LinkReader,
    writer: LinkWriter,
}

impl Link {
    /// A link of plain text over a connected socket, without a handshake.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: the socket cannot be set up.
    pub fn insecure(socket: impl Into<Socket>, peer: &str, limits: Limits) -> Result<Self, Error> {
        Self::new(
            socket.into(),
            None,
            peer,
            "plain text".to_owned(),
            limits,
            Vec::new(),
        )
    }

    /// A link over a socket; `staged` was read from it already.
    pub(super) fn new(
        socket: Socket,
        records: Option<Records>,
        peer: &str,
        security: String,
        limits: Limits,
        staged: Vec<u8>,
    ) -> Result<Self, Error> {
        let setup = || {
            socket.prepare()?;
            socket.set_write_timeout(limits.silence)
        };
        setup().map_err(|source| Error::io(format!("set up the socket to {peer}"), source))?;
        let shared = Arc::new(Shared {
            socket,
            records: records.map(Mutex::new),
            peer: peer.to_owned(),
            security,
            halves: AtomicU8::new(2),
            aborted: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(staged.len() as u64),
        });
        let reader = LinkReader::new(shared.clone(), limits.silence, staged);
        let writer = LinkWriter::new(shared);
        Ok(Self { reader, writer })
    }

    /// The peer, as messages name it.
    pub fn peer(&self) -> &str {
        &self.reader.shared.peer
    }

    /// How the link is secured, for messages.
    pub fn security(&self) -> &str {
        &self.reader.shared.security
    }

    /// A handle to count the link's bytes and to end it.
    pub fn handle(&self) -> LinkHandle {
        LinkHandle(self.reader.shared.clone())
    }

    /// The link of two halves that belong together.
    pub(super) fn join(reader: LinkReader, writer: LinkWriter) -> Self {
        Self { reader, writer }
    }

    /// The two halves.
    pub fn split(self) -> (LinkReader, LinkWriter) {
        (self.reader, self.writer)
    }
}

/// Counts a link's bytes and can end it; does not keep it open.
#[derive(Clone)]
pub struct LinkHandle(Arc<Shared>);

impl LinkHandle {
    /// Ends the link at once in both directions, and wakes up who reads or writes.
    pub fn abort(&self) {
        self.0.aborted.store(true, Ordering::Release);
        self.0.socket.shutdown(Shutdown::Both);
    }

    /// Bytes sent so far, those of TLS included.
    pub fn sent_bytes(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Bytes received so far, those of TLS included.
    pub fn received_bytes(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    /// The peer, as messages name it.
    pub fn peer(&self) -> &str {
        &self.0.peer
    }
}
