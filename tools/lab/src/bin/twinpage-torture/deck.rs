// SPDX-License-Identifier: GPL-2.0

//! Choices in rounds: each has its turn before one has its next.

use twinpage_lab::random::Random;

/// What is dealt, round after round, each round in another order.
pub struct Deck<T> {
    all: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    /// A deck of these.
    pub fn new(all: Vec<T>) -> Deck<T> {
        Deck {
            all,
            left: Vec::new(),
        }
    }

    /// The next, if there is any at all.
    pub fn deal(&mut self, random: &mut Random) -> Option<T> {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
        }
        let index = random.below(self.left.len());
        (!self.left.is_empty()).then(|| self.left.swap_remove(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_turn_in_every_round() {
        let (mut deck, mut random) = (Deck::new(vec![1, 2, 3, 3]), Random::new(1, 0));
        for _ in 0..10 {
            let mut round: Vec<_> = (0..4).filter_map(|_| deck.deal(&mut random)).collect();
            round.sort_unstable();
            assert_eq!(round, [1, 2, 3, 3]);
        }
        assert_eq!(Deck::<u8>::new(Vec::new()).deal(&mut random), None);
    }
}
