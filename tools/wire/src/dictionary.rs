// SPDX-License-Identifier: GPL-2.0

//! The dictionary: the last pages that were sent, on both ends alike.
//!
//! Pages are numbered from 0 in the order of operations. The rule, which all three types here
//! follow:
//!
//! * a page and a reference get the next number each;
//! * a back reference names a page by its *distance*, the next number less that of the page; it is
//!   valid from 1 to the capacity, and not beyond page 0;
//! * a back reference of a distance above half of the capacity gives the page the next number, too,
//!   so that pages which are in use stay;
//! * zero pages have no number.

use std::collections::hash_map::{
    Entry,
    RandomState, //
};
use std::collections::HashMap;
use std::hash::{
    BuildHasher,
    BuildHasherDefault,
    Hasher, //
};
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::Fault;
use crate::limits;
use crate::page::Page;

/// The arithmetic of the rule.
#[derive(Debug)]
struct Mirror {
    /// How many pages there are at most.
    capacity: u32,
    /// The next number.
    next: u64,
}

/// What a valid back reference names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    /// The slot of the page.
    slot: usize,
    /// The slot that the page goes to in addition, if it is an old one.
    again: Option<usize>,
}

impl Mirror {
    /// An empty one.
    fn new(pages: u32) -> Self {
        Self {
            capacity: pages.min(limits::DICTIONARY_PAGES),
            next: 0,
        }
    }

    /// The slot of the page of number `number`.
    fn slot(&self, number: u64) -> usize {
        // CAST: The rest is less than the capacity.
        (number % u64::from(self.capacity.max(1))) as usize
    }

    /// The slot for one more page, if there may be any.
    fn append(&mut self) -> Option<usize> {
        let slot = self.slot(self.next);
        self.next += 1;
        (self.capacity > 0).then_some(slot)
    }

    /// What a back reference names.
    fn back(&mut self, distance: u32) -> Result<Seat, Fault> {
        let known = self.next.min(self.capacity.into());
        if distance == 0 || u64::from(distance) > known {
            return Err(Fault::Distance { distance, known });
        }
        let slot = self.slot(self.next - u64::from(distance));
        let again = (distance > self.capacity / 2)
            .then(|| self.append())
            .flatten();
        Ok(Seat { slot, again })
    }
}

/// The sender's end: from digests to distances.
#[derive(Debug)]
pub struct SenderDictionary {
    /// The rule.
    mirror: Mirror,
    /// Digests by slot.
    ring: Vec<Digest>,
    /// The last number of each digest in the ring, by its keyed hash alone, which makes the table
    /// small. The ring has the digest itself.
    numbers: HashMap<u64, u64, Ready>,
    /// What hashes.
    keys: Keyed,
}

impl SenderDictionary {
    /// An empty one for `pages` pages, as agreed by the HELLOs.
    pub fn new(pages: u32) -> Self {
        Self {
            mirror: Mirror::new(pages),
            ring: Vec::new(),
            numbers: HashMap::default(),
            keys: Keyed::new(),
        }
    }

    /// The distance of the page of `digest`, if it is there.
    pub fn find(&self, digest: &Digest) -> Option<u32> {
        let number = *self.numbers.get(&self.keys.hash(digest))?;
        let there = self.ring.get(self.mirror.slot(number))?;
        if there != digest {
            return None;
        }
        u32::try_from(self.mirror.next - number).ok()
    }

    /// Follows a page or a reference that was sent.
    pub fn append(&mut self, digest: &Digest) {
        let number = self.mirror.next;
        if let Some(slot) = self.mirror.append() {
            self.place(slot, number, *digest);
        }
    }

    /// Follows a back reference that was sent, of a distance that [`Self::find`] gave just before.
    ///
    /// # Errors
    ///
    /// Nothing has that distance.
    pub fn hit(&mut self, distance: u32) -> Result<(), Fault> {
        let number = self.mirror.next;
        let Seat { slot, again } = self.mirror.back(distance)?;
        if let (Some(to), Some(&digest)) = (again, self.ring.get(slot)) {
            self.place(to, number, digest);
        }
        Ok(())
    }

    /// Puts a digest of number `number` into its slot.
    fn place(&mut self, slot: usize, number: u64, digest: Digest) {
        if let Some(old) = put(&mut self.ring, slot, digest) {
            let gone = number - u64::from(self.mirror.capacity);
            if let Entry::Occupied(entry) = self.numbers.entry(self.keys.hash(&old)) {
                if *entry.get() == gone {
                    entry.remove();
                }
            }
        }
        self.numbers.insert(self.keys.hash(&digest), number);
    }
}

/// The receiver's digests, for [`Block::verify`](crate::Block::verify).
#[derive(Debug)]
pub struct DigestRing {
    /// The rule.
    mirror: Mirror,
    /// Digests by slot.
    ring: Vec<Digest>,
}

impl DigestRing {
    /// An empty one for `pages` pages, as agreed by the HELLOs.
    pub fn new(pages: u32) -> Self {
        Self {
            mirror: Mirror::new(pages),
            ring: Vec::new(),
        }
    }

    /// Follows a page or a reference.
    pub(crate) fn append(&mut self, digest: &Digest) {
        if let Some(slot) = self.mirror.append() {
            put(&mut self.ring, slot, *digest);
        }
    }

    /// Follows a back reference: the digest of its page.
    ///
    /// # Errors
    ///
    /// Nothing has that distance.
    pub(crate) fn back(&mut self, distance: u32) -> Result<Digest, Fault> {
        let known = self.mirror.next;
        let Seat { slot, again } = self.mirror.back(distance)?;
        let found = self.ring.get(slot).copied();
        let digest = found.ok_or(Fault::Distance { distance, known })?;
        if let Some(to) = again {
            put(&mut self.ring, to, digest);
        }
        Ok(digest)
    }
}

/// A page as a [`PageRing`] keeps it.
pub trait Keep {
    /// The page.
    fn page(&self) -> &Page;

    /// The same page, keeping no memory but its own, since it may stay for as long as the stream.
    #[must_use]
    fn alone(&self) -> Self;
}

impl Keep for Arc<Page> {
    fn page(&self) -> &Page {
        self
    }

    fn alone(&self) -> Self {
        Self::clone(self)
    }
}

/// The receiver's pages, filled in the order of operations while they are written out.
///
/// What [`PageRing::append`] got is given up after as many pages more as the ring has.
#[derive(Debug)]
pub struct PageRing<P = Arc<Page>> {
    /// The rule.
    mirror: Mirror,
    /// Pages by slot.
    pages: Vec<P>,
}

impl<P: Keep> PageRing<P> {
    /// An empty one for `pages` pages, as agreed by the HELLOs.
    pub fn new(pages: u32) -> Self {
        Self {
            mirror: Mirror::new(pages),
            pages: Vec::new(),
        }
    }

    /// Follows a page, or a reference whose page was supplied.
    pub fn append(&mut self, page: P) {
        if let Some(slot) = self.mirror.append() {
            put(&mut self.pages, slot, page);
        }
    }

    /// Follows a back reference: its page.
    ///
    /// # Errors
    ///
    /// Nothing has that distance.
    pub fn back(&mut self, distance: u32) -> Result<&P, Fault> {
        let known = self.mirror.next;
        let missing = Fault::Distance { distance, known };
        let Seat { slot, again } = self.mirror.back(distance)?;
        if let Some(to) = again {
            let page = self.pages.get(slot).map(P::alone);
            put(&mut self.pages, to, page.ok_or(missing.clone())?);
        }
        self.pages.get(slot).ok_or(missing)
    }
}

/// Puts a thing into `slot`, which is at most one behind the last: what was there before.
fn put<T>(ring: &mut Vec<T>, slot: usize, new: T) -> Option<T> {
    match ring.get_mut(slot) {
        Some(place) => Some(std::mem::replace(place, new)),
        None => {
            ring.push(new);
            None
        }
    }
}

/// The keys of a hash of digests: two products of keyed halves, folded. A guest chooses pages, and
/// could choose those whose digests fall together if it knew the keys.
#[derive(Clone, Debug)]
struct Keyed([u64; 4]);

impl Keyed {
    /// New random keys.
    fn new() -> Self {
        Self(std::array::from_fn(|n| RandomState::new().hash_one(n)))
    }

    /// The hash of `digest`.
    fn hash(&self, digest: &Digest) -> u64 {
        let mut words = digest.0.chunks_exact(8).zip(self.0).map(|(chunk, key)| {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            u64::from_le_bytes(word) ^ key
        });
        let mut sum = 0;
        while let (Some(a), Some(b)) = (words.next(), words.next()) {
            let product = u128::from(a) * u128::from(b);
            // CAST: Both halves are used.
            sum ^= product as u64 ^ (product >> 64) as u64;
        }
        sum
    }
}

/// Makes hashers for what is a hash already.
type Ready = BuildHasherDefault<Same>;

/// Gives the number that it was given.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.0 = (self.0 << 8) | u64::from(*byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PAGE_BYTES;

    /// A page.
    fn page() -> Arc<Page> {
        Arc::new([1; PAGE_BYTES])
    }

    /// A digest that is not one of any page, but differs for each `n`.
    fn digest(n: u64) -> Digest {
        let mut bytes = [0; Digest::BYTES];
        bytes[8..16].copy_from_slice(&n.to_le_bytes());
        Digest(bytes)
    }

    #[test]
    fn distances_count_from_the_next_number() {
        let mut dictionary = SenderDictionary::new(8);
        assert_eq!(dictionary.find(&digest(0)), None);
        (0..3).for_each(|n| dictionary.append(&digest(n)));
        let found = [0, 1, 2, 3].map(|n| dictionary.find(&digest(n)));
        assert_eq!(found, [Some(3), Some(2), Some(1), None]);
    }

    #[test]
    fn old_pages_make_room() {
        let mut dictionary = SenderDictionary::new(4);
        (0..6).for_each(|n| dictionary.append(&digest(n)));
        let found = [0, 1, 2, 5].map(|n| dictionary.find(&digest(n)));
        assert_eq!(found, [None, None, Some(4), Some(1)]);
        assert_eq!(dictionary.numbers.len(), 4);
    }

    #[test]
    fn pages_in_use_stay() -> Result<(), Fault> {
        let mut dictionary = SenderDictionary::new(4);
        dictionary.append(&digest(100));
        for n in 0..100 {
            dictionary.append(&digest(n));
            let distance = dictionary.find(&digest(100));
            assert!(distance.is_some_and(|distance| distance <= 4), "{n}");
            dictionary.hit(distance.unwrap_or(0))?;
        }
        Ok(())
    }

    #[test]
    fn a_page_of_half_the_capacity_is_not_moved() -> Result<(), Fault> {
        let mut dictionary = SenderDictionary::new(4);
        (0..3).for_each(|n| dictionary.append(&digest(n)));
        dictionary.hit(2)?;
        assert_eq!(dictionary.find(&digest(1)), Some(2));
        dictionary.hit(3)?;
        let found = [0, 1].map(|n| dictionary.find(&digest(n)));
        assert_eq!(found, [Some(1), Some(3)]);
        Ok(())
    }

    #[test]
    fn nothing_is_known_beyond_either_end() {
        for pages in [0, 1, 4] {
            let mut ring = PageRing::new(pages);
            assert!(ring.back(1).is_err());
            (0..3).for_each(|_| ring.append(page()));
            let known = u64::from(pages.min(3));
            for distance in [0, 5, u32::MAX] {
                assert_eq!(
                    ring.back(distance),
                    Err(Fault::Distance { distance, known })
                );
            }
            assert_eq!(ring.back(1).is_ok(), pages > 0);
        }
    }

    #[test]
    fn pages_are_kept_as_long_as_the_ring_says() {
        let mut ring = PageRing::new(limits::DICTIONARY_PAGES);
        assert_eq!(ring.pages.capacity(), 0);
        ring.append(page());
        assert_eq!(ring.pages.len(), 1);
        let mut ring = PageRing::new(3);
        let pages: Vec<_> = (0..10).map(|_| page()).collect();
        pages.iter().for_each(|page| ring.append(Arc::clone(page)));
        let kept = pages.iter().map(|page| Arc::strong_count(page) - 1);
        assert_eq!(kept.collect::<Vec<_>>(), [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn a_page_that_stays_longer_is_kept_alone() -> Result<(), Fault> {
        /// Whether it is kept alone.
        struct Told(bool);

        impl Keep for Told {
            fn page(&self) -> &Page {
                &[0; PAGE_BYTES]
            }

            fn alone(&self) -> Self {
                Self(true)
            }
        }

        let mut ring = PageRing::new(4);
        (0..3).for_each(|_| ring.append(Told(false)));
        assert!(!ring.back(2)?.0);
        ring.back(3)?;
        let alone: Vec<_> = ring.pages.iter().map(|page| page.0).collect();
        assert_eq!(alone, [false, false, false, true]);
        Ok(())
    }
}
