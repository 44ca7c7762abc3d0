// SPDX-License-Identifier: GPL-2.0

//! The demonstration of migration: a guest moves from one emulated KVM host to another while it
//! writes, and what the other host holds already travels as digests.
//!
//! `twinpage-demo-migrate source` and `... destination` run on the two hosts. The source leads, and
//! writes the report. Everything that decides is seen from outside: both memories byte by byte, the
//! guest's own checksums, the kernels' logs. The exit status is 0 only when every check held.

mod destination;
mod host;
mod ram;
mod report;
mod source;
mod talk;

use std::process::ExitCode;

use twinpage_guest::config::Config;
use twinpage_lab::checks::Verdict;

/// The guest that moves: its name, and what it holds.
const MIGRANT: (&str, Config) = ("web-3", content(9));

/// What a guest of the image holds; the seed makes part of it its own.
const fn content(seed: u64) -> Config {
    Config {
        image: 1,
        seed,
        common: 32,
        own: 8,
        dup: 4,
        zero: 8,
        churn: 2,
    }
}

fn main() -> ExitCode {
    let role = std::env::args().nth(1).unwrap_or_default();
    let verdict = match role.as_str() {
        "source" => source::run(),
        "destination" => destination::run(),
        _ => Err("usage: twinpage-demo-migrate source|destination".into()),
    };
    match verdict {
        Ok(Verdict::Pass) => ExitCode::SUCCESS,
        Ok(Verdict::Fail) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
