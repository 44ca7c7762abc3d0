// SPDX-License-Identifier: GPL-2.0

//! The sender's end of blocks: operations in, frames out.
//!
//! The payload of a block:
//!
//! | bytes | what |
//! |---|---|
//! | 0 | flags: bit 0, the operations are compressed |
//! | 1..4 | 0 |
//! | 4..8 | bytes of the operations |
//! | 8..12 | bytes of the operations as they travel |
//! | 12..16 | number of references |
//! | 16.. | operations |
//! | then | 32 bytes for each reference: its digest |

use twox_hash::XxHash64;

use crate::chain::Transcript;
use crate::compress::{
    Compression,
    Compressor, //
};
use crate::digest::Digest;
use crate::error::Error;
use crate::frame::{
    Frame,
    CHAIN_BYTES,
    HEADER_BYTES, //
};
use crate::lent::LentPages;
use crate::limits;
use crate::op::{
    after,
    code,
    page_bytes,
    Header,
    Op, //
};
use crate::page::{
    PAGE_BYTES,
    ZERO_RECORD_BYTES, //
};
use crate::varint;

/// Bytes in front of the operations in a buffer.
const FRONT: usize = HEADER_BYTES + limits::BLOCK_HEADER;

/// Buffers that are kept for later blocks.
const SPARE: usize = 8;

/// When a block is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimits {
    /// Bytes of operations, at most [`limits::BLOCK_RAW`].
    pub raw: usize,
    /// Bytes of the stream, at most [`limits::BLOCK_STREAM`] less two pages.
    pub stream: usize,
    /// Operations, at most [`limits::BLOCK_OPS`].
    pub ops: usize,
}

impl Default for BlockLimits {
    fn default() -> Self {
        Self {
            raw: limits::BLOCK_RAW,
            stream: limits::BLOCK_STREAM / 2,
            ops: limits::BLOCK_OPS,
        }
    }
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Pushed {
    /// What was not taken, because the block is full: bytes of a literal, records of zeros, or 1
    /// for any other operation. It is for the next block.
    pub left: usize,
    /// The block is full: it takes nothing more before [`BlockWriter::finish`].
    pub full: bool,
}

/// What a writer has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterTotals {
    /// Blocks.
    pub blocks: u64,
    /// Those of them that were not compressed.
    pub stored: u64,
    /// Bytes of the stream.
    pub stream_bytes: u64,
    /// Bytes of operations before compression.
    pub raw_bytes: u64,
    /// Bytes of frames.
    pub wire_bytes: u64,
}

/// Collects operations into blocks.
pub struct BlockWriter {
    /// When a block is full.
    limits: BlockLimits,
    /// What compresses.
    compressor: Option<Compressor>,
    /// Room for two headers, then the operations of the open block.
    buffer: Vec<u8>,
    /// Where pages begin in them.
    bodies: Vec<u32>,
    /// Pages of the open block that lie elsewhere.
    lent: LentPages,
    /// The operations with those pages in them, to be compressed.
    joined: Vec<u8>,
    /// Digests of pages, references and back references of the open block.
    digests: [Vec<Digest>; 3],
    /// Where the literal begins that the last operation is, if it is one.
    literal: Option<usize>,
    /// Zero records that are not in the operations yet: first offset and count.
    zeros: Option<(u64, u32)>,
    /// Operations of the open block, without the zeros.
    ops: usize,
    /// Bytes of the stream that the open block stands for.
    stream: u64,
    /// Bytes of pages and literals in the open block.
    content: usize,
    /// The offset of the next record, if it follows the last.
    predicted: u64,
    /// The number of the next reference.
    references: u64,
    /// Buffers for later.
    spare: Vec<Vec<u8>>,
    /// What was written.
    totals: WriterTotals,
}

impl BlockWriter {
    /// The beginning of a stream.
    ///
    /// # Errors
    ///
    /// There is no such level of compression.
    pub fn new(compression: Compression) -> Result<Self, Error> {
        let compressor = match compression {
            Compression::Off => None,
            Compression::Level(level) => Some(Compressor::new(level)?),
        };
        Ok(Self {
            limits: BlockLimits::default(),
            compressor,
            buffer: vec![0; FRONT],
            bodies: Vec::new(),
            lent: LentPages::default(),
            joined: Vec::new(),
            digests: Default::default(),
            literal: None,
            zeros: None,
            ops: 0,
            stream: 0,
            content: 0,
            predicted: 0,
            references: 0,
            spare: Vec::new(),
            totals: WriterTotals::default(),
        })
    }

    /// The same with other limits. Limits that the format does not allow are cut.
    #[must_use]
    pub fn with_limits(mut self, limits: BlockLimits) -> Self {
        self.limits = BlockLimits {
            raw: limits.raw.clamp(1, limits::BLOCK_RAW),
            stream: (limits.stream).clamp(1, limits::BLOCK_STREAM - 2 * PAGE_BYTES),
            ops: limits.ops.clamp(1, limits::BLOCK_OPS),
        };
        self
    }

    /// Takes an operation. Literals and zeros may be taken in part; a full block takes nothing.
    /// Literals that follow one another become one, and so do zeros at the offsets that follow.
    pub fn push(&mut self, op: Op<'_>) -> Pushed {
        let left = match op {
            Op::Literal(bytes) => bytes.len() - self.literal(bytes),
            Op::Zeros { first, count } => (count - self.zeros(first, count)) as usize,
            _ if self.is_full() => 1,
            Op::ZeroPage { header } => {
                self.page(code::ZERO_PAGE, header);
                0
            }
            Op::Page {
                header,
                digest,
                page,
            } => {
                self.page(code::PAGE, header);
                // CAST: A block is much smaller than 4 GiB.
                self.bodies.push((self.buffer.len() - FRONT) as u32);
                self.buffer.extend_from_slice(page);
                self.content += PAGE_BYTES;
                self.digests[0].push(*digest);
                0
            }
            Op::LentPage {
                header,
                digest,
                page,
            } => {
                self.page(code::PAGE, header);
                self.lent.push(self.buffer.len(), page);
                self.content += PAGE_BYTES;
                self.digests[0].push(*digest);
                0
            }
            Op::Reference { header, digest } => {
                self.page(code::REFERENCE, header);
                self.digests[1].push(*digest);
                self.references += 1;
                0
            }
            Op::Back {
                header,
                distance,
                digest,
            } => {
                self.page(code::BACK, header);
                varint::write(u64::from(distance.wrapping_sub(1)), &mut self.buffer);
                self.digests[2].push(*digest);
                0
            }
        };
        let full = self.is_full();
        Pushed { left, full }
    }

    /// Whether the open block is full.
    pub fn is_full(&self) -> bool {
        self.raw_bytes() >= self.limits.raw
            || self.stream >= self.limits.stream as u64
            || self.ops + usize::from(self.zeros.is_some()) >= self.limits.ops
    }

    /// Bytes of the operations of the open block.
    fn raw_bytes(&self) -> usize {
        self.buffer.len() - FRONT + self.lent.bytes()
    }

    /// Whether nothing is in the open block.
    pub fn is_empty(&self) -> bool {
        self.stream == 0
    }

    /// Bytes of the stream that the open block stands for.
    pub fn stream_bytes(&self) -> u64 {
        self.stream
    }

    /// The number that the next reference gets.
    pub fn next_reference(&self) -> u64 {
        self.references
    }

    /// What was written so far.
    pub fn totals(&self) -> WriterTotals {
        self.totals
    }

    /// Gives a buffer back that was written out, to be used again.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE && buffer.capacity() <= FRONT + limits::BLOCK_PAYLOAD {
            self.spare.push(buffer);
        }
    }

    /// The open block as a frame, if anything is in it; the next block begins.
    ///
    /// # Errors
    ///
    /// The compression fails.
    pub fn finish(&mut self) -> Result<Option<Frame>, Error> {
        self.close_zeros();
        if self.ops == 0 {
            return Ok(None);
        }
        let raw = self.raw_bytes();
        let mut wire = self.spare.pop().unwrap_or_default();
        wire.clear();
        let compressed = self.compress(&mut wire)?;
        let (flags, travel) = match compressed {
            true => (1, wire.len() - FRONT),
            false => (0, raw),
        };
        let header = block_header(flags, raw, travel, self.digests[1].len());
        let [pages, references, backs] = &self.digests;
        let transcript = Transcript {
            header: &header,
            checksum: compressed.then(|| XxHash64::oneshot(0, &wire[FRONT..])),
            raw: &self.buffer[FRONT..],
            bodies: &self.bodies,
            digests: [pages, references, backs],
        };
        let hash = transcript.hash();
        let mut lent = std::mem::take(&mut self.lent);
        if compressed {
            lent = LentPages::default();
        } else {
            wire.resize(FRONT, 0);
            std::mem::swap(&mut wire, &mut self.buffer);
            self.totals.stored += 1;
        }
        wire.reserve_exact(Digest::BYTES * references.len() + CHAIN_BYTES);
        references
            .iter()
            .for_each(|digest| wire.extend_from_slice(&digest.0));
        wire[HEADER_BYTES..FRONT].copy_from_slice(&header);
        let frame = Frame::block(wire, lent, hash);
        self.totals.blocks += 1;
        self.totals.raw_bytes += raw as u64;
        self.totals.stream_bytes += self.stream;
        self.totals.wire_bytes += frame.wire_bytes() as u64;
        self.clear();
        Ok(Some(frame))
    }

    /// Compresses the open block into `wire`, if that is worth it.
    fn compress(&mut self, wire: &mut Vec<u8>) -> Result<bool, Error> {
        let raw = self.raw_bytes();
        let Some(compressor) = &mut self.compressor else {
            return Ok(false);
        };
        if compressor.passes(raw, self.content) {
            return Ok(false);
        }
        let mut whole = &self.buffer;
        if self.lent.bytes() > 0 {
            self.joined.clear();
            let parts = self.lent.parts(&self.buffer);
            parts.for_each(|part| self.joined.extend_from_slice(part));
            whole = &self.joined;
        }
        let raw = &whole[FRONT..];
        if !compressor.wants(raw, self.content) {
            return Ok(false);
        }
        wire.resize(FRONT, 0);
        compressor.compress(raw, self.content, wire)?;
        Ok(true)
    }

    /// Begins a block.
    fn clear(&mut self) {
        self.buffer.truncate(FRONT);
        // Growing step by step would copy the pages.
        self.buffer.reserve(self.limits.raw + 2 * PAGE_BYTES);
        self.bodies.clear();
        self.digests.iter_mut().for_each(Vec::clear);
        self.literal = None;
        self.ops = 0;
        self.stream = 0;
        self.content = 0;
    }

    /// Takes what it can of a literal: how much.
    fn literal(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && !self.is_full() {
            self.close_zeros();
            let raw = self.limits.raw.saturating_sub(self.raw_bytes()).max(1);
            let stream = self.limits.stream - self.stream as usize;
            let at = self.open_literal();
            let len = self.buffer.len() - at - 2;
            let room = raw.min(stream).min(limits::LITERAL - len);
            let part = &bytes[taken..bytes.len().min(taken + room)];
            self.buffer.extend_from_slice(part);
            // CAST: The room is what a u16 can say.
            let sum = (len + part.len()) as u16;
            self.buffer[at..at + 2].copy_from_slice(&sum.to_le_bytes());
            self.stream += part.len() as u64;
            self.content += part.len();
            taken += part.len();
        }
        taken
    }

    /// Where the length of a literal is that is the last operation and takes more.
    fn open_literal(&mut self) -> usize {
        if let Some(at) = self.literal {
            if self.buffer.len() - at - 2 < limits::LITERAL {
                return at;
            }
        }
        self.buffer.push(code::LITERAL);
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        self.literal = Some(at);
        self.ops += 1;
        at
    }

    /// Takes what it can of a run of zero records: how many.
    fn zeros(&mut self, first: u64, count: u32) -> u32 {
        let room = (self.limits.stream as u64).saturating_sub(self.stream);
        // CAST: The limit of a block is a few MiB.
        let room = room.div_ceil(ZERO_RECORD_BYTES as u64) as u32;
        let taken = count.min(room);
        let follows = |(from, run): (u64, u32)| from.wrapping_add(run_bytes(run)) == first;
        if taken == 0 {
            return 0;
        }
        match self.zeros.filter(|run| follows(*run)) {
            Some((from, run)) => self.zeros = Some((from, run + taken)),
            None if self.is_full() => return 0,
            None => {
                self.close_zeros();
                self.zeros = Some((first, taken));
            }
        }
        self.stream += u64::from(taken) * ZERO_RECORD_BYTES as u64;
        taken
    }

    /// Writes the zero records that wait.
    fn close_zeros(&mut self) {
        if let Some((first, count)) = self.zeros.take() {
            self.buffer.push(code::ZEROS);
            let difference = varint::difference(first, self.predicted);
            varint::write(difference, &mut self.buffer);
            varint::write(u64::from(count) - 1, &mut self.buffer);
            self.predicted = first.wrapping_add(run_bytes(count));
            self.literal = None;
            self.ops += 1;
        }
    }

    /// Writes the code and the header of a page.
    fn page(&mut self, code: u8, header: Header) {
        self.close_zeros();
        self.literal = None;
        self.ops += 1;
        self.stream += page_bytes(header);
        match header {
            None => self.buffer.push(code),
            Some(offset) if offset == self.predicted => {
                self.buffer.push(code | code::PREDICTED);
                self.predicted = after(offset);
            }
            Some(offset) => {
                self.buffer.push(code | code::EXPLICIT);
                let difference = varint::difference(offset, self.predicted);
                varint::write(difference, &mut self.buffer);
                self.predicted = after(offset);
            }
        }
    }
}

/// Bytes of memory that a run of zero pages stands for.
fn run_bytes(count: u32) -> u64 {
    u64::from(count) * PAGE_BYTES as u64
}

/// The header of a block.
fn block_header(
    flags: u8,
    raw: usize,
    wire: usize,
    references: usize,
) -> [u8; limits::BLOCK_HEADER] {
    let mut header = [0; limits::BLOCK_HEADER];
    header[0] = flags;
    // CAST: The limits of blocks are a few MiB.
    for (n, size) in [raw, wire, references].into_iter().enumerate() {
        header[4 * n + 4..4 * n + 8].copy_from_slice(&(size as u32).to_le_bytes());
    }
    header
}
