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
        World, //
    },
};
use crate::mem::{
    KVVec,
    GFP_KERNEL, //
};

/// Pages that can be replaced together without allocating.
const SMALL: usize = 32;

/// Neighbouring pages of a block, and what each shall map.
pub(super) struct Run<P> {
    /// The guest.
    pub(super) guest: GuestId,
    /// Address of the first page.
    pub(super) address: u64,
    /// What they shall map.
    pub(super) plans: P,
    /// How many they are.
    pub(super) len: usize,
}

impl<P: Iterator<Item = Plan>> Run<P> {
    /// Replaces the pages, or fewer of them if memory is short, and writes what became of each to
    /// `results`. Returns how many.
    pub(super) fn share<W: World>(
        self,
        index: &Index<W::Frame>,
        world: &mut W,
        results: &mut [Shared],
    ) -> usize {
        let mut small = [const { Target::Zero }; SMALL];
        let mut large = KVVec::new();
        let targets: &mut [Target<'_, W::Frame>] =
            if self.len > SMALL && large.reserve(self.len, GFP_KERNEL).is_ok() {
                while large.push_within_capacity(Target::Zero).is_ok() {}
                &mut large
            } else {
                &mut small
            };
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
            // OVERFLOW: At most 512.
            ready = ready.wrapping_add(1);
        }
        let (Some(targets), Some(results)) = (targets.get(..ready), results.get_mut(..ready))
        else {
            return 0;
        };
        results.fill(Shared::Busy);
        if ready > 0 {
            world.share(self.guest, self.address, targets, results);
        }
        ready
    }
}

/// Returns the frame of a copy, unless that is broken.
fn whole_frame<F>(index: &Index<F>, copy: CopyId) -> Option<&F> {
    let copy = index.store.copies.get(copy)?;
    copy.frame().filter(|_| copy.state() != State::Retired)
}
