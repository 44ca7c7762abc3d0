// SPDX-License-Identifier: GPL-2.0

//! The half of a link that reads.

use std::io::{
    self,
    Read, //
};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{
    Duration,
    Instant, //
};

use super::link::Shared;

/// How much is read from the socket at once.
const STAGING: usize = 256 << 10;

/// Reads of at least so many bytes of plain text go straight from the socket to the caller.
const DIRECT: usize = 32 << 10;

/// The half of a link that reads.
///
/// `read` returns 0 when the peer has finished its direction. Errors are `TimedOut` after silence
/// or at the deadline, `UnexpectedEof` when the connection ended before the peer finished,
/// `InvalidData` for what is no TLS, `ConnectionAborted` after `LinkHandle::abort`, or the
/// socket's own.
pub struct LinkReader {
    pub(super) shared: Arc<Shared>,
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
    pub(super) fn new(shared: Arc<Shared>, silence: Duration, mut staged: Vec<u8>) -> Self {
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
        let result = match self.shared.is_sealed() {
            true => self.read_sealed(buffer),
            false => self.read_plain(buffer),
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
