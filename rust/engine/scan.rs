// SPDX-License-Identifier: GPL-2.0

//! One step: the next block of a guest.
//!
//! 1. Which pages are due? Those that never merge are looked at less and less often.
//! 2. Look: what does the page table say? (`World::look`)
//! 3. Reconcile: compare that with the records, without reading any page ([`super::reconcile`]).
//! 4. Hash what is due, and plan what it shall map ([`super::plan`]).
//! 5. Share: first with twins elsewhere, then runs of neighbours ([`super::merge`]).
//!
//! A block in which nothing was new for some visits is visited in every second pass only, then in
//! every fourth ([`Slot::stride`](super::guests::Slot::stride)), until something is.
//!
//! Of a guest that is backed off ([`super::restraint`]) no page is due, and it ends after 3.
//!
//! Guests run all the time: what was seen may be wrong by the time it is used. `World::share`
//! compares bytes while nobody can write, so a wrong plan costs time, never data.

use super::{
    guests::{
        cover,
        Kept,
        Slot, //
    },
    index::{
        Index,
        Step, //
    },
    kinds::Kinds,
    knobs::Knobs,
    mask::Mask,
    page::{
        Kind,
        Level,
        Meta,
        PageId, //
    },
    scratch::Scratch,
    stats::{
        Counters,
        Gauge, //
    },
    world::{
        Away,
        GuestId,
        Seen,
        Skip,
        World,
        PAGE_BYTES, //
    },
};

/// One step at work.
pub(super) struct Visit<'a, W: World> {
    pub(super) index: &'a mut Index<W::Frame>,
    pub(super) world: &'a mut W,
    pub(super) scratch: &'a mut Scratch,
    pub(super) knobs: &'a Knobs,
    /// The guest.
    pub(super) guest: GuestId,
    /// Its position.
    pub(super) position: u32,
    /// Position of the slot.
    pub(super) slot: usize,
    /// Address of the block.
    pub(super) base: u64,
    /// Number of the block, once it has records.
    pub(super) block: u32,
    /// Pages of the block that are the guest's.
    pub(super) cover: Mask,
    /// Pages that map a merged copy which this index does not know.
    pub(super) orphans: Mask,
    /// Whether a large folio of the block was split in this step.
    pub(super) split: bool,
    /// Whether something was otherwise than recorded.
    pub(super) news: bool,
    /// What was done so far.
    pub(super) step: Step,
}

impl<F> Index<F> {
    /// Looks at the next block of a guest, and merges what can be merged. After the last block the
    /// cursor is at the first again.
    ///
    /// # Errors
    ///
    /// [`Away::Gone`]: detach it. [`Away::Busy`]: locks are contended or there is no memory; call
    /// again after a rest. The same block is tried as often as the guest may be busy in a pass,
    /// then it is passed over, and so are those after it that are busy.
    pub fn scan<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        scratch: &mut Scratch,
        id: GuestId,
        knobs: &Knobs,
    ) -> Result<Step, Away> {
        let position = self.staying(id).ok_or(Away::Gone)?;
        let guest = self.guests.at_mut(position).ok_or(Away::Gone)?;
        let slot = guest.cursor;
        if knobs.smart_scan && !guest.is_slot_due() {
            return Ok(Step {
                pass_ended: guest.advance(),
                ..Step::default()
            });
        }
        let done = match Visit::new(self, world, scratch, knobs, position, slot) {
            None => Ok(Step::default()),
            Some((mut visit, kept)) => visit.run(kept).map(|()| visit.end()),
        };
        let guest = self.guests.at_mut(position).ok_or(Away::Gone)?;
        let mut step = match done {
            Err(Away::Busy) if guest.waits() => return Err(Away::Busy),
            Err(Away::Busy) => Step::default(),
            Err(Away::Gone) => return Err(Away::Gone),
            Ok(step) => {
                // Of memory that is not there, a guest may have as much as it likes.
                if step.scanned > 0 {
                    guest.goes_on();
                }
                step
            }
        };
        step.pass_ended = guest.advance();
        Ok(step)
    }

    /// Changes the counters of the guest at a position.
    pub(super) fn count(&mut self, position: u32, change: impl FnOnce(&mut Counters)) {
        if let Some(guest) = self.guests.at_mut(position) {
            change(&mut guest.stats.counters);
        }
    }
}

impl<'a, W: World> Visit<'a, W> {
    /// Prepares a visit of a guest's slot, and returns what is kept of it; `None` if there is none.
    pub(super) fn new(
        index: &'a mut Index<W::Frame>,
        world: &'a mut W,
        scratch: &'a mut Scratch,
        knobs: &'a Knobs,
        position: u32,
        slot: usize,
    ) -> Option<(Self, Kept)> {
        let guest = index.guests.at(position)?;
        let (id, place) = (guest.id, guest.slots.get(slot)?);
        let (base, kept) = (place.base(), place.kept());
        let cover = cover(&guest.spans, base);
        scratch.reset();
        let visit = Self {
            index,
            world,
            scratch,
            knobs,
            guest: id,
            position,
            slot,
            base,
            block: match kept {
                Kept::Block(number) => number,
                Kept::Uniform(_) => u32::MAX,
            },
            cover,
            orphans: Mask::EMPTY,
            split: false,
            news: false,
            step: Step::default(),
        };
        Some((visit, kept))
    }

    /// Does the whole step.
    fn run(&mut self, kept: Kept) -> Result<(), Away> {
        let (due, patient) = self.due(kept);
        self.look(&due)?;
        if let Kept::Uniform(gauge) = kept {
            match self.open(gauge) {
                Opened::Uniform => {
                    self.world.release();
                    return Ok(());
                }
                Opened::NoRoom => {
                    self.world.release();
                    return Err(Away::Busy);
                }
                Opened::Block => {}
            }
        }
        self.reconcile();
        if !self.orphans.is_empty() {
            // What they map must go before they can be hashed, and at once: to give all of a guest
            // its own copies first would take all the memory that merging had saved.
            self.world.release();
            self.unshare_orphans();
            self.look(&due)?;
            self.reconcile();
        }
        if self.index.is_backed_off(self.position) {
            self.world.release();
        } else {
            self.count_skipped(&due, &patient);
            self.merge(&due);
        }
        self.close();
        Ok(())
    }

    /// Remembers whether this visit was of use; what it did. Without `smart_scan` each is.
    fn end(self) -> Step {
        let news = self.news || self.step.merged > 0 || !self.knobs.smart_scan;
        let guest = self.index.guests.at_mut(self.position);
        if let Some(slot) = guest.and_then(|guest| guest.slots.get_mut(self.slot)) {
            slot.visited(news);
        }
        self.step
    }

    /// Hashes the pages that are due, and merges what can be merged.
    fn merge(&mut self, due: &Mask) {
        self.hash(due);
        self.world.release();
        self.split_if_worthwhile();
        self.share_twins();
        self.share_runs();
        self.settle_copies();
    }

    /// Returns the number of the page at `index`.
    pub(super) fn page(&self, index: usize) -> PageId {
        PageId::new(self.block, index)
    }

    /// Returns the address of the page at `index`.
    pub(super) fn address(&self, index: usize) -> u64 {
        // CAST: `usize` is 64 bits wide. OVERFLOW: The page exists.
        self.base
            .wrapping_add((index as u64).wrapping_mul(PAGE_BYTES))
    }

    /// Returns the pages whose content is to be looked at if they turn out to be private, and those
    /// whose turn it is not.
    fn due(&self, kept: Kept) -> (Mask, Mask) {
        if self.index.is_backed_off(self.position) {
            return (Mask::EMPTY, Mask::EMPTY);
        }
        let Kept::Block(_) = kept else {
            return (self.cover, Mask::EMPTY);
        };
        let guest = self.index.guests.at(self.position);
        let pass = guest.map_or(0, |guest| guest.stats.counters.passes);
        let stride = self.stride();
        let metas = self.index.store.blocks.metas(self.block);
        let kinds = Kinds::of(metas);
        let merged = kinds.are(Kind::Merged).or(&kinds.are(Kind::Zero));
        let all = self.cover.without(&merged);
        if !self.knobs.smart_scan {
            return (all, Mask::EMPTY);
        }
        let mut due = Mask::EMPTY;
        for index in all.iter() {
            let meta = metas.get(index).copied().unwrap_or(Meta::UNSEEN);
            if meta.level().is_due(pass, stride, index) {
                due.add(index);
            }
        }
        (due, all.without(&due))
    }

    /// Returns of how many passes this visit is.
    fn stride(&self) -> u64 {
        let guest = self.index.guests.at(self.position);
        let slot = guest.and_then(|guest| guest.slots.get(self.slot));
        slot.filter(|_| self.knobs.smart_scan)
            .map_or(1, Slot::stride)
    }

    /// Looks at the guest's pages of the block, and keeps those that are `wanted`.
    pub(super) fn look(&mut self, wanted: &Mask) -> Result<(), Away> {
        self.world.look(
            self.guest,
            self.base,
            self.cover.hull(),
            wanted.words(),
            &mut self.scratch.seen,
        )
    }

    /// Makes records for a block that had none, unless all its pages are in one gauge still.
    fn open(&mut self, old: Gauge) -> Opened {
        let uniform = self.uniform();
        let kept = match uniform {
            Some(gauge) => Kept::Uniform(gauge),
            None => match self.index.store.blocks.add(self.position, self.base) {
                Ok(number) => {
                    self.block = number;
                    Kept::Block(number)
                }
                Err(_) => return Opened::NoRoom,
            },
        };
        if uniform.is_some_and(|gauge| gauge != Gauge::Absent) {
            self.step.present = self.cover.count();
        }
        let new = uniform.unwrap_or(Gauge::Unseen);
        self.news = new != old;
        let pages = u64::from(self.cover.count());
        if let Some(guest) = self.index.guests.at_mut(self.position) {
            guest.stats.gauges.sub(old, pages);
            guest.stats.gauges.add(new, pages);
            if let Some(slot) = guest.slots.get_mut(self.slot) {
                slot.set(kept);
            }
        }
        match kept {
            Kept::Uniform(_) => Opened::Uniform,
            Kept::Block(_) => Opened::Block,
        }
    }

    /// Returns the gauge that all pages are in if they need no records.
    fn uniform(&self) -> Option<Gauge> {
        let gauge = |seen| match seen {
            Seen::Absent => Some(Gauge::Absent),
            Seen::Zero => Some(Gauge::Skip(Skip::Zero)),
            Seen::Skip(reason) => Some(Gauge::Skip(reason)),
            Seen::Anon { .. } | Seen::Huge { .. } | Seen::Merged { .. } => None,
        };
        let first = gauge(self.scratch.seen(self.cover.iter().next()?))?;
        self.cover
            .iter()
            .all(|index| gauge(self.scratch.seen(index)) == Some(first))
            .then_some(first)
    }

    /// Gives up the records of a block whose pages are all absent, or skipped for one reason.
    fn close(&mut self) {
        let Some(first) = self.cover.iter().next() else {
            return;
        };
        let first = self.index.record(self.page(first));
        let plain = matches!(first.kind, Kind::Absent | Kind::Skipped);
        if !plain || first.level != Level::ALWAYS {
            return;
        }
        let same = |index| self.index.record(self.page(index)) == first;
        if !self.cover.iter().all(same) {
            return;
        }
        if let Some(guest) = self.index.guests.at_mut(self.position) {
            if let Some(slot) = guest.slots.get_mut(self.slot) {
                slot.set(Kept::Uniform(first.gauge()));
                self.index.store.blocks.remove(self.block);
            }
        }
    }

    /// Counts the looks at private pages that backing off saved: those of this visit at pages that
    /// are patient, and those at all of them in passes without a visit.
    fn count_skipped(&mut self, due: &Mask, patient: &Mask) {
        let private = self.scratch.seen.small().or(self.scratch.seen.huge());
        let count = |pages: &Mask| u64::from(pages.and(&private).count());
        let (due, patient, stride) = (count(due), count(patient), self.stride());
        // OVERFLOW: At most 4 times 512, and a stride is not 0.
        let skipped = due
            .wrapping_add(patient)
            .wrapping_mul(stride)
            .wrapping_sub(due);
        self.index.count(self.position, |counters| {
            counters.skipped = counters.skipped.saturating_add(skipped);
        });
    }
}

/// What became of a block without records.
enum Opened {
    /// It needs none.
    Uniform,
    /// It has some now.
    Block,
    /// There is no memory for them, or no number.
    NoRoom,
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_scan))]
mod tests {
    use super::*;
    use crate::engine::toy::{
        Page,
        Toy,
        Untested,
        PAGES, //
    };

    #[test]
    fn equal_pages_merge_in_one_pass() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..PAGES, |index| Page::Own(100 + index));
        toy.fill(1, 0..PAGES, |index| Page::Own(100 + index));
        assert!(toy.pass(2));
        for guest in 0..2 {
            assert_eq!(toy.gauge(guest, Gauge::Merged), PAGES as u64);
            for index in 0..PAGES {
                assert_eq!(toy.world.content(guest, index), 100 + index as u64);
            }
        }
        let totals = toy.index.totals();
        assert_eq!(totals.shared, PAGES as u64);
        assert_eq!(totals.counters.merges, 2 * PAGES as u64);
        Ok(())
    }

    #[test]
    fn different_pages_do_not_merge() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..PAGES, |index| Page::Own(1 + index));
        for _ in 0..4 {
            assert!(toy.pass(1));
        }
        assert_eq!(toy.gauge(0, Gauge::Unshared), PAGES as u64);
        assert_eq!(toy.index.copies(), 0);
        Ok(())
    }

    #[test]
    fn absent_memory_takes_no_records() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Absent), PAGES as u64);
        assert_eq!(toy.index.store.blocks.used(), 0);
        toy.fill(0, 0..1, |_| Page::Own(1));
        assert!(toy.pass(1));
        assert_eq!(toy.index.store.blocks.used(), 1);
        toy.fill(0, 0..1, |_| Page::Absent);
        assert!(toy.pass(1));
        assert_eq!(toy.index.store.blocks.used(), 0);
        assert_eq!(toy.gauge(0, Gauge::Absent), PAGES as u64);
        Ok(())
    }

    #[test]
    fn a_step_says_what_it_did() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..10, |index| Page::Own(1 + index / 2));
        let step = toy.step(0)?;
        assert_eq!((step.present, step.scanned, step.merged), (10, 10, 10));
        assert!(!step.pass_ended);
        let step = toy.step(0)?;
        assert_eq!((step.present, step.scanned, step.merged), (0, 0, 0));
        assert!(step.pass_ended);
        assert_eq!(toy.step(9), Err(Away::Gone));
        Ok(())
    }

    #[test]
    fn a_calm_block_is_visited_in_every_fourth_pass() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..10, |index| Page::Own(1 + index / 2));
        // It is left alone, and that is nothing new.
        toy.fill(0, 10..11, |_| Page::Zero);
        let visits = |toy: &mut Toy| {
            let mut visits = 0;
            for _ in 0..4 {
                visits += usize::from(toy.step(0)?.present > 0);
                while !toy.step(0)?.pass_ended {}
            }
            Ok::<_, Untested>(visits)
        };
        assert_eq!(visits(&mut toy)?, 4);
        for _ in 0..20 {
            assert!(toy.pass(1));
        }
        assert_eq!(visits(&mut toy)?, 1);
        // What happens there is noticed, and it is not calm any more.
        toy.fill(0, 0..1, |_| Page::Absent);
        let mut passes = 0;
        while toy.gauge(0, Gauge::Merged) != 9 {
            assert!(passes < 4 && toy.pass(1));
            passes += 1;
        }
        assert_eq!(visits(&mut toy)?, 4);
        // Nothing is calm to whoever wants all of it.
        for _ in 0..20 {
            assert!(toy.pass(1));
        }
        toy.knobs.smart_scan = false;
        assert_eq!(visits(&mut toy)?, 4);
        Ok(())
    }

    #[test]
    fn written_pages_are_counted_and_rest() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..8, |_| Page::Own(5));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Merged), 8);
        toy.fill(0, 0..2, |index| Page::Own(50 + index));
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Volatile), 2);
        assert_eq!(toy.index.totals().counters.breaks, 2);
        for _ in 0..3 {
            assert!(toy.pass(1));
        }
        assert_eq!(toy.gauge(0, Gauge::Unshared), 2);
        assert_eq!(toy.gauge(0, Gauge::Merged), 6);
        Ok(())
    }
}
