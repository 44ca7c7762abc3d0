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
        self,
        Away,
        GuestId,
        Seen,
        World,
        BLOCK_BYTES, //
    },
};

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
        let cover = self.cover;
        for index in cover.iter() {
            if !matches!(self.scratch.seen(index), Seen::Merged { .. }) {
                continue;
            }
            match self.world.unshare(self.guest, self.address(index)) {
                world::Unshared::Done => {
                    unmerged.unmerged = unmerged.unmerged.saturating_add(1);
                    self.forget_merged(kept, index);
                }
                world::Unshared::Busy => {
                    unmerged.busy = unmerged.busy.saturating_add(1);
                }
                world::Unshared::NoMemory => {
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
            Kept::Block(_) => self.index.set(self.page(index), Record::of(Kind::Unseen)),
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
