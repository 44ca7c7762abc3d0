// SPDX-License-Identifier: GPL-2.0

//! Neighbouring pages that are replaced together.

use super::{
    copies::State,
    index::Index,
    page::CopyId,
    scratch::Plan,
    world::{
        GuestId,
        Shared,
        Target,
        World,
        RUN_PAGES, //
    },
};

/// Neighbouring pages of a block, and what each shall map.
pub(super) struct Run<P> {
    /// The guest.
    pub(super) guest: GuestId,
    /// Address of the first page.
    pub(super) address: u64,
    /// What they shall map.
    pub(super) plans: P,
    /// How many they are, at most [`RUN_PAGES`].
    pub(super) len: usize,
}

impl<P: Iterator<Item = Plan>> Run<P> {
    /// Replaces the pages, at most `batch` at once, and writes what became of each to `results`.
    /// Returns how many those are: fewer if a copy has turned out to be broken.
    pub(super) fn share<W: World>(
        self,
        index: &Index<W::Frame>,
        world: &mut W,
        batch: u32,
        results: &mut [Shared],
    ) -> usize {
        let mut targets = [const { Target::Zero }; RUN_PAGES];
        let mut ready: usize = 0;
        for (target, plan) in targets.iter_mut().zip(self.plans.take(self.len)) {
            *target = match plan {
                Plan::Zero => Target::Zero,
                Plan::Copy(copy) => match whole_frame(index, copy) {
                    Some(frame) => Target::Copy(frame),
                    None => break,
                },
                Plan::Nothing => break,
            };
            // OVERFLOW: At most `RUN_PAGES`.
            ready = ready.wrapping_add(1);
        }
        let (Some(targets), Some(results)) = (targets.get(..ready), results.get_mut(..ready))
        else {
            return 0;
        };
        results.fill(Shared::Busy);
        if ready > 0 {
            world.share(self.guest, self.address, batch, targets, results);
        }
        ready
    }
}

/// Returns the frame of a copy, unless that is broken.
fn whole_frame<F>(index: &Index<F>, copy: CopyId) -> Option<&F> {
    let copy = index.store.copies.get(copy)?;
    copy.frame().filter(|_| copy.state() != State::Retired)
}
