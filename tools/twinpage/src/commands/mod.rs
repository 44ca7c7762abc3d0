// SPDX-License-Identifier: GPL-2.0

//! The subcommands, one file each.

use crate::cli::Command;
use crate::console::Console;
use crate::error::{
    Error,
    Exit, //
};
use crate::host::Host;

mod attach;
mod completions;
mod detach;
mod digests;
mod man;
mod migrate;
mod plan;
mod read;
mod set;
mod shared;
mod status;
mod store;
mod verify;
mod version;

/// Does what `command` says.
///
/// # Errors
///
/// Whatever stopped the command.
pub fn run(command: &Command, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    match command {
        Command::Attach(arguments) => attach::run(arguments, host, console),
        Command::Detach(arguments) => detach::run(arguments, host, console),
        Command::Status(arguments) => status::run(arguments, host, console),
        Command::Set(arguments) => set::run(arguments, host, console),
        Command::Digests(arguments) => digests::run(arguments, host, console),
        Command::Shared(arguments) => shared::run(arguments, host, console),
        Command::Read(arguments) => read::run(arguments, host, console),
        Command::Migrate(command) => migrate::run(command, host, console),
        Command::Store(command) => store::run(command, host, console),
        Command::Plan(arguments) => plan::run(arguments, host, console),
        Command::Version => version::run(host, console),
        Command::Completions(arguments) => completions::run(arguments, console),
        Command::Man(arguments) => man::run(arguments),
    }
}

/// Keeps account of several things of which each may fail, and none keeps the next from its turn.
#[derive(Default)]
struct Failures {
    /// How many were tried.
    tried: usize,
    /// How many failed.
    failed: usize,
    /// Why the last one did.
    last: Option<Error>,
    /// The exit code of all that failed so far, if they have the same.
    exit: Option<Exit>,
    /// Why something could not be shown.
    unshown: Option<Error>,
}

impl Failures {
    /// Counts one thing, and hands out what came of it. All failures but the last are reported.
    fn sort<T>(&mut self, result: Result<T, Error>, console: &mut Console<'_>) -> Option<T> {
        self.tried += 1;
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        self.failed += 1;
        self.exit = match self.exit {
            _ if self.failed == 1 => Some(error.exit()),
            same => same.filter(|&exit| exit == error.exit()),
        };
        if let Some(earlier) = self.last.replace(error) {
            let reported = console.report(&earlier);
            self.shown(reported);
        }
        None
    }

    /// Takes note of whether something could be shown.
    fn shown(&mut self, result: Result<(), Error>) {
        if let (Err(error), None) = (result, &self.unshown) {
            self.unshown = Some(error);
        }
    }

    /// What is left to say in the end.
    fn outcome(mut self, console: &mut Console<'_>) -> Result<(), Error> {
        match self.last.take() {
            None => self.unshown.map_or(Ok(()), Err),
            Some(error) if self.tried == 1 => Err(error),
            Some(error) => {
                let reported = console.report(&error);
                self.shown(reported);
                Err(Error::Some {
                    failed: self.failed,
                    tried: self.tried,
                    exit: self.exit.unwrap_or(Exit::Failed),
                })
            }
        }
    }
}
