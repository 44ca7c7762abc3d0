// SPDX-License-Identifier: GPL-2.0

//! `twinpage store verify`: is every page of a store still what it was?

use serde::Serialize;
use twinpage_store::{
    Mode,
    Store,
    Verified, //
};

use crate::cli::store::Verify;
use crate::console::{
    Console,
    Format, //
};
use crate::error::Error;
use crate::host::Host;

use super::{
    Watcher,
    SCHEMA, //
};

/// What was found, as JSON.
#[derive(Debug, Serialize)]
struct Found {
    /// Version of the JSON.
    schema: u32,
    /// The counts.
    #[serde(flatten)]
    verified: Verified,
}

/// Runs the command.
pub fn run(arguments: &Verify, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let verified = {
        let mut watcher = Watcher::new(arguments.show, "verifying", host, console);
        let mut watch = |progress| watcher.see(progress);
        match arguments.repair {
            true => Store::open(&arguments.store, Mode::Write)?.repair(&mut watch)?,
            false => Store::open(&arguments.store, Mode::Read)?.verify(&mut watch)?,
        }
    };
    let (pages, bad, dropped) = (verified.pages, verified.bad, verified.dropped);
    let schema = SCHEMA;
    match Format::of(arguments.show.json) {
        Format::Json => console.json(&Found { schema, verified })?,
        Format::Text => writeln!(console.out, "{pages} pages, {bad} wrong, {dropped} removed")?,
    }
    match bad > dropped {
        true => Err(Error::WrongPages(bad - dropped)),
        false => Ok(()),
    }
}
