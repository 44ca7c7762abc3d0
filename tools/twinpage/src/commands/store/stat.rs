// SPDX-License-Identifier: GPL-2.0

//! `twinpage store stat`: what a store holds.

use std::env;

use serde::Serialize;
use twinpage_store::fleet::{
    Fleet,
    FleetOptions,
    FleetStat, //
};
use twinpage_store::{
    Mode,
    Stat,
    Store, //
};

use crate::cli::store;
use crate::console::{
    Console,
    Format, //
};
use crate::error::Error;
use crate::table::mib;
use crate::units::Size;

use super::SCHEMA;

/// What was found, as JSON.
#[derive(Debug, Serialize)]
struct Found {
    /// Version of the JSON.
    schema: u32,
    /// Of a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<Stat>,
    /// Of a fleet.
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<FleetStat>,
}

/// Runs the command.
pub fn run(arguments: &store::Stat, console: &mut Console<'_>) -> Result<(), Error> {
    let (store, fleet) = match &arguments.store {
        Some(path) => (Some(Store::open(path, Mode::Read)?.stat()?), None),
        None => (None, Some(Fleet::connect(fleet(arguments)?)?.stat()?)),
    };
    let found = Found {
        schema: SCHEMA,
        store,
        fleet,
    };
    match Format::of(arguments.json) {
        Format::Json => console.json(&found),
        Format::Text => show(&found, console),
    }
}

/// How to reach the fleet: the environment says it where no option does, which clap would take for
/// an option beside `--store`.
fn fleet(arguments: &store::Stat) -> Result<FleetOptions, Error> {
    let named = arguments.fleet.clone();
    let url = named.or_else(|| env::var(store::FLEET).ok());
    let mut fleet = FleetOptions::new(url.ok_or(Error::NoStore)?);
    fleet.ca = arguments.fleet_ca.clone();
    fleet.plaintext = arguments.fleet_insecure;
    Ok(fleet)
}

/// Shows what was found.
fn show(found: &Found, console: &mut Console<'_>) -> Result<(), Error> {
    if let Some(store) = &found.store {
        let unused = store.oldest_use_days.map_or_else(String::new, |days| {
            format!(", the one not used for longest {days} days ago")
        });
        writeln!(
            console.out,
            "Pages:       {} ({} MiB), {} on disk in {} segments{unused}",
            store.pages,
            mib(store.pages),
            Size(store.bytes_on_disk),
            store.segments,
        )?;
        writeln!(
            console.out,
            "Candidates:  {} digests seen in fewer than {} sources, {}",
            store.candidates,
            store.sources_needed,
            Size(store.candidate_bytes),
        )?;
    }
    if let Some(fleet) = &found.fleet {
        writeln!(
            console.out,
            "Fleet:       {} keys on {} servers",
            fleet.keys, fleet.servers
        )?;
    }
    Ok(())
}
