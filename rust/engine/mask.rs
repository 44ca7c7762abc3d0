// SPDX-License-Identifier: GPL-2.0

//! A set of pages of one block.

use core::ops::Range;

use super::world::BLOCK_PAGES;

const WORDS: usize = BLOCK_PAGES / 64;

/// A set of indexes below [`BLOCK_PAGES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask([u64; WORDS]);

impl Mask {
    /// The empty set.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// Returns the bits: index `i` is bit `i % 64` of word `i / 64`.
    pub const fn words(&self) -> &[u64; WORDS] {
        &self.0
    }

    /// Returns whether `index` is in the set.
    pub fn has(&self, index: usize) -> bool {
        let word = self.0.get(index / 64).copied().unwrap_or(0);
        word & bit(index) != 0
    }

    /// Adds `index`.
    pub fn add(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word |= bit(index);
        }
    }

    /// Adds all of `range`.
    pub fn add_range(&mut self, range: Range<usize>) {
        for index in range {
            self.add(index);
        }
    }

    /// Returns the number of indexes.
    pub fn count(&self) -> u32 {
        self.0
            .iter()
            .fold(0_u32, |sum, word| sum.wrapping_add(word.count_ones()))
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Returns the indexes that are in this set and not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = *self;
        for (word, less) in rest.0.iter_mut().zip(&other.0) {
            *word &= !less;
        }
        rest
    }

    /// Returns the indexes in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..WORDS).flat_map(|at| Bits {
            word: self.0.get(at).copied().unwrap_or(0),
            base: at.wrapping_mul(64),
        })
    }

    /// Returns the smallest range that has all indexes.
    pub fn hull(&self) -> Range<usize> {
        let first = self.iter().next().unwrap_or(0);
        let last = (0..BLOCK_PAGES).rev().find(|index| self.has(*index));
        first..last.map_or(first, |last| last.wrapping_add(1))
    }
}

/// The bits of one word.
struct Bits {
    word: u64,
    base: usize,
}

impl Iterator for Bits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.word == 0 {
            return None;
        }
        // CAST: Below 64.
        let bit = self.word.trailing_zeros() as usize;
        // OVERFLOW: The word is not 0; indexes are below 512.
        self.word &= self.word.wrapping_sub(1);
        Some(self.base.wrapping_add(bit))
    }
}

fn bit(index: usize) -> u64 {
    // CAST: Below 64.
    1_u64.wrapping_shl((index % 64) as u32)
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_mask))]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_there() {
        let mut mask = Mask::EMPTY;
        assert!(mask.is_empty());
        for index in [0, 1, 63, 64, 300, 511] {
            mask.add(index);
        }
        assert!(mask.iter().eq([0, 1, 63, 64, 300, 511]));
        assert_eq!(mask.count(), 6);
        assert_eq!(mask.hull(), 0..512);
        assert!(mask.has(300) && !mask.has(301));
    }

    #[test]
    fn indexes_beyond_the_block_are_ignored() {
        let mut mask = Mask::EMPTY;
        mask.add(512);
        mask.add(usize::MAX);
        assert!(mask.is_empty());
        assert!(!mask.has(512));
    }

    #[test]
    fn ranges_and_differences() {
        let (mut all, mut some) = (Mask::EMPTY, Mask::EMPTY);
        all.add_range(10..200);
        some.add_range(20..200);
        assert_eq!(all.count(), 190);
        assert_eq!(all.hull(), 10..200);
        assert!(all.without(&some).iter().eq(10..20));
        assert!(some.without(&all).is_empty());
    }

    #[test]
    fn the_hull_of_nothing_is_empty() {
        assert!(Mask::EMPTY.hull().is_empty());
    }
}
