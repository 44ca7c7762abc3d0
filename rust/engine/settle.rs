// SPDX-License-Identifier: GPL-2.0

//! What becomes of the copies made in a step, once pages were compared with them.

use super::{
    copies::{
        MergedCopy,
        State, //
    },
    index::Index,
    key::{
        self,
        UNKNOWN, //
    },
    node::Node,
    page::{
        CopyId,
        Kind,
        Place,
        Record, //
    },
    scan::Visit,
    scratch::Fresh,
    world::{
        Seen,
        Unshared,
        World, //
    },
};

impl<F> Index<F> {
    /// Returns the key of a copy.
    pub(super) fn key_of(&self, copy: CopyId) -> u64 {
        self.store.copies.node(copy).map_or(UNKNOWN, Node::key)
    }

    /// Lists a copy that was full in the place of the page that took its place, if one did.
    fn take_back_place(&mut self, copy: CopyId) {
        let state = self.store.copies.get(copy).map(MergedCopy::state);
        if state != Some(State::Full) {
            return;
        }
        if let Some(page @ Place::Page(_)) = self.find(self.key_of(copy)) {
            if self.yield_place(page, Place::Copy(copy)) {
                self.store.copies.set_state(copy, State::Listed);
            }
        }
    }
}

impl<W: World> Visit<'_, W> {
    /// A page of the copy's class has other bytes than the copy: from now on pages of that class
    /// are told apart by all of their bytes, the page at its next look. So is one that took the
    /// copy's place since it had no room for more.
    pub(super) fn crowd(&mut self, copy: CopyId) {
        let key = self.index.key_of(copy);
        if key::is_whole(key) {
            return;
        }
        if !self.index.may_read(self.world, copy) {
            return;
        }
        let Some(frame) = self.index.frame(copy) else {
            return;
        };
        let sample = self.world.sample_frame(frame, self.index.seed);
        let hash = self.world.hash_frame(frame, self.index.seed);
        if self.knobs.merge_across_nodes && key::of_sample(sample) != key {
            // The page was written to between sample and snapshot.
            return self.index.unlist_copy(copy, State::Odd);
        }
        self.index.take_back_place(copy);
        self.index.rekey_copy(copy, key::of_whole(key, hash));
    }

    /// Gives up the copies made in this step that nobody took.
    pub(super) fn settle_copies(&mut self) {
        for at in 0..self.scratch.fresh.len() {
            let Some(fresh) = self.scratch.fresh.get(at).copied() else {
                return;
            };
            let copy = self.index.store.copies.get(fresh.copy);
            match copy.map(MergedCopy::records) {
                Some(0) => self.index.drop_copy(fresh.copy),
                Some(1) => self.prove(&fresh),
                _ => {}
            }
        }
    }

    /// Makes sure that a copy which only one page took can be found by others. The page may have
    /// been written to between hash and snapshot: then the copy has not the content that its key
    /// is of, and the page gets its own copy back, unless the copy is broken.
    fn prove(&mut self, fresh: &Fresh) {
        let node = match self.scratch.seen(fresh.index) {
            Seen::Anon { node } | Seen::Huge { node } => node,
            _ => 0,
        };
        if !self.index.may_read(self.world, fresh.copy) || self.is_by_its_key(fresh.copy, node) {
            return;
        }
        self.index.unlist_copy(fresh.copy, State::Odd);
        for page in [self.page(fresh.index), fresh.twin] {
            let record = self.index.record(page);
            let taken = record.kind == Kind::Merged && record.copy == fresh.copy;
            let Some((guest, address)) = self.index.guest_of(page).filter(|_| taken) else {
                continue;
            };
            if self.world.unshare(guest, address) == Unshared::Done {
                self.index.set(page, Record::UNSEEN);
                self.index.drop_copy(fresh.copy);
            }
        }
    }

    /// Returns whether a copy, which may be read, of a page on that NUMA node has the key of its
    /// content.
    fn is_by_its_key(&mut self, copy: CopyId, node: u8) -> bool {
        let (key, seed) = (self.index.key_of(copy), self.index.seed);
        let Some(frame) = self.index.frame(copy) else {
            return false;
        };
        let sample = self.world.sample_frame(frame, seed);
        let hash = key::is_whole(key).then(|| self.world.hash_frame(frame, seed));
        let class = self.class(sample, node);
        key == hash.map_or(class, |hash| key::of_whole(class, hash))
    }
}
