// SPDX-License-Identifier: GPL-2.0

//! Doing what was planned, and recording what came of it.

use super::{
    copies::{
        MergedCopy,
        State, //
    },
    index::Index,
    page::{
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
        GuestId,
        Seen,
        Shared,
        Skip,
        Target,
        Token,
        Unshared,
        World,
        BLOCK_PAGES, //
    },
};
use crate::mem::{
    KVVec,
    GFP_KERNEL, //
};

/// Pages that can be replaced together without allocating.
const SMALL_RUN: usize = 32;

impl<F> Index<F> {
    /// Returns the guest that has a page, and the page's address.
    pub(super) fn guest_of(&self, page: PageId) -> Option<(GuestId, u64)> {
        let (position, address) = self.store.blocks.place(page)?;
        Some((self.guests.at(position)?.id, address))
    }

    /// Returns the frame of a copy.
    pub(super) fn frame(&self, copy: CopyId) -> Option<&F> {
        self.store.copies.get(copy).and_then(MergedCopy::frame)
    }
}

impl<W: World> Visit<'_, W> {
    /// Gives the copies made in this step to the pages that have the same hash, which are elsewhere
    /// or were not planned with their neighbours.
    pub(super) fn share_twins(&mut self) {
        for at in 0..self.scratch.fresh.len() {
            let Some(fresh) = self.scratch.fresh.get(at).copied() else {
                return;
            };
            self.share_twin(&fresh);
            self.index.store.copies.unplan(fresh.copy);
            let copy = self.index.store.copies.get(fresh.copy);
            if copy.is_some_and(|copy| copy.records() == 0 && copy.planned() <= 1) {
                self.cancel(&fresh);
            }
        }
    }

    fn share_twin(&mut self, fresh: &Fresh) {
        let twin = self.index.record(fresh.twin);
        let planned = fresh.twin.block() == self.block
            && self.scratch.plan(fresh.twin.index()) == Plan::Copy(fresh.copy);
        if planned || twin.kind != Kind::Parked {
            return;
        }
        if twin.huge && !self.split_twin(fresh.twin) {
            return;
        }
        let mut shared = self.share_one(fresh);
        let parted = !twin.huge && self.scratch.parted == Some(fresh.twin.block());
        if shared == Shared::Gone && parted && self.split_twin(fresh.twin) {
            shared = self.share_one(fresh);
        }
        self.record_shared(fresh.twin, Plan::Copy(fresh.copy), shared);
    }

    /// Lets the twin map the copy.
    fn share_one(&mut self, fresh: &Fresh) -> Shared {
        let mut results = [Shared::Busy];
        let guest = self.index.guest_of(fresh.twin);
        if let (Some((id, address)), Some(frame)) = (guest, self.index.frame(fresh.copy)) {
            let targets = [Target::Copy(frame)];
            self.world.share(id, address, &targets, &mut results);
        }
        let [shared] = results;
        shared
    }

    /// Gives up a copy that only the page which it was made of would map: that becomes the
    /// candidate instead.
    fn cancel(&mut self, fresh: &Fresh) {
        if self.scratch.plan(fresh.index) == Plan::Copy(fresh.copy) {
            self.scratch.set_plan(fresh.index, Plan::Nothing);
            self.index.store.copies.unplan(fresh.copy);
        }
        let page = self.page(fresh.index);
        let old = self.index.record(page);
        let key = self
            .index
            .store
            .copies
            .node(fresh.copy)
            .map(|node| node.key());
        let listed = self.index.is_listed(fresh.copy);
        if listed && old.kind == Kind::Parked && Some(old.key) == key {
            let kind = Kind::Listed;
            let new = Record { kind, ..old };
            self.index.take_place(Place::Copy(fresh.copy), page, new);
        }
        self.index.drop_copy(fresh.copy);
    }

    /// Replaces the planned pages of the block, as many neighbours at once as allowed.
    pub(super) fn share_runs(&mut self) {
        let mut at = 0;
        while at < BLOCK_PAGES {
            let len = self.run_length(at);
            if len == 0 {
                // OVERFLOW: At most 512.
                at = at.wrapping_add(1);
                continue;
            }
            let len = self.share_run(at, len);
            self.record_run(at, len);
            at = at.wrapping_add(len);
        }
    }

    /// Returns how many pages from `at` on are planned, at most as many as go together.
    fn run_length(&self, at: usize) -> usize {
        // CAST: `usize` is wider.
        self.scratch
            .plan
            .iter()
            .skip(at)
            .take(self.knobs.merge_batch as usize)
            .take_while(|plan| **plan != Plan::Nothing)
            .count()
    }

    /// Lets the next `len` pages from `at` on map what is planned, or fewer if memory is short.
    /// Returns how many.
    fn share_run(&mut self, at: usize, len: usize) -> usize {
        let mut small = [const { Target::Zero }; SMALL_RUN];
        let mut large = KVVec::new();
        let targets: &mut [Target<'_, W::Frame>] = if len <= SMALL_RUN {
            &mut small
        } else if large.reserve(len, GFP_KERNEL).is_ok() {
            while large.push_within_capacity(Target::Zero).is_ok() {}
            &mut large
        } else {
            &mut small
        };
        let mut ready: usize = 0;
        let plans = self.scratch.plan.iter().skip(at).take(len);
        for (target, plan) in targets.iter_mut().zip(plans) {
            *target = match plan {
                Plan::Zero => Target::Zero,
                Plan::Copy(copy) => match self.index.frame(*copy) {
                    Some(frame) => Target::Copy(frame),
                    None => break,
                },
                Plan::Nothing => break,
            };
            // OVERFLOW: At most 512.
            ready = ready.wrapping_add(1);
        }
        let address = self.address(at);
        let results = self.scratch.results.get_mut(..ready);
        if let (Some(targets), Some(results)) = (targets.get(..ready), results) {
            if ready > 0 {
                results.fill(Shared::Busy);
                self.world.share(self.guest, address, targets, results);
            }
        }
        ready.max(1)
    }

    /// Records what came of a run.
    fn record_run(&mut self, at: usize, len: usize) {
        for offset in 0..len {
            // OVERFLOW: At most 512.
            let index = at.wrapping_add(offset);
            let plan = self.scratch.plan(index);
            let shared = self.scratch.results.get(offset).copied();
            if let Plan::Copy(copy) = plan {
                self.index.store.copies.unplan(copy);
            }
            self.record_shared(self.page(index), plan, shared.unwrap_or(Shared::Busy));
        }
    }

    /// Records what came of one page.
    fn record_shared(&mut self, page: PageId, plan: Plan, shared: Shared) {
        let old = self.index.record(page);
        let level = old.level;
        let new = match (shared, plan) {
            (Shared::Done, Plan::Copy(copy)) => Record {
                copy,
                level,
                ..Record::of(Kind::Merged)
            },
            (Shared::Done, _) => Record {
                level,
                ..Record::of(Kind::Zero)
            },
            // Once may be a write between hash and comparison.
            (Shared::Differs, _) if old.mark => Record {
                level: Level::LAST,
                ..Record::skipped(Skip::Collision)
            },
            (Shared::Differs, _) => Record {
                key: old.key,
                level: level.raised(),
                mark: true,
                ..Record::of(Kind::Volatile)
            },
            (Shared::Gone, _) => Record {
                key: UNKNOWN,
                level,
                ..Record::of(Kind::Volatile)
            },
            // The copy is broken, not the page.
            (Shared::Skip(Skip::Poison), Plan::Copy(copy)) => {
                return self.index.retire(Token(copy.0));
            }
            (Shared::Skip(reason), _) => Record {
                level: level.raised(),
                ..Record::skipped(reason)
            },
            // It is parked, and tries again at its next look.
            (Shared::Busy, _) => return,
        };
        self.index.set(page, new);
        if shared == Shared::Done {
            if let Some(block) = self.index.store.blocks.get(page.block()) {
                self.count_merge(block.guest());
            }
        }
    }

    /// Gives up the copies made in this step that nobody took.
    pub(super) fn settle_copies(&mut self) {
        for at in 0..self.scratch.fresh.len() {
            let Some(fresh) = self.scratch.fresh.get(at).copied() else {
                return;
            };
            let copy = self.index.store.copies.get(fresh.copy);
            match copy.map(MergedCopy::records) {
                Some(0) => self.index.drop_copy(fresh.copy),
                Some(1) => self.prove(&fresh),
                _ => {}
            }
        }
    }

    /// Makes sure that a copy which only one page took can be found by others. The page may have
    /// been written to between hash and snapshot: then the copy has not the content that its hash
    /// is of, and the page gets its own copy back.
    fn prove(&mut self, fresh: &Fresh) {
        let node = match self.scratch.seen(fresh.index) {
            Seen::Anon { node } | Seen::Huge { node } => node,
            _ => 0,
        };
        let frame = self.index.frame(fresh.copy);
        let hash = frame.map(|frame| self.world.hash_frame(frame, self.index.seed));
        let key = self
            .index
            .store
            .copies
            .node(fresh.copy)
            .map(|node| node.key());
        if hash.map(|hash| self.key(hash, node)) == key {
            return;
        }
        self.index.unlist_copy(fresh.copy, State::Odd);
        for page in [self.page(fresh.index), fresh.twin] {
            let record = self.index.record(page);
            let taken = record.kind == Kind::Merged && record.copy == fresh.copy;
            let Some((guest, address)) = self.index.guest_of(page).filter(|_| taken) else {
                continue;
            };
            if self.world.unshare(guest, address) == Unshared::Done {
                self.index.set(page, Record::UNSEEN);
                self.index.drop_copy(fresh.copy);
            }
        }
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_merge))]
mod tests {
    use crate::engine::{
        stats::Gauge,
        toy::{
            Page,
            Toy,
            Untested,
            PAGES, //
        },
    };

    #[test]
    fn zeroes_map_the_zero_page() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..100, |index| Page::Own(index % 2));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Zero), 50);
        assert_eq!(toy.gauge(0, Gauge::Merged), 50);
        assert_eq!(toy.world.get(0, 0), Page::Zero);
        Ok(())
    }

    #[test]
    fn a_write_between_hash_and_comparison_is_noticed() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..8, |index| Page::Own(1 + index));
        toy.fill(1, 0..8, |index| Page::Own(1 + index));
        toy.step(0)?;
        toy.world.write_after_hash = Some((3, Page::Own(99)));
        toy.step(1)?;
        assert_eq!(toy.index.check(), Ok(()));
        assert_eq!(toy.world.content(1, 3), 99);
        assert_eq!(toy.gauge(0, Gauge::Merged), 7);
        assert_eq!(toy.gauge(1, Gauge::Merged), 7);
        // The copy that was made of the new content is nobody's.
        assert_eq!(toy.index.copies(), 7);
        Ok(())
    }

    #[test]
    fn a_twin_that_has_changed_makes_the_page_a_candidate() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..1, |_| Page::Own(5));
        toy.step(0)?;
        toy.fill(0, 0..1, |_| Page::Own(6));
        toy.fill(1, 0..1, |_| Page::Own(5));
        toy.step(1)?;
        assert_eq!(toy.index.check(), Ok(()));
        assert_eq!(toy.gauge(0, Gauge::Volatile), 1);
        assert_eq!(toy.gauge(1, Gauge::Unshared), 1);
        assert_eq!(toy.index.copies(), 0);
        Ok(())
    }

    #[test]
    fn without_memory_for_a_copy_nothing_changes() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..10, |_| Page::Own(5));
        toy.world.has_memory = false;
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Unshared), 10);
        toy.world.has_memory = true;
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Merged), 10);
        Ok(())
    }

    #[test]
    fn a_copy_has_no_more_pages_than_allowed() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.knobs.max_page_sharing = 3;
        toy.fill(0, 0..10, |_| Page::Own(5));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Merged), 9);
        assert_eq!(toy.index.totals().shared, 3);
        Ok(())
    }

    #[test]
    fn long_runs_are_shared_too() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.knobs.merge_batch = 512;
        toy.fill(0, 0..PAGES, |_| Page::Own(0));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Zero), PAGES as u64);
        Ok(())
    }
}
