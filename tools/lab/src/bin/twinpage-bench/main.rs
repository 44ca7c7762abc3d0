// SPDX-License-Identifier: GPL-2.0

//! Measures what merging costs: ksmd and Twinpage, one after the other, in one kernel, over the same
//! memory.
//!
//! The host is emulated with one processor on which an instruction takes one nanosecond (`vm.sh
//! --count`), so times are instructions: they repeat to about a percent, and say nothing of caches.

mod data;
mod measures;
mod merger;
mod rows;

use std::process::ExitCode;

use measures::MEASURES;
use rows::Rows;
use twinpage_lab::tap::Outcome;

const USAGE: &str = "\
usage: twinpage-bench [--size PAGES]... [--only MEASURE]...
       twinpage-bench --list";

/// Pages of all guests together, unless told.
const SIZES: [usize; 2] = [1 << 13, 1 << 15];

/// What was asked for.
#[derive(Default)]
struct Options {
    sizes: Vec<usize>,
    only: Vec<String>,
    list: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
        let mut options = Options::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => options.list = true,
                "--size" => options.sizes.push(words.next()?.parse().ok()?),
                "--only" => options.only.push(words.next()?),
                _ => return None,
            }
        }
        if options.sizes.is_empty() {
            options.sizes = SIZES.to_vec();
        }
        let usable = |&pages: &usize| pages >= 1024 && pages % 64 == 0;
        options.sizes.iter().all(usable).then_some(options)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if options.list {
        MEASURES
            .iter()
            .for_each(|measure| println!("{}", measure.name));
        return ExitCode::SUCCESS;
    }
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Outcome {
    let mut rows = Rows::default();
    for &size in &options.sizes {
        for measure in MEASURES
            .iter()
            .filter(|measure| options.wants(measure.name))
        {
            for row in (measure.run)(size)? {
                println!("{row}");
                rows.0.push(row);
            }
            // What was measured stays when a later measurement ends the program.
            rows.write()?;
        }
    }
    println!("\n{}", rows.table());
    Ok(())
}
