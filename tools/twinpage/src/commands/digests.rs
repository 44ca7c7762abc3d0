// SPDX-License-Identifier: GPL-2.0

//! `twinpage digests`: what is in each page of a VM, as digests.

use serde::Serialize;
use twinpage_engine::engine::wire::{
    PageState,
    Record, //
};

use crate::cli;
use crate::console::{
    Console,
    Format, //
};
use crate::digest::{
    as_text_or_null,
    Digest, //
};
use crate::digests::{
    digest_of,
    Digests,
    Tally, //
};
use crate::domain::Domain;
use crate::error::Error;
use crate::host::Host;
use crate::vm::{
    select_one,
    Vm, //
};

use super::verify;

/// A record as JSON.
#[derive(Debug, Serialize)]
struct Line {
    /// The guest page.
    gfn: u64,
    /// What it is.
    state: &'static str,
    /// Serial number of its merged copy, else 0.
    generation: u64,
    /// Its digest, if there is one.
    #[serde(serialize_with = "as_text_or_null")]
    digest: Option<Digest>,
}

/// How many pages are in which state, as JSON.
#[derive(Debug, Serialize)]
struct Summary {
    /// The attachment.
    id: u32,
    /// Its domain.
    domain: Domain,
    /// Number of the layout of its memslots.
    layout: u64,
    /// How many pages it has.
    pages: u64,
    /// In which states they are.
    #[serde(flatten)]
    tally: Tally,
}

/// Runs the command.
pub fn run(arguments: &cli::Digests, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let vm = select_one(host, arguments.target.selection())?;
    let format = Format::of(arguments.json);
    if arguments.verify {
        verify::run(&vm, host, format, console)
    } else if arguments.summary {
        summarize(&vm, host, format, console)
    } else {
        list(&vm, host, format, console)
    }
}

/// Prints every record.
fn list(vm: &Vm, host: &Host, format: Format, console: &mut Console<'_>) -> Result<(), Error> {
    let mut digests = Digests::open(host, vm.stats.id)?;
    if format == Format::Text {
        writeln!(console.out, "gfn state generation digest")?;
    }
    while let Some((_, record)) = digests.read_next()? {
        let line = Line::of(&record);
        match format {
            Format::Json => console.json_line(&line)?,
            Format::Text => writeln!(
                console.out,
                "{} {} {} {}",
                line.gfn,
                line.state,
                line.generation,
                line.digest
                    .map_or("-".to_owned(), |digest| digest.to_string()),
            )?,
        }
    }
    digests.check_layout()
}

/// Prints how many pages are in which state.
fn summarize(vm: &Vm, host: &Host, format: Format, console: &mut Console<'_>) -> Result<(), Error> {
    let mut digests = Digests::open(host, vm.stats.id)?;
    let mut tally = Tally::default();
    while let Some((_, record)) = digests.read_next()? {
        tally.count(record.state);
    }
    digests.check_layout()?;
    let header = digests.header();
    let summary = Summary {
        id: header.id,
        domain: Domain(header.domain),
        layout: header.layout,
        pages: header.records,
        tally,
    };
    if format == Format::Json {
        return console.json(&summary);
    }
    writeln!(
        console.out,
        "VM {} ({}): {} pages",
        header.id, vm.name, header.records
    )?;
    for (name, pages) in [
        ("merged", tally.merged),
        ("zero", tally.zero),
        ("unmerged", tally.unmerged),
        ("absent", tally.absent),
        ("skipped", tally.skipped),
    ] {
        writeln!(console.out, "  {name:<9} {pages:>10}")?;
    }
    Ok(())
}

impl Line {
    /// The line of a record.
    fn of(record: &Record) -> Self {
        let (state, generation) = match record.state {
            PageState::Absent => ("absent", 0),
            PageState::Unmerged { .. } => ("unmerged", 0),
            PageState::Merged { serial, .. } => ("merged", serial),
            PageState::Zero => ("zero", 0),
            PageState::Skipped => ("skipped", 0),
        };
        Self {
            gfn: record.gfn,
            state,
            generation,
            digest: digest_of(record.state),
        }
    }
}
