// SPDX-License-Identifier: GPL-2.0

//! Giving a guest its own pages back.

use super::{
    guests::{
        Kept,
        Slot, //
    },
    index::{
        Index,
        UnmergeState,
        Unmerged, //
    },
    knobs::Knobs,
    mask::Mask,
    page::{
        Kind,
        Record, //
    },
    scan::Visit,
    scratch::Scratch,
    sort::first_not,
    stats::Gauge,
    world::{
        Away,
        GuestId,
        Unshared,
        World,
        BLOCK_BYTES, //
    },
};

/// How long somebody who takes step after step over a guest's blocks goes on in vain.
#[derive(Debug, Default)]
pub struct Patience {
    tries: u32,
    steps: u32,
    rounds: u32,
}

impl Patience {
    /// How many tries may be in vain, and how many rounds over all blocks: about ten seconds, as a
    /// millisecond passes between two tries.
    pub const LIMIT: u32 = 10_000;

    /// Tries that each step gives back. A guest that always lets just one step through soon has
    /// none left.
    pub const GIVEN_BACK: u32 = 8;

    /// Blocks of a round that take as long as the wait for the next round.
    pub const STEPS: u32 = 64;

    /// A step gave so many pages back.
    pub fn stepped(&mut self, pages: u32) {
        self.tries = self.tries.saturating_sub(Self::GIVEN_BACK);
        self.steps = self.steps.saturating_add(1);
        if pages > 0 {
            (self.steps, self.rounds) = (0, 0);
        }
    }

    /// A step could not be made, as the guest is busy; says whether to try it again.
    pub fn try_again(&mut self) -> bool {
        self.tries = self.tries.saturating_add(1);
        self.tries < Self::LIMIT
    }

    /// A round is over and some pages were busy; says whether to begin another.
    pub fn begin_again(&mut self) -> bool {
        let long = core::mem::take(&mut self.steps) / Self::STEPS;
        self.rounds = self.rounds.saturating_add(1).saturating_add(long);
        self.rounds < Self::LIMIT
    }
}

impl<F> Index<F> {
    /// Gives the merged pages of the guest's next block their own copies back. `cursor` is 0 at
    /// first and the caller's to keep. Nothing may be scanned in between, or pages merge again.
    ///
    /// The page tables decide, not the records: pages that moved, and copies that this index does
    /// not know, are given back too. What maps the shared zero page is left alone.
    ///
    /// # Errors
    ///
    /// [`Away::Gone`]: there is no such guest or address space. [`Away::Busy`]: call again.
    pub fn unmerge<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        scratch: &mut Scratch,
        id: GuestId,
        cursor: &mut u64,
    ) -> Result<Unmerged, Away> {
        let position = self.staying(id).ok_or(Away::Gone)?;
        let guest = self.guests.at(position).ok_or(Away::Gone)?;
        let at = first_not(&guest.slots, |slot| slot.base() < *cursor);
        // OVERFLOW: At most the number of slots.
        let last = at.wrapping_add(1) >= guest.slots.len();
        let mut unmerged = Unmerged {
            unmerged: 0,
            busy: 0,
            state: UnmergeState::Done,
        };
        let knobs = &Knobs::DEFAULT;
        let Some((mut visit, kept)) = Visit::new(self, world, scratch, knobs, position, at) else {
            return Ok(unmerged);
        };
        let base = visit.base;
        visit.unmerge(kept, &mut unmerged)?;
        if unmerged.state == UnmergeState::Done {
            *cursor = base.saturating_add(BLOCK_BYTES);
            if last {
                self.sweep_anew();
            } else {
                unmerged.state = UnmergeState::More;
            }
        }
        Ok(unmerged)
    }
}

impl<W: World> Visit<'_, W> {
    /// Gives the merged pages of the block their own copies back.
    fn unmerge(&mut self, kept: Kept, unmerged: &mut Unmerged) -> Result<(), Away> {
        self.look(&Mask::EMPTY)?;
        self.world.release();
        if let Kept::Block(_) = kept {
            self.reconcile();
        }
        let merged = self.cover.and(self.scratch.seen.merged());
        let mut next: usize = 0;
        while let Some(run) = merged.run(next) {
            let (first, pages) = (run.start, run.len());
            let address = self.address(first);
            let (done, last) = self.world.unshare_run(self.guest, address, pages);
            for index in run.take(done) {
                unmerged.unmerged = unmerged.unmerged.saturating_add(1);
                self.forget_merged(kept, index);
            }
            // OVERFLOW: At most 512.
            next = first.wrapping_add(done.min(pages));
            match last {
                Unshared::Done => {}
                Unshared::Busy => {
                    unmerged.busy = unmerged.busy.saturating_add(1);
                    next = next.wrapping_add(1);
                }
                Unshared::NoMemory => {
                    unmerged.state = UnmergeState::NoMemory;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The page at `index` has its own copy again: nothing is known of its content.
    fn forget_merged(&mut self, kept: Kept, index: usize) {
        match kept {
            Kept::Block(_) => {
                let page = self.page(index);
                self.index.set(page, Record::of(Kind::Unseen));
                self.index.visit_soon(page);
            }
            Kept::Uniform(Gauge::Unseen) => {}
            // Pages were moved here since the last pass.
            Kept::Uniform(old) => self.reset_slot(old),
        }
    }

    /// Counts a block without records as not looked at.
    fn reset_slot(&mut self, old: Gauge) {
        let pages = u64::from(self.cover.count());
        let Some(guest) = self.index.guests.at_mut(self.position) else {
            return;
        };
        let Some(slot) = guest.slots.get_mut(self.slot) else {
            return;
        };
        if slot.kept() != Kept::Uniform(old) {
            return;
        }
        *slot = Slot::unseen(slot.base());
        guest.stats.gauges.sub(old, pages);
        guest.stats.gauges.add(Gauge::Unseen, pages);
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_unmerge))]
mod tests {
    use super::*;
    use crate::engine::toy::{
        Page,
        Toy,
        Untested,
        PAGES, //
    };

    fn unmerge(toy: &mut Toy, cursor: &mut u64) -> Result<Unmerged, Away> {
        toy.index
            .unmerge(&mut toy.world, &mut toy.scratch, GuestId(0), cursor)
    }

    #[test]
    fn every_merged_page_gets_its_own_copy() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..PAGES, |index| Page::Own(index / 2));
        assert!(toy.pass(1));
        let merged = PAGES as u64 - 2;
        assert_eq!(toy.gauge(0, Gauge::Merged), merged);
        let (mut cursor, mut unmerged) = (0, 0_u32);
        loop {
            let part = unmerge(&mut toy, &mut cursor)?;
            unmerged = unmerged.wrapping_add(part.unmerged);
            assert_eq!(part.busy, 0);
            if part.state == UnmergeState::Done {
                break;
            }
        }
        assert_eq!(u64::from(unmerged), merged);
        assert_eq!(toy.gauge(0, Gauge::Unseen), merged);
        assert_eq!(toy.gauge(0, Gauge::Zero), 2);
        assert_eq!(toy.index.check(), Ok(()));
        for index in 0..PAGES {
            assert_eq!(toy.world.content(0, index), index as u64 / 2);
        }
        assert!(toy.index.is_sweep_due());
        assert!(
            toy.index
                .sweep(&mut toy.world, &toy.knobs, &mut { PAGES })
                .done
        );
        assert_eq!(toy.index.copies(), 0);
        Ok(())
    }

    #[test]
    fn what_is_in_vain_now_and_then_takes_no_patience() {
        let mut patience = Patience::default();
        // A guest so large that more tries are in vain in all than may be in a row.
        for _ in 0..Patience::LIMIT.wrapping_mul(2) {
            assert!((0..Patience::GIVEN_BACK).all(|_| patience.try_again()));
            patience.stepped(0);
        }
        assert!((1..Patience::LIMIT).all(|_| patience.try_again()));
        assert!(!patience.try_again());
        // One that lets a step through whenever patience is nearly at its end.
        patience.stepped(1);
        assert!((1..Patience::GIVEN_BACK).all(|_| patience.try_again()));
        assert!(!patience.try_again());
        // Steps without a page do not make a round one that gave something back.
        assert!((1..Patience::LIMIT).all(|_| {
            patience.stepped(0);
            patience.begin_again()
        }));
        assert!(!patience.begin_again());
        patience.stepped(1);
        assert!(patience.begin_again());
    }

    #[test]
    fn a_round_over_a_large_guest_takes_more_patience() {
        let mut patience = Patience::default();
        let mut round = |steps: u32| {
            (0..steps).for_each(|_| patience.stepped(0));
            patience.begin_again()
        };
        // A guest of a TiB.
        assert!(round(1 << 19));
        assert!(!round(1 << 19));
    }

    #[test]
    fn it_stops_when_memory_is_short() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..4, |_| Page::Own(5));
        assert!(toy.pass(1));
        toy.world.has_memory = false;
        let mut cursor = 0;
        let stopped = unmerge(&mut toy, &mut cursor)?;
        assert_eq!(stopped.state, UnmergeState::NoMemory);
        assert_eq!((stopped.unmerged, cursor), (0, 0));
        assert_eq!(toy.index.merged(GuestId(0)), 4);
        toy.world.has_memory = true;
        assert_eq!(unmerge(&mut toy, &mut cursor)?.unmerged, 4);
        assert_eq!(toy.index.merged(GuestId(0)), 0);
        Ok(())
    }
}
