// SPDX-License-Identifier: GPL-2.0

//! What became of a migration: a table for people, an object for programs.

use serde::Serialize;
use twinpage_migrate::proxy::{
    Report,
    Snapshot, //
};
use twinpage_migrate::run::Outcome;

use crate::cli::migrate::WatchOptions;
use crate::console::{
    self,
    Console, //
};
use crate::error::Error;
use crate::session::Finished;
use crate::table::{
    mib,
    percent,
    Side,
    Table, //
};
use crate::units::Size;

/// Version of the JSON; raised when a field changes or goes.
pub const SCHEMA: u32 = 1;

/// Longest text of a peer that is shown, in characters.
const PEER_CHARS: usize = 400;

/// Which end of a migration tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The one at the source.
    Send,
    /// The one at the destination.
    Receive,
    /// The one that told both QEMUs what to do.
    Run,
}

/// What QEMU itself said of a migration, if it was asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Told {
    /// How long the VM stood still.
    pub downtime_ms: Option<u64>,
    /// How long it took.
    pub total_ms: Option<u64>,
    /// Passes over memory.
    pub rounds: Option<u64>,
}

/// The end of a migration, as JSON.
#[derive(Debug, Serialize)]
struct Ended<'a> {
    /// Version of the JSON.
    schema: u32,
    /// What the line is, after those on its progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'static str>,
    /// Who tells.
    role: Role,
    /// How long it took, from the moment QEMU connected.
    seconds: f64,
    /// What QEMU said.
    #[serde(flatten)]
    told: &'a Told,
    /// What came of it, if both QEMUs were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a Outcome>,
    /// Why the proxy did not come to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_error: Option<&'a str>,
    /// What the proxy counted.
    #[serde(flatten)]
    report: &'a Report,
}

/// What became of a migration.
pub struct Summary<'a> {
    /// Who tells.
    pub role: Role,
    /// How long it took, from the moment QEMU connected.
    pub seconds: f64,
    /// What QEMU said.
    pub told: Told,
    /// What came of it, if both QEMUs were asked.
    pub outcome: Option<&'a Outcome>,
    /// Why the proxy did not come to its end.
    pub proxy_error: Option<String>,
    /// What the proxy counted.
    pub report: &'a Report,
}

impl<'a> Summary<'a> {
    /// What one proxy knows.
    pub fn of_proxy(role: Role, finished: &'a Finished) -> Self {
        Self {
            role,
            seconds: finished.seconds,
            told: Told::default(),
            outcome: None,
            proxy_error: finished.verdict.as_ref().err().map(Error::chain),
            report: &finished.report,
        }
    }

    /// Writes it as JSON: as the last of `lines`, or over several.
    fn json(&self, lines: bool, console: &mut Console<'_>) -> Result<(), Error> {
        let ended = Ended {
            schema: SCHEMA,
            event: lines.then_some("end"),
            role: self.role,
            seconds: self.seconds,
            told: &self.told,
            outcome: self.outcome,
            proxy_error: self.proxy_error.as_deref(),
            report: self.report,
        };
        match lines {
            true => console.json_line(&ended),
            false => console.json(&ended),
        }
    }

    /// Shows it in the form that is asked for.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn show(&self, show: WatchOptions, console: &mut Console<'_>) -> Result<(), Error> {
        if show.json {
            return self.json(show.progress, console);
        }
        write!(
            console.out,
            "{}",
            pages(&self.report.totals, console).text()
        )?;
        if !self.report.sources.is_empty() {
            writeln!(console.out)?;
            write!(console.out, "{}", sources(self.report, console).text())?;
        }
        writeln!(console.out)?;
        let start_ms = self.outcome.and_then(|outcome| outcome.start_ms);
        for line in lines(self.seconds, &self.told, start_ms, self.report) {
            writeln!(console.out, "{line}")?;
        }
        Ok(())
    }
}

/// How pages went.
fn pages(totals: &Snapshot, console: &Console<'_>) -> Table {
    let columns = [
        ("PAGES", Side::Left),
        ("COUNT", Side::Right),
        ("MIB", Side::Right),
        ("PERCENT", Side::Right),
    ];
    let rows = [
        ("sent", totals.pages_sent),
        ("sent before", totals.pages_back),
        ("at the destination", totals.pages_referenced),
        ("zero", zero(totals)),
    ];
    let all = rows
        .iter()
        .fold(0_u64, |sum, row| sum.saturating_add(row.1));
    let mut table = Table::new(&columns, console.screen);
    for (name, count) in rows {
        table.add([
            name.to_owned(),
            count.to_string(),
            mib(count),
            percent(count, all).to_string(),
        ]);
    }
    table
}

/// Where the destination found pages.
fn sources(report: &Report, console: &Console<'_>) -> Table {
    let columns = [
        ("SOURCE", Side::Left),
        ("FOUND", Side::Right),
        ("NOT THERE", Side::Right),
        ("WRONG", Side::Right),
        ("ERRORS", Side::Right),
    ];
    let mut table = Table::new(&columns, console.screen);
    for source in &report.sources {
        table.add([
            source.name.clone(),
            source.hits.to_string(),
            source.misses.to_string(),
            source.wrong.to_string(),
            source.errors.to_string(),
        ]);
    }
    table
}

/// What is no table; `start_ms` is how long it took to start the VM at the destination.
fn lines(seconds: f64, told: &Told, start_ms: Option<u64>, report: &Report) -> Vec<String> {
    let totals = &report.totals;
    let mut time = format!("Time:    {seconds:.1} s");
    if let Some(rounds) = told.rounds {
        time += &format!(" in {rounds} rounds");
    }
    time += &match (told.downtime_ms, totals.switchover_ms) {
        (Some(ms), _) => format!(", of which the VM stood still {ms} ms"),
        (None, 0) => String::new(),
        (None, ms) => format!(", of which the VM stood still {ms} ms or more"),
    };
    if let Some(ms) = start_ms {
        time += &format!(", and {ms} ms more until it was started");
    }
    let saved = totals.stream_bytes.saturating_sub(totals.wire_bytes);
    let mut lines = vec![
        time,
        format!(
            "Bytes:   {} of QEMU's stream, {} on the wire ({} % less)",
            Size(totals.stream_bytes),
            Size(totals.wire_bytes),
            percent(saved, totals.stream_bytes),
        ),
    ];
    if totals.misses > 0 {
        lines.push(format!(
            "Misses:  {} pages that the destination did not have after all",
            totals.misses
        ));
    }
    if !report.peer.is_empty() {
        lines.push(format!("Peer:    {}", printable(&report.peer)));
    }
    lines
}

/// Pages of zeroes, in either form.
fn zero(totals: &Snapshot) -> u64 {
    totals.pages_zero.saturating_add(totals.pages_zero_body)
}

/// Text of a peer on one line of bounded length.
pub fn printable(text: &str) -> String {
    console::printable(text.chars().take(PEER_CHARS))
}
