// SPDX-License-Identifier: GPL-2.0

//! XXH64, the hash that pages are found by.
//!
//! Written from the specification (`doc/xxhash_spec.md` of the reference implementation). The
//! words come from a closure, so that a page which its guest may write to at the same time can be
//! read with volatile loads instead of through a reference.
//!
//! Not a cryptographic hash: equal hashes are a hint. Guests can make pages that collide, even
//! without the seed (`tools/engine/tests/collisions.rs`), so nothing may depend on hashes being
//! different; the seed keeps what is known of one host from being of use on another.

pub(super) const PRIME_1: u64 = 0x9e37_79b1_85eb_ca87;
pub(super) const PRIME_2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const PRIME_3: u64 = 0x1656_67b1_9e37_79f9;
const PRIME_4: u64 = 0x85eb_ca77_c2b2_ae63;
const PRIME_5: u64 = 0x27d4_eb2f_1656_67c5;

/// Stripes that go through the lanes in a row: without a branch between them, and with the lanes
/// kept where they are, it takes a fifth fewer instructions than one by one.
const ROW: usize = 4;

/// Words in such a row.
pub const ROW_WORDS: usize = 4 * ROW;

/// The four lanes that stripes of 32 bytes go through.
struct Lanes(u64, u64, u64, u64);

impl Lanes {
    #[inline(always)]
    fn new(seed: u64) -> Self {
        Self(
            seed.wrapping_add(PRIME_1).wrapping_add(PRIME_2),
            seed.wrapping_add(PRIME_2),
            seed,
            seed.wrapping_sub(PRIME_1),
        )
    }

    #[inline(always)]
    fn stripe(&mut self, words: [u64; 4]) {
        let [a, b, c, d] = words;
        self.0 = round(self.0, a);
        self.1 = round(self.1, b);
        self.2 = round(self.2, c);
        self.3 = round(self.3, d);
    }

    #[inline(always)]
    fn merge(&self) -> u64 {
        let sum = self
            .0
            .rotate_left(1)
            .wrapping_add(self.1.rotate_left(7))
            .wrapping_add(self.2.rotate_left(12))
            .wrapping_add(self.3.rotate_left(18));
        [self.0, self.1, self.2, self.3]
            .into_iter()
            .fold(sum, |hash, lane| {
                (hash ^ round(0, lane))
                    .wrapping_mul(PRIME_1)
                    .wrapping_add(PRIME_4)
            })
    }
}

/// What a lane does with a word.
#[inline(always)]
pub(super) fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIME_2))
        .rotate_left(31)
        .wrapping_mul(PRIME_1)
}

#[inline(always)]
fn tail_word(hash: u64, word: u64) -> u64 {
    (hash ^ round(0, word))
        .rotate_left(27)
        .wrapping_mul(PRIME_1)
        .wrapping_add(PRIME_4)
}

#[inline(always)]
fn avalanche(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(PRIME_2);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(PRIME_3);
    hash ^ (hash >> 32)
}

/// The four words from number `at` on.
#[inline(always)]
fn stripe_at(word: &impl Fn(usize) -> u64, at: usize) -> [u64; 4] {
    // OVERFLOW: Words have numbers that fit. Not by `map`, which is a call where `word` is long.
    [
        word(at),
        word(at.wrapping_add(1)),
        word(at.wrapping_add(2)),
        word(at.wrapping_add(3)),
    ]
}

/// Returns XXH64 of `count` words of 8 bytes, word `i` of which `word(i)` reads as a little-endian
/// number.
///
/// Each word is read once, in order.
#[inline]
pub fn hash_words(count: usize, word: impl Fn(usize) -> u64, seed: u64) -> u64 {
    let mut at: usize = 0;
    let mut hash = if count < 4 {
        seed.wrapping_add(PRIME_5)
    } else {
        let mut lanes = Lanes::new(seed);
        let stripes = count / 4;
        let rows = stripes / ROW;
        for row in 0..rows {
            // OVERFLOW: Words have numbers below `count`.
            let first = row.wrapping_mul(ROW_WORDS);
            lanes.stripe(stripe_at(&word, first));
            lanes.stripe(stripe_at(&word, first.wrapping_add(4)));
            lanes.stripe(stripe_at(&word, first.wrapping_add(8)));
            lanes.stripe(stripe_at(&word, first.wrapping_add(12)));
        }
        // OVERFLOW: As above.
        for stripe in rows.wrapping_mul(ROW)..stripes {
            lanes.stripe(stripe_at(&word, stripe.wrapping_mul(4)));
        }
        at = stripes.wrapping_mul(4);
        lanes.merge()
    };
    // CAST: `usize` is 64 bits wide. OVERFLOW: Memory has fewer than 2^64 bytes.
    hash = hash.wrapping_add((count as u64).wrapping_mul(8));
    while at < count {
        hash = tail_word(hash, word(at));
        at = at.wrapping_add(1);
    }
    avalanche(hash)
}

/// Returns XXH64 of `bytes`.
pub fn hash_bytes(bytes: &[u8], seed: u64) -> u64 {
    let mut stripes = bytes.chunks_exact(32);
    let mut hash = if bytes.len() < 32 {
        seed.wrapping_add(PRIME_5)
    } else {
        let mut lanes = Lanes::new(seed);
        for stripe in &mut stripes {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(stripe.chunks_exact(8)) {
                *word = little_endian(bytes);
            }
            lanes.stripe(words);
        }
        lanes.merge()
    };
    // CAST: `usize` is 64 bits wide.
    hash = hash.wrapping_add(bytes.len() as u64);
    let mut words = stripes.remainder().chunks_exact(8);
    for word in &mut words {
        hash = tail_word(hash, little_endian(word));
    }
    let mut rest = words.remainder();
    if let Some((half, after)) = rest.split_at_checked(4) {
        hash = (hash ^ little_endian(half).wrapping_mul(PRIME_1))
            .rotate_left(23)
            .wrapping_mul(PRIME_2)
            .wrapping_add(PRIME_3);
        rest = after;
    }
    for byte in rest {
        hash = (hash ^ u64::from(*byte).wrapping_mul(PRIME_5))
            .rotate_left(11)
            .wrapping_mul(PRIME_1);
    }
    avalanche(hash)
}

/// Reads up to 8 bytes as a little-endian number.
#[inline(always)]
fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_xxh64))]
mod tests {
    use super::*;

    /// The seed and the buffer that the reference implementation checks itself with.
    const PRIME_32: u64 = 2_654_435_761;

    fn sanity_byte(at: usize) -> u8 {
        let mut generator = PRIME_32;
        for _ in 0..at {
            generator = generator.wrapping_mul(0x9e37_79b1_85eb_ca8d);
        }
        (generator >> 56) as u8
    }

    fn sanity_buffer() -> [u8; 222] {
        let mut buffer = [0; 222];
        for (at, byte) in buffer.iter_mut().enumerate() {
            *byte = sanity_byte(at);
        }
        buffer
    }

    #[test]
    fn published_values_hold() {
        assert_eq!(hash_bytes(b"", 0), 0xef46_db37_51d8_e999);
        assert_eq!(hash_bytes(b"a", 0), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(hash_bytes(b"abc", 0), 0x44bc_2cf5_ad77_0999);
        let sentence = b"Nobody inspects the spammish repetition";
        assert_eq!(hash_bytes(sentence, 0), 0xfbce_a83c_8a37_8bf1);
    }

    #[test]
    fn the_reference_implementation_agrees() {
        let buffer = sanity_buffer();
        let cases: [(usize, u64, u64); 10] = [
            (0, 0, 0xef46_db37_51d8_e999),
            (0, PRIME_32, 0xac75_fda2_929b_17ef),
            (1, 0, 0xe934_a84a_db05_2768),
            (1, PRIME_32, 0x5014_6076_43a9_b4c3),
            (4, 0, 0x9136_a0dc_a574_57ee),
            (14, 0, 0x8282_dcc4_994e_35c8),
            (14, PRIME_32, 0xc3bd_6bf6_3deb_6df0),
            (222, 0, 0xb641_ae8c_b691_c174),
            (222, PRIME_32, 0x20cb_8ab7_ae10_c14a),
            (32, 0, 0x18b2_1649_2bb4_4b70),
        ];
        for (len, seed, expected) in cases {
            let bytes = buffer.get(..len).unwrap_or(&[]);
            assert_eq!(hash_bytes(bytes, seed), expected);
        }
    }

    #[test]
    fn words_hash_as_their_bytes_do() {
        let buffer = sanity_buffer();
        for count in 0..=27_usize {
            let bytes = buffer.get(..count.wrapping_mul(8)).unwrap_or(&[]);
            let word = |at: usize| {
                let from = at.wrapping_mul(8);
                little_endian(bytes.get(from..from.wrapping_add(8)).unwrap_or(&[]))
            };
            for seed in [0, PRIME_32, u64::MAX] {
                assert_eq!(hash_words(count, word, seed), hash_bytes(bytes, seed));
            }
        }
    }

    #[test]
    fn a_page_of_zeroes_depends_on_the_seed() {
        let zeroes = |seed| hash_words(512, |_| 0, seed);
        assert!(zeroes(0) != zeroes(1));
        assert_eq!(zeroes(0), zeroes(0));
    }
}
