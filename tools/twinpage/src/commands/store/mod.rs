// SPDX-License-Identifier: GPL-2.0

//! `twinpage store`: canonical pages, kept for migrations to this host or fleet.

use std::io::Write;
use std::ops::ControlFlow;

use twinpage_store::Progress;

use crate::cli::migrate::ShowOptions;
use crate::cli::store::Store;
use crate::clock::Pause;
use crate::console::Console;
use crate::error::Error;
use crate::host::Host;
use crate::progress::{
    Step,
    Steps, //
};

mod build;
mod gc;
mod stat;
mod verify;

/// Version of the JSON of all of them; raised when a field changes or goes.
const SCHEMA: u32 = 1;

/// Does what `command` says.
pub fn run(command: &Store, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    match command {
        Store::Build(arguments) => build::run(arguments, host, console),
        Store::Stat(arguments) => stat::run(arguments, console),
        Store::Verify(arguments) => verify::run(arguments, host, console),
        Store::Gc(arguments) => gc::run(arguments, host, console),
    }
}

/// Watches long work: shows how far it is, and ends it when a signal comes.
struct Watcher<'a> {
    /// The machine, for its clock.
    host: &'a Host,
    /// The bar or lines.
    steps: Steps,
    /// Where lines go.
    err: &'a mut dyn Write,
    /// What is done, in words.
    what: String,
}

impl<'a> Watcher<'a> {
    /// Watches from now on; `what` is done.
    fn new(show: ShowOptions, what: &str, host: &'a Host, console: &'a mut Console<'_>) -> Self {
        host.clock().catch_signals();
        Self {
            host,
            steps: Steps::new(show.quiet, console, host.clock().now()),
            err: &mut *console.err,
            what: what.to_owned(),
        }
    }

    /// Takes note that `what` is done from now on.
    fn begin(&mut self, what: &str) {
        self.what = what.to_owned();
    }

    /// Takes note of progress.
    fn see(&mut self, progress: Progress) -> ControlFlow<()> {
        let step = Step {
            what: &self.what,
            done: progress.done,
            total: progress.total,
        };
        self.steps.show(step, self.host.clock().now(), self.err);
        match self.host.clock().pause(std::time::Duration::ZERO) {
            Pause::Elapsed => ControlFlow::Continue(()),
            Pause::Interrupted => ControlFlow::Break(()),
        }
    }
}
