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
        self.transmit(&[&self.sealed[..]])
            .map_err(|error| self.shared.explain(error))?;
        self.shared.socket.shutdown(Shutdown::Write);
        Ok(())
    }

    /// Writes all bytes of `parts`, as one write.
    ///
    /// # Errors
    ///
    /// As for writing.
    pub fn write_parts(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if self.pending.len() + len >= BATCH {
            return self.send(parts);
        }
        parts
            .iter()
            .for_each(|part| self.pending.extend_from_slice(part));
        Ok(())
    }

    /// Sends the pending bytes and then `more`.
    fn send(&mut self, more: &[&[u8]]) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let parts: Vec<_> = [&pending[..]]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        let result = match self.shared.is_sealed() {
            true => self.send_sealed(&parts),
            false => self.transmit(&parts),
        };
        self.pending = pending;
        self.pending.clear();
        result.map_err(|error| self.shared.explain(error))
    }

    /// Encrypts and sends a batch at a time.
    fn send_sealed(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        in_batches(parts, BATCH, |batch| {
            self.sealed.clear();
            if let Some(mut records) = self.shared.records() {
                records.seal(batch, &mut self.sealed)?;
            }
            self.transmit(&[&self.sealed[..]])
        })
    }

    /// Writes all bytes of `parts` to the socket, no faster than the limit.
    fn transmit(&self, parts: &[&[u8]]) -> io::Result<()> {
        match &self.limit {
            None => self.transmit_at_once(&mut slices(parts)),
            Some(limit) => in_batches(parts, limit.chunk(), |batch| {
                limit.take(batch.iter().map(|part| part.len()).sum());
                self.transmit_at_once(batch)
            }),
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
        self.write_parts(&[buffer])?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.pending.is_empty() {
            true => Ok(()),
            false => self.send(&[]),
        }
    }
}

/// What the system and TLS take.
fn slices<'a>(parts: &[&'a [u8]]) -> Vec<IoSlice<'a>> {
    parts.iter().map(|part| IoSlice::new(part)).collect()
}

/// Calls `each` with `parts` in order, at most `most` bytes at once.
fn in_batches(
    parts: &[&[u8]],
    most: usize,
    mut each: impl FnMut(&mut [IoSlice<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let mut batch = Vec::new();
    let mut room = most;
    for mut part in parts.iter().copied() {
        while part.len() >= room {
            let (now, rest) = part.split_at(room);
            batch.push(now);
            each(&mut slices(&batch))?;
            batch.clear();
            (part, room) = (rest, most);
        }
        if !part.is_empty() {
            batch.push(part);
            room -= part.len();
        }
    }
    match batch.is_empty() {
        true => Ok(()),
        false => each(&mut slices(&batch)),
    }
}

impl Drop for LinkWriter {
    fn drop(&mut self) {
        self.shared.socket.shutdown(Shutdown::Write);
        self.shared.drop_half();
    }
}
