// SPDX-License-Identifier: GPL-2.0

//! What a look at a block found.
//!
//! Most pages are as they were, so what is asked first of all of them is what class they are of: a
//! set for each class that records have something to be compared with.

use core::ops::Range;

use super::{
    mask::Mask,
    world::{
        Pfn,
        Seen,
        BLOCK_PAGES, //
    },
};
use crate::mem::{
    AllocError,
    KVVec,
    GFP_KERNEL, //
};

/// What was seen of the pages of a block; of those that were not looked at it means nothing.
#[derive(Debug)]
pub struct Sight {
    absent: Mask,
    zero: Mask,
    small: Mask,
    huge: Mask,
    merged: Mask,
    /// Of the pages that are neither in `absent` nor in `zero`.
    pages: KVVec<Seen>,
}

impl Sight {
    /// Allocates the room.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory.
    pub fn new() -> Result<Self, AllocError> {
        Ok(Self {
            absent: Mask::EMPTY,
            zero: Mask::EMPTY,
            small: Mask::EMPTY,
            huge: Mask::EMPTY,
            merged: Mask::EMPTY,
            pages: KVVec::from_elem(Seen::Absent, BLOCK_PAGES, GFP_KERNEL)?,
        })
    }

    /// Forgets the last look.
    pub fn clear(&mut self) {
        self.absent = Mask::EMPTY;
        self.zero = Mask::EMPTY;
        self.small = Mask::EMPTY;
        self.huge = Mask::EMPTY;
        self.merged = Mask::EMPTY;
    }

    /// Keeps what was seen of `pages`, each of which is told once after [`Self::clear`].
    #[inline(always)]
    pub fn put(&mut self, pages: Range<usize>, seen: Seen) {
        let set = match seen {
            Seen::Absent => return self.absent.add_range(pages),
            Seen::Zero => return self.zero.add_range(pages),
            Seen::Anon { .. } => Some(&mut self.small),
            Seen::Huge { .. } => Some(&mut self.huge),
            Seen::Merged { .. } => Some(&mut self.merged),
            Seen::Skip(_) => None,
        };
        let (first, next) = (pages.start, pages.start.wrapping_add(1));
        // Copies are each another, so most runs of them have one page.
        if pages.end == next {
            if let Some(set) = set {
                set.add(first);
            }
            if let Some(kept) = self.pages.get_mut(first) {
                *kept = seen;
            }
            return;
        }
        if let Some(set) = set {
            set.add_range(pages.clone());
        }
        if let Some(kept) = self.pages.get_mut(pages) {
            kept.fill(seen);
        }
    }

    /// Returns what was seen of the page at `index`.
    pub fn get(&self, index: usize) -> Seen {
        if self.absent.has(index) {
            Seen::Absent
        } else if self.zero.has(index) {
            Seen::Zero
        } else {
            self.pages.get(index).copied().unwrap_or(Seen::Absent)
        }
    }

    /// Returns the pages at which nothing is mapped.
    pub fn absent(&self) -> &Mask {
        &self.absent
    }

    /// Returns the pages that map the shared zero page.
    pub fn zero(&self) -> &Mask {
        &self.zero
    }

    /// Returns the private pages that are in no large folio.
    pub fn small(&self) -> &Mask {
        &self.small
    }

    /// Returns the private pages in large folios.
    pub fn huge(&self) -> &Mask {
        &self.huge
    }

    /// Returns the pages that map a merged copy.
    pub fn merged(&self) -> &Mask {
        &self.merged
    }

    /// Returns the frame of the copy that the page at `index` maps, which is in [`Self::merged`].
    pub fn frame(&self, index: usize) -> Option<Pfn> {
        match self.pages.get(index)? {
            Seen::Merged { pfn, .. } => Some(*pfn),
            _ => None,
        }
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_sight))]
mod tests {
    use super::*;
    use crate::engine::world::{
        Skip,
        Token, //
    };

    #[test]
    fn what_was_put_is_seen() -> Result<(), AllocError> {
        let merged = Seen::Merged {
            pfn: Pfn(7),
            token: Token(9),
        };
        let runs = [
            (0..1, Seen::Absent),
            (1..70, Seen::Zero),
            (70..71, merged),
            (71..200, Seen::Anon { node: 1 }),
            (200..201, Seen::Skip(Skip::Ksm)),
            (201..511, Seen::Huge { node: 2 }),
            (511..512, Seen::Absent),
        ];
        let mut sight = Sight::new()?;
        sight.put(0..BLOCK_PAGES, Seen::Zero);
        sight.clear();
        for (pages, seen) in runs.clone() {
            sight.put(pages, seen);
        }
        for (pages, seen) in runs {
            for index in pages {
                assert_eq!(sight.get(index), seen);
                assert_eq!(sight.absent().has(index), seen == Seen::Absent);
                assert_eq!(sight.zero().has(index), seen == Seen::Zero);
                assert_eq!(sight.small().has(index), seen == Seen::Anon { node: 1 });
                assert_eq!(sight.huge().has(index), seen == Seen::Huge { node: 2 });
                assert_eq!(sight.merged().has(index), seen == merged);
            }
        }
        Ok(())
    }
}
