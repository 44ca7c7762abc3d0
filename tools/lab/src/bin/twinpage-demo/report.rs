// SPDX-License-Identifier: GPL-2.0

//! What was checked and measured, for people and for `demo.json`.

use std::fmt::Display;
use std::time::Instant;

use serde::Serialize;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It held.
    Pass,
    /// It did not.
    Fail,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What should hold.
    pub name: String,
    /// Whether it did.
    pub result: Verdict,
    /// What was seen.
    pub detail: String,
}

/// Everything that is written to `demo.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether everything held.
    pub verdict: Verdict,
    /// Release of the host's kernel.
    pub kernel_release: String,
    /// Seconds from the start of the program to its verdict.
    pub seconds: u64,
    /// Pages that could be saved, by the snapshot that was taken after convergence.
    pub possible_pages: usize,
    /// Pages that were saved then.
    pub merged_pages: usize,
    /// Saved pages of a thousand possible ones.
    pub merged_permille: usize,
    /// Pages that could be saved before anything was merged.
    pub possible_pages_before: usize,
    /// By how much the host's MemAvailable rose.
    pub mem_available_gain_mib: i64,
    /// Seconds from attaching until two more passes found nothing.
    pub converged_seconds: u64,
    /// Time the scanner used until then, in milliseconds.
    pub scanner_cpu_ms: u64,
    /// The checks.
    pub checks: Vec<Check>,
    #[serde(skip)]
    start: Option<Instant>,
}

impl Report {
    /// An empty report of a run that begins now.
    pub fn new(kernel_release: String) -> Report {
        Report {
            verdict: Verdict::Fail,
            kernel_release,
            seconds: 0,
            possible_pages: 0,
            merged_pages: 0,
            merged_permille: 0,
            possible_pages_before: 0,
            mem_available_gain_mib: 0,
            converged_seconds: 0,
            scanner_cpu_ms: 0,
            checks: Vec::new(),
            start: Some(Instant::now()),
        }
    }

    /// Notes and prints a check.
    pub fn check(&mut self, name: &str, holds: bool, detail: impl Display) {
        let result = if holds { Verdict::Pass } else { Verdict::Fail };
        let mark = if holds { "ok  " } else { "FAIL" };
        println!("  {mark}  {name}: {detail}");
        self.checks.push(Check {
            name: name.into(),
            result,
            detail: detail.to_string(),
        });
    }

    /// Says what is done next, and when.
    pub fn step(&self, text: impl Display) {
        println!("[{:3} s] {text}", self.elapsed());
    }

    /// Seconds since the start.
    pub fn elapsed(&self) -> u64 {
        self.start.map_or(0, |start| start.elapsed().as_secs())
    }

    /// Draws the verdict.
    pub fn close(&mut self) {
        self.seconds = self.elapsed();
        let failed = |check: &Check| check.result == Verdict::Fail;
        self.verdict = match self.checks.is_empty() || self.checks.iter().any(failed) {
            true => Verdict::Fail,
            false => Verdict::Pass,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_fails_the_run() {
        let mut report = Report::new("7".into());
        report.close();
        assert_eq!(report.verdict, Verdict::Fail);
        report.check("a", true, "");
        report.close();
        assert_eq!(report.verdict, Verdict::Pass);
        report.check("b", false, "");
        report.close();
        assert_eq!(report.verdict, Verdict::Fail);
    }
}
