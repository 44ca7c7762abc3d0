// SPDX-License-Identifier: GPL-2.0

//! What the page table says against what is recorded, without reading any page.

use super::{
    key::UNKNOWN,
    kinds::Kinds,
    mask::Mask,
    node::Node,
    page::{
        CopyId,
        Kind,
        Record, //
    },
    scan::Visit,
    world::{
        Pfn,
        Seen,
        Skip,
        Token,
        Unshared,
        World, //
    },
};

impl<W: World> Visit<'_, W> {
    /// Brings the records in line with what the last look found. What is known of private pages
    /// stays until they are hashed.
    pub(super) fn reconcile(&mut self) {
        self.orphans = Mask::EMPTY;
        for index in self.news().iter() {
            let page = self.page(index);
            let old = self.index.record(page);
            self.reconcile_page(index, &old);
            // What is left alone for the reason that it was is nothing new.
            self.news |= self.index.record(page) != old;
        }
        self.news |= !self.orphans.is_empty();
    }

    /// Returns the pages that were seen otherwise than recorded, which are few, and counts those
    /// that are there.
    fn news(&mut self) -> Mask {
        let seen = &self.scratch.seen;
        self.step.present = self.cover.without(seen.absent()).count();
        let blocks = &self.index.store.blocks;
        let kinds = Kinds::of(blocks.metas(self.block));
        let mut known = kinds.agreeing(seen);
        let nodes = blocks.nodes(self.block);
        let merged = kinds.are(Kind::Merged).and(seen.merged());
        for index in merged.iter() {
            let copy = nodes.get(index).map(Node::link).map(CopyId);
            let mapped = copy.zip(seen.frame(index));
            if mapped.is_some_and(|(copy, pfn)| self.is_frame(copy, pfn)) {
                known.add(index);
            }
        }
        self.cover.without(&known)
    }

    fn reconcile_page(&mut self, index: usize, old: &Record) {
        let page = self.page(index);
        match self.scratch.seen(index) {
            Seen::Absent => self.index.set(page, Record::of(Kind::Absent)),
            Seen::Zero => self.found_zero(index, old),
            Seen::Skip(reason) => {
                if reason == Skip::Poison && old.kind == Kind::Merged {
                    self.index.retire(Token(old.copy.0));
                }
                let new = Record::skipped(reason);
                if old.kind != new.kind || old.key != new.key {
                    self.index.set(page, new);
                }
            }
            Seen::Merged { pfn, token } => self.found_merged(index, old, pfn, token),
            Seen::Anon { .. } => self.found_private(index, old, false),
            Seen::Huge { .. } => self.found_private(index, old, true),
        }
    }

    /// The page maps the shared zero page: by splitting a huge page, or by its own doing.
    fn found_zero(&mut self, index: usize, old: &Record) {
        let page = self.page(index);
        if self.split && old.waits_for_split() {
            self.index.set(page, Record::of(Kind::Zero));
            return self.count_merge(self.position);
        }
        let new = Record::skipped(Skip::Zero);
        if old.kind != new.kind || old.key != new.key {
            self.index.set(page, new);
        }
    }

    /// The page maps a merged copy that is not the recorded one: another of this index (it was
    /// moved), or one that this index does not know.
    fn found_merged(&mut self, index: usize, old: &Record, pfn: Pfn, token: Token) {
        let copy = CopyId(token.0);
        if !self.is_frame(copy, pfn) {
            return self.orphans.add(index);
        }
        let new = Record {
            copy,
            level: old.level,
            ..Record::of(Kind::Merged)
        };
        self.index.set(self.page(index), new);
    }

    /// Returns whether a copy has that frame.
    pub(super) fn is_frame(&self, copy: CopyId, pfn: Pfn) -> bool {
        let frame = self
            .index
            .store
            .copies
            .get(copy)
            .and_then(|copy| copy.frame());
        frame.is_some_and(|frame| self.world.pfn(frame) == pfn)
    }

    /// The page is private. If we had replaced it, the guest has written to it since.
    fn found_private(&mut self, index: usize, old: &Record, huge: bool) {
        let page = self.page(index);
        match old.kind {
            Kind::Merged | Kind::Zero => {
                let new = Record {
                    key: UNKNOWN,
                    level: old.level.raised(),
                    huge,
                    ..Record::of(Kind::Volatile)
                };
                self.index.set(page, new);
                self.index.count(self.position, |counters| {
                    counters.breaks = counters.breaks.saturating_add(1);
                });
            }
            Kind::Absent => self.index.set(page, Record::UNSEEN),
            Kind::Listed | Kind::Parked | Kind::Volatile if old.huge != huge => {
                // The mark means another thing now, and with it the key of a volatile page.
                let new = Record {
                    huge,
                    mark: false,
                    key: if old.kind == Kind::Volatile {
                        UNKNOWN
                    } else {
                        old.key
                    },
                    ..*old
                };
                self.index.set(page, new);
            }
            _ => {}
        }
    }

    /// Counts a page of the guest at `position` that was replaced.
    pub(super) fn count_merge(&mut self, position: u32) {
        // OVERFLOW: A step replaces at most 1024 pages.
        self.step.merged = self.step.merged.wrapping_add(1);
        self.index.count(position, |counters| {
            counters.merges = counters.merges.saturating_add(1);
        });
    }

    /// Gives pages that map an unknown merged copy their own. It may be one of another domain, if
    /// the guest was moved to this one: then two domains would go on sharing it.
    pub(super) fn unshare_orphans(&mut self) {
        let orphans = self.orphans;
        let mut last = Unshared::Done;
        for index in orphans.iter() {
            if last != Unshared::NoMemory {
                last = self.world.unshare(self.guest, self.address(index));
            }
            let new = match last {
                Unshared::Done => Record::UNSEEN,
                Unshared::NoMemory | Unshared::Busy => Record::skipped(Skip::Orphan),
            };
            self.index.set(self.page(index), new);
        }
    }
}
