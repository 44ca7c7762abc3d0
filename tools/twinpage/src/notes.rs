// SPDX-License-Identifier: GPL-2.0

//! Why nothing happens.
//!
//! "run is 1 and nothing happens" is the first complaint of KSM's users, and the counters alone do
//! not answer it. Each function here knows one reason.

use std::collections::HashSet;

use crate::counters::Counters;
use crate::domain::Domain;
use crate::skip::meaning;
use crate::snapshot::Row;
use crate::table::percent;

/// What the user should know of this state, the most important thing first.
pub fn notes(counters: &Counters, vms: &[Row]) -> Vec<String> {
    let mut notes: Vec<String> = vms.iter().filter_map(mostly_skipped).collect();
    notes.extend(vms.iter().filter_map(backed_off));
    notes.extend(not_running(counters));
    if vms.is_empty() {
        notes.push(
            "No VM is attached: twinpage attach --pid PID, or twinpage attach --all".to_owned(),
        );
    } else if counters.run == 1 && counters.pages_saved() == 0 && notes.is_empty() {
        notes.push(nothing_merged(counters, vms));
    }
    if counters.pages_sharing == 0 {
        notes.extend(nobody_to_share_with(vms));
    }
    notes
}

/// The scanner stands still.
fn not_running(counters: &Counters) -> Option<String> {
    match counters.run {
        1 => None,
        2 => Some("Everything was unmerged (run=2): twinpage set run=1 merges again".to_owned()),
        _ => Some("The scanner is stopped (run=0): twinpage set run=1 starts it".to_owned()),
    }
}

/// Most of the memory of one VM cannot be merged, for one reason.
fn mostly_skipped(row: &Row) -> Option<String> {
    let stats = &row.vm.stats;
    let present = stats.pages.saturating_sub(stats.pages_absent);
    let &(reason, pages) = stats.reasons().first()?;
    // The zero page takes no memory, so there is nothing to complain of.
    if reason == "zero" || percent(pages, present) < 50 {
        return None;
    }
    let meaning = meaning(reason);
    let text = meaning.map_or(reason, |meaning| meaning.text);
    let remedy = meaning.and_then(|meaning| meaning.remedy);
    let remedy = remedy.map_or(String::new(), |remedy| format!("; {remedy}"));
    Some(format!(
        "VM {} ({}): {} % of its pages cannot be merged: {text}{remedy}",
        stats.id,
        row.vm.name,
        percent(pages, present),
    ))
}

/// Nothing of one VM merges for a while, as that was in vain too often.
fn backed_off(row: &Row) -> Option<String> {
    let stats = &row.vm.stats;
    (stats.backed_off_ms > 0).then(|| {
        format!(
            "VM {} ({}): nothing merges for {} s: {} of its merged pages were written to each \
             second, more than max_break_rate",
            stats.id,
            row.vm.name,
            stats.backed_off_ms / 1000,
            stats.break_rate,
        )
    })
}

/// The scanner runs and no page is saved.
fn nothing_merged(counters: &Counters, vms: &[Row]) -> String {
    let sum = |count: fn(&Row) -> u64| vms.iter().map(count).fold(0, u64::saturating_add);
    let pages = sum(|row| row.vm.stats.pages);
    let absent = sum(|row| row.vm.stats.pages_absent);
    let unseen = sum(|row| row.vm.stats.pages_unseen);
    let volatile = sum(|row| row.vm.stats.pages_volatile);
    let present = pages.saturating_sub(absent);
    if pages == 0 {
        "Nothing is merged: the VMs have no memory yet".to_owned()
    } else if unseen > 0 || counters.full_scans == 0 {
        let seen = percent(pages.saturating_sub(unseen), pages);
        format!("Nothing is merged yet: the first pass has seen {seen} % of the pages")
    } else if present == 0 {
        "Nothing is merged: the VMs have not touched their memory yet".to_owned()
    } else if percent(volatile, present) >= 50 {
        let changing = percent(volatile, present);
        format!("Nothing is merged: {changing} % of the pages change between two looks")
    } else {
        "Nothing is merged: no two pages that may share have the same content".to_owned()
    }
}

/// There are VMs, but each is alone in its domain.
fn nobody_to_share_with(vms: &[Row]) -> Option<String> {
    let domains = vms.iter().map(|row| row.vm.stats.domain);
    let shared: Vec<Domain> = domains
        .filter(|&domain| domain != Domain::PRIVATE)
        .collect();
    let distinct: HashSet<Domain> = shared.iter().copied().collect();
    (vms.len() > 1 && distinct.len() == shared.len()).then(|| {
        "No two VMs are in one domain, so pages merge only inside each VM: \
         twinpage attach --domain NAME"
            .to_owned()
    })
}
