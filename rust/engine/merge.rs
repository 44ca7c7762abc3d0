// SPDX-License-Identifier: GPL-2.0

//! Doing what was planned, and recording what came of it.

use super::{
    copies::MergedCopy,
    guests::block_of,
    index::Index,
    key,
    page::{
        CopyId,
        Kind,
        Level,
        PageId,
        Place,
        Record, //
    },
    run::Run,
    scan::Visit,
    scratch::{
        Fresh,
        Plan, //
    },
    world::{
        GuestId,
        Shared,
        Skip,
        Token,
        World,
        RUN_PAGES, //
    },
};
impl<F> Index<F> {
    /// Returns the guest that has a page, and the page's address.
    pub(super) fn guest_of(&self, page: PageId) -> Option<(GuestId, u64)> {
        let (position, address) = self.store.blocks.place(page)?;
        Some((self.guests.at(position)?.id, address))
    }

    /// Has the block of a page visited in the next pass, however calm it was.
    pub(super) fn visit_soon(&mut self, page: PageId) {
        let Some((position, address)) = self.store.blocks.place(page) else {
            return;
        };
        let Some(guest) = self.guests.at_mut(position) else {
            return;
        };
        let at = guest.slot_at(block_of(address));
        if let Some(slot) = at.and_then(|at| guest.slots.get_mut(at)) {
            slot.visited(true);
        }
    }

    /// Returns the frame of a copy.
    pub(super) fn frame(&self, copy: CopyId) -> Option<&F> {
        self.store.copies.get(copy).and_then(MergedCopy::frame)
    }
}

impl<W: World> Visit<'_, W> {
    /// Gives the copies made in this step to the pages of the same key that are not planned with
    /// the block's own, as many neighbours at once as allowed.
    pub(super) fn share_twins(&mut self) {
        self.split_twins();
        let mut at: usize = 0;
        while at < self.scratch.fresh.len() {
            let len = self.twin_run(at);
            let shared = self.share_twin_run(at, len);
            // OVERFLOW: At most 512.
            at = at.wrapping_add(shared.max(1));
        }
        for at in 0..self.scratch.fresh.len() {
            let Some(fresh) = self.scratch.fresh.get(at).copied() else {
                return;
            };
            self.index.store.copies.unplan(fresh.copy);
            let copy = self.index.store.copies.get(fresh.copy);
            if copy.is_some_and(|copy| copy.records() == 0 && copy.planned() <= 1) {
                self.cancel(&fresh);
            }
        }
    }

    /// Splits the large folios that twins are in.
    fn split_twins(&mut self) {
        for at in 0..self.scratch.fresh.len() {
            let Some(fresh) = self.scratch.fresh.get(at).copied() else {
                return;
            };
            let record = self.index.record(fresh.twin);
            if record.huge && record.kind == Kind::Parked {
                self.split_twin(fresh.twin);
            }
        }
    }

    /// Returns how many of the twins from number `at` on are neighbours and can be shared now.
    fn twin_run(&self, at: usize) -> usize {
        let twins = self.scratch.fresh.get(at..).unwrap_or(&[]);
        let Some(first) = twins.first() else {
            return 0;
        };
        let mut len: usize = 0;
        for fresh in twins.iter().take(RUN_PAGES) {
            // OVERFLOW: At most 1024.
            let next = first.twin.index().wrapping_add(len);
            let neighbour = fresh.twin.block() == first.twin.block() && fresh.twin.index() == next;
            if !neighbour || !self.is_twin_ready(fresh) {
                break;
            }
            len = len.wrapping_add(1);
        }
        len
    }

    /// Returns whether a twin waits for its copy, and is neither huge nor planned with the block's
    /// own pages.
    fn is_twin_ready(&self, fresh: &Fresh) -> bool {
        let twin = self.index.record(fresh.twin);
        let planned = fresh.twin.block() == self.block
            && self.scratch.plan(fresh.twin.index()) == Plan::Copy(fresh.copy);
        twin.kind == Kind::Parked && !twin.huge && !planned
    }

    /// Lets `len` neighbouring twins from number `at` on map their copies, or fewer if memory is
    /// short. Returns how many.
    fn share_twin_run(&mut self, at: usize, len: usize) -> usize {
        let twins = self.scratch.fresh.iter().skip(at).take(len);
        let place = self.scratch.fresh.get(at).map(|fresh| fresh.twin);
        let place = place.and_then(|twin| self.index.guest_of(twin));
        let Some((guest, address)) = place else {
            return 0;
        };
        let run = Run {
            guest,
            address,
            plans: twins.map(|fresh| Plan::Copy(fresh.copy)),
            len,
        };
        let shared = run.share(
            self.index,
            self.world,
            self.knobs.merge_batch,
            &mut self.scratch.results,
        );
        for offset in 0..shared {
            // OVERFLOW: At most 512.
            let fresh = self.scratch.fresh.get(at.wrapping_add(offset)).copied();
            let result = self.scratch.results.get(offset).copied();
            if let (Some(fresh), Some(result)) = (fresh, result) {
                self.record_twin(&fresh, result);
            }
        }
        shared
    }

    /// Records what came of a twin. One that is in another large folio of a block that was split
    /// for others is split too, and tried again.
    fn record_twin(&mut self, fresh: &Fresh, mut result: Shared) {
        let parted = self.scratch.parted == Some(fresh.twin.block());
        if result == Shared::Gone && parted && self.split_twin(fresh.twin) {
            if let Some((guest, address)) = self.index.guest_of(fresh.twin) {
                let mut again = [Shared::Busy];
                let run = Run {
                    guest,
                    address,
                    plans: core::iter::once(Plan::Copy(fresh.copy)),
                    len: 1,
                };
                run.share(self.index, self.world, 1, &mut again);
                [result] = again;
            }
        }
        self.record_shared(fresh.twin, Plan::Copy(fresh.copy), result);
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
        let key = self.index.key_of(fresh.copy);
        let listed = self.index.is_listed(fresh.copy);
        if listed && old.kind == Kind::Parked && key::class(old.key) == key::class(key) {
            let kind = Kind::Listed;
            let new = Record { kind, key, ..old };
            self.index.take_place(Place::Copy(fresh.copy), page, new);
        }
        self.index.drop_copy(fresh.copy);
    }

    /// Replaces the planned pages of the block, as many neighbours at once as allowed.
    pub(super) fn share_runs(&mut self) {
        let mut from: usize = 0;
        while let Some(at) = self.next_planned(from) {
            let len = self.run_length(at);
            let run = Run {
                guest: self.guest,
                address: self.address(at),
                plans: self.scratch.plan.iter().skip(at).copied(),
                len,
            };
            let shared = run.share(
                self.index,
                self.world,
                self.knobs.merge_batch,
                &mut self.scratch.results,
            );
            self.record_run(at, shared);
            if shared == 0 {
                // The copy has turned out to be broken. The page is parked, and finds another.
                self.unplan(at);
            }
            // OVERFLOW: At most 1024.
            from = at.wrapping_add(shared.max(1));
        }
    }

    /// Returns the index of the first page from `from` on that is planned.
    fn next_planned(&self, from: usize) -> Option<usize> {
        if !self.scratch.planned {
            return None;
        }
        let rest = self.scratch.plan.get(from..)?;
        let ahead = rest.iter().position(|plan| *plan != Plan::Nothing)?;
        // OVERFLOW: Below 512.
        Some(from.wrapping_add(ahead))
    }

    /// Returns how many pages from `at` on are planned, at most as many as go together.
    fn run_length(&self, at: usize) -> usize {
        let mut len: usize = 0;
        for plan in self.scratch.plan.get(at..).unwrap_or(&[]) {
            if len >= RUN_PAGES || *plan == Plan::Nothing {
                break;
            }
            // OVERFLOW: At most 512.
            len = len.wrapping_add(1);
        }
        len
    }

    /// Does not count the page at `index` towards the cap of its copy any more.
    fn unplan(&mut self, index: usize) {
        if let Plan::Copy(copy) = self.scratch.plan(index) {
            self.index.store.copies.unplan(copy);
        }
    }

    /// Records what came of a run.
    fn record_run(&mut self, at: usize, len: usize) {
        for offset in 0..len {
            // OVERFLOW: At most 512.
            let index = at.wrapping_add(offset);
            let plan = self.scratch.plan(index);
            let result = self.scratch.results.get(offset).copied();
            self.unplan(index);
            self.record_shared(self.page(index), plan, result.unwrap_or(Shared::Busy));
        }
    }

    /// Records what came of one page.
    fn record_shared(&mut self, page: PageId, plan: Plan, shared: Shared) {
        if let (Shared::Skip(Skip::Poison), Plan::Copy(copy)) = (shared, plan) {
            // The copy is broken, not the page.
            return self.index.retire(Token(copy.0));
        }
        let old = self.index.record(page);
        if let (Shared::Differs, Plan::Copy(copy)) = (shared, plan) {
            if !old.has_whole_key() {
                return self.crowd(copy);
            }
        }
        if let Some(new) = outcome(&old, plan, shared) {
            self.index.set(page, new);
        }
        if shared == Shared::Done {
            if let Some(block) = self.index.store.blocks.get(page.block()) {
                self.count_merge(block.guest());
            }
        }
    }
}

/// Returns what a page becomes that was to map something else; `None`: it stays parked, and tries
/// again at its next look.
fn outcome(old: &Record, plan: Plan, shared: Shared) -> Option<Record> {
    let (kind, level) = match shared {
        Shared::Busy => return None,
        Shared::Done if plan == Plan::Zero => (Record::of(Kind::Zero), old.level),
        Shared::Done => (Record::of(Kind::Merged), old.level),
        Shared::Gone => (Record::of(Kind::Volatile), old.level),
        // Once may be a write between hash and comparison.
        Shared::Differs if old.mark => (Record::skipped(Skip::Collision), Level::LAST),
        Shared::Differs => (Record::of(Kind::Volatile), old.level.raised()),
        Shared::Skip(reason) => (Record::skipped(reason), old.level.raised()),
    };
    let mut new = Record { level, ..kind };
    match (shared, plan) {
        (Shared::Done, Plan::Copy(copy)) => new.copy = copy,
        (Shared::Differs, _) if !old.mark => {
            new.key = old.key;
            new.mark = true;
        }
        _ => {}
    }
    Some(new)
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_merge))]
mod tests {
    use crate::engine::{
        stats::Gauge,
        toy::{
            Moment,
            Page,
            Toy,
            Untested,
            Write,
            PAGES, //
        },
    };
    use crate::mem::{
        AllocError,
        GFP_KERNEL, //
    };

    /// The guest writes 99 to a page at that moment.
    fn write(toy: &mut Toy, moment: Moment, index: usize) -> Result<(), AllocError> {
        let page = Page::Own(99);
        let write = Write {
            moment,
            index,
            page,
        };
        toy.world.writes.push(write, GFP_KERNEL)
    }

    /// A guest with a candidate that has changed since, and one with two pages of the key that it
    /// had.
    fn changed_twin() -> Result<Toy, Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..1, |_| Page::Own(5));
        toy.step(0)?;
        toy.fill(0, 0..1, |_| Page::Own(6));
        toy.fill(1, 1..3, |_| Page::Own(5));
        Ok(toy)
    }

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
        write(&mut toy, Moment::Sampled, 3)?;
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
    fn a_page_that_went_away_is_volatile() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..4, |_| Page::Own(0));
        let gone = Write {
            moment: Moment::Hashed,
            index: 2,
            page: Page::Absent,
        };
        toy.world.writes.push(gone, GFP_KERNEL)?;
        toy.step(0)?;
        assert_eq!(toy.index.check(), Ok(()));
        assert_eq!(toy.gauge(0, Gauge::Zero), 3);
        assert_eq!(toy.gauge(0, Gauge::Volatile), 1);
        Ok(())
    }

    #[test]
    fn a_copy_that_nobody_took_is_freed_at_once() -> Result<(), Untested> {
        let mut toy = changed_twin()?;
        write(&mut toy, Moment::Copied, 1)?;
        write(&mut toy, Moment::Sampled, 2)?;
        toy.step(1)?;
        assert_eq!(toy.index.check(), Ok(()));
        assert_eq!(toy.index.copies(), 0);
        // They are what they were before, and found to have changed at their next look.
        assert_eq!(toy.gauge(1, Gauge::Unshared), 2);
        assert!(toy.pass(2));
        assert!(toy.pass(2));
        assert_eq!(toy.gauge(1, Gauge::Volatile), 2);
        Ok(())
    }

    #[test]
    fn a_copy_that_one_page_took_is_found_by_others() -> Result<(), Untested> {
        let mut toy = changed_twin()?;
        write(&mut toy, Moment::Sampled, 2)?;
        toy.step(1)?;
        assert_eq!(toy.index.check(), Ok(()));
        assert_eq!(toy.gauge(1, Gauge::Merged), 1);
        toy.fill(1, 3..4, |_| Page::Own(5));
        // The first one ends the pass in which the step was.
        assert!(toy.pass(2));
        assert!(toy.pass(2));
        assert_eq!(toy.gauge(1, Gauge::Merged), 2);
        assert_eq!(toy.index.copies(), 1);
        Ok(())
    }

    #[test]
    fn a_copy_of_other_content_than_its_hash_is_given_back() -> Result<(), Untested> {
        let mut toy = changed_twin()?;
        write(&mut toy, Moment::Sampled, 1)?;
        toy.step(1)?;
        assert_eq!(toy.index.check(), Ok(()));
        assert_eq!(toy.index.copies(), 0);
        assert_eq!(toy.gauge(1, Gauge::Merged), 0);
        assert_eq!(toy.world.content(1, 1), 99);
        assert_eq!(toy.world.content(1, 2), 5);
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
        assert_eq!(toy.gauge(0, Gauge::Unshared), 1);
        assert_eq!(toy.gauge(1, Gauge::Unshared), 1);
        assert_eq!(toy.index.copies(), 0);
        assert!(toy.pass(2));
        assert!(toy.pass(2));
        assert_eq!(toy.gauge(0, Gauge::Volatile), 1);
        assert_eq!(toy.gauge(1, Gauge::Unshared), 1);
        Ok(())
    }

    /// What is above it is not in the sample of a content.
    const REST: u64 = 1 << 32;

    #[test]
    fn pages_of_one_sample_are_told_apart_by_all_of_it() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        for guest in 0..2 {
            toy.fill(guest, 0..40, |index| Page::Own(5 + index % 20 * REST));
        }
        for _ in 0..4 {
            assert!(toy.pass(2));
            assert_eq!(toy.index.check(), Ok(()));
        }
        assert_eq!(toy.gauge(0, Gauge::Merged), 40);
        assert_eq!(toy.gauge(1, Gauge::Merged), 40);
        assert_eq!(toy.index.copies(), 20);
        assert_eq!(toy.world.content(0, 39), 5 + 19 * REST);
        Ok(())
    }

    #[test]
    fn a_copy_is_found_after_its_class_was_crowded() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..2, |_| Page::Own(5));
        assert!(toy.pass(1));
        toy.fill(0, 2..3, |_| Page::Own(5 + REST));
        assert!(toy.pass(1));
        toy.fill(0, 3..4, |_| Page::Own(5));
        assert!(toy.pass(1));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Merged), 3);
        assert_eq!(toy.gauge(0, Gauge::Unshared), 1);
        assert_eq!(toy.index.copies(), 1);
        Ok(())
    }

    #[test]
    fn pages_that_differ_take_no_room_for_good() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.knobs.max_page_sharing = 4;
        toy.fill(0, 0..2, |_| Page::Own(5));
        assert!(toy.pass(1));
        // Two of another content are planned for the copy before its twin's turn comes.
        toy.fill(0, 2..4, |index| Page::Own(5 + index * REST));
        toy.fill(0, 4..5, |_| Page::Own(5));
        for _ in 0..3 {
            assert!(toy.pass(1));
            assert!(toy.index.sweep(&mut toy.world, &toy.knobs, &mut 9).done);
            assert_eq!(toy.index.check(), Ok(()));
        }
        assert_eq!(toy.gauge(0, Gauge::Merged), 3);
        assert_eq!(toy.index.copies(), 1);
        Ok(())
    }

    #[test]
    fn a_class_is_crowded_no_longer_than_somebody_is_in_it() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.knobs.smart_scan = false;
        toy.fill(0, 0..4, |index| Page::Own(5 + index % 2 * REST));
        for _ in 0..3 {
            assert!(toy.pass(1));
        }
        assert_eq!(toy.gauge(0, Gauge::Merged), 4);
        toy.fill(0, 0..4, |_| Page::Absent);
        assert!(toy.pass(1));
        assert!(toy.index.sweep(&mut toy.world, &toy.knobs, &mut 9).done);
        let sampled = toy.world.sampled;
        let hashed = toy.world.hashed;
        toy.fill(0, 0..1, |_| Page::Own(5));
        assert!(toy.pass(1));
        assert_eq!((toy.world.sampled, toy.world.hashed), (sampled + 1, hashed));
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
        toy.fill(0, 0..PAGES, |_| Page::Own(0));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Zero), PAGES as u64);
        Ok(())
    }
}
