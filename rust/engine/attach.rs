// SPDX-License-Identifier: GPL-2.0

//! Guests that come and go, and memory that they gain and lose.

use core::mem::replace;

use super::{
    guests::{
        are_well_formed,
        bases,
        count_bases,
        cover,
        slot_at,
        Kept,
        Slot,
        Span, //
    },
    index::{
        Index,
        Progress,
        Refused, //
    },
    kinds::Kinds,
    mask::Mask,
    page::{
        Kind,
        PageId,
        Record, //
    },
    sort::first_not,
    stats::Gauge,
    world::GuestId,
};
use crate::mem::{
    KVVec,
    GFP_KERNEL, //
};

impl<F> Index<F> {
    /// Adds a guest without memory.
    ///
    /// # Errors
    ///
    /// [`Refused::Exists`], [`Refused::NoMemory`].
    pub fn attach(&mut self, id: GuestId) -> Result<(), Refused> {
        if self.guests.position(id).is_some() {
            return Err(Refused::Exists);
        }
        Ok(self.guests.add(id)?)
    }

    /// Says what memory the guest has now: page aligned, sorted, disjoint. To be called before each
    /// pass.
    ///
    /// What stays is kept, what is gone is forgotten. That takes time for each page forgotten, so
    /// [`forget_outside`](Self::forget_outside) comes before.
    ///
    /// # Errors
    ///
    /// [`Refused`], all but `Exists`. Then nothing changed.
    pub fn set_ranges(&mut self, id: GuestId, ranges: &[Span]) -> Result<(), Refused> {
        if !are_well_formed(ranges) {
            return Err(Refused::Malformed);
        }
        let position = self.staying(id).ok_or(Refused::NoGuest)?;
        let guest = self.guests.at(position).ok_or(Refused::NoGuest)?;
        if *guest.spans == *ranges {
            return Ok(());
        }
        let count = count_bases(ranges).ok_or(Refused::NoRoom)?;
        let mut slots = KVVec::with_capacity(count, GFP_KERNEL)?;
        let mut spans = KVVec::with_capacity(ranges.len(), GFP_KERNEL)?;
        spans.extend_from_slice(ranges, GFP_KERNEL)?;
        // Both have the room that they need: from here on nothing fails.
        for base in bases(ranges) {
            slots.push(Slot::unseen(base), GFP_KERNEL)?;
        }
        self.change_ranges(position, slots, spans);
        Ok(())
    }

    /// Forgets what is known of those pages of the guest that are not in `ranges`, in at most
    /// `blocks` blocks a call. After [`Progress::Done`], [`set_ranges`](Self::set_ranges) with the
    /// same ranges has nothing to forget but that they were the guest's.
    pub fn forget_outside(&mut self, id: GuestId, ranges: &[Span], blocks: usize) -> Progress {
        let Some(position) = self.staying(id) else {
            return Progress::Done;
        };
        let mut at = 0;
        for _ in 0..blocks {
            let Some(next) = self.next_outside(position, ranges, at) else {
                return Progress::Done;
            };
            at = next;
            self.forget_slot_outside(position, at, ranges);
        }
        Progress::More
    }

    /// Returns the first slot from `from` on with records of pages that are not in `ranges`.
    fn next_outside(&self, position: u32, ranges: &[Span], from: usize) -> Option<usize> {
        let guest = self.guests.at(position)?;
        if *guest.spans == *ranges {
            return None;
        }
        let ahead = guest.slots.get(from..)?.iter().position(|slot| {
            let Kept::Block(number) = slot.kept() else {
                return false;
            };
            let stays = cover(ranges, slot.base());
            let goes = cover(&guest.spans, slot.base()).without(&stays);
            stays.is_empty() || !self.known_of(number, &goes).is_empty()
        })?;
        // OVERFLOW: Below the number of slots.
        Some(from.wrapping_add(ahead))
    }

    /// Returns those of some pages of a block of which anything is known.
    fn known_of(&self, block: u32, pages: &Mask) -> Mask {
        if pages.is_empty() {
            return Mask::EMPTY;
        }
        let kinds = Kinds::of(self.store.blocks.metas(block));
        pages.without(&kinds.are(Kind::Unseen))
    }

    /// Forgets what is known of the pages of a slot that are not in `ranges`. They stay the
    /// guest's.
    fn forget_slot_outside(&mut self, position: u32, at: usize, ranges: &[Span]) {
        let Some(guest) = self.guests.at(position) else {
            return;
        };
        let Some(slot) = guest.slots.get(at) else {
            return;
        };
        let stays = cover(ranges, slot.base());
        match slot.kept() {
            Kept::Block(number) if !stays.is_empty() => {
                let goes = cover(&guest.spans, slot.base()).without(&stays);
                self.forget_records(number, &goes);
            }
            _ => self.close(position, at),
        }
    }

    /// Forgets what is known of some pages of a block.
    fn forget_records(&mut self, block: u32, pages: &Mask) {
        for index in self.known_of(block, pages).iter() {
            self.set(PageId::new(block, index), Record::UNSEEN);
        }
    }

    /// Forgets what is known of the pages of a slot, which stay the guest's.
    fn close(&mut self, position: u32, at: usize) {
        let Some(guest) = self.guests.at_mut(position) else {
            return;
        };
        let Some(slot) = guest.slots.get_mut(at) else {
            return;
        };
        let Kept::Block(number) = slot.kept() else {
            return;
        };
        slot.set(Kept::Uniform(Gauge::Unseen));
        let pages = cover(&guest.spans, slot.base());
        self.forget_records(number, &pages);
        self.store.blocks.remove(number);
    }

    /// Replaces slots and spans of a guest, and moves over what is kept of blocks in both.
    fn change_ranges(&mut self, position: u32, slots: KVVec<Slot>, spans: KVVec<Span>) {
        let Some(guest) = self.guests.at_mut(position) else {
            return;
        };
        // In the middle of a pass it goes on where it was; a new one starts at the first block.
        let next = guest.slots.get(guest.cursor);
        let at = next.filter(|_| guest.cursor > 0).map_or(0, Slot::base);
        let old_slots = replace(&mut guest.slots, slots);
        let old_spans = replace(&mut guest.spans, spans);
        guest.cursor = first_not(&guest.slots, |slot| slot.base() < at);
        // Where nothing comes after that, the pass ends with what is the last one now: memory that
        // comes and goes must not keep the turn.
        guest.cursor = guest.cursor.min(guest.slots.len().saturating_sub(1));
        for old in old_slots.iter() {
            let was = cover(&old_spans, old.base());
            self.keep_or_forget(position, old, &was);
        }
        self.count_new_slots(position, &old_slots);
    }

    /// Moves what is kept of a block that had the pages `was` to the guest's slot of that address,
    /// if there is one.
    fn keep_or_forget(&mut self, position: u32, old: &Slot, was: &Mask) {
        let Some(guest) = self.guests.at_mut(position) else {
            return;
        };
        let now = cover(&guest.spans, old.base());
        let Some(slot) = guest
            .slot_at(old.base())
            .and_then(|at| guest.slots.get_mut(at))
        else {
            return self.forget(position, old, was);
        };
        let gauges = &mut guest.stats.gauges;
        match old.kept() {
            // Pages that came in between were not looked at, and one gauge must do for all.
            Kept::Uniform(gauge) => {
                gauges.sub(gauge, u64::from(was.count()));
                let gauge = if now.without(was).is_empty() {
                    gauge
                } else {
                    Gauge::Unseen
                };
                gauges.add(gauge, u64::from(now.count()));
                slot.set(Kept::Uniform(gauge));
            }
            Kept::Block(number) => {
                slot.set(Kept::Block(number));
                gauges.add(Gauge::Unseen, u64::from(now.without(was).count()));
                self.forget_pages(position, number, &was.without(&now));
            }
        }
    }

    /// Counts the pages of slots that were not there before.
    fn count_new_slots(&mut self, position: u32, old_slots: &[Slot]) {
        let Some(guest) = self.guests.at_mut(position) else {
            return;
        };
        for slot in guest.slots.iter() {
            if slot_at(old_slots, slot.base()).is_none() {
                let pages = cover(&guest.spans, slot.base()).count();
                guest.stats.gauges.add(Gauge::Unseen, u64::from(pages));
            }
        }
    }

    /// Forgets a block that had the pages `cover`.
    fn forget(&mut self, position: u32, slot: &Slot, cover: &Mask) {
        match slot.kept() {
            Kept::Uniform(gauge) => {
                if let Some(guest) = self.guests.at_mut(position) {
                    guest.stats.gauges.sub(gauge, u64::from(cover.count()));
                }
            }
            Kept::Block(number) => {
                self.forget_pages(position, number, cover);
                self.store.blocks.remove(number);
            }
        }
    }

    /// Forgets some pages of a block: they are not the guest's any more.
    fn forget_pages(&mut self, position: u32, block: u32, pages: &Mask) {
        self.forget_records(block, pages);
        if let Some(guest) = self.guests.at_mut(position) {
            let count = u64::from(pages.count());
            guest.stats.gauges.sub(Gauge::Unseen, count);
        }
    }

    /// Forgets a guest and all that it has, at most `blocks` blocks a call. From the first call on
    /// the guest is not scanned; its number may be attached again after [`Progress::Done`].
    pub fn detach(&mut self, id: GuestId, blocks: usize) -> Progress {
        let Some(position) = self.guests.position(id) else {
            return Progress::Done;
        };
        if let Some(guest) = self.guests.at_mut(position) {
            guest.leaving = true;
        }
        for _ in 0..blocks {
            let Some(guest) = self.guests.at_mut(position) else {
                return Progress::Done;
            };
            let Some(slot) = guest.slots.pop() else {
                self.past.add_all(&guest.stats.counters);
                drop(self.guests.remove(position));
                self.sweep_anew();
                return Progress::Done;
            };
            let pages = cover(&guest.spans, slot.base());
            self.forget(position, &slot, &pages);
        }
        Progress::More
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_attach))]
mod tests {
    use super::*;
    use crate::engine::toy::{
        Page,
        Toy,
        Untested,
        PAGES, //
    };

    #[test]
    fn a_guest_is_attached_once() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        assert_eq!(toy.index.attach(GuestId(0)), Err(Refused::Exists));
        assert_eq!(toy.index.detach(GuestId(0), 99), Progress::Done);
        assert!(toy.index.is_empty());
        assert_eq!(toy.index.attach(GuestId(0)), Ok(()));
        assert_eq!(toy.index.detach(GuestId(7), 1), Progress::Done);
        Ok(())
    }

    #[test]
    fn what_is_refused_changes_nothing() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        let page = Span {
            start: 0,
            end: 4096,
        };
        let huge = Span {
            start: 0,
            end: 1 << 50,
        };
        let odd = Span { start: 1, end: 2 };
        let cases = [
            (9, page, Refused::NoGuest),
            (0, huge, Refused::NoRoom),
            (0, odd, Refused::Malformed),
        ];
        for (guest, span, error) in cases {
            let refused = toy.index.set_ranges(GuestId(guest), &[span]);
            assert_eq!(refused, Err(error));
        }
        assert_eq!(toy.gauge(0, Gauge::Unseen), PAGES as u64);
        Ok(())
    }

    #[test]
    fn detaching_takes_as_many_calls_as_it_needs() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..PAGES, |index| Page::Own(1 + index));
        toy.fill(1, 0..PAGES, |index| Page::Own(1 + index));
        assert!(toy.pass(2));
        assert_eq!(toy.index.detach(GuestId(0), 1), Progress::More);
        assert_eq!(toy.index.check(), Ok(()));
        assert_eq!(toy.index.attach(GuestId(0)), Err(Refused::Exists));
        assert_eq!(toy.index.set_ranges(GuestId(0), &[]), Err(Refused::NoGuest));
        assert_eq!(toy.index.detach(GuestId(0), 1), Progress::More);
        assert_eq!(toy.index.detach(GuestId(0), 1), Progress::Done);
        assert_eq!(toy.index.check(), Ok(()));
        // What it did is not forgotten.
        assert_eq!(toy.index.totals().counters.merges, 2 * PAGES as u64);
        Ok(())
    }

    #[test]
    fn pages_that_leave_are_not_found_any_more() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..10, |index| Page::Own(1 + index));
        assert!(toy.pass(1));
        assert_eq!(toy.index.set_ranges(GuestId(0), &[]), Ok(()));
        toy.fill(1, 0..10, |index| Page::Own(1 + index));
        assert!(toy.pass(2));
        assert_eq!(toy.gauge(1, Gauge::Unshared), 10);
        assert_eq!(toy.index.copies(), 0);
        Ok(())
    }
}
