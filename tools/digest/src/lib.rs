// SPDX-License-Identifier: GPL-2.0

//! SHA-256 of pages, two at a time.
//!
//! One computation of SHA-256 mostly waits: each of the processor's SHA instructions needs the
//! result of the one before. Two pages have nothing to do with each other, so that the
//! instructions of one fill the pauses of the other, and both take little longer than one.
//!
//! Whether the processor has the instructions is found out when the program runs; without them,
//! and for a page that is alone, the `sha2` crate does the work. What needs `unsafe` is in a
//! module of its own, which is all that there is of it between a page and its digest.

use sha2::{
    Digest as _,
    Sha256, //
};

#[cfg(target_arch = "x86_64")]
mod x86;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// The bytes of a page.
pub type Page = [u8; PAGE_BYTES];

/// The bytes of a digest.
pub type Bytes = [u8; 32];

/// The digest of a page.
pub fn one(page: &Page) -> Bytes {
    Sha256::digest(page).into()
}

/// The digests of two pages.
pub fn two(pages: [&Page; 2]) -> [Bytes; 2] {
    #[cfg(target_arch = "x86_64")]
    if let Some(extensions) = x86::Extensions::find() {
        return extensions.two(pages);
    }
    one_by_one(pages)
}

/// What [`two`] does where the processor has no SHA instructions.
fn one_by_one(pages: [&Page; 2]) -> [Bytes; 2] {
    pages.map(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{
        BuildHasher,
        RandomState, //
    };

    use rand::{
        rngs::SmallRng,
        RngCore,
        SeedableRng, //
    };

    /// A way to hash two pages.
    type Way = fn([&Page; 2]) -> [Bytes; 2];

    /// All ways that there are on this processor.
    const WAYS: [Way; 2] = [two, one_by_one];

    #[test]
    fn every_way_gives_what_sha2_gives() {
        let seed = RandomState::new().hash_one(0);
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let mut pages = vec![[0; PAGE_BYTES], [0xff; PAGE_BYTES], [0x80; PAGE_BYTES]];
        for _ in 0..200 {
            let mut page = [0; PAGE_BYTES];
            random.fill_bytes(&mut page);
            pages.push(page);
        }
        for pair in pages.windows(2) {
            let expected = [one(&pair[0]), one(&pair[1])];
            for way in WAYS {
                assert_eq!(way([&pair[0], &pair[1]]), expected);
                assert_eq!(way([&pair[0], &pair[0]]), [expected[0]; 2]);
            }
        }
    }

    #[test]
    fn each_byte_counts_for_its_own_page_alone() {
        let page = [7; PAGE_BYTES];
        let same = one(&page);
        for at in 0..PAGE_BYTES {
            let mut other = page;
            other[at] ^= 1;
            let expected = one(&other);
            assert_eq!(two([&page, &other]), [same, expected], "byte {at}");
            assert_eq!(two([&other, &page]), [expected, same], "byte {at}");
        }
    }

    #[test]
    fn pages_may_lie_anywhere() {
        let bytes: Vec<u8> = (0..3 * PAGE_BYTES).map(|at| (at % 251) as u8).collect();
        for from in 0..64 {
            let first: &Page = bytes[from..].first_chunk().expect("a page");
            let second: &Page = bytes[2 * from + 1..].first_chunk().expect("a page");
            assert_eq!(two([first, second]), [one(first), one(second)]);
        }
    }

    #[test]
    fn a_page_of_zeros_has_the_known_digest() {
        // head -c 4096 /dev/zero | sha256sum
        let known = [
            0xad, 0x7f, 0xac, 0xb2, 0x58, 0x6f, 0xc6, 0xe9, 0x66, 0xc0, 0x04, 0xd7, 0xd1, 0xd1,
            0x6b, 0x02, 0x4f, 0x58, 0x05, 0xff, 0x7c, 0xb4, 0x7c, 0x7a, 0x85, 0xda, 0xbd, 0x8b,
            0x48, 0x89, 0x2c, 0xa7,
        ];
        for way in WAYS {
            assert_eq!(way([&[0; PAGE_BYTES]; 2]), [known; 2]);
        }
    }
}
