// SPDX-License-Identifier: GPL-2.0

//! A snapshot as text for people.

use std::cmp::Reverse;

use crate::console::Screen;
use crate::snapshot::{
    Row,
    Snapshot,
    Totals, //
};
use crate::stats::Stats;
use crate::table::{
    mib,
    mib_of_bytes,
    seconds,
    Side,
    Table, //
};

/// How many reasons for skipping are named in a row.
const REASONS: usize = 2;

/// The columns.
const COLUMNS: [(&str, Side); 15] = [
    ("ID", Side::Right),
    ("PID", Side::Right),
    ("NAME", Side::Left),
    ("DOMAIN", Side::Left),
    ("MIB", Side::Right),
    ("SCANNED", Side::Right),
    ("MERGED", Side::Right),
    ("ZERO", Side::Right),
    ("VOLATILE", Side::Right),
    ("UNSHARED", Side::Right),
    ("ABSENT", Side::Right),
    ("UNSEEN", Side::Right),
    ("SAVED MIB", Side::Right),
    ("CPU S", Side::Right),
    ("SKIPPED", Side::Left),
];

/// The table of VMs, the totals and the notes, no wider than `screen`. Of more than `most` VMs those
/// are left out that save least.
pub fn render(snapshot: &Snapshot, screen: Option<Screen>, most: usize) -> String {
    let mut text = String::new();
    if !snapshot.vms.is_empty() {
        let shown = best(&snapshot.vms, most);
        let mut table = Table::new(&COLUMNS, screen);
        for row in &shown {
            table.add(cells(row));
        }
        text += &table.text();
        match snapshot.vms.len() - shown.len() {
            0 => text += "\n",
            left => text += &format!("... and {left} more that save less\n\n"),
        }
    }
    text += &totals(&snapshot.totals);
    for note in &snapshot.notes {
        text += &format!("Note: {note}\n");
    }
    text
}

/// At most `most` of the VMs: those that save most, in order of their numbers.
fn best(vms: &[Row], most: usize) -> Vec<&Row> {
    let mut best: Vec<&Row> = vms.iter().collect();
    best.sort_by_key(|row| Reverse((row.pages_saved, row.vm.stats.pages_merged)));
    best.truncate(most);
    best.sort_by_key(|row| row.vm.stats.id);
    best
}

/// The cells of one VM, in the order of [`COLUMNS`].
fn cells(row: &Row) -> [String; COLUMNS.len()] {
    let stats = &row.vm.stats;
    [
        stats.id.to_string(),
        stats.pid.to_string(),
        row.vm.name.clone(),
        row.vm.domain_name.clone(),
        mib(stats.pages),
        stats.pages_scanned.to_string(),
        stats.pages_merged.to_string(),
        stats.zero_pages.to_string(),
        stats.pages_volatile.to_string(),
        stats.pages_unshared.to_string(),
        stats.pages_absent.to_string(),
        stats.pages_unseen.to_string(),
        mib(row.pages_saved),
        seconds(stats.cpu_ns),
        skipped(stats),
    ]
}

/// How many pages cannot be merged, and the commonest reasons.
fn skipped(stats: &Stats) -> String {
    let reasons = stats.reasons();
    let mut words: Vec<String> = reasons
        .iter()
        .take(REASONS)
        .map(|(reason, pages)| format!("{reason} {pages}"))
        .collect();
    if reasons.len() > REASONS {
        words.push("...".to_owned());
    }
    match words.len() {
        0 => "0".to_owned(),
        _ => format!("{} ({})", stats.pages_skipped(), words.join(", ")),
    }
}

/// The lines about all VMs together.
fn totals(totals: &Totals) -> String {
    let counters = &totals.counters;
    let percent = totals.scanner_cpu_percent.map_or(String::new(), |percent| {
        format!(" ({percent:.1} % of a CPU now)")
    });
    format!(
        "Saved:   {} MiB: {} shared copies with {} further mappings, {} zero pages\n\
         Profit:  {} MiB after {} MiB of metadata\n\
         Scanner: run={}, {} full scans, {} s{percent}\n",
        mib(totals.pages_saved),
        counters.pages_shared,
        counters.pages_sharing,
        counters.zero_pages,
        mib_of_bytes(counters.general_profit),
        mib_of_bytes(i64::try_from(counters.metadata_bytes).unwrap_or(i64::MAX)),
        counters.run,
        counters.full_scans,
        seconds(counters.cpu_ns),
    )
}
