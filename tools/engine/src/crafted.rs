// SPDX-License-Identifier: GPL-2.0

//! Pages whose hashes are equal, as a hostile guest makes them, for tests.

const PRIME_1: u64 = 0x9e37_79b1_85eb_ca87;
const PRIME_2: u64 = 0xc2b2_ae3d_27d4_eb4f;

/// Words of a page.
pub const WORDS: usize = 512;

/// What one lane of XXH64 does with a word, by the specification.
fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIME_2))
        .rotate_left(31)
        .wrapping_mul(PRIME_1)
}

/// The inverse of an odd number, by Newton's iteration.
fn inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |guess, _| {
        guess.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(guess)))
    })
}

/// A page that begins with `word` and has the hash of the page of zeroes, for this seed: the first
/// word of a lane is free, as the second one can make up for it.
///
/// With another seed it still has that hash now and then: what a word adds to its lane depends on
/// the seed by two carries only.
pub fn crafted(word: u64, seed: u64) -> [u64; WORDS] {
    let start = seed.wrapping_add(PRIME_1).wrapping_add(PRIME_2);
    let missing = round(start, 0).wrapping_sub(round(start, word));
    let mut page = [0; WORDS];
    page[0] = word;
    page[4] = missing.wrapping_mul(inverse(PRIME_2));
    page
}
