// SPDX-License-Identifier: GPL-2.0

//! What was checked in a demonstration, said as it goes along and kept for a report.

use std::fmt::Display;
use std::time::Instant;

use serde::{
    Deserialize,
    Serialize, //
};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It held.
    Pass,
    /// It did not.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What should hold.
    pub name: String,
    /// Whether it did.
    pub result: Verdict,
    /// What was seen.
    pub detail: String,
}

/// All checks of a run, in order.
pub struct Checks {
    start: Instant,
    list: Vec<Check>,
}

impl Default for Checks {
    fn default() -> Checks {
        Checks {
            start: Instant::now(),
            list: Vec::new(),
        }
    }
}

impl Checks {
    /// Notes and prints a check; whether it held.
    pub fn check(&mut self, name: impl Display, holds: bool, detail: impl Display) -> bool {
        let mark = if holds { "ok  " } else { "FAIL" };
        println!("  {mark}  {name}: {detail}");
        self.list.push(Check {
            name: name.to_string(),
            result: if holds { Verdict::Pass } else { Verdict::Fail },
            detail: detail.to_string(),
        });
        holds
    }

    /// Says what is done next, and when.
    pub fn step(&self, text: impl Display) {
        println!("[{:3} s] {text}", self.seconds());
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> u64 {
        self.start.elapsed().as_secs()
    }

    /// Adds checks that were made elsewhere.
    pub fn add(&mut self, whose: &str, checks: Vec<Check>) {
        self.list.extend(checks.into_iter().map(|check| Check {
            name: format!("{whose}: {}", check.name),
            ..check
        }));
    }

    /// Takes the checks out, so that they can be added elsewhere.
    pub fn take(&mut self) -> Vec<Check> {
        std::mem::take(&mut self.list)
    }

    /// How many held, of how many.
    pub fn tally(&self) -> (usize, usize) {
        let held = |check: &&Check| check.result == Verdict::Pass;
        (self.list.iter().filter(held).count(), self.list.len())
    }

    /// Whether there was a check and all held.
    pub fn verdict(&self) -> Verdict {
        match self.tally() {
            (held, all) if held == all && all > 0 => Verdict::Pass,
            _ => Verdict::Fail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_fails_the_run() {
        let mut checks = Checks::default();
        assert_eq!(checks.verdict(), Verdict::Fail);
        assert!(checks.check("a", true, ""));
        assert_eq!(checks.verdict(), Verdict::Pass);
        assert!(!checks.check("b", false, ""));
        assert_eq!((checks.verdict(), checks.tally()), (Verdict::Fail, (1, 2)));
    }

    #[test]
    fn checks_of_another_host_say_whose_they_are() {
        let (mut here, mut there) = (Checks::default(), Checks::default());
        there.check("a", true, "b");
        here.add("destination", there.take());
        assert_eq!(here.take()[0].name, "destination: a");
        assert_eq!(there.tally(), (0, 0));
    }
}
