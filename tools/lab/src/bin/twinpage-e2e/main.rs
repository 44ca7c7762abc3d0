// SPDX-License-Identifier: GPL-2.0

//! End-to-end tests of the module, from inside a KVM host that may crash.
//!
//! Prints TAP. `--list` names the tests, `--only PATTERN` chooses those whose name contains the
//! pattern, `--from PATTERN` begins with the first such. `--transitions N` sets how many merge and
//! unmerge transitions the long race makes; `--million` makes a million. With `--seconds N` tests
//! that have not begun by then are skipped.

mod borrowed;
mod callers;
mod copies;
mod device;
mod devices;
mod dump;
mod enomem;
mod export;
mod faults;
mod freezer;
mod host;
mod hostile;
mod hotplug;
mod huge;
mod isolation;
mod knobs;
mod life;
mod machine;
mod nested;
mod nodes;
mod owner;
mod pages;
mod pins;
mod pressure;
mod races;
mod reasons;
mod refusals;
mod restraint;
mod sharing;
mod slots;
mod symbols;
mod watch;

use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use twinpage_lab::process;
use twinpage_lab::tap::{
    self,
    Test, //
};

/// How the program is called.
const USAGE: &str = "\
usage: twinpage-e2e [--list] [--only PATTERN] [--from PATTERN] [--transitions N | --million]
                    [--seconds N]";

/// Transitions of the long race, unless the caller wants another number.
const TRANSITIONS: usize = 50_000;

/// What the caller wants.
#[derive(Default)]
struct Options {
    list: bool,
    only: Option<String>,
    from: Option<String>,
    run: Option<String>,
    transitions: Option<usize>,
    seconds: Option<u64>,
}

/// Set once at the start; tests are plain functions and look here.
static TRANSITIONS_WANTED: OnceLock<usize> = OnceLock::new();

/// How many merge and unmerge transitions the long race shall make.
pub fn transitions() -> usize {
    *TRANSITIONS_WANTED.get_or_init(|| TRANSITIONS)
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
        let mut options = Options::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => options.list = true,
                "--only" => options.only = Some(words.next()?),
                "--from" => options.from = Some(words.next()?),
                "--run" => options.run = Some(words.next()?),
                "--transitions" => options.transitions = Some(words.next()?.parse().ok()?),
                "--seconds" => options.seconds = Some(words.next()?.parse().ok()?),
                "--million" => options.transitions = Some(1_000_000),
                _ => return None,
            }
        }
        Some(options)
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let count = *TRANSITIONS_WANTED.get_or_init(|| options.transitions.unwrap_or(TRANSITIONS));
    let before = |test: &&Test| {
        options
            .from
            .as_ref()
            .is_some_and(|from| !test.name.contains(from))
    };
    let tests: Vec<&Test> = TESTS
        .iter()
        .copied()
        .flatten()
        .skip_while(before)
        .filter(|test| {
            options
                .only
                .as_ref()
                .is_none_or(|only| test.name.contains(only))
        })
        .collect();
    if options.list {
        tests.iter().for_each(|test| println!("{}", test.name));
        return ExitCode::SUCCESS;
    }
    if let Some(name) = &options.run {
        let test = tests.iter().find(|test| test.name == name);
        let status = test.map_or(2, |test| tap::run_here(test));
        std::process::exit(status);
    }
    let time = options.seconds.map_or(Duration::MAX, Duration::from_secs);
    run(&tests, count, time)
}

/// The tests, in order of what they build upon.
const TESTS: &[&[Test]] = &[
    device::TESTS,
    callers::TESTS,
    symbols::TESTS,
    knobs::TESTS,
    sharing::TESTS,
    isolation::TESTS,
    copies::TESTS,
    huge::TESTS,
    reasons::TESTS,
    slots::TESTS,
    export::TESTS,
    nested::TESTS,
    pins::TESTS,
    borrowed::TESTS,
    pages::TESTS,
    watch::TESTS,
    devices::TESTS,
    races::TESTS,
    restraint::TESTS,
    hostile::TESTS,
    nodes::TESTS,
    hotplug::TESTS,
    life::TESTS,
    dump::TESTS,
    freezer::TESTS,
    pressure::TESTS,
    enomem::TESTS,
    refusals::TESTS,
    machine::TESTS,
];

fn run(tests: &[&Test], transitions: usize, time: Duration) -> ExitCode {
    // KVM flips a static key with the first and the last VM, which emulated processors may survive
    // badly while others run that code: one VM always exists.
    let _idle = tinyvm::Vm::new();
    if let Err(error) = process::keep_lists_short() {
        println!("# MemFree may lag: {error}");
    }
    let arguments = ["--transitions".to_owned(), transitions.to_string()];
    match tap::run_all(tests, &arguments, time) {
        Ok(tally) if tally.failed == 0 && tally.passed + tally.skipped > 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("Bail out! {error}");
            ExitCode::FAILURE
        }
    }
}
