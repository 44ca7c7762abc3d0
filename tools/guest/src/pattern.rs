// SPDX-License-Identifier: GPL-2.0

//! Page contents that can be computed again at any time from a small key.
//!
//! A page that lost a write, or that shows a byte of another page, is named by the first word that
//! differs.

use std::fmt;

/// 64-bit words in a page.
pub const WORDS: usize = 512;

/// Bytes in a page.
pub const PAGE_BYTES: usize = WORDS * 8;

/// One page-aligned page of memory.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Page(pub [u64; WORDS]);

impl Page {
    /// A page of zeroes.
    pub const ZERO: Page = Page([0; WORDS]);

    /// Writes the content that belongs to `key`.
    pub fn fill(&mut self, key: u64) {
        let mut stream = Stream::new(key);
        self.0.iter_mut().for_each(|word| *word = stream.next());
    }

    /// Whether the page holds exactly the content of `key`.
    ///
    /// # Errors
    ///
    /// The first word that differs.
    pub fn holds(&self, key: u64) -> Result<(), Mismatch> {
        let mut stream = Stream::new(key);
        differs(&self.0, |_| stream.next())
    }

    /// Whether the page holds zeroes only.
    ///
    /// # Errors
    ///
    /// The first word that is not zero.
    pub fn is_zero(&self) -> Result<(), Mismatch> {
        differs(&self.0, |_| 0)
    }
}

/// The first word that is not the expected one.
fn differs(words: &[u64; WORDS], mut expected: impl FnMut(usize) -> u64) -> Result<(), Mismatch> {
    for (index, &seen) in words.iter().enumerate() {
        let expected = expected(index);
        if seen != expected {
            return Err(Mismatch {
                offset: index * 8,
                expected,
                seen,
            });
        }
    }
    Ok(())
}

/// The first difference between what a page holds and what it should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Byte offset of the word in its page.
    pub offset: usize,
    /// The word that should be there.
    pub expected: u64,
    /// The word that is there.
    pub seen: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "at byte {}: expected {:#018x}, seen {:#018x}",
            self.offset, self.expected, self.seen
        )
    }
}

impl std::error::Error for Mismatch {}

/// The words of one page: SplitMix64 (Steele, Lea, Flood 2014), seeded with the key.
pub struct Stream(u64);

impl Stream {
    /// The words of the page with this key.
    pub fn new(key: u64) -> Stream {
        Stream(mix(key ^ 0x7477_696e_7061_6765))
    }

    /// The next word.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, so it is no Iterator"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// The finalizer of SplitMix64.
pub fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The key of page `index` in the region that `seed` names.
pub fn key(seed: u64, index: u64) -> u64 {
    mix(seed).wrapping_add(mix(index.wrapping_add(1)))
}

/// A checksum over pages that depends on every word and on their order.
pub fn checksum<'a>(pages: impl IntoIterator<Item = &'a Page>) -> u64 {
    pages.into_iter().fold(0x6a09_e667_f3bc_c908, |sum, page| {
        page.0.iter().fold(sum, |sum, &word| {
            (sum ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_page_holds_its_key_and_no_other() {
        let mut page = Page::ZERO;
        page.fill(7);
        assert_eq!(page.holds(7), Ok(()));
        assert!(page.holds(8).is_err());
        assert!(page.is_zero().is_err());
    }

    #[test]
    fn one_changed_byte_is_named() {
        let mut page = Page::ZERO;
        page.fill(7);
        let good = page.0[300];
        page.0[300] ^= 0xff00;
        assert_eq!(
            page.holds(7),
            Err(Mismatch {
                offset: 2400,
                expected: good,
                seen: good ^ 0xff00
            })
        );
    }

    #[test]
    fn the_checksum_sees_order_and_single_bits() {
        let (mut a, mut b) = (Page::ZERO, Page::ZERO);
        a.fill(1);
        b.fill(2);
        let sum = checksum([&a, &b]);
        assert_ne!(sum, checksum([&b, &a]));
        b.0[511] ^= 1;
        assert_ne!(sum, checksum([&a, &b]));
    }
}
