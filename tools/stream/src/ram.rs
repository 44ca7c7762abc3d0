// SPDX-License-Identifier: GPL-2.0

//! The records of a section of RAM.
//!
//! Each starts with a big-endian word of 64 bits, an offset in a block with flags in its low 12
//! bits. A record of a page names its block unless it has the flag [`CONTINUE`], which means the
//! block of the page before, also across sections.

use crate::blocks::{
    Block,
    Blocks,
    Extras,
    List, //
};
use crate::field::{
    be16,
    be32,
    be64,
    byte,
    name_length,
    Flow,
    Need, //
};
use crate::output::Output;
use crate::piece::{
    Mark,
    Piece,
    PAGE_BYTES,
    WORD_BYTES,
    ZERO_BYTES, //
};
use crate::reason::Reason;

/// The bits of a word that are flags.
const FLAGS: u64 = 0xfff;
/// A page of equal bytes: `u8` of them, 0 today.
const ZERO: u16 = 0x002;
/// The blocks; the offset is their total.
const MEM_SIZE: u16 = 0x004;
/// A page: its bytes.
const PAGE: u16 = 0x008;
/// The end of the section.
const END: u16 = 0x010;
/// The block is that of the page before.
const CONTINUE: u16 = 0x020;
/// What changed in a page: `u8` 1, `be16 n`, n bytes.
const XBZRLE: u16 = 0x040;
/// A compressed page (QEMU before 9.1): `be32 n`, n bytes.
const COMPRESSED: u16 = 0x100;
/// The other channels are to be waited for.
const FLUSH: u16 = 0x200;

/// Flags of the record of a page that names no block.
const NEXT_PAGE: u64 = (PAGE | CONTINUE) as u64;
/// Flags of the record of a zero page that names no block.
const NEXT_ZERO: u64 = (ZERO | CONTINUE) as u64;
/// The longest a page can be after zlib: what `compressBound` says, rounded up.
const MOST_COMPRESSED: u32 = 2 * PAGE_BYTES as u32;
/// How changes are encoded.
const XBZRLE_ENCODING: u8 = 1;

/// Reads records, and knows the blocks from section to section.
#[derive(Debug, Default)]
pub(crate) struct Ram {
    /// What comes next.
    state: State,
    /// The blocks.
    blocks: Blocks,
    /// Have they been listed?
    listed: bool,
    /// The block of the page before.
    block: Option<Block>,
}

/// What comes next.
#[derive(Debug, Default)]
enum State {
    /// A record.
    #[default]
    Record,
    /// The list of blocks.
    List(List),
    /// The length of a block's name.
    NameLength(Head),
    /// A block's name.
    Name(Head, usize),
    /// What a zero page is full of.
    Fill,
    /// A page.
    Page,
    /// How changes are encoded, and their length.
    Changes,
    /// The length of a compressed page.
    CompressedLength,
    /// So many bytes of a page in some other form.
    Encoded(u32),
}

/// What is known of a page before its block is.
#[derive(Clone, Copy, Debug)]
struct Head {
    /// Its offset.
    offset: u64,
    /// What form it has: [`ZERO`], [`PAGE`], [`XBZRLE`] or [`COMPRESSED`].
    form: u16,
}

impl Ram {
    /// What it wants next.
    pub(crate) fn need(&self) -> Need {
        match &self.state {
            State::Record => Need::Field(WORD_BYTES),
            State::List(list) => list.need(),
            State::NameLength(_) | State::Fill => Need::Field(1),
            State::Name(_, length) => Need::Field(*length),
            State::Page => Need::Page,
            State::Changes => Need::Field(3),
            State::CompressedLength => Need::Field(4),
            State::Encoded(bytes) => Need::Skip((*bytes).into()),
        }
    }

    /// Takes the field that it wanted.
    ///
    /// # Errors
    ///
    /// The field makes no sense.
    pub(crate) fn take(
        &mut self,
        field: &[u8],
        extras: Extras,
        output: &mut Output<'_>,
    ) -> Result<Flow, Reason> {
        match &mut self.state {
            State::Record => return self.record(be64(field, 0), extras, output),
            State::List(list) => {
                let flow = list.take(field, &mut self.blocks)?;
                if list.is_complete() && flow != Flow::More {
                    self.state = State::Record;
                }
                return Ok(if flow == Flow::Unread {
                    Flow::Unread
                } else {
                    Flow::More
                });
            }
            State::NameLength(head) => self.state = State::Name(*head, name_length(field, 0)?),
            State::Name(head, _) => {
                let head = *head;
                self.block = Some(self.blocks.find(field)?);
                self.state = self.page(head)?;
            }
            State::Changes => {
                let length = be16(field, 1);
                if byte(field, 0) != XBZRLE_ENCODING || usize::from(length) > PAGE_BYTES {
                    return Err(Reason::BadLength(length.into()));
                }
                self.state = State::Encoded(length.into());
            }
            State::CompressedLength => match be32(field, 0) {
                length @ ..=MOST_COMPRESSED => self.state = State::Encoded(length),
                length => return Err(Reason::BadLength(length)),
            },
            State::Fill | State::Page | State::Encoded(_) => self.state = State::Record,
        }
        Ok(Flow::More)
    }

    /// A page or an encoded page is over.
    pub(crate) fn passed(&mut self) {
        self.state = State::Record;
    }

    /// A record that starts with `word`.
    fn record(
        &mut self,
        word: u64,
        extras: Extras,
        output: &mut Output<'_>,
    ) -> Result<Flow, Reason> {
        // CAST: The flags have 12 bits.
        let flags = (word & FLAGS) as u16;
        let offset = word & !FLAGS;
        let form = flags & !CONTINUE;
        match flags {
            END | FLUSH if offset != 0 => return Err(Reason::RecordFlags(flags)),
            END => return Ok(Flow::Done),
            FLUSH => {}
            MEM_SIZE if !self.listed => {
                self.listed = true;
                output.mark(Mark::RamStart { bytes: offset });
                if let Some(list) = List::new(offset, extras)? {
                    self.state = State::List(list);
                }
            }
            _ if !matches!(form, ZERO | PAGE | XBZRLE | COMPRESSED) => {
                return Err(Reason::RecordFlags(flags));
            }
            _ if flags & CONTINUE != 0 => self.state = self.page(Head { offset, form })?,
            _ => self.state = State::NameLength(Head { offset, form }),
        }
        Ok(Flow::More)
    }

    /// What follows the head of a page, once its block is known.
    fn page(&self, head: Head) -> Result<State, Reason> {
        let block = self.block.ok_or(Reason::NoSuchBlock)?;
        if head.offset > block.last_page {
            return Err(Reason::OutsideBlock);
        }
        Ok(match head.form {
            ZERO => State::Fill,
            PAGE => State::Page,
            XBZRLE => State::Changes,
            _ => State::CompressedLength,
        })
    }

    /// The common case, as fast as it goes: reads the records at the head of `bytes` that are whole and
    /// name no block, and says how many bytes they are.
    #[inline]
    pub(crate) fn run(&self, bytes: &[u8], output: &mut Output<'_>) -> usize {
        let (State::Record, Some(block)) = (&self.state, self.block) else {
            return 0;
        };
        let mut rest = bytes;
        while let Some((word, body)) = rest.split_first_chunk::<WORD_BYTES>() {
            let word = u64::from_be_bytes(*word);
            let offset = word & !FLAGS;
            if offset > block.last_page {
                break;
            }
            if word & FLAGS == NEXT_PAGE && body.len() >= PAGE_BYTES {
                output.push(Piece::Page {
                    offset: Some(offset),
                });
                rest = body.get(PAGE_BYTES..).unwrap_or(&[]);
            } else if word & FLAGS == NEXT_ZERO && body.first() == Some(&0) {
                output.push(Piece::Zero { offset });
                rest = body.get(ZERO_BYTES - WORD_BYTES..).unwrap_or(&[]);
            } else {
                break;
            }
        }
        // OVERFLOW: The rest is a part of it.
        bytes.len() - rest.len()
    }
}
