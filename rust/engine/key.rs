// SPDX-License-Identifier: GPL-2.0

//! What a page is found by: a key of 64 bits.
//!
//! | bits     | what                                                              |
//! |----------|-------------------------------------------------------------------|
//! | 63 .. 32 | its *class*: 32 bits of the hash of a sample, not 0               |
//! | 31 .. 0  | 0, or 32 bits of the hash of the whole page, not 0                |
//!
//! A sample is an eighth of the page. Most pages that have a sample in common are equal, so a page
//! is keyed by its class alone, which costs an eighth of a hash. When two such pages turn out to
//! differ, the class is *crowded*: the one that stays in the tree gets a key with the hash of all
//! of it, and so does each page of that class that comes while there is such a key in the tree. So
//! a class is crowded as long as somebody is in it, and nothing else has to remember that.
//!
//! Keys are hints, see [`super::xxh64`]: whoever crafts pages of one key makes them cost a
//! comparison each.

use super::xxh64::{
    hash_words,
    ROW_WORDS, //
};

/// The key of a page whose content is not known.
pub const UNKNOWN: u64 = 0;

/// Words of 8 bytes in a page.
pub const PAGE_WORDS: usize = 512;

/// Words in a line of 64 bytes.
pub const LINE_WORDS: usize = 8;

/// Words in a sample: one line in each 512 bytes.
const SAMPLE_WORDS: usize = PAGE_WORDS / 8;

/// Words from one line of a sample to the next: 576 bytes.
const APART: usize = 9 * LINE_WORDS;

/// Spreads NUMA nodes over the classes.
const NODE_PRIME: u64 = 0x9e37_79b1_85eb_ca87;

const WHOLE: u64 = 0xffff_ffff;

/// Returns XXH64 of the sample of a page, word `i` of which `word(i)` reads.
///
/// Lines are 576 bytes apart, each another distance away from a multiple of 512, so that structures
/// of a common size are not missed in one place.
#[inline(always)]
pub fn sample(word: impl Fn(usize) -> u64, seed: u64) -> u64 {
    // By the rows in which the hash takes words, so that the compiler finds all words of a row from
    // where it begins. OVERFLOW: Below `PAGE_WORDS`.
    const ROW_APART: usize = ROW_WORDS / LINE_WORDS * APART;
    let place = |at: usize| {
        let (row, in_row) = (at / ROW_WORDS, at % ROW_WORDS);
        let line = (in_row / LINE_WORDS).wrapping_mul(APART);
        let first = row.wrapping_mul(ROW_APART).wrapping_add(line);
        first.wrapping_add(in_row % LINE_WORDS)
    };
    hash_words(SAMPLE_WORDS, |at| word(place(at)), seed)
}

/// Returns the key of a class, from the hash of a sample.
pub const fn of_sample(hash: u64) -> u64 {
    let class = hash << 32;
    if class == UNKNOWN {
        1 << 32
    } else {
        class
    }
}

/// Returns the key of a class for pages on one NUMA node.
pub const fn of_sample_on(hash: u64, node: u8) -> u64 {
    // CAST: It is wider. OVERFLOW: Only bits count.
    let number = (node as u64).wrapping_add(1);
    of_sample(hash ^ number.wrapping_mul(NODE_PRIME))
}

/// Returns the key of a page of the class of `key`, from the hash of the whole page.
pub const fn of_whole(key: u64, hash: u64) -> u64 {
    let whole = hash & WHOLE;
    class(key) | if whole == 0 { 1 } else { whole }
}

/// Returns the key of the class of `key`.
pub const fn class(key: u64) -> u64 {
    key & !WHOLE
}

/// Returns whether the key has the hash of a whole page.
pub const fn is_whole(key: u64) -> bool {
    key & WHOLE != 0
}

/// Returns whether the key has that hash of a whole page.
pub const fn has_whole(key: u64, hash: u64) -> bool {
    of_whole(key, hash) == key
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_key))]
mod tests {
    use super::*;

    const HASHES: [u64; 5] = [0, 1, 1 << 32, 0x0123_4567_89ab_cdef, u64::MAX];

    #[test]
    fn no_key_is_that_of_no_content() {
        for hash in HASHES {
            assert!(of_sample(hash) != UNKNOWN);
            assert!(!is_whole(of_sample(hash)));
            assert_eq!(class(of_sample(hash)), of_sample(hash));
        }
    }

    #[test]
    fn a_whole_key_stays_in_its_class() {
        for sample in HASHES {
            for hash in HASHES {
                let key = of_whole(of_sample(sample), hash);
                assert!(is_whole(key));
                assert_eq!(class(key), of_sample(sample));
                assert!(has_whole(key, hash));
                assert!(!has_whole(key, hash ^ 0x10));
            }
        }
    }

    #[test]
    fn nodes_have_classes_of_their_own() {
        assert!(of_sample_on(7, 0) != of_sample_on(7, 1));
        assert!(of_sample_on(7, 0) != of_sample(7));
    }

    #[test]
    fn a_sample_has_a_line_of_each_eighth() {
        for eighth in 0..8 {
            let in_sample = |word: usize| {
                let changed = |at: usize| u64::from(at == word);
                sample(changed, 1) != sample(|_| 0, 1)
            };
            let words = eighth * 64..(eighth + 1) * 64;
            assert_eq!(words.filter(|word| in_sample(*word)).count(), LINE_WORDS);
        }
    }
}
