// SPDX-License-Identifier: GPL-2.0

//! A connection to the peer, split into a half that reads and one that writes.
//!
//! The two halves share one TLS connection under a mutex, which is held while bytes are encrypted
//! or decrypted in memory, never while a socket is read or written. So a writer that waits for
//! room does not keep the reader from making room for the peer, and both sides may write as much
//! as they like at once.

use std::io::{
    self,
    IoSlice,
    Read,
    Write, //
};
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
use std::time::{
    Duration,
    Instant, //
};

use super::records::Records;
use super::socket::Socket;
use super::{
    Error,
    Limits,
    RateLimit, //
};

/// Small writes are collected up to so many bytes; also how much is encrypted at once.
const BATCH: usize = 64 << 10;

/// How much is read from the socket at once.
const STAGING: usize = 256 << 10;

/// Reads of at least so many bytes of plain text go straight from the socket to the caller.
const DIRECT: usize = 32 << 10;

/// What the halves and the handles of a link share.
struct Shared {
    socket: Socket,
    records: Option<Mutex<Records>>,
    peer: String,
    security: String,
    /// How many of the halves exist.
    halves: AtomicU8,
    aborted: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Shared {
    /// The TLS connection, if there is one.
    ///
    /// A thread that panicked with the lock leaves a connection that decrypts nothing more, which
    /// is an error like others.
    fn records(&self) -> Option<MutexGuard<'_, Records>> {
        let records = self.records.as_ref()?;
        Some(records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Names the peer in an error, and says so if it was this side that ended the link.
    fn explain(&self, error: io::Error) -> io::Error {
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
    fn drop_half(&self) {
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
        let writer = LinkWriter {
            shared,
            pending: Vec::with_capacity(BATCH),
            sealed: Vec::new(),
            limit: None,
        };
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

/// The half of a link that reads.
///
/// `read` returns 0 when the peer has finished its direction. Errors are `TimedOut` after silence
/// or at the deadline, `UnexpectedEof` when the connection ended before the peer finished,
/// `InvalidData` for what is no TLS, `ConnectionAborted` after [`LinkHandle::abort`], or the
/// socket's own.
pub struct LinkReader {
    shared: Arc<Shared>,
    /// Bytes from the socket; those in `start..end` were not used yet.
    staging: Vec<u8>,
    start: usize,
    end: usize,
    silence: Duration,
    deadline: Option<Instant>,
    /// What the socket's limit is now.
    timeout: Option<Duration>,
    closed: bool,
}

impl LinkReader {
    /// A reader that first gives what is `staged`.
    fn new(shared: Arc<Shared>, silence: Duration, mut staged: Vec<u8>) -> Self {
        let end = staged.len();
        staged.resize(STAGING.max(end), 0);
        Self {
            shared,
            staging: staged,
            start: 0,
            end,
            silence,
            deadline: None,
            timeout: None,
            closed: false,
        }
    }

    /// From when on reading fails, whatever came; `None`: never.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Says that this side reads no more; whoever reads gets the end.
    pub fn shutdown(&mut self) {
        self.shared.socket.shutdown(Shutdown::Read);
        self.closed = true;
    }

    /// Reads from the socket within the limits.
    fn receive(&mut self, into: Target<'_>) -> io::Result<usize> {
        let mut limit = self.silence;
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.late());
            }
            limit = limit.min(left);
        }
        if self.timeout != Some(limit) {
            self.shared.socket.set_read_timeout(limit)?;
            self.timeout = Some(limit);
        }
        let result = match into {
            Target::Staging => self.shared.socket.read(&mut self.staging),
            Target::Caller(buffer) => self.shared.socket.read(buffer),
        };
        match result {
            Ok(len) => {
                self.shared
                    .received
                    .fetch_add(len as u64, Ordering::Relaxed);
                Ok(len)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(self.late()),
            Err(error) => Err(error),
        }
    }

    /// The error for nothing having come in time.
    fn late(&self) -> io::Error {
        let past = |deadline: Instant| Instant::now() >= deadline;
        let text = match self.deadline.is_some_and(past) {
            true => "It did not answer in time".to_owned(),
            false => format!("It was silent for {} s", self.silence.as_secs_f32()),
        };
        io::Error::new(io::ErrorKind::TimedOut, text)
    }

    /// Fills the empty staging buffer; `false`: the socket's input has ended.
    fn refill(&mut self) -> io::Result<bool> {
        self.start = 0;
        self.end = 0;
        self.end = self.receive(Target::Staging)?;
        Ok(self.end > 0)
    }

    /// Reads plain text of a link without TLS.
    fn read_plain(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            if buffer.len() >= DIRECT {
                return self.receive(Target::Caller(buffer));
            }
            if !self.refill()? {
                return Ok(0);
            }
        }
        let len = buffer.len().min(self.end - self.start);
        buffer[..len].copy_from_slice(&self.staging[self.start..self.start + len]);
        self.start += len;
        Ok(len)
    }

    /// Reads what TLS protects.
    fn read_sealed(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(mut records) = self.shared.records() else {
                return self.read_plain(buffer);
            };
            let opened = records.open(&self.staging[self.start..self.end], buffer)?;
            drop(records);
            self.start += opened.taken;
            self.closed = opened.closed;
            if opened.filled > 0 || opened.closed {
                return Ok(opened.filled);
            }
            if !self.refill()? {
                let text = "The connection ended in the middle";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
        }
    }
}

/// Where bytes from the socket go.
enum Target<'a> {
    Staging,
    Caller(&'a mut [u8]),
}

impl Read for LinkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.closed {
            return Ok(0);
        }
        let result = match self.shared.records {
            Some(_) => self.read_sealed(buffer),
            None => self.read_plain(buffer),
        };
        match result {
            Ok(0) if self.shared.aborted.load(Ordering::Acquire) => {
                Err(self.shared.explain(io::ErrorKind::ConnectionAborted.into()))
            }
            Ok(len) => Ok(len),
            Err(error) => Err(self.shared.explain(error)),
        }
    }
}

impl Drop for LinkReader {
    fn drop(&mut self) {
        self.shared.drop_half();
    }
}

/// The half of a link that writes.
///
/// Small writes are collected until [`Write::flush`] or until they are many; large ones go out at
/// once. Errors are `TimedOut` when the peer takes nothing for the limit of silence,
/// `ConnectionAborted` after [`LinkHandle::abort`], or the socket's own. After an error the link
/// is of no more use.
///
/// A writer that is dropped without [`LinkWriter::finish`] leaves the peer of a TLS link with an
/// error rather than an end.
pub struct LinkWriter {
    shared: Arc<Shared>,
    /// Plain text that was written and not sent.
    pending: Vec<u8>,
    /// Records on their way to the socket.
    sealed: Vec<u8>,
    limit: Option<RateLimit>,
}

impl LinkWriter {
    /// Limits the bytes per second on the wire; `None`: no limit.
    pub fn set_limit(&mut self, limit: Option<RateLimit>) {
        self.limit = limit;
    }

    /// Sends what was written, says that nothing follows, and ends this direction.
    ///
    /// # Errors
    ///
    /// As for writing.
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        self.sealed.clear();
        if let Some(mut records) = self.shared.records() {
            records.close(&mut self.sealed)?;
        }
        self.transmit(&[IoSlice::new(&self.sealed)])
            .map_err(|error| self.shared.explain(error))?;
        self.shared.socket.shutdown(Shutdown::Write);
        Ok(())
    }

    /// Sends the pending bytes and then `more`.
    fn send(&mut self, more: &[u8]) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let result = match self.shared.records {
            Some(_) => self.send_sealed(&pending, more),
            None => self.transmit(&[IoSlice::new(&pending), IoSlice::new(more)]),
        };
        self.pending = pending;
        self.pending.clear();
        result.map_err(|error| self.shared.explain(error))
    }

    /// Encrypts and sends a batch at a time.
    fn send_sealed(&mut self, mut pending: &[u8], mut more: &[u8]) -> io::Result<()> {
        while pending.len() + more.len() > 0 {
            let (first, rest) = pending.split_at(pending.len().min(BATCH));
            pending = rest;
            let (second, rest) = more.split_at(more.len().min(BATCH - first.len()));
            more = rest;
            self.sealed.clear();
            if let Some(mut records) = self.shared.records() {
                records.seal(
                    &[IoSlice::new(first), IoSlice::new(second)],
                    &mut self.sealed,
                )?;
            }
            self.transmit(&[IoSlice::new(&self.sealed)])?;
        }
        Ok(())
    }

    /// Writes all bytes of `parts` to the socket, no faster than the limit.
    fn transmit(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        match &self.limit {
            None => self.transmit_at_once(&mut parts.to_vec()),
            Some(limit) => {
                for chunk in parts.iter().flat_map(|part| part.chunks(limit.chunk())) {
                    limit.take(chunk.len());
                    self.transmit_at_once(&mut [IoSlice::new(chunk)])?;
                }
                Ok(())
            }
        }
    }

    /// Writes all bytes of `parts` to the socket.
    fn transmit_at_once(&self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.shared.socket.write(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => {
                    self.shared.sent.fetch_add(len as u64, Ordering::Relaxed);
                    IoSlice::advance_slices(&mut parts, len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let text = "It took nothing for the longest time allowed";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Write for LinkWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.pending.len() + buffer.len() < BATCH {
            self.pending.extend_from_slice(buffer);
        } else {
            self.send(buffer)?;
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.pending.is_empty() {
            true => Ok(()),
            false => self.send(&[]),
        }
    }
}

impl Drop for LinkWriter {
    fn drop(&mut self) {
        self.shared.socket.shutdown(Shutdown::Write);
        self.shared.drop_half();
    }
}
