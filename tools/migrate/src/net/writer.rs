// SPDX-License-Identifier: GPL-2.0

//! The half of a link that writes.

use std::io::{
    self,
    IoSlice,
    Write, //
};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::link::Shared;
use super::RateLimit;

/// Small writes are collected up to so many bytes; also how much is encrypted at once.
const BATCH: usize = 64 << 10;

/// The half of a link that writes.
///
/// Small writes are collected until [`Write::flush`] or until they are many; large ones go out at
/// once. Errors are `TimedOut` when the peer takes nothing for the limit of silence,
/// `ConnectionAborted` after `LinkHandle::abort`, or the socket's own. After an error the link
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
    /// A writer without a limit.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            pending: Vec::with_capacity(BATCH),
            sealed: Vec::new(),
            limit: None,
        }
    }

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
        let result = match self.shared.is_sealed() {
            true => self.send_sealed(&pending, more),
            false => self.transmit(&[IoSlice::new(&pending), IoSlice::new(more)]),
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
