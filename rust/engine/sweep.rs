// SPDX-License-Identifier: GPL-2.0

//! Merged copies that nobody maps, and those that have room again.

use super::{
    copies::{
        MergedCopy,
        State, //
    },
    index::{
        Index,
        Swept, //
    },
    knobs::Knobs,
    page::{
        CopyId,
        Place, //
    },
    world::{
        Token,
        World, //
    },
};

impl<F> Index<F> {
    /// Frees merged copies that nobody maps: looks at up to `budget` copies. To be called when a
    /// pass ends or a guest goes, and by the shrinker.
    pub fn sweep<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        knobs: &Knobs,
        budget: usize,
    ) -> Swept {
        let mut swept = Swept::default();
        for _ in 0..budget {
            let Some(copy) = self.store.copies.next(self.swept) else {
                self.swept = CopyId(0);
                swept.done = true;
                break;
            };
            // OVERFLOW: Below 2^30.
            self.swept = CopyId(copy.0.wrapping_add(1));
            let Some(frame) = self.frame(copy) else {
                continue;
            };
            if world.mappings(frame) == 0 {
                self.drop_copy(copy);
                swept.freed = swept.freed.saturating_add(1);
            } else {
                self.list_again(copy, knobs);
            }
        }
        swept
    }

    /// Never hands out the copy of that number again: its frame is broken.
    pub fn retire(&mut self, token: Token) {
        let copy = CopyId(token.0);
        self.unlist_copy(copy, State::Retired);
        self.forget_digest(copy);
    }

    /// Puts a full copy into the tree again if half of its pages have left it, unless another copy
    /// has its place.
    fn list_again(&mut self, copy: CopyId, knobs: &Knobs) {
        let Some(entry) = self.store.copies.get(copy) else {
            return;
        };
        if entry.state() != State::Full || entry.records() > knobs.max_page_sharing / 2 {
            return;
        }
        let Some(key) = self.store.copies.node(copy).map(|node| node.key()) else {
            return;
        };
        let node = Place::Copy(copy);
        let listed = match self.find(key) {
            None => self.tree.insert(&mut self.store, node.node()).is_ok(),
            Some(Place::Copy(_)) => false,
            Some(page) => self.yield_place(page, node),
        };
        if listed {
            self.store.copies.set_state(copy, State::Listed);
        }
    }

    /// Returns whether a copy is in the tree.
    pub(super) fn is_listed(&self, copy: CopyId) -> bool {
        let copy = self.store.copies.get(copy);
        copy.map(MergedCopy::state) == Some(State::Listed)
    }
}
