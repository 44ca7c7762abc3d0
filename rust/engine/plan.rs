// SPDX-License-Identifier: GPL-2.0

//! What a page shall map, by the hash of its content.
//!
//! | who has the hash's place in the tree | the page is new or unchanged           | it changed |
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
//! Of a page that changed only a sample is remembered, and it is not hashed again before a look at
//! which the sample is the same. Then it counts as unchanged, but a small page for which nobody has
//! the place is parked and takes it at its next look: the rest of it may go on changing.
//!
//! A page in a large folio cannot map anything else until that is split; it is parked where a small
//! page would merge. See [`super::huge`].

use super::{
    copies::MergedCopy,
    mask::Mask,
    page::{
        known,
        CopyId,
        Kind,
        Level,
        PageId,
        Place,
        Record,
        UNKNOWN, //
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

/// Spreads NUMA nodes over the keys.
const NODE_PRIME: u64 = 0x9e37_79b1_85eb_ca87;

/// What is known of a page's content before this look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// Nothing.
    New,
    /// It had the same hash.
    Same,
    /// It had the same sample.
    Sampled,
    /// It had another hash.
    Changed,
}

/// A page that was hashed.
#[derive(Clone, Copy, Debug)]
struct Hashed {
    index: usize,
    page: PageId,
    key: u64,
    zero: bool,
    past: Past,
    old: Record,
    huge: bool,
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
            let old = self.index.record(page);
            if self.changes_again(index, page, &old) {
                continue;
            }
            let hash = self.world.hash(index, self.index.seed);
            let key = self.key(hash, node);
            let hashed = Hashed {
                index,
                page,
                key,
                zero: self.knobs.use_zero_pages && hash == self.index.zero,
                past: past(&old, key),
                old,
                huge,
            };
            self.place(&hashed);
        }
        self.step.scanned = self.step.scanned.wrapping_add(scanned);
        self.index.count(self.position, |counters| {
            counters.scanned = counters.scanned.saturating_add(u64::from(scanned));
        });
        self.revote(due);
    }

    /// Whether a volatile page has changed since its last look, as far as a sample tells. Most that
    /// changed once go on doing so, and a sample costs an eighth of a hash.
    fn changes_again(&mut self, index: usize, page: PageId, old: &Record) -> bool {
        if !old.has_sample() {
            return false;
        }
        let key = self.sample(index);
        if key == old.key {
            return false;
        }
        let new = Record {
            key,
            level: old.level.raised(),
            ..*old
        };
        self.index.set(page, new);
        true
    }

    /// Returns the key of a volatile page.
    fn sample(&mut self, index: usize) -> u64 {
        known(self.world.sample(index, self.index.seed))
    }

    /// Plans what a page that was just split off a large folio shall map, by the hash that it had
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
            zero: self.knobs.use_zero_pages && old.key == self.key(self.index.zero, node),
            past: Past::Same,
            old,
            huge: false,
        });
    }

    /// Returns the key of a page of that hash on that NUMA node.
    pub(super) fn key(&self, hash: u64, node: u8) -> u64 {
        if self.knobs.merge_across_nodes {
            known(hash)
        } else {
            let number = u64::from(node).wrapping_add(1);
            known(hash ^ number.wrapping_mul(NODE_PRIME))
        }
    }

    /// Plans what the page shall map, see the module's table.
    fn place(&mut self, hashed: &Hashed) {
        if hashed.zero {
            self.park(hashed);
            return self.plan(hashed, Plan::Zero);
        }
        if hashed.old.kind == Kind::Listed && hashed.past == Past::Same {
            return self.stay(hashed);
        }
        let place = self.index.find(hashed.key);
        match place {
            Some(Place::Copy(copy)) if self.has_room(copy, hashed.page) => {
                self.park(hashed);
                self.plan(hashed, Plan::Copy(copy));
            }
            _ if hashed.past == Past::Changed => self.change(hashed),
            None if hashed.past == Past::Sampled && !hashed.huge => self.park(hashed),
            None => self.index.set(hashed.page, self.listed(hashed)),
            Some(Place::Copy(_)) => {
                let listed = self.listed(hashed);
                if let Some(full) = place {
                    self.index.take_place(full, hashed.page, listed);
                }
            }
            Some(Place::Page(twin)) => self.meet(hashed, twin),
        }
    }

    /// Another page has the same hash.
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

    /// The hash is known, but another has its place in the tree.
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
            key: self.sample(hashed.index),
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

/// Compares the hash of a page with what is recorded.
fn past(old: &Record, key: u64) -> Past {
    match old.kind {
        // It would not be here if the sample had changed.
        Kind::Volatile if old.has_sample() => Past::Sampled,
        Kind::Listed | Kind::Parked | Kind::Volatile if old.key != UNKNOWN => {
            if old.key == key {
                Past::Same
            } else {
                Past::Changed
            }
        }
        _ => Past::New,
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
    fn what_changes_out_of_the_sample_is_held_back_by_its_hash() -> Result<(), Untested> {
        let mut toy = volatile()?;
        for round in 1..4 {
            toy.fill(0, 9..10, |_| Page::Own(11 + round * 2 * REST));
            assert!(toy.pass(1));
            assert_eq!(toy.gauge(0, Gauge::Unshared), 1);
            // It is not found by its hash, which is soon another one.
            assert_eq!(toy.index.tree.len(), 1);
            toy.fill(0, 9..10, |_| Page::Own(11 + (round * 2 + 1) * REST));
            assert!(toy.pass(1));
            assert_eq!(toy.gauge(0, Gauge::Volatile), 1);
            assert_eq!(toy.index.check(), Ok(()));
        }
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
