// SPDX-License-Identifier: GPL-2.0

//! The receiver's end of blocks: sealed payloads in, items out.

use twox_hash::XxHash64;

use crate::block::Block;
use crate::compress::Decompressor;
use crate::cursor::Cursor;
use crate::digest::Digest;
use crate::error::{
    Error,
    Fault, //
};
use crate::frames::Sealed;
use crate::limits;
use crate::op::{
    after,
    code,
    Header,
    Item, //
};
use crate::page::{
    PAGE_BYTES,
    ZERO_RECORD_BYTES, //
};
use crate::varint;

/// Buffers that are kept for later blocks.
const SPARE: usize = 4;

/// Decodes the blocks of a connection, in order.
pub struct BlockReader {
    /// What decompresses, if blocks may be compressed.
    decompressor: Option<Decompressor>,
    /// The offset of the next record, if it follows the last.
    predicted: u64,
    /// The number of the next reference.
    references: u64,
    /// Bytes of the stream in the blocks so far.
    stream: u64,
    /// Memory of blocks that are done with.
    spare: Vec<Block>,
}

/// The header of a block.
struct BlockHeader {
    /// Its bytes.
    bytes: [u8; limits::BLOCK_HEADER],
    /// Whether the operations are compressed.
    compressed: bool,
    /// Bytes of the operations.
    raw: usize,
    /// Bytes of the operations as they travel.
    wire: usize,
    /// Number of references.
    references: usize,
}

impl BlockReader {
    /// The beginning of a stream. `zstd` says whether blocks may be compressed, as agreed by the
    /// HELLOs.
    ///
    /// # Errors
    ///
    /// The decompressor cannot be set up.
    pub fn new(zstd: bool) -> Result<Self, Error> {
        Ok(Self {
            decompressor: zstd.then(Decompressor::new).transpose()?,
            predicted: 0,
            references: 0,
            stream: 0,
            spare: Vec::new(),
        })
    }

    /// Decodes the next block. Nothing of it may be released before [`Block::verify`] allowed it.
    ///
    /// The bytes of a block that is not compressed stay where they are.
    ///
    /// # Errors
    ///
    /// The block is malformed. The connection is of no use any more then.
    pub fn decode(&mut self, sealed: Sealed) -> Result<Block, Error> {
        let place = sealed.place;
        let mut block = self.spare.pop().unwrap_or_default();
        block.restart();
        self.fill(sealed, &mut block).map_err(place.of())?;
        Ok(block)
    }

    /// Gives a block back that is done with, so that its memory is used again.
    pub fn recycle(&mut self, block: Block) {
        if self.spare.len() < SPARE {
            self.spare.push(block);
        }
    }

    /// Decodes into the empty `block`.
    fn fill(&mut self, sealed: Sealed, block: &mut Block) -> Result<(), Fault> {
        let header = BlockHeader::decode(&sealed.payload)?;
        let (_, body) = sealed.payload.split_at(limits::BLOCK_HEADER);
        let (wire, digests) = body.split_at(header.wire);
        block.references.reserve(header.references);
        for digest in digests.chunks_exact(Digest::BYTES) {
            let mut bytes = [0; Digest::BYTES];
            bytes.copy_from_slice(digest);
            block.references.push(Digest(bytes));
        }
        block.header = header.bytes;
        block.wire_bytes = sealed.wire_bytes();
        block.first_reference = self.references;
        block.stream_offset = self.stream;
        block.seal(&sealed);
        if header.compressed {
            let allowed = self.decompressor.as_mut();
            let zstd = allowed.ok_or(Fault::Zstd("that was not agreed on".to_owned()))?;
            zstd.decompress(wire, header.raw, &mut block.buffer)?;
            block.checksum = Some(XxHash64::oneshot(0, wire));
            block.raw = 0..header.raw;
        } else {
            block.buffer = sealed.payload;
            block.raw = limits::BLOCK_HEADER..limits::BLOCK_HEADER + header.raw;
        }
        self.items(block)
    }

    /// Finds the items in the operations of `block`.
    fn items(&mut self, block: &mut Block) -> Result<(), Fault> {
        let mut from = Cursor::new(&block.buffer[block.raw.clone()]);
        let mut references = 0;
        while !from.is_at_end() {
            if block.items.len() == limits::BLOCK_OPS {
                return Err(Fault::TooLong {
                    what: "Block with operations past number",
                    size: limits::BLOCK_OPS as u64,
                    max: limits::BLOCK_OPS as u64,
                });
            }
            let offset = from.at();
            let item = self.item(&mut from, &mut references)?;
            if let Item::Page { start, .. } = item {
                block.bodies.push(start);
            }
            if is_split(block.items.last(), &item) {
                return Err(Fault::Split { offset });
            }
            block.stream_bytes += item.stream_bytes();
            if block.stream_bytes > limits::BLOCK_STREAM as u64 {
                return Err(Fault::TooLong {
                    what: "Block for bytes of the stream",
                    size: block.stream_bytes,
                    max: limits::BLOCK_STREAM as u64,
                });
            }
            block.items.push(item);
        }
        let found = block.references.len() as u64;
        if found != references.into() {
            return Err(Fault::Length {
                what: "Digests of references",
                found,
                expected: references.into(),
            });
        }
        self.references += found;
        self.stream += block.stream_bytes;
        Ok(())
    }

    /// Reads an item. `references` counts those of the block.
    fn item(&mut self, from: &mut Cursor<'_>, references: &mut u32) -> Result<Item, Fault> {
        let offset = from.at();
        let code = from.u8("an operation")?;
        let kind = code & 0x0f;
        if matches!(code, code::LITERAL | code::ZEROS) {
            return if code == code::LITERAL {
                literal(from)
            } else {
                self.zeros(from)
            };
        }
        if !(code::ZERO_PAGE..=code::BACK).contains(&kind) {
            return Err(Fault::Op { code, offset });
        }
        let header = match code - kind {
            0 => None,
            code::PREDICTED => Some(self.predicted),
            code::EXPLICIT => Some(self.explicit(from)?),
            _ => return Err(Fault::Op { code, offset }),
        };
        if let Some(offset) = header {
            self.predicted = after(offset);
        }
        page(kind, header, from, references)
    }

    /// Reads a run of zero records.
    fn zeros(&mut self, from: &mut Cursor<'_>) -> Result<Item, Fault> {
        let difference = varint::read(from)?;
        let first = varint::offset(difference, self.predicted);
        let more = varint::read(from)?;
        let max = (limits::BLOCK_STREAM / ZERO_RECORD_BYTES) as u64;
        let count = u32::try_from(more)
            .ok()
            .and_then(|more| more.checked_add(1));
        let count = count.filter(|&count| u64::from(count) <= max);
        let count = count.ok_or(Fault::TooLong {
            what: "Run of zero records past the first",
            size: more,
            max,
        })?;
        let bytes = u64::from(count) * PAGE_BYTES as u64;
        self.predicted = first.wrapping_add(bytes);
        Ok(Item::Zeros { first, count })
    }

    /// Reads the offset of a header that is not the predicted one.
    fn explicit(&self, from: &mut Cursor<'_>) -> Result<u64, Fault> {
        let offset = from.at();
        match varint::read(from)? {
            0 => Err(Fault::Number { offset }),
            difference => Ok(varint::offset(difference, self.predicted)),
        }
    }
}

/// Whether `item` should have been a part of the one `before` it in the block.
fn is_split(before: Option<&Item>, item: &Item) -> bool {
    match (before, item) {
        (Some(Item::Literal { len, .. }), Item::Literal { .. }) => {
            (*len as usize) < limits::LITERAL
        }
        _ => false,
    }
}

/// Reads a literal.
fn literal(from: &mut Cursor<'_>) -> Result<Item, Fault> {
    let offset = from.at();
    let len = from.u16("the length of a literal")?.into();
    if len == 0 {
        return Err(Fault::Number { offset });
    }
    // CAST: A block is much smaller than 4 GiB.
    let start = from.at() as u32;
    from.take(len as usize, "a literal")?;
    Ok(Item::Literal { start, len })
}

/// Reads what follows the header of a page.
fn page(
    kind: u8,
    header: Header,
    from: &mut Cursor<'_>,
    references: &mut u32,
) -> Result<Item, Fault> {
    match kind {
        code::ZERO_PAGE => Ok(Item::ZeroPage { header }),
        code::PAGE => {
            // CAST: A block is much smaller than 4 GiB.
            let start = from.at() as u32;
            from.take(PAGE_BYTES, "a page")?;
            Ok(Item::Page { header, start })
        }
        code::REFERENCE => {
            let index = *references;
            *references += 1;
            Ok(Item::Reference { header, index })
        }
        _ => {
            let offset = from.at();
            let less = varint::read(from)?;
            let distance = u32::try_from(less)
                .ok()
                .and_then(|less| less.checked_add(1));
            let distance = distance.ok_or(Fault::Number { offset })?;
            Ok(Item::Back { header, distance })
        }
    }
}

impl BlockHeader {
    /// Reads and checks the header of the block `payload`.
    fn decode(payload: &[u8]) -> Result<Self, Fault> {
        let mut from = Cursor::new(payload);
        let bytes: [u8; limits::BLOCK_HEADER] = from.array("the header of the block")?;
        let rest = from.rest().len();
        let mut from = Cursor::new(&bytes);
        let flags = from.u32("the flags")?;
        let header = Self {
            bytes,
            compressed: flags == 1,
            raw: from.u32("a length")? as usize,
            wire: from.u32("a length")? as usize,
            references: from.u32("a length")? as usize,
        };
        if flags > 1 {
            return Err(Fault::Value {
                what: "Flags of the block",
                offset: 0,
                value: flags.into(),
            });
        }
        at_most("Block", header.raw, limits::BLOCK_RAW_MAX)?;
        at_most("Block as it travels", header.wire, limits::BLOCK_WIRE_MAX)?;
        at_most(
            "References of the block",
            header.references,
            limits::BLOCK_OPS,
        )?;
        if header.raw == 0 || (!header.compressed && header.raw != header.wire) {
            return Err(Fault::Value {
                what: "Length of the block",
                offset: 4,
                value: header.raw as u64,
            });
        }
        let sum = header.wire + Digest::BYTES * header.references;
        if sum != rest {
            return Err(Fault::Length {
                what: "Bytes of the block",
                found: sum as u64,
                expected: rest as u64,
            });
        }
        Ok(header)
    }
}

/// Fails if `size` is above `max`.
fn at_most(what: &'static str, size: usize, max: usize) -> Result<(), Fault> {
    if size > max {
        return Err(Fault::TooLong {
            what,
            size: size as u64,
            max: max as u64,
        });
    }
    Ok(())
}
