// SPDX-License-Identifier: GPL-2.0

//! A guest that makes pages whose hashes are equal.

mod host;

use host::{
    driver::{
        Driver,
        BLOCK, //
    },
    Hashes, //
};
use rand::{
    rngs::SmallRng,
    Rng,
    SeedableRng, //
};
use twinpage_engine::engine::{
    crafted,
    key::PAGE_WORDS,
    stats::Gauge,
    xxh64::hash_words, //
};

/// A secret seed does not help: what a word adds to its lane depends on the seed by two carries only.
/// So an index must be safe with pages that collide, not just unlikely to meet them.
#[test]
fn pages_can_be_made_to_collide_without_the_seed() {
    let (known, mut secrets) = (0x0123_4567_89ab_cdef, SmallRng::seed_from_u64(1));
    let zeroes = |seed| hash_words(PAGE_WORDS, |_| 0, seed);
    let collides = |first, seed| {
        let page = crafted::words(first, known);
        hash_words(PAGE_WORDS, page, seed) == zeroes(seed)
    };
    let mut hits = 0;
    for first in 1..1000 {
        assert!(collides(first, known));
        hits += u32::from(collides(first, secrets.random()));
    }
    assert!(hits > 100, "{hits} of 999 pages collide with another seed");
}

/// The host asserts that no page ever shows other bytes; this is about what it costs.
#[test]
fn crafted_pages_cost_their_guest_only() {
    const HOSTILE: u64 = 8 * BLOCK;
    let mut driver = Driver::new(1);
    driver.host.hashes = Hashes::CraftedFrom(1 << 32);
    driver.add_guest(0, 0, HOSTILE);
    for page in 0..HOSTILE {
        driver.host.write(0, page, (1 << 32) + page);
    }
    for guest in 1..3 {
        driver.add_guest(guest, 0, BLOCK);
        for page in 0..BLOCK {
            driver.host.write(guest, page, 1 + page);
        }
    }
    for _ in 0..20 {
        let calls = driver.host.share_calls;
        driver.round();
        let calls = driver.host.share_calls - calls;
        // A hash has one place in the tree, so each page meets one other.
        assert!(calls <= 2 * HOSTILE, "{calls} comparisons in a round");
        // Copies that nobody took are there until the end of the round.
        let copies = driver.index(0).copies() as u64;
        assert!(copies <= 2 * BLOCK, "{copies} copies");
    }
    for guest in 1..3 {
        assert_eq!(driver.gauge(guest, Gauge::Merged), BLOCK);
    }
    // A hostile page may have taken a copy that was made of it, alone.
    assert_eq!(driver.index(0).totals().sharing(), BLOCK);
    // What keeps differing is looked at once in a while: sixteen rounds cost no more than one could.
    let calls = driver.host.share_calls;
    (0..16).for_each(|_| driver.round());
    let calls = driver.host.share_calls - calls;
    assert!(
        calls <= 2 * HOSTILE,
        "{calls} comparisons in sixteen rounds"
    );
    driver.finish();
}
