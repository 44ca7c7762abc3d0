// SPDX-License-Identifier: GPL-2.0

//! Choices that follow from a seed.

use twinpage_guest::pattern::Stream;

/// A source of choices.
pub struct Random(Stream);

impl Random {
    /// The choices of a seed.
    pub fn new(seed: u64) -> Random {
        Random(Stream::new(seed))
    }

    /// Any number.
    pub fn word(&mut self) -> u64 {
        self.0.next()
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end.max(1) as u64) as usize
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
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
}
