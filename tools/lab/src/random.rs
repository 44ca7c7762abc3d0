// SPDX-License-Identifier: GPL-2.0

//! Choices that a seed repeats.

use std::time::Duration;

use twinpage_guest::pattern::mix;

/// A source of choices.
pub struct Random(u64);

impl Random {
    /// The choices of a seed; each actor of a run has others.
    pub fn new(seed: u64, actor: u64) -> Random {
        Random(mix(seed).wrapping_add(mix(actor.wrapping_add(1))))
    }

    /// Any number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.word() >> 16) as usize % end.max(1)
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these, of which there is at least one.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number of 64 bits of the kind that goes wrong: small, large, next to a power of two.
    pub fn number(&mut self) -> u64 {
        let power = 1_u64 << self.below(64);
        match self.below(6) {
            0 => self.below(4) as u64,
            1 => power,
            2 => power - 1,
            3 => power.wrapping_neg(),
            4 => u64::MAX - self.below(3) as u64,
            _ => self.word(),
        }
    }

    /// Bytes without any order.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.word() as u8).collect()
    }

    /// Sleeps for a part of `milliseconds`.
    pub fn nap(&mut self, milliseconds: usize) {
        std::thread::sleep(Duration::from_millis(self.below(milliseconds) as u64));
    }
}
