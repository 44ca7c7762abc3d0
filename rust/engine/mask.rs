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

    /// Returns the set of the indexes that are marked; `marks` are those of 0, 1 and so on.
    #[inline]
    pub fn of(mut marks: impl Iterator<Item = bool>) -> Self {
        let mut words = [0; WORDS];
        for word in &mut words {
            let mut bit = 1_u64;
            for mark in marks.by_ref().take(64) {
                if mark {
                    *word |= bit;
                }
                bit = bit.wrapping_shl(1);
            }
        }
        Self(words)
    }

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
        for (at, word) in self.0.iter_mut().enumerate() {
            let base = at.wrapping_mul(64);
            let first = range.start.saturating_sub(base);
            let end = range.end.saturating_sub(base);
            *word |= below(end) & !below(first);
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

    /// Returns the indexes that are in both sets.
    pub fn and(&self, other: &Self) -> Self {
        let mut both = *self;
        for (word, more) in both.0.iter_mut().zip(&other.0) {
            *word &= more;
        }
        both
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
    pub fn iter(&self) -> Indexes<'_> {
        Indexes {
            words: self.0.iter(),
            word: 0,
            next: 0,
        }
    }

    /// Returns the smallest range that has all indexes.
    pub fn hull(&self) -> Range<usize> {
        let first = self.iter().next().unwrap_or(0);
        let last = (0..BLOCK_PAGES).rev().find(|index| self.has(*index));
        first..last.map_or(first, |last| last.wrapping_add(1))
    }
}

/// The indexes of a set, in ascending order.
pub struct Indexes<'a> {
    words: core::slice::Iter<'a, u64>,
    /// Bits of the present word that are to come.
    word: u64,
    /// Index of the first bit of the next word.
    next: usize,
}

impl Iterator for Indexes<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.word == 0 {
            self.word = *self.words.next()?;
            // OVERFLOW: At most 512.
            self.next = self.next.wrapping_add(64);
        }
        // CAST: Below 64.
        let bit = self.word.trailing_zeros() as usize;
        // OVERFLOW: The word is not 0, and not the next one.
        self.word &= self.word.wrapping_sub(1);
        Some(self.next.wrapping_sub(64).wrapping_add(bit))
    }
}

/// The lowest `count` bits of a word.
fn below(count: usize) -> u64 {
    match count {
        // CAST: Below 64.
        0..64 => bit(count).wrapping_sub(1),
        _ => u64::MAX,
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
    fn what_is_marked_is_there() {
        let some = Mask::of((0..BLOCK_PAGES).map(|index| index % 65 == 0));
        assert!(some.iter().eq([0, 65, 130, 195, 260, 325, 390, 455]));
        let few = Mask::of([false, true, true].into_iter());
        assert!(few.iter().eq([1, 2]));
        assert_eq!(Mask::of((0..2 * BLOCK_PAGES).map(|_| true)).count(), 512);
        assert_eq!(few.and(&some), Mask::EMPTY);
        assert_eq!(few.and(&few), few);
    }

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
    fn a_range_is_what_its_indexes_are() {
        let edges = [0, 1, 62, 63, 64, 65, 127, 128, 447, 448, 511, 512, 600];
        for start in edges {
            for end in edges {
                let (mut all, mut each) = (Mask::EMPTY, Mask::EMPTY);
                all.add_range(start..end);
                (start..end).for_each(|index| each.add(index));
                assert_eq!(all, each);
                assert!(all.iter().eq(start..end.min(BLOCK_PAGES)));
            }
        }
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
