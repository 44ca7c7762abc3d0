// SPDX-License-Identifier: GPL-2.0

//! Pages that the receiver holds, left in the memory that they came in: nobody copies them but the
//! kernel, when they are written to QEMU.
//!
//! A page keeps all memory alive that it lies in. So it is left there only where most of that
//! memory is such pages ([`is_worth_keeping`]), which go one after the other as they came. A page
//! that stays for longer is copied ([`Keep::alone`]).

use std::mem;
use std::ops::Deref;
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};

use twinpage_wire::{
    Block,
    Keep,
    Page,
    PAGE_BYTES, //
};

use crate::proxy::receive::resolve::Resolved;

/// Blocks that are kept to be filled again, and as many buffers.
const SPARE_BLOCKS: usize = 8;

/// A page and what its bytes lie in.
#[derive(Clone)]
pub enum Held {
    /// A page of a group that was found here: which.
    Found(Arc<Resolved>, usize),
    /// A page of a block: where it begins.
    Sent(Arc<Lent>, u32),
    /// A page by itself.
    Own(Arc<Page>),
}

/// A block in memory that is used again.
pub struct Lent {
    block: Block,
    spare: Arc<Spare>,
}

/// Memory of blocks that are done with.
#[derive(Default)]
pub struct Spare(Mutex<Shelves>);

/// What [`Spare`] guards.
#[derive(Default)]
struct Shelves {
    /// Blocks to decode into.
    blocks: Vec<Block>,
    /// Buffers to receive into.
    buffers: Vec<Vec<u8>>,
}

/// Whether `memory` bytes may stay for the sake of so many pages in them: they are three quarters
/// of it at least.
pub fn is_worth_keeping(pages: usize, memory: usize) -> bool {
    pages * PAGE_BYTES >= memory / 4 * 3
}

impl Held {
    /// The page that begins at `start` in `block`.
    pub fn sent(block: &Arc<Lent>, start: u32) -> Self {
        if is_worth_keeping(block.bodies(), block.memory_bytes()) {
            Self::Sent(Arc::clone(block), start)
        } else {
            Self::Own(Arc::new(*block.page(start)))
        }
    }
}

impl Keep for Held {
    fn page(&self) -> &Page {
        match self {
            Self::Found(group, n) => group.bytes(*n),
            Self::Sent(block, start) => block.page(*start),
            Self::Own(page) => page,
        }
    }

    fn alone(&self) -> Self {
        match self {
            Self::Own(page) => Self::Own(Arc::clone(page)),
            shared => Self::Own(Arc::new(*shared.page())),
        }
    }
}

impl Lent {
    /// A block whose memory goes to `spare` in the end.
    pub fn new(block: Block, spare: &Arc<Spare>) -> Self {
        Self {
            block,
            spare: Arc::clone(spare),
        }
    }
}

impl Deref for Lent {
    type Target = Block;

    fn deref(&self) -> &Block {
        &self.block
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.spare.put(mem::take(&mut self.block));
    }
}

impl Spare {
    /// A block that was kept.
    pub fn block(&self) -> Option<Block> {
        self.lock().blocks.pop()
    }

    /// A buffer that was kept.
    pub fn buffer(&self) -> Option<Vec<u8>> {
        self.lock().buffers.pop()
    }

    /// Keeps a block, and the memory that it was received into by itself.
    fn put(&self, mut block: Block) {
        let received = block.take_received();
        let mut shelves = self.lock();
        if let Some(buffer) = received.filter(|_| shelves.buffers.len() < SPARE_BLOCKS) {
            shelves.buffers.push(buffer);
        }
        if shelves.blocks.len() < SPARE_BLOCKS {
            shelves.blocks.push(block);
        }
    }

    /// What is kept, also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_not_kept_for_the_sake_of_a_page() {
        assert!(is_worth_keeping(64, 64 * PAGE_BYTES));
        assert!(is_worth_keeping(48, 64 * PAGE_BYTES));
        assert!(!is_worth_keeping(47, 64 * PAGE_BYTES));
        assert!(!is_worth_keeping(0, PAGE_BYTES));
    }

    #[test]
    fn a_page_that_stays_is_copied_once() {
        let held = Held::Own(Arc::new([7; PAGE_BYTES]));
        let (Held::Own(before), Held::Own(after)) = (&held, held.alone()) else {
            panic!("it is no page by itself");
        };
        assert!(Arc::ptr_eq(before, &after));
    }

    #[test]
    fn memory_comes_back_once_nobody_holds_it() {
        let spare = Arc::new(Spare::default());
        let block = Arc::new(Lent::new(Block::default(), &spare));
        let other = Arc::clone(&block);
        drop(block);
        assert!(spare.block().is_none());
        drop(other);
        assert!(spare.block().is_some());
        assert!(spare.block().is_none());
    }
}
