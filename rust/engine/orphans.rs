// SPDX-License-Identifier: GPL-2.0

//! What a guest brings with it when it is attached: pages that map copies of another domain, where
//! it was before, or of an earlier load. They get their own copies before anything of it merges.

use super::{
    index::{
        Index,
        UnmergeState,
        Unmerged, //
    },
    knobs::Knobs,
    mask::Mask,
    page::CopyId,
    scan::Visit,
    scratch::Scratch,
    sort::first_not,
    world::{
        Away,
        GuestId,
        Seen,
        Unshared,
        World,
        BLOCK_BYTES, //
    },
};

impl<F> Index<F> {
    /// Gives pages of the guest's next block that map a merged copy which this index does not know
    /// their own copies. `cursor` is 0 at first and the caller's to keep.
    ///
    /// For a guest of which nothing was scanned yet: records stay as they are.
    ///
    /// # Errors
    ///
    /// [`Away::Gone`]: there is no such guest or address space. [`Away::Busy`]: call again.
    pub fn give_up_orphans<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        scratch: &mut Scratch,
        id: GuestId,
        cursor: &mut u64,
    ) -> Result<Unmerged, Away> {
        let position = self.staying(id).ok_or(Away::Gone)?;
        let guest = self.guests.at(position).ok_or(Away::Gone)?;
        let at = first_not(&guest.slots, |slot| slot.base() < *cursor);
        let mut given = Unmerged {
            unmerged: 0,
            busy: 0,
            state: UnmergeState::Done,
        };
        let knobs = &Knobs::DEFAULT;
        let Some((mut visit, _)) = Visit::new(self, world, scratch, knobs, position, at) else {
            return Ok(given);
        };
        let next = visit.base.saturating_add(BLOCK_BYTES);
        given.state = UnmergeState::More;
        visit.give_up_orphans(&mut given)?;
        if given.state == UnmergeState::More {
            *cursor = next;
        }
        Ok(given)
    }
}

impl<W: World> Visit<'_, W> {
    fn give_up_orphans(&mut self, given: &mut Unmerged) -> Result<(), Away> {
        self.look(&Mask::EMPTY)?;
        self.world.release();
        let cover = self.cover;
        for index in cover.iter() {
            let Seen::Merged { pfn, token } = self.scratch.seen(index) else {
                continue;
            };
            if self.is_frame(CopyId(token.0), pfn) {
                continue;
            }
            match self.world.unshare(self.guest, self.address(index)) {
                Unshared::Done => given.unmerged = given.unmerged.saturating_add(1),
                Unshared::Busy => given.busy = given.busy.saturating_add(1),
                Unshared::NoMemory => {
                    given.state = UnmergeState::NoMemory;
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_orphans))]
mod tests {
    use super::*;
    use crate::engine::{
        index::Span,
        stats::Gauge,
        toy::{
            Frame,
            Page,
            Toy,
            Untested,
            PAGES, //
        },
        world::PAGE_BYTES,
    };

    /// Goes over guest 0, which is in `index`; says how many pages got their own copies, and how it
    /// ended.
    fn give_up(toy: &mut Toy, index: &mut Index<Frame>) -> Result<(u32, UnmergeState), Away> {
        let (mut cursor, mut pages) = (0, 0_u32);
        loop {
            let (world, scratch) = (&mut toy.world, &mut toy.scratch);
            let given = index.give_up_orphans(world, scratch, GuestId(0), &mut cursor)?;
            pages = pages.wrapping_add(given.unmerged);
            if given.state != UnmergeState::More {
                return Ok((pages, given.state));
            }
        }
    }

    fn is_copy(toy: &Toy, index: usize) -> bool {
        matches!(toy.world.get(0, index), Page::Copy(_))
    }

    #[test]
    fn copies_of_another_domain_come_apart() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..PAGES, |index| Page::Own(1 + index));
        toy.fill(1, 0..PAGES, |index| Page::Own(1 + index));
        assert!(toy.pass(2));
        assert!(is_copy(&toy, 0));
        let mut other = Index::new(1, 1..99);
        other.attach(GuestId(0))?;
        let end = PAGE_BYTES.wrapping_mul(PAGES as u64);
        other.set_ranges(GuestId(0), &[Span { start: 0, end }])?;

        toy.world.has_memory = false;
        assert_eq!(give_up(&mut toy, &mut other)?, (0, UnmergeState::NoMemory));
        toy.world.has_memory = true;
        let all = PAGES as u32;
        assert_eq!(give_up(&mut toy, &mut other)?, (all, UnmergeState::Done));
        for index in 0..PAGES {
            assert!(!is_copy(&toy, index));
            assert_eq!(toy.world.content(0, index), index as u64 + 1);
        }
        let unseen = other
            .guest(GuestId(0))
            .map(|stats| stats.gauges.get(Gauge::Unseen));
        assert_eq!(unseen, Some(PAGES as u64));
        assert_eq!(other.check(), Ok(()));
        Ok(())
    }

    #[test]
    fn copies_of_the_own_domain_stay() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..PAGES, |_| Page::Own(5));
        assert!(toy.pass(1));
        let mut index = core::mem::replace(&mut toy.index, Index::new(1, 1..99));
        assert_eq!(give_up(&mut toy, &mut index)?, (0, UnmergeState::Done));
        assert!(is_copy(&toy, 0));
        Ok(())
    }
}
