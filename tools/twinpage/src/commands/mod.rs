// SPDX-License-Identifier: GPL-2.0

//! The subcommands, one file each.

use crate::cli::Command;
use crate::console::Console;
use crate::error::Error;
use crate::host::Host;

mod attach;
mod detach;
mod digests;
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
    }
}

/// Keeps account of several things of which each may fail.
#[derive(Default)]
struct Failures {
    /// How many were tried.
    tried: usize,
    /// How many failed.
    failed: usize,
    /// Why the last one did.
    last: Option<Error>,
}

impl Failures {
    /// Counts one thing, and hands out what came of it. All failures but the last are reported.
    fn sort<T>(
        &mut self,
        result: Result<T, Error>,
        console: &mut Console<'_>,
    ) -> Result<Option<T>, Error> {
        self.tried += 1;
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.failed += 1;
                if let Some(earlier) = self.last.replace(error) {
                    console.report(&earlier)?;
                }
                Ok(None)
            }
        }
    }

    /// What is left to say in the end.
    fn outcome(self, console: &mut Console<'_>) -> Result<(), Error> {
        match self.last {
            None => Ok(()),
            Some(error) if self.tried == 1 => Err(error),
            Some(error) => {
                console.report(&error)?;
                Err(Error::Some {
                    failed: self.failed,
                    tried: self.tried,
                    exit: error.exit(),
                })
            }
        }
    }
}
