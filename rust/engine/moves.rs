// SPDX-License-Identifier: GPL-2.0

//! How pages and copies change state.
//!
//! `Index::settle` is the only place that changes what a page counts as: it keeps the guest's
//! gauges, the block's account of huge pages and the copy's count of records. The others decide who
//! is in the tree, and call it.

use super::{
    blocks::Blocks,
    copies::{
        Copies,
        State, //
    },
    index::Index,
    key,
    node::{
        Node,
        Nodes, //
    },
    page::{
        CopyId,
        Kind,
        Level,
        PageId,
        Place,
        Record, //
    },
};

/// Everything that the nodes of the tree live in.
#[derive(Debug)]
pub struct Store<F> {
    /// Pages.
    pub blocks: Blocks,
    /// Merged copies.
    pub copies: Copies<F>,
}

impl<F> Nodes for Store<F> {
    #[inline]
    fn node(&self, id: u32) -> Option<&Node> {
        match Place::of_node(id) {
            Place::Page(page) => self.blocks.node(page),
            Place::Copy(copy) => self.copies.node(copy),
        }
    }

    #[inline]
    fn node_mut(&mut self, id: u32) -> Option<&mut Node> {
        match Place::of_node(id) {
            Place::Page(page) => self.blocks.node_mut(page),
            Place::Copy(copy) => self.copies.node_mut(copy),
        }
    }
}

/// The nodes of the tree of digests: they live with the copies.
pub struct DigestNodes<'a, F>(pub &'a mut Copies<F>);

impl<F> Nodes for DigestNodes<'_, F> {
    fn node(&self, id: u32) -> Option<&Node> {
        self.0.digest_node(CopyId(id))
    }

    fn node_mut(&mut self, id: u32) -> Option<&mut Node> {
        self.0.digest_node_mut(CopyId(id))
    }
}

/// Who has the place of a key in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody.
    Nobody,
    /// This one.
    One(Place),
    /// It is the key of a class, and others have places in that by the hash of all of them.
    Crowd,
}

impl<F> Index<F> {
    /// Returns what is remembered of a page.
    #[inline]
    pub(super) fn record(&self, page: PageId) -> Record {
        self.store.blocks.record(page)
    }

    /// Returns who has that key in the tree.
    pub(super) fn find(&self, key: u64) -> Option<Place> {
        self.tree.find(&self.store, key).map(Place::of_node)
    }

    /// Returns who has the place of a key, or whether that is the key of a crowded class.
    pub(super) fn holder(&self, key: u64) -> Holder {
        let id = self.tree.find_from(&self.store, key);
        let found = id.and_then(|id| Some((id, self.store.node(id)?.key())));
        match found {
            Some((id, found)) if found == key => Holder::One(Place::of_node(id)),
            Some((_, found)) if key::class(found) == key => Holder::Crowd,
            _ => Holder::Nobody,
        }
    }

    /// Keeps account of a page that changes from `old` to `new`. The tree node is up to the caller.
    fn settle(&mut self, page: PageId, old: &Record, new: &Record) {
        let keyed = matches!(new.kind, Kind::Merged | Kind::Skipped);
        if !keyed && old.meta() == new.meta() {
            // Another key, which nothing is counted by.
            return;
        }
        let copy = |record: &Record| (record.kind == Kind::Merged).then_some(record.copy);
        if copy(old) != copy(new) {
            if let Some(joined) = copy(new) {
                self.store.copies.join(joined);
            }
            if let Some(left) = copy(old) {
                self.store.copies.leave(left);
            }
        }
        let position = self.store.blocks.set_meta(page, old, new);
        let (was, is) = (old.gauge(), new.gauge());
        if was != is {
            if let Some(guest) = position.and_then(|position| self.guests.at_mut(position)) {
                guest.stats.gauges.sub(was, 1);
                guest.stats.gauges.add(is, 1);
            }
        }
    }

    /// Changes a page to `new`. If that is [`Kind::Listed`] and another has the key's place in the
    /// tree, it becomes [`Kind::Parked`].
    pub(super) fn set(&mut self, page: PageId, mut new: Record) {
        let old = self.record(page);
        if old.kind == Kind::Listed {
            if new.kind == Kind::Listed && new.key == old.key {
                return self.settle(page, &old, &new);
            }
            self.leave_tree(page);
        }
        self.store.blocks.set_node(page, &new);
        if new.kind == Kind::Listed {
            let node = Place::Page(page).node();
            if self.tree.insert(&mut self.store, node).is_err() {
                new.kind = Kind::Parked;
                new.mark &= !new.huge;
            }
        }
        self.settle(page, &old, &new);
    }

    /// Takes a listed page's node out of the tree.
    fn leave_tree(&mut self, page: PageId) {
        // A tree that is corrupt stays so: nothing better can be done than to go on without it.
        let _ = self.tree.remove(&mut self.store, Place::Page(page).node());
    }

    /// Gives the tree place of `from` to `to`, which is in no tree. A page is parked then, a copy
    /// is full.
    ///
    /// Returns whether that was possible: it always is while the tree is sound.
    pub(super) fn yield_place(&mut self, from: Place, to: Place) -> bool {
        let replaced = self
            .tree
            .replace(&mut self.store, from.node(), to.node())
            .is_ok();
        match from {
            _ if !replaced => {}
            Place::Copy(copy) => self.store.copies.set_state(copy, State::Full),
            Place::Page(page) => {
                let old = self.record(page);
                // A small page has somebody to merge with now, so it is looked at soon.
                let level = if old.huge { old.level } else { Level::ALWAYS };
                let parked = Record {
                    kind: Kind::Parked,
                    level,
                    mark: old.mark && !old.huge,
                    ..old
                };
                self.settle(page, &old, &parked);
            }
        }
        replaced
    }

    /// Gives the tree place of `from` to `page`, which becomes `new`, a [`Kind::Listed`] record of
    /// the same key.
    pub(super) fn take_place(&mut self, from: Place, page: PageId, mut new: Record) {
        let old = self.record(page);
        if old.kind == Kind::Listed {
            self.leave_tree(page);
        }
        if !self.yield_place(from, Place::Page(page)) {
            new.kind = Kind::Parked;
            self.store.blocks.set_node(page, &new);
        }
        self.settle(page, &old, &new);
    }

    /// Takes a copy out of the tree if it is there, for good or until `sweep` lists it again.
    pub(super) fn unlist_copy(&mut self, copy: CopyId, state: State) {
        let Some(entry) = self.store.copies.get(copy) else {
            return;
        };
        match entry.state() {
            State::Listed => {
                // As in `leave_tree`.
                let _ = self.tree.remove(&mut self.store, Place::Copy(copy).node());
            }
            State::Dead | State::Free => return,
            State::Full | State::Odd | State::Retired => {}
        }
        self.store.copies.set_state(copy, state);
    }

    /// Gives a copy another key. If somebody has that one's place in the tree, it is full.
    pub(super) fn rekey_copy(&mut self, copy: CopyId, key: u64) {
        let listed = self.is_listed(copy);
        self.unlist_copy(copy, State::Full);
        if let Some(node) = self.store.copies.node_mut(copy) {
            *node = Node::new(key);
        }
        let node = Place::Copy(copy).node();
        if listed && self.tree.insert(&mut self.store, node).is_ok() {
            self.store.copies.set_state(copy, State::Listed);
        }
    }

    /// Gives up a copy that nobody maps.
    pub(super) fn drop_copy(&mut self, copy: CopyId) {
        self.unlist_copy(copy, State::Odd);
        self.forget_digest(copy);
        drop(self.store.copies.kill(copy));
    }
}
