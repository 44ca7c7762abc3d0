// SPDX-License-Identifier: GPL-2.0

//! What is printed, and how time is taken.

use std::hint::black_box;
use std::time::Instant;

const RUNS: u32 = 5;

/// How numbers are printed.
pub struct Report {
    /// What a nanosecond of the clock is.
    pub unit: &'static str,
}

impl Report {
    /// Prints the best time of a run, for each of `count` things in it. `run` returns how long it
    /// took.
    pub fn each(&self, name: &str, count: usize, mut run: impl FnMut() -> u128) {
        let best = (0..RUNS).map(|_| run()).min().unwrap_or(0);
        self.line(name, best as f64 / count as f64, self.unit);
    }

    /// Prints a number.
    pub fn line(&self, name: &str, value: f64, unit: &str) {
        println!("| {name:<49} | {value:>10.1} | {unit} |");
    }
}

/// How long it takes.
pub fn timed<T>(act: impl FnOnce() -> T) -> u128 {
    let start = Instant::now();
    black_box(act());
    start.elapsed().as_nanos()
}
