// SPDX-License-Identifier: GPL-2.0

//! The records of pages, 512 at a time.
//!
//! A block is the pages of one page table: 2 MiB of host addresses. Its records are one 8 KiB array
//! of tree nodes and one array of a byte a page, so a page costs 17 bytes and its share of the
//! header. The block knows its guest and address; that is why a page needs no record of where it
//! is.

use super::{
    node::Node,
    page::{
        Kind,
        Meta,
        PageId,
        Record,
        MAX_BLOCKS, //
    },
    world::{
        BLOCK_PAGES,
        PAGE_BYTES, //
    },
};
use crate::mem::{
    AllocError,
    KVVec,
    GFP_KERNEL, //
};

/// End of the list of free numbers.
const NONE: u32 = u32::MAX;

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBlock {
    /// There is no memory.
    Memory,
    /// All numbers are taken.
    Number,
}

impl From<AllocError> for NoBlock {
    fn from(_: AllocError) -> Self {
        Self::Memory
    }
}

/// The records of 512 pages.
#[derive(Debug)]
pub struct Block {
    /// Empty if the number is free.
    nodes: KVVec<Node>,
    meta: KVVec<Meta>,
    /// Address of the first page.
    base: u64,
    /// Position of its guest; of a free number: the next free one.
    guest: u32,
    /// Huge pages that would merge if split.
    waiting: u16,
    /// Listed huge pages that a twin has found since the block was judged.
    votes: u16,
}

impl Block {
    /// Returns the address of the first page.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Returns the position of its guest.
    pub fn guest(&self) -> u32 {
        self.guest
    }

    /// Returns how many of its huge pages would merge if they were split now.
    pub fn waiting(&self) -> u16 {
        self.waiting
    }

    /// Returns how many of its listed huge pages twins have found.
    pub fn votes(&self) -> u16 {
        self.votes
    }

    fn is_free(&self) -> bool {
        self.nodes.is_empty()
    }
}

/// All blocks of an index.
#[derive(Debug)]
pub struct Blocks {
    blocks: KVVec<Block>,
    /// First free number.
    free: u32,
    used: u32,
}

impl Blocks {
    /// Makes none, without allocating.
    pub const fn new() -> Self {
        Self {
            blocks: KVVec::new(),
            free: NONE,
            used: 0,
        }
    }

    /// Adds a block of unseen pages.
    ///
    /// # Errors
    ///
    /// [`NoBlock`]; nothing changed.
    pub fn add(&mut self, guest: u32, base: u64) -> Result<u32, NoBlock> {
        let block = Block {
            nodes: KVVec::from_elem(Node::new(0), BLOCK_PAGES, GFP_KERNEL)?,
            meta: KVVec::from_elem(Meta::UNSEEN, BLOCK_PAGES, GFP_KERNEL)?,
            base,
            guest,
            waiting: 0,
            votes: 0,
        };
        let number = self.free;
        let number = if let Some(slot) = self.blocks.get_mut(number as usize) {
            self.free = slot.guest;
            *slot = block;
            number
        } else {
            // CAST: At most `MAX_BLOCKS`.
            let number = self.blocks.len() as u32;
            if number >= MAX_BLOCKS {
                return Err(NoBlock::Number);
            }
            self.blocks.push(block, GFP_KERNEL)?;
            number
        };
        // OVERFLOW: At most `MAX_BLOCKS`.
        self.used = self.used.wrapping_add(1);
        Ok(number)
    }

    /// Gives up a block, none of whose pages is in the tree or maps a copy.
    pub fn remove(&mut self, number: u32) {
        let next = self.free;
        let Some(block) = self.blocks.get_mut(number as usize) else {
            return;
        };
        if block.is_free() {
            return;
        }
        *block = Block {
            nodes: KVVec::new(),
            meta: KVVec::new(),
            base: 0,
            guest: next,
            waiting: 0,
            votes: 0,
        };
        self.free = number;
        // OVERFLOW: It was in use.
        self.used = self.used.wrapping_sub(1);
    }

    /// Returns a block in use.
    pub fn get(&self, number: u32) -> Option<&Block> {
        let block = self.blocks.get(number as usize)?;
        (!block.is_free()).then_some(block)
    }

    /// Returns how many blocks are in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Returns the bytes that all of it takes.
    pub fn bytes(&self) -> usize {
        let block = size_of::<[Node; BLOCK_PAGES]>().wrapping_add(size_of::<[Meta; BLOCK_PAGES]>());
        // OVERFLOW: It is in memory. CAST: `usize` is wider.
        block
            .wrapping_mul(self.used as usize)
            .wrapping_add(size_of::<Block>().wrapping_mul(self.blocks.capacity()))
    }

    /// Returns the position of the guest and the address of a page.
    pub fn place(&self, page: PageId) -> Option<(u32, u64)> {
        let block = self.get(page.block())?;
        // CAST: `usize` is 64 bits wide. OVERFLOW: Addresses fit.
        let offset = (page.index() as u64).wrapping_mul(PAGE_BYTES);
        Some((block.guest, block.base.wrapping_add(offset)))
    }

    /// Returns the tree node of a page.
    #[inline]
    pub fn node(&self, page: PageId) -> Option<&Node> {
        self.blocks
            .get(page.block() as usize)?
            .nodes
            .get(page.index())
    }

    /// Returns the tree node of a page.
    #[inline]
    pub fn node_mut(&mut self, page: PageId) -> Option<&mut Node> {
        self.blocks
            .get_mut(page.block() as usize)?
            .nodes
            .get_mut(page.index())
    }

    /// Returns what is remembered of a page.
    #[inline]
    pub fn record(&self, page: PageId) -> Record {
        let record = self.blocks.get(page.block() as usize).and_then(|block| {
            let meta = *block.meta.get(page.index())?;
            let node = block.nodes.get(page.index())?;
            Some(Record::unpack(meta, node.key(), node.link()))
        });
        record.unwrap_or(Record::UNSEEN)
    }

    /// Returns kind, level and marks of the pages of a block.
    pub fn metas(&self, number: u32) -> &[Meta] {
        let block = self.blocks.get(number as usize);
        block.map_or(&[], |block| &block.meta)
    }

    /// Returns the tree nodes of the pages of a block.
    pub fn nodes(&self, number: u32) -> &[Node] {
        let block = self.blocks.get(number as usize);
        block.map_or(&[], |block| &block.nodes)
    }

    /// Keeps kind, level and marks of a page, and the block's account of them. Returns the position
    /// of its guest.
    pub fn set_meta(&mut self, page: PageId, old: &Record, new: &Record) -> Option<u32> {
        let block = self.blocks.get_mut(page.block() as usize)?;
        *block.meta.get_mut(page.index())? = new.meta();
        if !old.huge && !new.huge {
            // Only huge pages wait or have votes.
            return Some(block.guest);
        }
        let change = |count: u16, was: bool, is: bool| {
            // OVERFLOW: Counts pages of a block, and only those that were added are taken.
            count
                .wrapping_add(u16::from(is))
                .wrapping_sub(u16::from(was))
        };
        block.waiting = change(
            block.waiting,
            old.waits_for_split(),
            new.waits_for_split(), //
        );
        block.votes = change(block.votes, old.has_vote(), new.has_vote());
        Some(block.guest)
    }

    /// Keeps key and link of a page that is in no tree.
    pub fn set_node(&mut self, page: PageId, new: &Record) {
        if let Some(node) = self.node_mut(page) {
            *node = match new.kind {
                Kind::Merged => Node::with_link(new.key, new.copy.0),
                _ => Node::new(new.key),
            };
        }
    }
}

impl Default for Blocks {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_blocks))]
mod tests {
    use super::*;
    use crate::engine::page::CopyId;

    #[test]
    fn a_page_takes_at_most_seventeen_and_a_half_bytes() -> Result<(), NoBlock> {
        let mut blocks = Blocks::new();
        for base in 0..64 {
            blocks.add(0, base)?;
        }
        assert!(blocks.bytes().saturating_mul(2) <= 64 * BLOCK_PAGES * 35);
        assert_eq!(size_of::<[Node; BLOCK_PAGES]>(), 8192);
        Ok(())
    }

    #[test]
    fn freed_numbers_are_used_again() -> Result<(), NoBlock> {
        let mut blocks = Blocks::new();
        for number in 0..4 {
            assert_eq!(blocks.add(7, u64::from(number)), Ok(number));
        }
        blocks.remove(1);
        blocks.remove(2);
        blocks.remove(2);
        blocks.remove(9);
        assert_eq!(blocks.used(), 2);
        assert!(blocks.get(1).is_none());
        assert_eq!(blocks.add(8, 5), Ok(2));
        assert_eq!(blocks.add(8, 6), Ok(1));
        assert_eq!(blocks.add(8, 7), Ok(4));
        assert_eq!(blocks.used(), 5);
        assert_eq!(
            blocks.get(1).map(|block| (block.guest(), block.base())),
            Some((8, 6))
        );
        Ok(())
    }

    #[test]
    fn a_page_knows_where_it_is() -> Result<(), NoBlock> {
        let mut blocks = Blocks::new();
        let number = blocks.add(3, 0x4000_0000)?;
        let page = PageId::new(number, 511);
        assert_eq!(blocks.place(page), Some((3, 0x4000_0000 + 511 * 4096)));
        assert_eq!(blocks.place(PageId::new(99, 0)), None);
        assert_eq!(blocks.record(PageId::new(99, 0)), Record::UNSEEN);
        Ok(())
    }

    #[test]
    fn records_are_kept() -> Result<(), NoBlock> {
        let mut blocks = Blocks::new();
        let number = blocks.add(0, 0)?;
        let page = PageId::new(number, 77);
        assert_eq!(blocks.record(page), Record::UNSEEN);
        let merged = Record {
            key: 5,
            copy: CopyId(9),
            ..Record::of(Kind::Merged)
        };
        blocks.set_meta(page, &Record::UNSEEN, &merged);
        blocks.set_node(page, &merged);
        assert_eq!(blocks.record(page), merged);
        assert_eq!(blocks.record(PageId::new(number, 78)), Record::UNSEEN);
        Ok(())
    }

    #[test]
    fn a_block_counts_what_would_merge_if_split() -> Result<(), NoBlock> {
        let mut blocks = Blocks::new();
        let number = blocks.add(0, 0)?;
        let parked = Record {
            huge: true,
            ..Record::of(Kind::Parked)
        };
        let voted = Record {
            huge: true,
            mark: true,
            ..Record::of(Kind::Listed)
        };
        let steps = [
            (0, Record::UNSEEN, parked, 1, 0),
            (1, Record::UNSEEN, voted, 1, 1),
            (1, voted, parked, 2, 0),
            (0, parked, parked, 2, 0),
            (0, parked, Record::UNSEEN, 1, 0),
        ];
        for (index, old, new, waiting, votes) in steps {
            blocks.set_meta(PageId::new(number, index), &old, &new);
            let counts = blocks.get(number).map(|b| (b.waiting(), b.votes()));
            assert_eq!(counts, Some((waiting, votes)));
        }
        Ok(())
    }
}
