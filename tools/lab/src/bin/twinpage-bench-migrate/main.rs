// SPDX-License-Identifier: GPL-2.0

//! Measures migration: QEMU alone in three ways against twinpage, over the same limited link, with
//! guests that are restored from a file for each measurement.
//!
//! Everything runs under software emulation on one machine. Seconds are comparable with each other
//! within one run, and say nothing about real hosts.

mod guests;
mod matrix;
mod methods;
mod rows;
mod run;
mod state;
mod store;

use std::path::PathBuf;
use std::process::ExitCode;

use matrix::{
    Case,
    Link,
    Method,
    Workload, //
};
use rows::Rows;
use run::Bench;

/// What goes wrong is told to people only.
type Failure = Box<dyn std::error::Error>;

const USAGE: &str = "\
usage: twinpage-bench-migrate --image DIR --cache DIR --scratch DIR [OPTION...]

  --image DIR       a Debian: image.raw, vmlinuz and initrd
  --cache DIR       where guests and stores are kept for later runs
  --scratch DIR     where sockets and logs are for now
  --only WORD,...   measure only what is named: workloads, links, methods
  --keep            keep the rows of the last run that are not measured again
  --guests          make the four Debian guests, print the files that have their
                    memory, and end
  --list            say what can be named, and end";

/// What was asked for.
struct Options {
    image: PathBuf,
    cache: PathBuf,
    scratch: PathBuf,
    cases: Vec<Case>,
    keep: bool,
    guests: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        list();
        return ExitCode::SUCCESS;
    }
    let options = match parse(&words) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let done = match options.guests {
        true => make_guests(&options),
        false => measure(&options),
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("error: {failed} measurements failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    let line = |what: &str, names: Vec<&str>| println!("{what}: {}", names.join(" "));
    line("workloads", Workload::ALL.map(Workload::name).to_vec());
    line("links", Link::ALL.map(Link::name).to_vec());
    line("methods", Method::ALL.map(Method::name).to_vec());
}

fn parse(words: &[String]) -> Result<Options, String> {
    let (mut image, mut cache, mut scratch) = (None, None, None);
    let (mut only, mut keep, mut guests) = (Vec::new(), false, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--keep" => {
                keep = true;
                continue;
            }
            "--guests" => {
                guests = true;
                continue;
            }
            _ => {}
        }
        let value = words.next().ok_or(format!("{word} wants a value"))?;
        match word.as_str() {
            "--image" => image = Some(PathBuf::from(value)),
            "--cache" => cache = Some(PathBuf::from(value)),
            "--scratch" => scratch = Some(PathBuf::from(value)),
            "--only" => only.extend(value.split(',').map(str::to_owned)),
            _ => return Err(format!("there is no option {word}")),
        }
    }
    Ok(Options {
        image: image.ok_or("--image is missing")?,
        cache: cache.ok_or("--cache is missing")?,
        scratch: scratch.ok_or("--scratch is missing")?,
        cases: matrix::choose(&only)?,
        keep,
        guests,
    })
}

/// Makes the guests that others measure with.
fn make_guests(options: &Options) -> Result<usize, Failure> {
    for guest in guests::aged(&options.image) {
        let state = guest.cook(&options.cache, &options.scratch)?;
        println!("ram {}", state.ram.display());
    }
    Ok(0)
}

/// Measures everything that was asked for; how much of it failed.
fn measure(options: &Options) -> Result<usize, Failure> {
    let mut rows = match options.keep {
        true => Rows::read()?,
        false => Rows::default(),
    };
    rows.machine = rows::machine()?;
    let bench = Bench::new(&options.image, &options.cache, &options.scratch)?;
    let mut failed = 0;
    for (index, &case) in options.cases.iter().enumerate() {
        let Case {
            workload,
            link,
            method,
        } = case;
        print!(
            "[{:2}/{}] {workload}, {link}, {method}: ",
            index + 1,
            options.cases.len()
        );
        match bench.run(case) {
            Ok(row) => {
                println!("{row}");
                rows.put(row);
            }
            Err(error) => {
                println!("FAILED: {error}");
                failed += 1;
            }
        }
        // What was measured stays when a later measurement ends the program.
        rows.write()?;
    }
    println!("\n{}", rows.table());
    println!("{}", rows.targets());
    Ok(failed)
}
