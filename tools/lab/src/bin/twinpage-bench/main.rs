// SPDX-License-Identifier: GPL-2.0

//! Measures what merging costs: ksmd and Twinpage, one after the other, in one kernel, over the same
//! memory.
//!
//! The host is emulated with one processor on which an instruction takes one nanosecond (`vm.sh
//! --count`), so times are instructions: they repeat to about a percent, and say nothing of caches.
//! Only where guests boot, times are times.

mod boot;
mod curves;
mod data;
mod invalidations;
mod ksmtuned;
mod locks;
mod measures;
mod merger;
mod minutes;
mod plot;
mod real;
mod rows;
mod watched;

use std::path::PathBuf;
use std::process::ExitCode;

use measures::{
    Host,
    Measure,
    MEASURES, //
};
use rows::Rows;
use twinpage_lab::tap::Outcome;

const USAGE: &str = "\
usage: twinpage-bench --host HOST [--size PAGES]... [--only MEASURE]... [--keep FILE]
       twinpage-bench --list [--host HOST] [--only MEASURE]...";

/// Pages of all guests together, unless told.
const SIZES: [usize; 2] = [1 << 13, 1 << 15];

/// What was asked for.
#[derive(Default)]
struct Options {
    host: Option<Host>,
    sizes: Vec<usize>,
    only: Vec<String>,
    keep: Option<PathBuf>,
    list: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Options> {
        let mut options = Options::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => options.list = true,
                "--host" => {
                    let name = words.next()?;
                    options.host = Some(Host::ALL.into_iter().find(|host| host.name() == name)?);
                }
                "--keep" => options.keep = Some(words.next()?.into()),
                "--size" => options.sizes.push(words.next()?.parse().ok()?),
                "--only" => options.only.push(words.next()?),
                _ => return None,
            }
        }
        if options.sizes.is_empty() {
            options.sizes = SIZES.to_vec();
        }
        let usable = |&pages: &usize| pages >= 1024 && pages % 64 == 0;
        let complete = options.list || options.host.is_some();
        (complete && options.sizes.iter().all(usable)).then_some(options)
    }

    fn wants(&self, measure: &Measure) -> bool {
        let named = self.only.is_empty() || self.only.iter().any(|only| only == measure.name);
        named && self.host.is_none_or(|host| host == measure.host)
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if options.list {
        wanted(&options).for_each(|measure| println!("{}", measure.name));
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

/// What was asked for, on the host that was named.
fn wanted(options: &Options) -> impl Iterator<Item = &'static Measure> + '_ {
    MEASURES.iter().filter(|measure| options.wants(measure))
}

fn measure(options: &Options) -> Outcome {
    let mut rows = match &options.keep {
        Some(file) => Rows::read(file)?,
        None => Rows::default(),
    };
    // Real guests have the size that they have.
    let sizes = match options.host {
        Some(Host::Real | Host::Boot) => &[0],
        _ => &options.sizes[..],
    };
    for &size in sizes {
        for measure in wanted(options) {
            for row in (measure.run)(size)? {
                println!("{row}");
                rows.put(row);
            }
            // What was measured stays when a later measurement ends the program.
            rows.write()?;
        }
    }
    println!("\n{}", rows.table());
    Ok(())
}
