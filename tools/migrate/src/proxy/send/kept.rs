// SPDX-License-Identifier: GPL-2.0

//! Pages that were sent as references, until the receiver has them for certain.

use std::collections::VecDeque;
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};

use twinpage_wire::Page;
#[cfg(test)]
use twinpage_wire::PAGE_BYTES;

use crate::proxy::send::chunk::Chunk;

/// The pages of one channel.
///
/// References have ascending numbers and end at ascending offsets of the stream, and the window
/// bounds how many bytes of the stream are under way: that bounds what is kept.
#[derive(Default)]
pub struct Kept(Mutex<Inner>);

/// What [`Kept`] guards.
#[derive(Default)]
struct Inner {
    /// Number of the first page.
    first: u64,
    /// The pages.
    pages: VecDeque<Entry>,
}

/// A page.
struct Entry {
    /// Offset in the stream behind it.
    end: u64,
    /// Its bytes.
    bytes: Bytes,
}

/// Where the bytes are.
enum Bytes {
    /// In a chunk that is mostly full, at this place.
    Shared(Arc<Chunk>, usize),
    /// Copied, because the rest of the chunk is not worth keeping.
    Own(Box<Page>),
}

impl Kept {
    /// Keeps the page at `at` in `chunk`, whose reference has `number` and whose bytes end at
    /// `end` in the stream. False if there is no page at `at`, or `number` is not the next.
    pub fn push(&self, number: u64, end: u64, chunk: &Arc<Chunk>, at: usize) -> bool {
        let Some(page) = chunk.page(at) else {
            return false;
        };
        let bytes = if chunk.is_worth_keeping() {
            Bytes::Shared(Arc::clone(chunk), at)
        } else {
            Bytes::Own(Box::new(*page))
        };
        let mut inner = self.lock();
        if inner.pages.is_empty() {
            inner.first = number;
        }
        let is_next = inner.first.checked_add(inner.pages.len() as u64) == Some(number);
        if is_next {
            inner.pages.push_back(Entry { end, bytes });
        }
        is_next
    }

    /// The page of reference `number`.
    pub fn get(&self, number: u64) -> Option<Box<Page>> {
        let inner = self.lock();
        let index = usize::try_from(number.checked_sub(inner.first)?).ok()?;
        match &inner.pages.get(index)?.bytes {
            Bytes::Shared(chunk, at) => chunk.page(*at).map(|page| Box::new(*page)),
            Bytes::Own(page) => Some(page.clone()),
        }
    }

    /// Lets go of the pages that end at `position` in the stream or before.
    pub fn release(&self, position: u64) {
        let mut inner = self.lock();
        while inner.pages.front().is_some_and(|page| page.end <= position) {
            inner.pages.pop_front();
            inner.first += 1;
        }
    }

    /// Bytes of the pages that are kept.
    #[cfg(test)]
    fn page_bytes(&self) -> usize {
        self.lock().pages.len() * PAGE_BYTES
    }

    /// The pages, also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::shelf::{
        Shelf,
        CHUNK_BYTES, //
    };

    fn chunk(filled: usize) -> Arc<Chunk> {
        let shelf = Arc::new(Shelf::default());
        let mut buffer = shelf.take();
        for (n, page) in buffer.chunks_mut(PAGE_BYTES).enumerate() {
            page.fill(n as u8);
        }
        Arc::new(Chunk::new(buffer, Vec::new(), filled, &shelf))
    }

    #[test]
    fn pages_are_found_by_number_until_released() {
        for filled in [4 * PAGE_BYTES, CHUNK_BYTES] {
            let kept = Kept::default();
            let chunk = chunk(filled);
            for n in 0..4u64 {
                let at = n as usize * PAGE_BYTES;
                assert!(kept.push(n, (n + 1) * 4096, &chunk, at));
            }
            kept.release(2 * 4096 + 1);
            assert_eq!(kept.get(1), None);
            assert_eq!(kept.get(2).unwrap()[..], [2; PAGE_BYTES]);
            assert_eq!(kept.get(3).unwrap()[0], 3);
            assert_eq!(kept.get(4), None);
            assert_eq!(kept.get(u64::MAX), None);
            assert_eq!(kept.page_bytes(), 2 * PAGE_BYTES);
            kept.release(u64::MAX);
            assert_eq!(kept.page_bytes(), 0);
            assert!(kept.push(9, 1 << 40, &chunk, 0));
            assert_eq!(kept.get(9).unwrap()[0], 0);
        }
    }

    #[test]
    fn a_gap_in_the_numbers_is_refused() {
        let kept = Kept::default();
        let chunk = chunk(CHUNK_BYTES);
        assert!(kept.push(5, 1, &chunk, 0));
        assert!(!kept.push(7, 2, &chunk, 0));
        assert!(!kept.push(6, 2, &chunk, CHUNK_BYTES - 1));
        assert!(kept.push(6, 2, &chunk, 0));
    }
}
