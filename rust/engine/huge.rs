// SPDX-License-Identifier: GPL-2.0

//! Large folios, which are faster for the guest than what merging gains from a few of their pages.
//!
//! Pages in them are hashed like others. One that would merge is *parked*; a listed one that a page
//! elsewhere would merge with gets that page's *vote*. A block is split when enough of its pages
//! are parked, or when a page elsewhere would merge with one of it and enough are parked or voted
//! for. Votes are forgotten whenever the block itself is looked at, and cast again by those that
//! still have the same key.

use super::{
    mask::Mask,
    moves::Holder,
    page::{
        Kind,
        Level,
        PageId,
        Place,
        Record, //
    },
    scan::Visit,
    world::{
        Away,
        Seen,
        World,
        BLOCK_PAGES, //
    },
};

/// Failed splits after which a block is left alone until its next turn.
const MAX_FAILURES: u32 = 4;

impl<W: World> Visit<'_, W> {
    /// Notes that a page would merge with `twin`. Returns whether it can: it is a small page, or
    /// enough pages of its block would merge.
    pub(super) fn vote(&mut self, twin: PageId) -> bool {
        let old = self.index.record(twin);
        if !old.huge {
            return true;
        }
        if !old.mark {
            self.index.set(twin, Record { mark: true, ..old });
        }
        let block = self.index.store.blocks.get(twin.block());
        let merging = block.map_or(0, |block| {
            u32::from(block.waiting()).saturating_add(u32::from(block.votes()))
        });
        merging >= self.knobs.thp_split_threshold
    }

    /// Votes again for the twins of parked huge pages that were not hashed in this step, or takes
    /// the place that a twin has left.
    pub(super) fn revote(&mut self, hashed: &Mask) {
        let block = self.index.store.blocks.get(self.block);
        if block.is_none_or(|block| block.waiting() == 0) {
            return;
        }
        for index in self.cover.without(hashed).iter() {
            let page = self.page(index);
            let record = self.index.record(page);
            let Seen::Huge { node } = self.scratch.seen(index) else {
                continue;
            };
            if !record.waits_for_split() || record.key == self.zero_key(node) {
                continue;
            }
            match self.index.holder(record.key) {
                Holder::One(Place::Page(twin)) => {
                    self.vote(twin);
                }
                Holder::One(Place::Copy(_)) | Holder::Crowd => {}
                Holder::Nobody => {
                    let kind = Kind::Listed;
                    self.index.set(page, Record { kind, ..record });
                }
            }
        }
    }

    /// Splits the large folios of the block if enough pages would merge, and plans these.
    pub(super) fn split_if_worthwhile(&mut self) {
        let block = self.index.store.blocks.get(self.block);
        let (waiting, votes) = block.map_or((0, 0), |block| (block.waiting(), block.votes()));
        if votes > 0 {
            self.forget_votes();
        }
        if u32::from(waiting) < self.knobs.thp_split_threshold {
            return;
        }
        let waiting = self.waiting();
        // Most often the whole block is one folio: after the first split all its pages are small.
        if !self.split_one(&waiting) || self.look_again(&waiting).is_err() {
            return;
        }
        let rest = self.waiting();
        if !rest.is_empty() {
            self.world.release();
            self.split_all(&rest);
            if self.look_again(&waiting).is_err() {
                return;
            }
        }
        for index in waiting.iter() {
            self.place_split(index);
        }
        self.world.release();
    }

    /// Looks at the block after a split, and keeps the pages that are going to merge.
    fn look_again(&mut self, waiting: &Mask) -> Result<(), Away> {
        self.look(waiting)?;
        self.split = true;
        self.reconcile();
        Ok(())
    }

    /// Returns the huge pages that would merge if they were split.
    fn waiting(&self) -> Mask {
        let mut waiting = Mask::EMPTY;
        for index in self.cover.iter() {
            let huge = matches!(self.scratch.seen(index), Seen::Huge { .. });
            if huge && self.index.record(self.page(index)).waits_for_split() {
                waiting.add(index);
            }
        }
        waiting
    }

    /// Splits the large folio of the first of `pages` with which that is possible.
    fn split_one(&mut self, pages: &Mask) -> bool {
        pages
            .iter()
            .take(MAX_FAILURES as usize)
            .any(|index| self.world.split(self.guest, self.address(index)))
    }

    /// Splits the large folios of all `pages`.
    fn split_all(&mut self, pages: &Mask) {
        let mut failures: u32 = 0;
        for index in pages.iter() {
            if !self.world.split(self.guest, self.address(index)) {
                failures = failures.saturating_add(1);
                if failures >= MAX_FAILURES {
                    return;
                }
            }
        }
    }

    /// Splits the large folio of a page that another is going to merge with. Returns whether the
    /// page is small now.
    pub(super) fn split_twin(&mut self, twin: PageId) -> bool {
        let guest = self.index.guest_of(twin);
        let Some((id, address)) = guest else {
            return false;
        };
        if self.scratch.stuck == Some(twin.block()) {
            return false;
        }
        if !self.world.split(id, address) {
            self.scratch.stuck = Some(twin.block());
            return false;
        }
        self.scratch.parted = Some(twin.block());
        self.index.visit_soon(twin);
        // All of the block, as that is one folio most often. A page that is not small after all
        // cannot be shared, and is split then.
        for index in 0..BLOCK_PAGES {
            let page = PageId::new(twin.block(), index);
            let old = self.index.record(page);
            if old.huge {
                // Those that have waited for this are looked at soon.
                let level = if old.waits_for_split() {
                    Level::ALWAYS
                } else {
                    old.level
                };
                let new = Record {
                    level,
                    huge: false,
                    mark: false,
                    ..old
                };
                self.index.set(page, new);
            }
        }
        true
    }

    fn forget_votes(&mut self) {
        for index in self.cover.iter() {
            let page = self.page(index);
            let old = self.index.record(page);
            if old.has_vote() {
                self.index.set(page, Record { mark: false, ..old });
            }
        }
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_huge))]
mod tests {
    use super::*;
    use crate::engine::{
        stats::Gauge,
        toy::{
            Page,
            Toy,
            Untested, //
        },
        world::Skip,
    };

    #[test]
    fn huge_twins_are_split_and_merge_in_one_pass() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..BLOCK_PAGES, |index| Page::Huge(1 + index));
        toy.fill(1, 0..BLOCK_PAGES, |index| Page::Huge(1 + index));
        assert!(toy.pass(2));
        assert_eq!(toy.world.splits, 2);
        assert_eq!(toy.gauge(0, Gauge::Merged), BLOCK_PAGES as u64);
        assert_eq!(toy.gauge(1, Gauge::Merged), BLOCK_PAGES as u64);
        Ok(())
    }

    #[test]
    fn too_few_twins_are_counted_and_left_alone() -> Result<(), Untested> {
        for (twins, splits) in [(63, 0), (64, 2)] {
            let mut toy = Toy::new(2)?;
            toy.fill(0, 0..BLOCK_PAGES, |index| Page::Huge(1 + index));
            toy.fill(1, 0..BLOCK_PAGES, |index| {
                Page::Huge(if index < twins {
                    1 + index
                } else {
                    5000 + index
                })
            });
            for _ in 0..3 {
                assert!(toy.pass(2));
                assert_eq!(toy.world.splits, splits);
                let waiting = toy.gauge(1, Gauge::Skip(Skip::Huge));
                assert_eq!(waiting, if splits == 0 { twins } else { 0 });
            }
        }
        Ok(())
    }

    #[test]
    fn a_small_page_takes_the_place_of_a_huge_twin() -> Result<(), Untested> {
        let mut toy = Toy::new(2)?;
        toy.fill(0, 0..BLOCK_PAGES, |index| Page::Huge(1 + index));
        toy.fill(1, 0..3, |index| Page::Own(1 + index));
        assert!(toy.pass(2));
        assert_eq!(toy.gauge(1, Gauge::Unshared), 3);
        assert_eq!(toy.gauge(0, Gauge::Skip(Skip::Huge)), 3);
        assert_eq!(toy.world.splits, 0);
        // More of them make the split worth while.
        toy.fill(1, 3..64, |index| Page::Own(1 + index));
        assert!(toy.pass(2));
        assert!(toy.pass(2));
        assert_eq!(toy.world.splits, 1);
        assert_eq!(toy.gauge(1, Gauge::Merged), 64);
        Ok(())
    }

    #[test]
    fn zeroes_of_a_huge_page_count_as_ours_after_the_split() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..BLOCK_PAGES, |index| {
            Page::Huge(if index < 100 { 0 } else { index })
        });
        assert!(toy.pass(1));
        assert_eq!(toy.world.splits, 1);
        assert_eq!(toy.gauge(0, Gauge::Zero), 100);
        assert_eq!(toy.index.totals().counters.merges, 100);
        Ok(())
    }

    #[test]
    fn votes_are_forgotten_when_the_block_is_looked_at() -> Result<(), Untested> {
        let mut toy = Toy::new(3)?;
        toy.fill(0, 0..BLOCK_PAGES, |index| Page::Huge(1 + index));
        toy.fill(1, 0..BLOCK_PAGES, |index| {
            Page::Huge(if index < 40 { 1 + index } else { 5000 + index })
        });
        assert!(toy.pass(2));
        toy.fill(1, 0..BLOCK_PAGES, |index| Page::Huge(9000 + index));
        assert!(toy.pass(2));
        toy.fill(2, 0..40, |index| Page::Own(101 + index));
        assert!(toy.pass(3));
        assert_eq!(toy.world.splits, 0);
        Ok(())
    }

    #[test]
    fn votes_are_cast_again_by_those_that_rest() -> Result<(), Untested> {
        let mut toy = Toy::new(3)?;
        toy.fill(0, 0..BLOCK_PAGES, |index| Page::Huge(1 + index));
        toy.fill(1, 0..BLOCK_PAGES, |index| {
            Page::Huge(if index < 40 { 1 + index } else { 5000 + index })
        });
        for _ in 0..16 {
            assert!(toy.pass(2));
        }
        assert_eq!(toy.world.splits, 0);
        toy.fill(2, 0..40, |index| Page::Own(101 + index));
        assert!(toy.pass(3));
        assert!(toy.pass(3));
        assert_eq!(toy.world.splits, 1);
        assert!(toy.gauge(2, Gauge::Merged) >= 16);
        Ok(())
    }

    #[test]
    fn zeroes_that_appear_by_themselves_are_not_ours() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..BLOCK_PAGES, |index| {
            Page::Huge(if index < 40 { 0 } else { index })
        });
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Skip(Skip::Huge)), 40);
        toy.fill(0, 0..BLOCK_PAGES, |_| Page::Zero);
        assert!(toy.pass(1));
        assert_eq!(toy.gauge(0, Gauge::Zero), 0);
        assert_eq!(toy.index.totals().counters.merges, 0);
        Ok(())
    }
}
