// SPDX-License-Identifier: GPL-2.0

//! Misuses whatever the module shows to userspace, at random, from one seed.
//!
//! Loads the module and lets some processes work on it at once: every ioctl, every file of sysfs
//! and of debugfs, with arguments, pointers, files and callers that are right, wrong, or right at
//! the wrong moment; and with tiny VMs that come, merge and go. What is known of the result of an
//! operation is checked, what guests hold is compared with what they wrote, and in the end no VM is
//! attached, the module unloads and the memory is back.
//!
//! Prints the seed first; last, how many operations of each kind were done and how long they took,
//! of the time of all workers. The exit status is 0 only if all held. An operation that does not end
//! is named.

mod aftermath;
mod board;
mod call;
mod code;
mod debugfs;
mod expect;
mod fields;
mod files;
mod foreign;
mod guest;
mod herd;
mod ioctls;
mod nobody;
mod operations;
mod pointers;
mod poke;
mod sysfs;
mod timing;
mod worker;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_lab::module;
use twinpage_lab::process;
use twinpage_lab::tap::Outcome;

use crate::aftermath::Before;
use crate::board::Board;
use crate::operations::operations;

/// How the program is called.
const USAGE: &str = "usage: twinpage-fuzz [--operations N] [--seconds N] [--seed S]";

/// What the caller wants.
pub struct Options {
    operations: u64,
    limit: Option<Duration>,
    seed: u64,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mut options = Options {
            operations: 3000,
            limit: None,
            seed: now.map_or(0, |now| now.subsec_nanos().into()),
        };
        while let Some(word) = words.next() {
            let number = words.next()?.parse().ok()?;
            match word.as_str() {
                "--operations" => options.operations = number,
                "--seconds" => options.limit = Some(Duration::from_secs(number)),
                "--seed" => options.seed = number,
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
    println!("TWINPAGE_SEED={}", options.seed);
    let start = Instant::now();
    let result = run(&options);
    if let Err(failure) = &result {
        println!("FAILED: {failure}");
    }
    println!(
        "seed {}, {:.0} s",
        options.seed,
        start.elapsed().as_secs_f32()
    );
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What was done, by kind and by user.
fn summary(board: &Board) {
    let (mut families, mut users) = (BTreeMap::new(), BTreeMap::new());
    for (number, operation) in operations().enumerate() {
        let (name, count) = (operation.name, board.count(number));
        println!("{name:28} {count:9} {:9.1?}", board.took(number));
        let user = match operation.without_rights() {
            true => "by others, all refused",
            false => "by root",
        };
        *families.entry(operation.family()).or_insert(0) += count;
        *users.entry(user).or_insert(0) += count;
    }
    for (name, count) in families.into_iter().chain(users) {
        println!("{name:28} {count:9}");
    }
    println!("{:28} {:9}", "all", board.total());
}

fn run(options: &Options) -> Outcome {
    // KVM flips a static key with the first and the last VM, which emulated processors may survive
    // badly while others run that code: one VM always exists.
    let _idle = tinyvm::Vm::new()?;
    if let Err(error) = process::keep_lists_short() {
        println!("MemFree may lag: {error}");
    }
    let before = Before::look()?;
    module::load()?;
    let board = Board::new()?;
    let end = options.limit.map(|limit| Instant::now() + limit);
    let share = options.operations.div_ceil(board::WORKERS as u64);
    let mut workers = Vec::new();
    for number in 0..board::WORKERS {
        workers.push(worker::start(board, number, options.seed, share, end)?);
    }
    let worked = board.watch(workers);
    summary(board);
    worked?;
    aftermath::nobody_is_left()?;
    aftermath::told()?;
    module::unload()?;
    before.is_back()
}
