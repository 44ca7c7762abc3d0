// SPDX-License-Identifier: GPL-2.0

//! Pages that are sent from where they lie, so that nobody copies them before they are written.

use std::fmt;
use std::sync::Arc;

use crate::page::{
    Page,
    PAGE_BYTES, //
};

/// Memory that pages are sent from. What it gives is always the same; it lives until the blocks
/// with its pages were written.
pub type Memory = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A page that lies in memory of somebody else.
#[derive(Clone, Copy)]
pub struct LentPage<'a> {
    memory: &'a Memory,
    /// # Invariants
    ///
    /// A whole page of the memory begins here.
    at: usize,
}

/// Pages that belong into a buffer in which they do not lie.
#[derive(Clone, Default)]
pub(crate) struct LentPages {
    /// What they lie in, in order, each once in a row.
    memories: Vec<Memory>,
    /// The pages, in the order of their places.
    pages: Vec<Seat>,
}

/// A page of [`LentPages`].
#[derive(Clone, Copy)]
struct Seat {
    /// The byte of the buffer that it comes before.
    place: usize,
    /// Which of the memories.
    memory: usize,
    /// Where it begins there.
    ///
    /// # Invariants
    ///
    /// As for [`LentPage`].
    at: usize,
}

impl<'a> LentPage<'a> {
    /// The page that begins at `at`, if a whole one does.
    pub fn new(memory: &'a Memory, at: usize) -> Option<Self> {
        page(memory, at).map(|_| Self { memory, at })
    }
}

impl LentPages {
    /// Adds a page before the byte `place` of the buffer, which is not before that of the last.
    pub(crate) fn push(&mut self, place: usize, page: LentPage<'_>) {
        let last = self.memories.last();
        if !last.is_some_and(|last| Arc::ptr_eq(last, page.memory)) {
            self.memories.push(Arc::clone(page.memory));
        }
        self.pages.push(Seat {
            place,
            memory: self.memories.len() - 1,
            at: page.at,
        });
    }

    /// Bytes of all pages.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// `buffer` with the pages in it, in parts.
    pub(crate) fn parts<'a>(&'a self, buffer: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let mut from = 0;
        let parts = self.pages.iter().flat_map(move |seat| {
            let before = &buffer[from..seat.place];
            from = seat.place;
            // PANIC: A page began there before, and memory that was lent stays as it is.
            let page = page(&self.memories[seat.memory], seat.at).expect("a page");
            [before, page.as_slice()]
        });
        let last = self.pages.last().map_or(0, |seat| seat.place);
        parts.chain([&buffer[last..]])
    }
}

impl fmt::Debug for LentPage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentPage")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for LentPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentPages")
            .field("pages", &self.pages.len())
            .finish_non_exhaustive()
    }
}

/// The page at `at` of `memory`.
fn page(memory: &Memory, at: usize) -> Option<&Page> {
    (**memory).as_ref().get(at..)?.first_chunk()
}

/// All bytes of a frame, in parts.
#[derive(Debug)]
pub struct Spread {
    /// Those that lie in no memory of others.
    pub(crate) bytes: Vec<u8>,
    /// The pages that lie there.
    pub(crate) lent: LentPages,
}

impl Spread {
    /// The bytes, in order.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.lent.parts(&self.bytes)
    }

    /// How many they are.
    pub fn wire_bytes(&self) -> usize {
        self.bytes.len() + self.lent.bytes()
    }

    /// What is left when they were written: a buffer for [`BlockWriter::recycle`].
    ///
    /// [`BlockWriter::recycle`]: crate::BlockWriter::recycle
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}
