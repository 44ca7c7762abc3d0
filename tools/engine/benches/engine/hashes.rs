// SPDX-License-Identifier: GPL-2.0

//! Hashes of a page, and comparisons of two: what the module does, and what others do.

use std::hash::Hasher;

use rand::{
    rngs::SmallRng,
    Rng,
    SeedableRng, //
};
use twinpage_engine::engine::xxh64::hash_words;
use twox_hash::{
    XxHash3_64,
    XxHash64, //
};

use crate::report::{
    timed,
    Report, //
};

const PAGES: usize = 256;
const WORDS: usize = 512;

/// Prints what they cost.
pub fn hashes(report: &Report) {
    let mut rng = SmallRng::seed_from_u64(1);
    let words: Vec<u64> = (0..WORDS * PAGES).map(|_| rng.random()).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let halves: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|half| u32::from_le_bytes(half.try_into().unwrap_or_default()))
        .collect();
    let twins = words.clone();
    let each = |name: &str, hash: &dyn Fn(usize) -> u64| {
        report.each(name, PAGES, || {
            timed(|| (0..PAGES).fold(0, |sum, page| sum ^ hash(page)))
        });
    };
    let page = |at: usize| &words[at * WORDS..][..WORDS];
    let slice = |at: usize| &bytes[at * 4096..][..4096];
    each("XXH64, word by word, as the module", &|at| {
        let page = page(at);
        hash_words(WORDS, |word| page[word], 1)
    });
    each("XXH64 of twox-hash", &|at| {
        let mut hasher = XxHash64::with_seed(1);
        hasher.write(slice(at));
        hasher.finish()
    });
    each("XXH3 of twox-hash, with vector registers", &|at| {
        XxHash3_64::oneshot_with_seed(1, slice(at))
    });
    each("jhash2", &|at| {
        jhash2(&halves[at * 1024..][..1024], 17).into()
    });
    each("comparison of equal pages, word by word", &|at| {
        let twin = &twins[at * WORDS..][..WORDS];
        u64::from(page(at).iter().cmp(twin).is_eq())
    });
}

/// Bob Jenkins' lookup3 over words of 32 bits, which ksmd used until Linux 4.20 (`jhash2`).
fn jhash2(words: &[u32], seed: u32) -> u32 {
    let start = 0xdead_beef_u32
        .wrapping_add((words.len() as u32) << 2)
        .wrapping_add(seed);
    let (mut a, mut b, mut c) = (start, start, start);
    let mut rest = words;
    while let [x, y, z, more @ ..] = rest {
        if more.is_empty() {
            break;
        }
        a = a.wrapping_add(*x);
        b = b.wrapping_add(*y);
        c = c.wrapping_add(*z);
        for rotation in [4, 6, 8, 16, 19, 4] {
            let mixed = a.wrapping_sub(c) ^ c.rotate_left(rotation);
            (a, b, c) = (b, c.wrapping_add(b), mixed);
        }
        rest = more;
    }
    for (sum, word) in [&mut a, &mut b, &mut c].into_iter().zip(rest) {
        *sum = sum.wrapping_add(*word);
    }
    for rotation in [14, 11, 25, 16, 4, 14, 24] {
        let mixed = (c ^ b).wrapping_sub(b.rotate_left(rotation));
        (a, b, c) = (b, mixed, a);
    }
    b
}
