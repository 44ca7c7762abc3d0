// SPDX-License-Identifier: GPL-2.0

//! The blocks of RAM and the list of them at the start of RAM.
//!
//! ```text
//! until the lengths add up to the total of the record before:
//!     u8 n, n bytes: name, be64 length
//!     [be64 page size]   with postcopy, of a block of larger pages
//!     [be64 address]     with x-ignore-shared
//! ```
//!
//! Nothing says whether a page size is there. But it is a power of two from 4096 on that the advice
//! of postcopy has announced, while what else may come is either a name, whose length makes the
//! eight bytes at least 2^56, or a record without a page, which is less than 4096.

use std::collections::HashMap;

use crate::field::{
    be64,
    name,
    name_length,
    Flow,
    Need, //
};
use crate::piece::PAGE_BYTES;
use crate::reason::Reason;

/// More blocks than any machine has.
const MOST_BLOCKS: usize = 4096;

/// The blocks that were listed.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// Offset of the last page of each, by name; [`None`] if it has no page.
    last_pages: HashMap<Box<str>, Option<u64>>,
}

/// A block whose pages may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Offset of its last page.
    pub(crate) last_page: u64,
}

impl Blocks {
    /// The block `name`.
    ///
    /// # Errors
    ///
    /// It was not listed, or has no page.
    pub(crate) fn find(&self, name: &[u8]) -> Result<Block, Reason> {
        let name = std::str::from_utf8(name).map_err(|_| Reason::NoSuchBlock)?;
        let last_page = self.last_pages.get(name).copied().flatten();
        last_page
            .map(|last_page| Block { last_page })
            .ok_or(Reason::NoSuchBlock)
    }

    /// Adds one.
    fn insert(&mut self, name: &str, bytes: u64) -> Result<(), Reason> {
        let last_page = bytes.checked_sub(PAGE_BYTES as u64);
        let known = self.last_pages.insert(name.into(), last_page).is_some();
        match known || self.last_pages.len() > MOST_BLOCKS {
            true => Err(Reason::BlockList),
            false => Ok(()),
        }
    }
}

/// What the list may have in it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extras {
    /// All sizes of pages, from the advice of postcopy; 0 without it.
    pub(crate) page_sizes: u64,
    /// Are there addresses?
    pub(crate) addresses: bool,
}

impl Extras {
    /// Is `word` the size of a block's pages?
    fn is_page_size(self, word: u64) -> bool {
        word >= PAGE_BYTES as u64 && word.is_power_of_two() && word & self.page_sizes != 0
    }
}

/// Reads the list.
#[derive(Debug)]
pub(crate) struct List {
    /// What comes next.
    state: State,
    /// Bytes of the blocks that are still to come.
    left: u64,
    /// What it may have in it.
    extras: Extras,
}

/// What comes next in the list.
#[derive(Clone, Copy, Debug)]
enum State {
    /// The length of a name.
    NameLength,
    /// A name and the block's length.
    Name(usize),
    /// A page size, or something else.
    PageSize,
    /// An address.
    Address,
}

impl List {
    /// The list of blocks of `total` bytes; [`None`] if it is empty.
    ///
    /// # Errors
    ///
    /// It cannot be told how to read it.
    pub(crate) fn new(total: u64, extras: Extras) -> Result<Option<Self>, Reason> {
        if extras.page_sizes != 0 && extras.addresses {
            // QEMU allows only one of them: an address may look like a page size.
            return Err(Reason::AmbiguousBlockList);
        }
        let state = State::NameLength;
        Ok((total > 0).then_some(Self {
            state,
            left: total,
            extras,
        }))
    }

    /// What it wants next.
    pub(crate) fn need(&self) -> Need {
        Need::Field(match self.state {
            State::NameLength => 1,
            State::Name(length) => length + 8,
            State::PageSize | State::Address => 8,
        })
    }

    /// Takes the field that it wanted.
    pub(crate) fn take(&mut self, field: &[u8], blocks: &mut Blocks) -> Result<Flow, Reason> {
        match self.state {
            State::NameLength => {
                self.state = State::Name(name_length(field, 0)?);
                Ok(Flow::More)
            }
            State::Name(length) => {
                let bytes = be64(field, length);
                blocks.insert(name(field.get(..length).unwrap_or(&[]))?, bytes)?;
                self.left = self.left.checked_sub(bytes).ok_or(Reason::BlockList)?;
                match self.extras {
                    Extras {
                        addresses: true, ..
                    } => self.state = State::Address,
                    Extras { page_sizes: 0, .. } => return Ok(self.entry_ended()),
                    _ => self.state = State::PageSize,
                }
                Ok(Flow::More)
            }
            State::PageSize if self.extras.is_page_size(be64(field, 0)) => Ok(self.entry_ended()),
            State::PageSize => {
                self.entry_ended();
                Ok(Flow::Unread)
            }
            State::Address => Ok(self.entry_ended()),
        }
    }

    /// Is the list complete?
    pub(crate) fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// An entry is complete.
    fn entry_ended(&mut self) -> Flow {
        self.state = State::NameLength;
        match self.left {
            0 => Flow::Done,
            _ => Flow::More,
        }
    }
}
