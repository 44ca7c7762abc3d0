// SPDX-License-Identifier: GPL-2.0

//! `twinpage plan`: which hosts already hold most of a VM.
//!
//! Every candidate is asked for its filter first, all at the same time. Then the digests of the VM
//! are read once, since that makes the module hash memory, and looked up in each of the filters.

use std::thread;
use std::time::Duration;

use serde::Serialize;
use twinpage_migrate::net::{
    Address,
    Security, //
};
use twinpage_migrate::proxy::plan::{
    holdings,
    Holdings,
    Query, //
};
use twinpage_migrate::proxy::Limits;

use crate::cli::migrate::Plan;
use crate::console::{
    Console,
    Format, //
};
use crate::digests::Digests;
use crate::error::Error;
use crate::estimate::{
    estimate,
    Estimate,
    Holds,
    Load, //
};
use crate::host::Host;
use crate::report::printable;
use crate::security;
use crate::table::{
    mib,
    mib_of_bytes,
    percent,
    Side,
    Table, //
};
use crate::vm::{
    select_one,
    Selection,
    Vm, //
};

use super::migrate::domain_text;

/// Version of the JSON; raised when a field changes or goes.
const SCHEMA: u32 = 1;

/// How often the whole is started over when memslots change.
const RUNS: u32 = 3;

/// What the command found.
#[derive(Debug, Serialize)]
struct Findings {
    /// Version of the JSON.
    schema: u32,
    /// The VM.
    vm: Moved,
    /// The candidates, the one that spares most first.
    candidates: Vec<Candidate>,
}

/// The VM that is to move.
#[derive(Debug, Serialize)]
struct Moved {
    /// The attachment.
    id: u32,
    /// Its process.
    pid: u32,
    /// The name of the process.
    name: String,
    /// What there is to move.
    #[serde(flatten)]
    load: Load,
}

/// One candidate.
#[derive(Debug, Serialize)]
struct Candidate {
    /// Where it is.
    address: String,
    /// Pages that it offers to anybody of that domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    offers_pages: Option<u64>,
    /// What it spares.
    #[serde(flatten)]
    estimate: Option<Estimate>,
    /// What percentage of the VM's pages it has, not counting zero pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_percent: Option<u64>,
    /// What it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    software: Option<String>,
    /// Why it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What came of asking one candidate.
type Answer = Result<Holdings, String>;

/// Runs the command.
pub fn run(arguments: &Plan, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let security = security::load(&arguments.security)?;
    let vm = select_one(host, Selection::Pid(arguments.pid))?;
    let domain = domain_text(arguments.domain.as_ref());
    let answers = ask(arguments, &security, &domain);
    let (load, estimates) = look(host, &vm, &answers)?;
    let findings = Findings {
        schema: SCHEMA,
        candidates: candidates(&arguments.candidates, answers, estimates, &load),
        vm: Moved {
            id: vm.stats.id.0,
            pid: vm.stats.pid.0,
            name: vm.name.clone(),
            load,
        },
    };
    match Format::of(arguments.json) {
        Format::Json => console.json(&findings)?,
        Format::Text => show(&findings, console)?,
    }
    match findings.candidates.iter().any(|one| one.error.is_none()) {
        true => Ok(()),
        false => Err(Error::NoCandidate),
    }
}

/// Asks every candidate what it holds, all at once.
fn ask(arguments: &Plan, security: &Security, domain: &str) -> Vec<Answer> {
    let query = |to: &Address| Query {
        to: to.clone(),
        security: security.clone(),
        domain: domain.to_owned(),
        patience: Duration::from_secs(arguments.timeout),
        limits: Limits::default(),
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (arguments.candidates.iter())
            .map(query)
            .map(|query| {
                scope.spawn(move || holdings(&query).map_err(|error| Error::from(error).chain()))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let answer = thread.join();
                answer.unwrap_or_else(|_| Err("a thread failed; this is a bug".to_owned()))
            })
            .collect()
    })
}

/// Looks the digests of `vm` up in every answer. The rows are those of the answers.
fn look(host: &Host, vm: &Vm, answers: &[Answer]) -> Result<(Load, Vec<Estimate>), Error> {
    let lookups: Vec<_> = answers
        .iter()
        .map(|answer| {
            move |digest: &_| match answer {
                Ok(holdings) => holdings.contains(digest),
                Err(_) => false,
            }
        })
        .collect();
    let lookups: Vec<&Holds<'_>> = lookups.iter().map(|holds| holds as &Holds<'_>).collect();
    let mut runs = 0;
    loop {
        runs += 1;
        match estimate(&mut Digests::open(host, vm.stats.id)?, &lookups) {
            Err(Error::LayoutChanged(_)) if runs < RUNS => (),
            result => return result,
        }
    }
}

/// The candidates in order: the one with the fewest bytes to send first, silent ones last.
fn candidates(
    addresses: &[Address],
    answers: Vec<Answer>,
    estimates: Vec<Estimate>,
    load: &Load,
) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = addresses
        .iter()
        .zip(answers)
        .zip(estimates)
        .map(|((address, answer), estimate)| match answer {
            Ok(holdings) => Candidate {
                address: address.to_string(),
                offers_pages: Some(holdings.pages()),
                estimate: Some(estimate),
                held_percent: Some(percent(estimate.held_pages, load.non_zero)),
                software: Some(printable(holdings.software())),
                error: None,
            },
            Err(error) => Candidate {
                address: address.to_string(),
                offers_pages: None,
                estimate: None,
                held_percent: None,
                software: None,
                error: Some(printable(&error)),
            },
        })
        .collect();
    candidates.sort_by_key(|one| {
        let bytes = one
            .estimate
            .map_or(u64::MAX, |estimate| estimate.send_bytes);
        (one.error.is_some(), bytes)
    });
    candidates
}

/// Shows what was found.
fn show(findings: &Findings, console: &mut Console<'_>) -> Result<(), Error> {
    let Moved { id, name, load, .. } = &findings.vm;
    writeln!(
        console.out,
        "VM {id} ({name}): {} pages, {} of zeroes; {} others, {} different",
        load.pages, load.zero, load.non_zero, load.distinct
    )?;
    if load.unreadable > 0 {
        let text = "pages have no digest and count as missing everywhere";
        console.warn(&format!("VM {id}: {} {text}", load.unreadable))?;
    }
    let columns = [
        ("CANDIDATE", Side::Left),
        ("HELD", Side::Right),
        ("MIB", Side::Right),
        ("PERCENT", Side::Right),
        ("TO SEND MIB", Side::Right),
        ("NOTE", Side::Left),
    ];
    let mut table = Table::new(&columns, console.screen);
    for one in &findings.candidates {
        table.add(row(one));
    }
    Ok(write!(console.out, "{}", table.text())?)
}

/// The row of one candidate.
fn row(one: &Candidate) -> [String; 6] {
    let none = || "-".to_owned();
    let held = one.estimate.map(|estimate| estimate.held_pages);
    let send = one.estimate.map(|estimate| estimate.send_bytes);
    [
        one.address.clone(),
        held.map_or_else(none, |pages| pages.to_string()),
        held.map_or_else(none, mib),
        one.held_percent
            .map_or_else(none, |percent| percent.to_string()),
        // CAST: No VM has 2^63 bytes.
        send.map_or_else(none, |bytes| mib_of_bytes(bytes as i64)),
        one.error.clone().unwrap_or_default(),
    ]
}
