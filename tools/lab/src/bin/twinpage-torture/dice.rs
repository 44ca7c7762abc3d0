// SPDX-License-Identifier: GPL-2.0

//! Choices that a seed repeats.

use std::time::Duration;

use twinpage_guest::pattern::mix;

/// A stream of choices.
pub struct Dice(u64);

impl Dice {
    /// The stream of a seed; each actor of a run has another one.
    pub fn new(seed: u64, actor: u64) -> Dice {
        Dice(mix(seed).wrapping_add(mix(actor.wrapping_add(1))))
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 16) as usize % end.max(1)
    }

    /// Whether something happens that does so once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of a list, which is not empty.
    pub fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// Sleeps for a part of `milliseconds`.
    pub fn nap(&mut self, milliseconds: usize) {
        std::thread::sleep(Duration::from_millis(self.below(milliseconds) as u64));
    }
}
