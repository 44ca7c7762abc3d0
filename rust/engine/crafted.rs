// SPDX-License-Identifier: GPL-2.0

//! Pages whose hashes are equal, as a hostile guest makes them, for tests and tools.

use super::xxh64::{
    round,
    PRIME_1,
    PRIME_2, //
};

/// Which word makes up for the first one: the next of its lane.
const MENDING: usize = 4;

/// Returns what reads the words of a page that begins with `first` and, for this seed, has the
/// hash of the page of zeroes and the hash of its sample. Whatever words 1 to 3, and those from 5
/// on, are changed to, pages that have these in common have their hashes in common, too: the first
/// word of a lane is free, as the second one can make up for it.
///
/// With another seed it still has that hash now and then: what a word adds to its lane depends on
/// the seed by two carries only.
pub fn words(first: u64, seed: u64) -> impl Fn(usize) -> u64 {
    let start = seed.wrapping_add(PRIME_1).wrapping_add(PRIME_2);
    let missing = round(start, 0).wrapping_sub(round(start, first));
    let mending = missing.wrapping_mul(inverse(PRIME_2));
    move |word| match word {
        0 => first,
        MENDING => mending,
        _ => 0,
    }
}

/// The inverse of an odd number, by Newton's iteration.
fn inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |guess: u64, _| {
        guess.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(guess)))
    })
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_crafted))]
// OVERFLOW: Counts of some thousand pages, and contents far below the largest.
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use crate::engine::{
        stats::Gauge,
        toy::{
            key_of,
            Page,
            Toy,
            Untested,
            CRAFTED,
            PAGES, //
        },
        world::Skip,
    };

    /// Contents that collide with one another, and not with the page of zeroes.
    const OTHERS: u64 = CRAFTED + (1 << 32);

    /// Pages that are equal to others, of each guest; each of the rest differs from all.
    const EQUAL: usize = 8;

    /// Two guests whose pages collide with `class`. Some are equal, and have merged before there
    /// are others, which could keep them from it; but that is all that these can do.
    fn hostile(class: u64, equal: u64) -> Result<Toy, Untested> {
        let mut toy = Toy::new(2)?;
        for guest in 0..2 {
            toy.fill(guest, 0..EQUAL, |_| Page::Own(equal));
        }
        assert!(toy.pass(2));
        for guest in 0..2 {
            let first = class + 1 + u64::from(guest) * PAGES as u64;
            toy.fill(guest, EQUAL..PAGES, |index| Page::Own(first + index));
        }
        Ok(toy)
    }

    /// Returns whether the pages of a guest read as `hostile` made them.
    fn is_as_before(toy: &Toy, class: u64, equal: u64, guest: u32) -> bool {
        let first = class + 1 + u64::from(guest) * PAGES as u64;
        (0..PAGES).all(|index| {
            let own = index >= EQUAL;
            let wanted = if own { first + index as u64 } else { equal };
            toy.world.content(guest, index) == wanted
        })
    }

    /// Returns whether all pages of a guest have the key of `class`.
    fn collides(toy: &Toy, class: u64, guest: u32) -> bool {
        (0..PAGES).all(|index| key_of(toy.world.content(guest, index)) == key_of(class))
    }

    /// Passes over them until they have settled, and then on; looks at what each costs.
    fn settle(toy: &mut Toy, class: u64, equal: u64) {
        assert!(collides(toy, class, 0) && collides(toy, class, 1));
        let mut in_the_end = 0;
        for pass in 0..96 {
            let (compared, hashed) = (toy.world.compared, toy.world.hashed);
            let scanned = toy.index.totals().counters.scanned;
            assert!(toy.pass(2));
            let compared = u64::from(toy.world.compared - compared);
            let hashed = u64::from(toy.world.hashed - hashed);
            let scanned = toy.index.totals().counters.scanned - scanned;
            // A look costs a comparison; where a copy is made of a page, that and its twin are
            // compared with it. Copies that one page took are hashed again.
            assert!(compared <= 2 * scanned);
            assert!(hashed <= 2 * scanned);
            in_the_end += if pass < 64 { 0 } else { compared };
            for guest in 0..2 {
                assert!(is_as_before(toy, class, equal, guest));
            }
        }
        // What keeps differing is looked at in one of 32 passes.
        assert!(in_the_end <= 2 * 2 * PAGES as u64);
    }

    /// Returns how many pages of a guest were found to have the hash of others, and other bytes. It
    /// is found out twice, each time that it is looked at.
    fn collisions(toy: &Toy, guest: u32) -> u64 {
        let twice = toy.gauge(guest, Gauge::Skip(Skip::Collision));
        assert!(twice > 0);
        twice + toy.gauge(guest, Gauge::Volatile)
    }

    #[test]
    fn pages_of_one_hash_merge_if_they_are_equal() -> Result<(), Untested> {
        let mut toy = hostile(OTHERS, OTHERS + 1)?;
        settle(&mut toy, OTHERS, OTHERS + 1);
        for guest in 0..2 {
            for index in 0..EQUAL {
                assert_eq!(toy.world.get(guest, index), toy.world.get(0, 0));
            }
            // Some have taken the copies that were made of them, alone.
            let alone = toy.gauge(guest, Gauge::Merged) - EQUAL as u64;
            assert_eq!(collisions(&toy, guest) + alone, (PAGES - EQUAL) as u64);
        }
        assert_eq!(toy.index.totals().sharing(), 2 * EQUAL as u64 - 1);
        Ok(())
    }

    #[test]
    fn what_has_the_hash_of_zeroes_is_not_taken_for_them() -> Result<(), Untested> {
        let mut toy = hostile(CRAFTED, 0)?;
        settle(&mut toy, CRAFTED, 0);
        for guest in 0..2 {
            assert_eq!(toy.gauge(guest, Gauge::Zero), EQUAL as u64);
            assert_eq!(collisions(&toy, guest), (PAGES - EQUAL) as u64);
        }
        assert_eq!(toy.index.copies(), 0);
        Ok(())
    }
}
