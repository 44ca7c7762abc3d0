// SPDX-License-Identifier: GPL-2.0

//! Reading a payload from front to back without ever reading past its end.

use crate::error::Fault;

/// A place in a payload.
pub(crate) struct Cursor<'a> {
    /// The payload.
    bytes: &'a [u8],
    /// Bytes of it that were read.
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The beginning of `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes were read.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Whether everything was read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// The next `count` bytes, which are (a part of) `what`.
    pub(crate) fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Fault> {
        let offset = self.at;
        let end = offset.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(offset..end));
        let taken = taken.ok_or(Fault::Short { what, offset })?;
        self.at += count;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// The next byte.
    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Fault> {
        let [byte] = self.array(what)?;
        Ok(byte)
    }

    /// The next two bytes as a number.
    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Fault> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// The next four bytes as a number.
    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// The next eight bytes as a number.
    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        self.at = self.bytes.len();
        rest
    }

    /// Fails unless everything was read.
    pub(crate) fn end(self) -> Result<(), Fault> {
        let (offset, len) = (self.at, self.bytes.len());
        if offset < len {
            let bytes = len - offset;
            return Err(Fault::Trailing { offset, bytes });
        }
        Ok(())
    }
}
