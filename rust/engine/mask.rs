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

    /// The set of all indexes.
    pub const ALL: Self = Self([u64::MAX; WORDS]);

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
    #[inline]
    pub fn add_range(&mut self, range: Range<usize>) {
        let mut at = range.start / 64;
        while let Some(word) = self.0.get_mut(at) {
            let base = at.wrapping_mul(64);
            let end = range.end.saturating_sub(base);
            *word |= below(end) & !below(range.start.saturating_sub(base));
            if end <= 64 {
                return;
            }
            // OVERFLOW: Below `WORDS`.
            at = at.wrapping_add(1);
        }
    }

    /// Adds those of the eight indexes from `at * 8` on of which byte `index % 8` of `marks` is
    /// odd.
    #[inline]
    pub fn add_eight(&mut self, at: usize, marks: u64) {
        const LOW_BITS: u64 = 0x0101_0101_0101_0101;
        // The product has the mark of byte `i` in bit `56 + i`, and no carries get there.
        const GATHER: u64 = 0x0102_0408_1020_4080;
        let bits = (marks & LOW_BITS).wrapping_mul(GATHER) >> 56;
        if let Some(word) = self.0.get_mut(at / 8) {
            // CAST: Below 64.
            *word |= bits.wrapping_shl((at % 8).wrapping_mul(8) as u32);
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

    /// Returns the indexes that are in one of the sets.
    pub fn or(&self, other: &Self) -> Self {
        let mut either = *self;
        for (word, more) in either.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
        either
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

    /// Returns the first indexes from `from` on that are neighbours.
    pub fn run(&self, from: usize) -> Option<Range<usize>> {
        let mut rest = *self;
        for (at, word) in rest.0.iter_mut().enumerate() {
            *word &= !below(from.saturating_sub(at.wrapping_mul(64)));
        }
        let first = rest.iter().next()?;
        let end = (first..BLOCK_PAGES).find(|index| !self.has(*index));
        Some(first..end.unwrap_or(BLOCK_PAGES))
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
        for marks in 0..=255_u64 {
            // The other bits of the bytes do not matter.
            let mut eight = 0xfefe_fefe_fefe_fefe;
            for byte in 0..8 {
                eight |= ((marks >> byte) & 1) << (8 * byte);
            }
            for at in [0, 7, 8, 63] {
                let mut mask = Mask::EMPTY;
                mask.add_eight(at, eight);
                let marked = (0..8_usize).filter(|byte| (marks >> byte) & 1 == 1);
                assert!(mask.iter().eq(marked.map(|byte| 8 * at + byte)));
            }
        }
        let mut none = Mask::EMPTY;
        none.add_eight(64, u64::MAX);
        assert!(none.is_empty());
    }

    #[test]
    fn sets_are_joined() {
        let (mut some, mut few) = (Mask::EMPTY, Mask::EMPTY);
        some.add_range(3..300);
        few.add_range(299..302);
        assert!(some.and(&few).iter().eq([299]));
        assert!(some.or(&few).iter().eq(3..302));
        assert!(few.without(&some).iter().eq([300, 301]));
        assert_eq!(Mask::ALL.and(&few), few);
        assert_eq!(Mask::ALL.count(), 512);
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
    fn runs_are_found_one_after_the_other() {
        let mut mask = Mask::EMPTY;
        mask.add_range(3..70);
        mask.add_range(71..72);
        mask.add_range(128..512);
        let runs = [
            (0, Some(3..70)),
            (5, Some(5..70)),
            (70, Some(71..72)),
            (72, Some(128..512)),
            (511, Some(511..512)),
            (512, None),
        ];
        for (from, run) in runs {
            assert_eq!(mask.run(from), run);
        }
    }

    #[test]
    fn the_hull_of_nothing_is_empty() {
        assert!(Mask::EMPTY.hull().is_empty());
    }
}
