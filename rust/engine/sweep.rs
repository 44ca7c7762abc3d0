// SPDX-License-Identifier: GPL-2.0

//! Merged copies that nobody maps, and those that have room again.

use super::{
    copies::{
        MergedCopy,
        State, //
    },
    index::{
        Index,
        Swept, //
    },
    key,
    knobs::Knobs,
    moves::Holder,
    page::{
        CopyId,
        Place, //
    },
    world::{
        Token,
        World, //
    },
};

impl<F> Index<F> {
    /// Frees merged copies that nobody maps: looks at up to `budget` copies, and takes off it those
    /// that were looked at. To be called while a pass goes on, by the shrinker, and when it is due.
    pub fn sweep<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        knobs: &Knobs,
        budget: &mut usize,
    ) -> Swept {
        let mut swept = Swept::default();
        while let Some(left) = budget.checked_sub(1) {
            let Some((copy, entry)) = self.store.copies.next(self.swept) else {
                self.swept = CopyId(0);
                self.sweep_due = false;
                swept.done = true;
                break;
            };
            *budget = left;
            // OVERFLOW: Below 2^30.
            self.swept = CopyId(copy.0.wrapping_add(1));
            let Some(frame) = entry.frame() else {
                continue;
            };
            if world.mappings(frame) == 0 {
                self.drop_copy(copy);
                swept.freed = swept.freed.saturating_add(1);
            } else if entry.state() == State::Full {
                self.list_again(world, copy, knobs);
            }
        }
        swept
    }

    /// Returns whether copies of a guest that left or was unmerged are yet to be looked at. They
    /// are memory that the host waits for, so they should not have to wait for a pass.
    pub fn is_sweep_due(&self) -> bool {
        self.sweep_due
    }

    /// Has `sweep` begin with the first copy.
    pub fn sweep_anew(&mut self) {
        self.swept = CopyId(0);
        self.sweep_due = true;
    }

    /// Never hands out the copy of that number again: its frame is broken.
    pub fn retire(&mut self, token: Token) {
        let copy = CopyId(token.0);
        self.unlist_copy(copy, State::Retired);
        self.forget_digest(copy);
    }

    /// Returns whether the bytes of a copy may be read. One whose frame turns out to be broken is
    /// retired: the mark may be there long before the scanner comes to a page that maps the copy.
    pub(super) fn may_read<W: World<Frame = F>>(&mut self, world: &W, copy: CopyId) -> bool {
        let entry = self.store.copies.get(copy);
        let whole = entry.filter(|entry| entry.state() != State::Retired);
        let Some(frame) = whole.and_then(MergedCopy::frame) else {
            return false;
        };
        let is_broken = world.is_broken(frame);
        if is_broken {
            self.retire(Token(copy.0));
        }
        !is_broken
    }

    /// Puts a copy that was full into the tree again if half of its pages have left it, unless
    /// another copy has its place, or it is broken.
    fn list_again<W: World<Frame = F>>(&mut self, world: &mut W, copy: CopyId, knobs: &Knobs) {
        let records = self.store.copies.get(copy).map(MergedCopy::records);
        if records.is_none_or(|records| records > knobs.max_page_sharing / 2) {
            return;
        }
        if !self.may_read(world, copy) {
            return;
        }
        // Its class may be crowded now and not have been then, or the other way round.
        let class = key::class(self.key_of(copy));
        let (key, place) = match self.holder(class) {
            Holder::One(place) => (class, Some(place)),
            Holder::Nobody if !self.is_sparse(world, copy) => (class, None),
            Holder::Nobody | Holder::Crowd => {
                let frame = self.frame(copy);
                let hash = frame.map(|frame| world.hash_frame(frame, self.seed));
                let key = key::of_whole(class, hash.unwrap_or_default());
                (key, self.find(key))
            }
        };
        self.rekey_copy(copy, key);
        let node = Place::Copy(copy);
        let listed = match place {
            None => self.tree.insert(&mut self.store, node.node()).is_ok(),
            Some(Place::Copy(_)) => false,
            Some(page) => self.yield_place(page, node),
        };
        if listed {
            self.store.copies.set_state(copy, State::Listed);
        }
    }

    /// Returns whether the sample of a copy has zeroes only: that class counts as crowded always.
    fn is_sparse<W: World<Frame = F>>(&self, world: &mut W, copy: CopyId) -> bool {
        let frame = self.frame(copy);
        frame.map(|frame| world.sample_frame(frame, self.seed)) == Some(self.zero_sample)
    }

    /// Returns whether a copy is in the tree.
    pub(super) fn is_listed(&self, copy: CopyId) -> bool {
        let copy = self.store.copies.get(copy);
        copy.map(MergedCopy::state) == Some(State::Listed)
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_sweep))]
mod tests {
    use super::*;
    use crate::engine::{
        index::Progress,
        stats::Gauge,
        toy::{
            Page,
            Toy,
            Untested, //
        },
        world::GuestId, //
    };

    #[test]
    fn copies_that_nobody_maps_are_freed() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..20, |index| Page::Own(1 + index / 2));
        assert!(toy.pass(1));
        assert_eq!(toy.index.copies(), 10);
        toy.fill(0, 0..6, |_| Page::Absent);
        let mut budget = 5;
        let swept = toy.index.sweep(&mut toy.world, &toy.knobs, &mut budget);
        assert_eq!((swept.freed, swept.done, budget), (3, false, 0));
        budget = 100;
        let swept = toy.index.sweep(&mut toy.world, &toy.knobs, &mut budget);
        assert_eq!((swept.freed, swept.done, budget), (0, true, 95));
        assert_eq!(toy.index.check(), Ok(()));
        // The numbers are kept until the pages that refer to them are looked at.
        assert_eq!(toy.index.copies(), 10);
        assert!(toy.pass(1));
        assert_eq!(toy.index.copies(), 7);
        Ok(())
    }

    #[test]
    fn a_sweep_of_all_copies_is_due_when_a_guest_left() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..20, |index| Page::Own(1 + index));
        toy.fill(1, 0..20, |index| Page::Own(1 + index));
        assert!(toy.pass(2));
        let mut budget = 15;
        toy.index.sweep(&mut toy.world, &toy.knobs, &mut budget);
        assert!(!toy.index.is_sweep_due());
        toy.fill(0, 0..20, |_| Page::Absent);
        assert_eq!(toy.index.detach(GuestId(0), 99), Progress::Done);
        assert!(toy.index.is_sweep_due());
        budget = 19;
        toy.index.sweep(&mut toy.world, &toy.knobs, &mut budget);
        assert!(toy.index.is_sweep_due());
        assert!(toy.index.sweep(&mut toy.world, &toy.knobs, &mut 2).done);
        assert!(!toy.index.is_sweep_due());
        Ok(())
    }

    #[test]
    fn a_full_copy_is_listed_again() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.knobs.max_page_sharing = 4;
        toy.fill(0, 0..5, |_| Page::Own(5));
        assert!(toy.pass(1));
        toy.fill(0, 0..3, |_| Page::Absent);
        assert!(toy.pass(1));
        assert!(toy.index.sweep(&mut toy.world, &toy.knobs, &mut 9).done);
        assert!(toy.pass(1));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Merged), 2);
        assert_eq!(toy.index.totals().shared, 1);
        Ok(())
    }

    #[test]
    fn zeroes_share_no_copy_with_what_only_begins_so() -> Result<(), Untested> {
        // Its sample is that of zeroes.
        const SPARSE: u64 = 1 << 40;
        let mut toy = Toy::new(1)?;
        toy.knobs.max_page_sharing = 4;
        toy.fill(0, 0..5, |_| Page::Own(SPARSE));
        assert!(toy.pass(1));
        // The copy was full, and who took its place in the tree goes.
        toy.fill(0, 0..2, |_| Page::Absent);
        toy.fill(0, 4..5, |_| Page::Absent);
        assert!(toy.pass(1));
        assert!(toy.index.sweep(&mut toy.world, &toy.knobs, &mut 9).done);
        toy.fill(0, 10..30, |_| Page::Own(0));
        for _ in 0..9 {
            assert!(toy.pass(1));
        }
        assert_eq!(toy.gauge(0, Gauge::Zero), 20);
        assert_eq!(toy.index.totals().shared, 1);
        Ok(())
    }

    #[test]
    fn a_retired_copy_gets_no_more_pages() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..2, |_| Page::Own(5));
        assert!(toy.pass(1));
        toy.index.retire(Token(0));
        toy.fill(0, 2..4, |_| Page::Own(5));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Merged), 4);
        assert_eq!(toy.index.totals().shared, 2);
        // Numbers that mean nothing do no harm.
        toy.index.retire(Token(7));
        toy.index.retire(Token(u32::MAX));
        assert_eq!(toy.index.check(), Ok(()));
        Ok(())
    }
}
