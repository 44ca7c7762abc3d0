// SPDX-License-Identifier: GPL-2.0

//! What a page shall map, by the [`key`] of its content.
//!
//! | who has the key's place in the tree  | the page is new or unchanged           | it changed |
//! |--------------------------------------|----------------------------------------|------------|
//! | nobody (all zeroes)                  | zero page                              | zero page  |
//! | a copy with room                     | that copy                              | that copy  |
//! | a copy without room                  | the page takes the place               | volatile   |
//! | another page                         | a new copy takes the place, for both   | volatile   |
//! | the page itself                      | stays; looked at less often            | -          |
//! | nobody                               | the page takes the place               | volatile   |
//!
//! Another page whose guest is backed off ([`super::restraint`]) is met by taking its place.
//!
//! Of a page that changed only the class is remembered, and nobody is looked up for it before a
//! look at which that is the same. Then it counts as unchanged, but a small page for which nobody
//! has the place is parked and takes it at its next look: the rest of it may go on changing.
//!
//! A page in a large folio cannot map anything else until that is split; it is parked where a small
//! page would merge. See [`super::huge`].

use super::{
    copies::MergedCopy,
    key::{
        self,
        UNKNOWN, //
    },
    mask::Mask,
    moves::Holder,
    page::{
        CopyId,
        Kind,
        Level,
        PageId,
        Place,
        Record, //
    },
    scan::Visit,
    scratch::{
        Fresh,
        Plan, //
    },
    world::{
        Seen,
        Token,
        World, //
    },
};

/// What is known of a page's content before this look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// Nothing.
    New,
    /// It had the same key, as far as it was read.
    Same,
    /// It was volatile, and had the same class.
    Sampled,
    /// It had another key.
    Changed,
}

/// A page whose content was looked at.
#[derive(Clone, Copy, Debug)]
struct Hashed {
    index: usize,
    page: PageId,
    key: u64,
    /// Who has the key's place in the tree; not looked up for a candidate that stays one.
    place: Option<Place>,
    zero: bool,
    past: Past,
    old: Record,
    huge: bool,
}

impl Hashed {
    /// Returns whether it is a candidate, and has the key that it had.
    fn stays(&self) -> bool {
        self.old.kind == Kind::Listed && self.old.key == self.key
    }
}

impl<W: World> Visit<'_, W> {
    /// Hashes the pages that are due and private, and plans what they shall map.
    pub(super) fn hash(&mut self, due: &Mask) {
        let mut scanned: u32 = 0;
        for index in due.iter() {
            let (node, huge) = match self.scratch.seen(index) {
                Seen::Anon { node } => (node, false),
                Seen::Huge { node } => (node, true),
                _ => continue,
            };
            // OVERFLOW: At most 512.
            scanned = scanned.wrapping_add(1);
            let page = self.page(index);
            let mut hashed = Hashed {
                index,
                page,
                key: UNKNOWN,
                place: None,
                zero: false,
                past: Past::New,
                old: self.index.record(page),
                huge,
            };
            if self.know(&mut hashed, node) {
                self.place(&hashed);
            }
        }
        self.step.scanned = self.step.scanned.wrapping_add(scanned);
        self.index.count(self.position, |counters| {
            counters.scanned = counters.scanned.saturating_add(u64::from(scanned));
        });
        self.revote(due);
    }

    /// Reads as much of a page as tells it from those that have a place in the tree: a sample, and
    /// all of it if its class is crowded. Returns whether there is something to plan: there is not
    /// for a volatile page that has changed again.
    fn know(&mut self, hashed: &mut Hashed, node: u8) -> bool {
        let old = hashed.old;
        let sample = self.world.sample(hashed.index, self.index.seed);
        hashed.key = self.class(sample, node);
        let hash = old.has_whole_key().then(|| self.hash_of(hashed));
        // Both count: a page that was written to between sample and hash has a key of neither.
        hashed.past = match hash {
            Some(hash) if old.key == key::of_whole(hashed.key, hash) => Past::Same,
            _ => past(&old, hashed.key),
        };
        if hashed.past == Past::Changed && old.has_sample() {
            self.change_again(hashed);
            return false;
        }
        if hashed.stays() {
            return true;
        }
        let sparse = sample == self.index.zero_sample;
        // Also of a page whose whole key is known: who came to its class when that was not crowded
        // is known there by a sample alone.
        match self.index.holder(hashed.key) {
            Holder::One(place) => hashed.place = Some(place),
            Holder::Nobody if !sparse => {}
            Holder::Nobody | Holder::Crowd => {
                let hash = match hash {
                    Some(hash) => hash,
                    None if sparse => self.hash_of_sparse(hashed),
                    None => self.hash_of(hashed),
                };
                self.know_whole(hashed, hash);
            }
        }
        true
    }

    /// Takes note of the hash of the whole page.
    fn know_whole(&self, hashed: &mut Hashed, hash: u64) {
        hashed.key = key::of_whole(hashed.key, hash);
        hashed.zero = self.knobs.use_zero_pages && hash == self.index.zero;
        if !hashed.stays() {
            hashed.place = self.index.find(hashed.key);
        }
    }

    fn hash_of(&mut self, hashed: &Hashed) -> u64 {
        self.world.hash(hashed.index, self.index.seed)
    }

    /// Returns the hash of a page that is zeroes for the most part.
    fn hash_of_sparse(&mut self, hashed: &Hashed) -> u64 {
        if self.world.is_zero(hashed.index) {
            self.index.zero
        } else {
            self.hash_of(hashed)
        }
    }

    /// A volatile page has changed since its last look, as far as a sample tells. Most that changed
    /// once go on doing so.
    fn change_again(&mut self, hashed: &Hashed) {
        let new = Record {
            key: hashed.key,
            level: hashed.old.level.raised(),
            ..hashed.old
        };
        self.index.set(hashed.page, new);
    }

    /// Plans what a page that was just split off a large folio shall map, by the key that it had
    /// there.
    pub(super) fn place_split(&mut self, index: usize) {
        let page = self.page(index);
        let old = self.index.record(page);
        let Seen::Anon { node } = self.scratch.seen(index) else {
            return;
        };
        if old.kind != Kind::Parked {
            return;
        }
        self.place(&Hashed {
            index,
            page,
            key: old.key,
            place: match self.index.holder(old.key) {
                Holder::One(place) => Some(place),
                Holder::Nobody => None,
                // It is hashed at its next look.
                Holder::Crowd => return,
            },
            zero: self.knobs.use_zero_pages && old.key == self.zero_key(node),
            past: Past::Same,
            old,
            huge: false,
        });
    }

    /// Returns the key of the class of pages of that sample on that NUMA node.
    pub(super) fn class(&self, sample: u64, node: u8) -> u64 {
        if self.knobs.merge_across_nodes {
            key::of_sample(sample)
        } else {
            key::of_sample_on(sample, node)
        }
    }

    /// Returns the key of zeroes on that NUMA node.
    pub(super) fn zero_key(&self, node: u8) -> u64 {
        key::of_whole(self.class(self.index.zero_sample, node), self.index.zero)
    }

    /// Plans what the page shall map, see the module's table.
    fn place(&mut self, hashed: &Hashed) {
        if hashed.zero {
            self.park(hashed);
            return self.plan(hashed, Plan::Zero);
        }
        if hashed.stays() {
            return self.stay(hashed);
        }
        match hashed.place {
            Some(Place::Copy(copy)) if self.has_room(copy, hashed.page) => {
                self.park(hashed);
                self.plan(hashed, Plan::Copy(copy));
            }
            _ if hashed.past == Past::Changed => self.change(hashed),
            None if hashed.past == Past::Sampled && !hashed.huge => self.park(hashed),
            None => self.index.set(hashed.page, self.listed(hashed)),
            Some(full @ Place::Copy(_)) => {
                let listed = self.listed(hashed);
                self.index.take_place(full, hashed.page, listed);
            }
            Some(Place::Page(twin)) => self.meet(hashed, twin),
        }
    }

    /// Another page has the same key.
    fn meet(&mut self, hashed: &Hashed, twin: PageId) {
        if self.index.is_restrained(twin) {
            // The twin finds this one when its guest merges again.
            let listed = self.listed(hashed);
            return self
                .index
                .take_place(Place::Page(twin), hashed.page, listed);
        }
        let usable = self.vote(twin);
        if hashed.huge {
            self.park(hashed);
        } else if usable {
            self.pair(hashed, twin);
        } else {
            // The huge page finds this one when its turn comes.
            let listed = self.listed(hashed);
            self.index
                .take_place(Place::Page(twin), hashed.page, listed);
        }
    }

    /// Makes a merged copy of the page, for itself and its twin.
    fn pair(&mut self, hashed: &Hashed, twin: PageId) {
        let room = self.index.store.copies.reserve().is_ok();
        let frame = if room {
            self.world.snapshot(hashed.index)
        } else {
            None
        };
        self.park(hashed);
        let Some(frame) = frame else {
            return;
        };
        let Ok(copy) = self
            .index
            .store
            .copies
            .insert(MergedCopy::new(frame, hashed.key))
        else {
            return;
        };
        if !self.index.yield_place(Place::Page(twin), Place::Copy(copy)) {
            return self.index.drop_copy(copy);
        }
        self.index.digest_missing(copy);
        if let Some(frame) = self
            .index
            .store
            .copies
            .get(copy)
            .and_then(MergedCopy::frame)
        {
            self.world.set_token(frame, Token(copy.0));
        }
        let fresh = Fresh {
            copy,
            index: hashed.index,
            twin,
        };
        if self.scratch.fresh.push_within_capacity(fresh).is_ok() {
            self.index.store.copies.plan(copy);
            self.plan(hashed, Plan::Copy(copy));
        }
    }

    /// Plans a small page; a huge one only waits.
    fn plan(&mut self, hashed: &Hashed, plan: Plan) {
        if hashed.huge {
            return;
        }
        if let Plan::Copy(copy) = plan {
            self.index.store.copies.plan(copy);
        }
        self.scratch.set_plan(hashed.index, plan);
    }

    /// Returns whether the page may get the copy: it has room, or is promised to it as a twin.
    fn has_room(&self, copy: CopyId, page: PageId) -> bool {
        let max = self.knobs.max_page_sharing;
        let entry = self.index.store.copies.get(copy);
        let twin = |fresh: &Fresh| fresh.copy == copy && fresh.twin == page;
        entry.is_some_and(|entry| entry.has_room(max)) || self.scratch.fresh.iter().any(twin)
    }

    /// The page has the same content and the same place as before.
    fn stay(&mut self, hashed: &Hashed) {
        let level = self.patient(hashed.old.level);
        if level != hashed.old.level {
            let new = Record {
                level,
                ..hashed.old
            };
            self.index.set(hashed.page, new);
        }
    }

    /// The key is known, but another has its place in the tree.
    fn park(&mut self, hashed: &Hashed) {
        let level = match (hashed.past, hashed.huge) {
            (Past::Same, true) => self.patient(hashed.old.level),
            // It has rested: should it be written to after it merged, that is news.
            (Past::Same, false) => Level::ALWAYS,
            (Past::New | Past::Sampled | Past::Changed, _) => hashed.old.level,
        };
        let new = Record {
            kind: Kind::Parked,
            level,
            ..self.listed(hashed)
        };
        self.index.set(hashed.page, new);
    }

    /// The content changed since the last look.
    fn change(&mut self, hashed: &Hashed) {
        let level = match hashed.old.kind {
            Kind::Volatile | Kind::Parked => hashed.old.level.raised(),
            _ => Level::SECOND,
        };
        let new = Record {
            key: key::class(hashed.key),
            level,
            huge: hashed.huge,
            ..Record::of(Kind::Volatile)
        };
        self.index.set(hashed.page, new);
    }

    /// Returns the record of the page as a candidate.
    fn listed(&self, hashed: &Hashed) -> Record {
        Record {
            key: hashed.key,
            level: hashed.old.level,
            huge: hashed.huge,
            mark: hashed.old.mark && !hashed.huge && hashed.past == Past::Same,
            ..Record::of(Kind::Listed)
        }
    }

    /// Returns the level of a page that has not changed.
    fn patient(&self, level: Level) -> Level {
        if self.knobs.smart_scan {
            level.raised().max(level)
        } else {
            level
        }
    }
}

/// Compares the class of a page, whose whole key is not the recorded one, with what is recorded.
fn past(old: &Record, class: u64) -> Past {
    if !old.has_key() {
        Past::New
    } else if old.key != class {
        Past::Changed
    } else if old.kind == Kind::Volatile {
        Past::Sampled
    } else {
        Past::Same
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_plan))]
mod tests {
    use crate::engine::{
        stats::Gauge,
        toy::{
            Page,
            Toy,
            Untested, //
        },
    };

    /// The part of a content that is not in the sample.
    const REST: u64 = 1 << 32;

    /// Page 9 is volatile with content 11, and there is a copy of content 5.
    fn volatile() -> Result<Toy, Untested> {
        let mut toy = Toy::new(1)?;
        toy.knobs.smart_scan = false;
        toy.fill(0, 0..2, |_| Page::Own(5));
        toy.fill(0, 9..10, |_| Page::Own(10));
        assert!(toy.pass(1));
        toy.fill(0, 9..10, |_| Page::Own(11));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Volatile), 1);
        Ok(toy)
    }

    #[test]
    fn what_goes_on_changing_is_not_hashed() -> Result<(), Untested> {
        let mut toy = volatile()?;
        // Its hash would have found the copy.
        toy.fill(0, 9..10, |_| Page::Own(5));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Volatile), 1);
        assert_eq!(toy.index.check(), Ok(()));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Merged), 3);
        Ok(())
    }

    #[test]
    fn what_changes_out_of_the_sample_counts_as_unchanged() -> Result<(), Untested> {
        let mut toy = volatile()?;
        for round in 1..5 {
            toy.fill(0, 9..10, |_| Page::Own(11 + round * REST));
            let hashed = toy.world.hashed;
            assert!(toy.pass(1));
            assert_eq!(toy.gauge(0, Gauge::Unshared), 1);
            assert_eq!(toy.world.hashed, hashed);
            // It rests for a look before others find it.
            assert_eq!(toy.index.tree.len(), 1 + u32::from(round > 1));
            assert_eq!(toy.index.check(), Ok(()));
        }
        Ok(())
    }

    #[test]
    fn in_a_crowded_class_each_change_is_seen() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.knobs.smart_scan = false;
        toy.fill(0, 0..2, |index| Page::Own(5 + index * REST));
        for _ in 0..3 {
            assert!(toy.pass(1));
            assert_eq!(toy.gauge(0, Gauge::Unshared), 2);
        }
        toy.fill(0, 1..2, |_| Page::Own(5 + 2 * REST));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Volatile), 1);
        assert_eq!(toy.index.check(), Ok(()));
        Ok(())
    }

    #[test]
    fn who_knows_more_of_itself_is_found() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.knobs.smart_scan = false;
        // Page 3 comes to a class that is crowded, and rests there under its whole key.
        toy.fill(0, 0..2, |index| Page::Own(5 + (1 + index) * REST));
        toy.fill(0, 3..4, |_| Page::Own(9));
        assert!(toy.pass(1));
        assert!(toy.pass(1));
        toy.fill(0, 3..4, |_| Page::Own(5));
        assert!(toy.pass(1));
        assert!(toy.pass(1));
        // The others go, and page 2 is the first of the class again.
        toy.fill(0, 0..2, |_| Page::Absent);
        toy.fill(0, 2..3, |_| Page::Own(5));
        assert!(toy.pass(1));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Merged), 2);
        assert_eq!(toy.index.check(), Ok(()));
        Ok(())
    }

    #[test]
    fn a_volatile_page_that_rests_merges_at_its_next_look() -> Result<(), Untested> {
        let mut toy = volatile()?;
        toy.fill(0, 8..9, |_| Page::Own(11));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Merged), 4);
        assert_eq!(toy.world.content(0, 9), 11);
        Ok(())
    }
}
