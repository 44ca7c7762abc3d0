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

/// How long somebody who takes step after step over a guest's blocks, in rounds, goes on in vain.
///
/// It is counted in time, as a guest that holds its pages back decides how many steps and rounds
/// there are, and how long each takes. All that it can gain is a millisecond a block and
/// [`PAGE_NS`](Self::PAGE_NS) a page.
#[derive(Debug)]
pub struct Patience {
    left_ns: u64,
    is_first_round: bool,
}

impl Default for Patience {
    /// As long as can be, for the first round.
    fn default() -> Self {
        Self {
            left_ns: Self::LIMIT_NS,
            is_first_round: true,
        }
    }
}

impl Patience {
    /// How long it lasts.
    pub const LIMIT_NS: u64 = 10_000_000_000;

    /// What a page that got its own copy gives back of it.
    pub const PAGE_NS: u64 = 2_000;

    /// What a block gives back of it in which nothing was to do, in the first round.
    pub const BLOCK_NS: u64 = 1_000_000;

    /// The most that a step costs. One that took longer was held up by others than the guest.
    pub const STEP_NS: u64 = 10_000_000;

    /// A step that had this result took `ns`, with the wait before it; says whether to go on.
    pub fn spend(&mut self, step: &Result<Unmerged, Away>, ns: u64) -> bool {
        let back = match step {
            Ok(done) if done.unmerged > 0 => Self::PAGE_NS.saturating_mul(done.unmerged.into()),
            Ok(done) if done.busy > 0 || done.state == UnmergeState::NoMemory => 0,
            Ok(_) if self.is_first_round => Self::BLOCK_NS,
            Ok(_) | Err(_) => 0,
        };
        self.left_ns = match back {
            0 => self.left_ns.saturating_sub(ns.min(Self::STEP_NS)),
            back => self.left_ns.saturating_add(back).min(Self::LIMIT_NS),
        };
        self.left_ns > 0
    }

    /// A round is over, and another begins.
    pub fn begin_again(&mut self) {
        self.is_first_round = false;
    }
}

impl<F> Index<F> {
    /// Gives the merged pages of the guest's next block their own copies back. `cursor` is 0 at
    /// first and the caller's to keep. Nothing may be scanned in between, or pages merge again.
    ///
    /// The page tables decide, not the records: pages that moved, and copies that this index does
    /// not know, are given back too. What maps the shared zero page is left alone. Copies that
    /// nobody maps any more stay until [`sweep`](Self::sweep).
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
            if !last {
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
        assert!(
            toy.index
                .sweep(&mut toy.world, &toy.knobs, &mut { PAGES })
                .done
        );
        assert_eq!(toy.index.copies(), 0);
        Ok(())
    }

    const MS: u64 = 1_000_000;

    /// What a step may tell, of a block with nothing to do but so much.
    fn told(unmerged: u32, busy: u32) -> Result<Unmerged, Away> {
        Ok(Unmerged {
            unmerged,
            busy,
            state: UnmergeState::More,
        })
    }

    #[test]
    fn what_is_in_vain_now_and_then_takes_no_patience() {
        let mut patience = Patience::default();
        // The first round over a guest so large that more is in vain in all than may be at once.
        for _ in 0..1 << 19 {
            assert!(patience.spend(&Err(Away::Busy), MS));
            assert!(patience.spend(&told(0, 0), MS));
        }
        // What gives pages back may take as long as it does.
        for _ in 0..1 << 19 {
            assert!(patience.spend(&told(512, 0), 5 * MS));
            assert!(patience.spend(&told(0, 1), MS));
        }
    }

    #[test]
    fn one_page_now_and_then_does_not_stretch_it() {
        let vain = [
            Err(Away::Busy),
            told(0, 512),
            Ok(Unmerged {
                unmerged: 0,
                busy: 0,
                state: UnmergeState::NoMemory,
            }),
        ];
        for step in vain {
            let mut patience = Patience::default();
            let mut steps: u64 = 0;
            while patience.spend(&step, MS) {
                steps = steps.wrapping_add(1);
                // Whenever all of it is nearly at its end.
                if steps.checked_rem(9_000) == Some(0) {
                    assert!(patience.spend(&told(1, 0), MS));
                }
            }
            // A page gives back less than a step costs.
            assert_eq!(steps, 10_000);
        }
    }

    #[test]
    fn rounds_in_which_there_is_nothing_to_do_take_patience() {
        let mut patience = Patience::default();
        patience.begin_again();
        assert!((1..10_000).all(|_| patience.spend(&told(0, 0), MS)));
        assert!(!patience.spend(&told(0, 0), MS));
    }

    #[test]
    fn a_step_that_others_hold_up_takes_little_patience() {
        let mut patience = Patience::default();
        assert!((1..1000).all(|_| patience.spend(&Err(Away::Busy), u64::MAX)));
        assert!(!patience.spend(&Err(Away::Busy), u64::MAX));
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
