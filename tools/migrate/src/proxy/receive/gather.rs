// SPDX-License-Identifier: GPL-2.0

//! Bytes on their way to the destination QEMU: small ones are collected, pages stay where they are.

use std::io::{
    self,
    IoSlice,
    Write, //
};
use std::sync::Arc;

use twinpage_wire::{
    write_zeros,
    Keep,
    Page,
    PAGE_BYTES, //
};

use crate::proxy::receive::held::{
    Held,
    Lent, //
};

/// Bytes that are gathered before they are written: they stay in the processor's cache.
const FULL_BYTES: usize = 256 << 10;

/// Parts that one call of the system takes (`IOV_MAX`).
const FULL_PARTS: usize = 1024;

/// Fewer bytes than this are copied, since a part of its own costs more.
const COPIED_BYTES: usize = 512;

/// A page of zeros.
static ZEROS: Page = [0; PAGE_BYTES];

/// What was gathered, in order.
#[derive(Default)]
pub struct Gather {
    /// Bytes that were copied.
    copied: Vec<u8>,
    /// What the stream consists of.
    parts: Vec<Part>,
    /// How many bytes that is.
    bytes: usize,
}

/// A part of the stream.
enum Part {
    /// So many of the copied bytes.
    Copied(usize),
    /// Bytes of a literal: where they begin and how many.
    Literal(Arc<Lent>, u32, u32),
    /// A page.
    Page(Held),
    /// A page of zeros.
    ZeroPage,
}

impl Gather {
    /// Adds a copy of `bytes`.
    pub fn copy(&mut self, bytes: &[u8]) {
        self.copied.extend_from_slice(bytes);
        self.note_copied(bytes.len());
    }

    /// Adds the records of `count` zero pages from offset `first`.
    pub fn zeros(&mut self, first: u64, count: u32) {
        let before = self.copied.len();
        write_zeros(first, count, &mut self.copied);
        self.note_copied(self.copied.len() - before);
    }

    /// Adds a literal of `block`.
    pub fn literal(&mut self, block: &Arc<Lent>, start: u32, len: u32) {
        if (len as usize) < COPIED_BYTES {
            return self.copy(block.literal(start, len));
        }
        self.bytes += len as usize;
        self.parts
            .push(Part::Literal(Arc::clone(block), start, len));
    }

    /// Adds a page.
    pub fn page(&mut self, page: Held) {
        self.bytes += PAGE_BYTES;
        self.parts.push(Part::Page(page));
    }

    /// Adds a page of zeros.
    pub fn zero_page(&mut self) {
        self.bytes += PAGE_BYTES;
        self.parts.push(Part::ZeroPage);
    }

    /// Whether it should be written now. There is always room for two more parts.
    pub fn is_full(&self) -> bool {
        self.bytes >= FULL_BYTES || self.parts.len() + 2 > FULL_PARTS
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.copied.clear();
        self.parts.clear();
        self.bytes = 0;
    }

    /// Writes everything to `out`. It stays here.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut copied = &self.copied[..];
        let slices = self.parts.iter().map(|part| match part {
            Part::Copied(len) => {
                let (these, rest) = copied.split_at(*len);
                copied = rest;
                these
            }
            Part::Literal(block, start, len) => block.literal(*start, *len),
            Part::Page(page) => page.page(),
            Part::ZeroPage => &ZEROS,
        });
        let mut slices: Vec<_> = slices.map(IoSlice::new).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match out.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Notes that so many bytes were copied.
    fn note_copied(&mut self, len: usize) {
        self.bytes += len;
        match self.parts.last_mut() {
            _ if len == 0 => (),
            Some(Part::Copied(before)) => *before += len,
            _ => self.parts.push(Part::Copied(len)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinpage_wire::zero_record;

    /// Takes at most so many bytes at once, and is interrupted before each.
    struct Slow(usize, Vec<u8>, bool);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let len = bytes.len().min(self.0);
            self.1.extend_from_slice(&bytes[..len]);
            Ok(len)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_parts_are_written_in_order_however_few_bytes_are_taken() {
        let mut gather = Gather::default();
        gather.copy(b"ab");
        gather.copy(b"");
        gather.copy(b"c");
        gather.page(Held::Own(Arc::new([7; PAGE_BYTES])));
        gather.zero_page();
        gather.zeros(0x1000, 1);
        let expected = [
            b"abc".as_slice(),
            &[7; PAGE_BYTES],
            &[0; PAGE_BYTES],
            &zero_record(0x1000),
        ]
        .concat();
        for most in [1, 5, 4096, 1 << 20] {
            let mut slow = Slow(most, Vec::new(), false);
            gather.write_to(&mut slow).unwrap();
            assert!(slow.1 == expected, "{most} bytes at once");
        }
        gather.clear();
        let mut slow = Slow(1, Vec::new(), false);
        gather.write_to(&mut slow).unwrap();
        assert!(slow.1.is_empty());
    }

    #[test]
    fn it_is_full_before_the_system_takes_no_more() {
        let mut gather = Gather::default();
        while !gather.is_full() {
            gather.copy(b"header");
            gather.page(Held::Own(Arc::new([7; PAGE_BYTES])));
        }
        assert!(gather.bytes >= FULL_BYTES && gather.bytes < FULL_BYTES + 2 * PAGE_BYTES);
        gather.clear();
        for _ in 0..2000 {
            gather.zeros(0, 1);
        }
        assert_eq!(gather.parts.len(), 1);
    }
}
