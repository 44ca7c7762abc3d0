// SPDX-License-Identifier: GPL-2.0

//! Whose turn it is, and how long to rest.
//!
//! Pure arithmetic: the scanner thread tells what happened, and does what it is told.

use super::{
    index::Step,
    knobs::{
        Advisor,
        Knobs, //
    },
    world::GuestId,
};

/// The shortest rest worth its timer; shorter ones add up.
pub const MIN_REST_NS: u64 = 1_000_000;

/// After so much CPU time the CPU advisor wants to rest, however few pages that were: who shares
/// the processor should not wait for a batch of many merges.
const LONGEST_BATCH_NS: u64 = 20_000_000;

const NS_PER_MS: u64 = 1_000_000;

/// What a step costs that finds no pages, in pages.
const EMPTY_STEP: u32 = 8;

/// A pass is worth its time if it merges one page of so many that are there.
const WORTH_ONE_OF: u64 = 64;

/// How often the share of CPU time is halved while no pass is worth its time: down to an eighth.
const MOST_HALVINGS: u32 = 3;

/// What the order of turns depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The guest.
    pub guest: GuestId,
    /// The round in which its last complete pass ended, as [`Rounds::number`] said; 0: it has none.
    pub round: u64,
}

/// The rounds over all guests of all domains. In a round each guest is passed over once.
#[derive(Debug)]
pub struct Rounds(u64);

impl Rounds {
    /// Starts the first round.
    pub const fn new() -> Self {
        Self(1)
    }

    /// Returns the number of this round, from 1.
    pub fn number(&self) -> u64 {
        self.0
    }

    /// Returns how many rounds are complete.
    pub fn full_scans(&self) -> u64 {
        self.0.saturating_sub(1)
    }

    /// Returns whose turn it is: guests without a complete pass first, then those that this round
    /// has not passed, by number. Ends the round when there is none, and starts the next.
    ///
    /// `None` if there are no guests.
    pub fn next(&mut self, turns: impl Iterator<Item = Turn>) -> Option<GuestId> {
        let first = turns.min_by_key(|turn| (turn.round != 0, turn.round >= self.0, turn.guest))?;
        if first.round >= self.0 {
            // OVERFLOW: 2^64 rounds take for ever.
            self.0 = self.0.wrapping_add(1);
        }
        Some(first.guest)
    }
}

impl Default for Rounds {
    fn default() -> Self {
        Self::new()
    }
}

/// How urgent the work was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The first pass over a guest: memory is tight just after a start, so no rest.
    Boost,
    /// Anything else, with the share halved so often ([`Effort::halvings`]).
    Steady(u32),
}

/// How much of its share of CPU time the scanner should take: all of it as long as that gives
/// something, and half as much after each round that gave nothing.
#[derive(Debug, Default)]
pub struct Effort {
    halvings: u32,
    /// The present round, and whether a pass that ended in it was worth its time.
    round: u64,
    worth: bool,
    /// Pages that are there, and those that merged, in the pass so far.
    present: u64,
    merged: u64,
}

impl Effort {
    /// All of the share.
    pub const fn new() -> Self {
        Self {
            halvings: 0,
            round: 0,
            worth: true,
            present: 0,
            merged: 0,
        }
    }

    /// Tells what a step of this round did.
    pub fn step(&mut self, step: &Step, round: u64) {
        if self.round != round {
            if !self.worth {
                self.halvings = self.halvings.saturating_add(1).min(MOST_HALVINGS);
            }
            self.round = round;
            self.worth = false;
        }
        self.present = self.present.saturating_add(step.present.into());
        self.merged = self.merged.saturating_add(step.merged.into());
        if step.pass_ended {
            let present = core::mem::take(&mut self.present);
            let merged = core::mem::take(&mut self.merged);
            if merged > 0 && merged.saturating_mul(WORTH_ONE_OF) >= present {
                self.worth = true;
                self.halvings = 0;
            }
        }
    }

    /// Returns how often the share is to be halved.
    pub fn halvings(&self) -> u32 {
        self.halvings
    }
}

/// What the scanner does between two rests.
#[derive(Debug)]
pub struct Batch {
    pages: u32,
    pages_left: u32,
    busy_ns: u64,
    longest_ns: u64,
}

impl Batch {
    /// Starts one.
    pub const fn new(knobs: &Knobs) -> Self {
        Self {
            pages: knobs.pages_to_scan,
            pages_left: knobs.pages_to_scan,
            busy_ns: 0,
            longest_ns: match knobs.advisor {
                Advisor::None => u64::MAX,
                Advisor::Cpu => LONGEST_BATCH_NS,
            },
        }
    }

    /// Tells that a step found so many pages, and that the batch has taken `busy_ns` of CPU time
    /// so far; says if that is all.
    pub fn step(&mut self, present: u32, busy_ns: u64) -> bool {
        self.pages_left = self.pages_left.saturating_sub(present.max(EMPTY_STEP));
        self.busy_ns = busy_ns;
        self.pages_left == 0 || busy_ns >= self.longest_ns
    }

    /// Returns the part of `whole` that is due for the pages so far.
    fn part(&self, whole: u64) -> u64 {
        let done = u64::from(self.pages.saturating_sub(self.pages_left));
        let part = whole.saturating_mul(done).checked_div(self.pages.into());
        part.unwrap_or(whole)
    }
}

/// Keeps the scanner within its share of CPU time.
#[derive(Debug, Default)]
pub struct Pacer {
    owed_ns: u64,
}

impl Pacer {
    /// Owes no rest.
    pub const fn new() -> Self {
        Self { owed_ns: 0 }
    }

    /// Returns how long to rest after a batch; 0: not at all. Without advisor, after one that ended
    /// before all of its pages for as much less.
    ///
    /// With the CPU advisor, rest that is too short is owed to later calls. A boosted batch owes
    /// none.
    pub fn rest_ns(&mut self, knobs: &Knobs, pace: Pace, batch: &Batch) -> u64 {
        match (knobs.advisor, pace) {
            (Advisor::None, _) => {
                self.owed_ns = 0;
                batch.part(u64::from(knobs.sleep_ms).saturating_mul(NS_PER_MS))
            }
            (Advisor::Cpu, Pace::Boost) => {
                self.owed_ns = 0;
                0
            }
            (Advisor::Cpu, Pace::Steady(halvings)) => {
                self.pay(knobs.advisor_max_cpu, halvings, batch.busy_ns)
            }
        }
    }

    /// Adds the rest due for `busy_ns` at `percent` of a CPU, halved so often, and pays what is
    /// owed.
    fn pay(&mut self, percent: u32, halvings: u32, busy_ns: u64) -> u64 {
        let percent = u64::from(percent.clamp(1, 100));
        // OVERFLOW: At most 8 times 100.
        let whole = 100_u64.wrapping_shl(halvings.min(MOST_HALVINGS));
        let due = busy_ns
            .saturating_mul(whole.saturating_sub(percent))
            .checked_div(percent)
            .unwrap_or(0);
        self.owed_ns = self.owed_ns.saturating_add(due);
        if self.owed_ns < MIN_REST_NS {
            return 0;
        }
        core::mem::take(&mut self.owed_ns)
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_policy))]
mod tests {
    use super::*;

    fn turn(guest: u32, round: u64) -> Turn {
        Turn {
            guest: GuestId(guest),
            round,
        }
    }

    #[test]
    fn nobody_has_no_turn() {
        let mut rounds = Rounds::new();
        assert_eq!(rounds.next([].into_iter()), None);
        assert_eq!(rounds.full_scans(), 0);
    }

    #[test]
    fn new_guests_go_first() {
        let mut rounds = Rounds(5);
        let turns = [turn(1, 4), turn(2, 5), turn(7, 0), turn(8, 0)];
        assert_eq!(rounds.next(turns.into_iter()), Some(GuestId(7)));
        assert_eq!(rounds.number(), 5);
    }

    #[test]
    fn a_round_passes_each_guest_once() {
        let mut rounds = Rounds::new();
        let mut turns = [turn(3, 0), turn(1, 0), turn(2, 0)];
        for expected in [1, 2, 3, 1, 2, 3, 1] {
            let next = rounds.next(turns.iter().copied());
            assert_eq!(next, Some(GuestId(expected)));
            for turn in &mut turns {
                if Some(turn.guest) == next {
                    turn.round = rounds.number();
                }
            }
        }
        assert_eq!(rounds.full_scans(), 2);
    }

    #[test]
    fn a_turn_lasts_until_the_pass_ends() {
        let mut rounds = Rounds(2);
        let turns = [turn(1, 1), turn(2, 1)];
        for _ in 0..3 {
            assert_eq!(rounds.next(turns.into_iter()), Some(GuestId(1)));
        }
        assert_eq!(rounds.number(), 2);
    }

    #[test]
    fn a_guest_alone_makes_a_round_of_each_pass() {
        let mut rounds = Rounds::new();
        let mut only = turn(9, 0);
        for full_scans in 0..4 {
            assert_eq!(rounds.next([only].into_iter()), Some(GuestId(9)));
            assert_eq!(rounds.full_scans(), full_scans);
            only.round = rounds.number();
        }
    }

    /// A whole one that took so long.
    fn batch(busy_ns: u64) -> Batch {
        let mut batch = Batch::new(&Knobs::DEFAULT);
        assert!(batch.step(u32::MAX, busy_ns));
        batch
    }

    #[test]
    fn a_batch_ends_with_its_pages() {
        let mut knobs = Knobs::DEFAULT;
        knobs.pages_to_scan = 1000;
        let mut batch = Batch::new(&knobs);
        assert!(!batch.step(512, 0));
        assert!(!batch.step(487, 0));
        assert!(batch.step(0, 0));
    }

    #[test]
    fn a_batch_that_takes_long_ends_early_with_the_advisor() {
        let mut knobs = Knobs::DEFAULT;
        let mut batch = Batch::new(&knobs);
        assert!(!batch.step(1, LONGEST_BATCH_NS - 1));
        assert!(batch.step(1, LONGEST_BATCH_NS));
        knobs.advisor = Advisor::None;
        assert!(!Batch::new(&knobs).step(1, LONGEST_BATCH_NS));
    }

    #[test]
    fn without_advisor_the_rest_is_the_setting() {
        let mut pacer = Pacer::new();
        let mut knobs = Knobs::DEFAULT;
        knobs.advisor = Advisor::None;
        for pace in [Pace::Boost, Pace::Steady(0), Pace::Steady(3)] {
            assert_eq!(pacer.rest_ns(&knobs, pace, &batch(5_000_000)), 20_000_000);
        }
        knobs.sleep_ms = 0;
        assert_eq!(pacer.rest_ns(&knobs, Pace::Steady(0), &batch(5_000_000)), 0);
    }

    #[test]
    fn without_advisor_a_part_of_a_batch_earns_a_part_of_the_rest() {
        let mut knobs = Knobs::DEFAULT;
        knobs.advisor = Advisor::None;
        knobs.pages_to_scan = 4096;
        let mut pacer = Pacer::new();
        let mut part = Batch::new(&knobs);
        assert!(!part.step(512, 0));
        let pace = Pace::Steady(0);
        assert_eq!(pacer.rest_ns(&knobs, pace, &part), 2_500_000);
        // A batch of a busy guest alone.
        let mut part = Batch::new(&knobs);
        assert!(!part.step(0, 0));
        assert_eq!(pacer.rest_ns(&knobs, pace, &part), 39_062);
    }

    #[test]
    fn the_advisor_keeps_the_share_over_time() {
        for percent in [1, 5, 50, 99] {
            let mut pacer = Pacer::new();
            let mut knobs = Knobs::DEFAULT;
            knobs.advisor_max_cpu = percent;
            let (mut busy, mut rest) = (0_u64, 0_u64);
            for number in 0..10_000_u64 {
                let ns = number.wrapping_mul(7919).wrapping_rem(300_000);
                busy = busy.saturating_add(ns);
                let now = pacer.rest_ns(&knobs, Pace::Steady(0), &batch(ns));
                assert!(now == 0 || now >= MIN_REST_NS);
                rest = rest.saturating_add(now);
            }
            let all = busy.saturating_add(rest).saturating_add(pacer.owed_ns);
            let share = busy.saturating_mul(10_000).checked_div(all).unwrap_or(0);
            let wanted = u64::from(percent).saturating_mul(100);
            assert!(share.abs_diff(wanted) <= 1);
        }
    }

    #[test]
    fn a_halving_takes_half_of_the_share() {
        let knobs = Knobs::DEFAULT;
        // 5 % of a CPU, 2.5 %, 1.25 %, 0.625 %, and no less.
        for (halvings, rest) in [(0, 19), (1, 39), (2, 79), (3, 159), (4, 159), (99, 159)] {
            let rest_ns = Pacer::new().rest_ns(&knobs, Pace::Steady(halvings), &batch(1_000_000));
            assert_eq!(rest_ns, rest * 1_000_000);
        }
    }

    /// A pass in two steps over `present` pages of which `merged` merge.
    fn pass(effort: &mut Effort, round: u64, present: u32, merged: u32) {
        for (merged, pass_ended) in [(0, false), (merged, true)] {
            let step = Step {
                present: present / 2,
                merged,
                pass_ended,
                ..Step::default()
            };
            effort.step(&step, round);
        }
    }

    #[test]
    fn rounds_that_give_nothing_halve_the_share() {
        let mut effort = Effort::new();
        for (round, halvings) in [(1, 0), (2, 1), (3, 2), (4, 3), (5, 3)] {
            pass(&mut effort, round, 1000, 15);
            pass(&mut effort, round, 0, 0);
            assert_eq!(effort.halvings(), halvings);
        }
    }

    #[test]
    fn a_pass_that_gives_something_takes_all_of_the_share() {
        let mut effort = Effort::new();
        for round in 1..9 {
            pass(&mut effort, round, 1000, 0);
        }
        pass(&mut effort, 9, 1000, 16);
        assert_eq!(effort.halvings(), 0);
        // The round was worth its time, whatever its other passes gave; the next one is not.
        pass(&mut effort, 9, 1000, 0);
        pass(&mut effort, 10, 1000, 0);
        assert_eq!(effort.halvings(), 0);
        pass(&mut effort, 11, 1000, 0);
        assert_eq!(effort.halvings(), 1);
    }

    #[test]
    fn a_long_batch_costs_a_long_rest() {
        let mut pacer = Pacer::new();
        let mut knobs = Knobs::DEFAULT;
        knobs.advisor_max_cpu = 1;
        let rest = pacer.rest_ns(&knobs, Pace::Steady(0), &batch(10_000_000));
        assert_eq!(rest, 990_000_000);
        assert_eq!(pacer.rest_ns(&knobs, Pace::Steady(0), &batch(0)), 0);
    }

    #[test]
    fn a_boost_owes_nothing() {
        let mut pacer = Pacer::new();
        for (pace, ns) in [(Pace::Boost, u64::MAX), (Pace::Steady(0), 0)] {
            assert_eq!(pacer.rest_ns(&Knobs::DEFAULT, pace, &batch(ns)), 0);
        }
    }

    #[test]
    fn absurd_times_do_not_overflow() {
        let mut pacer = Pacer::new();
        for _ in 0..3 {
            let rest = pacer.rest_ns(&Knobs::DEFAULT, Pace::Steady(0), &batch(u64::MAX));
            assert!(rest > 1 << 60);
        }
    }
}
