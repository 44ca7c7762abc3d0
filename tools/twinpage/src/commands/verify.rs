// SPDX-License-Identifier: GPL-2.0

//! `twinpage digests --verify`: do the digests say what is in the guest's memory?
//!
//! Memory is read through `/proc/PID/mem` at the addresses of the `slots` file, which neither the
//! module nor its page tables take part in. The guest writes meanwhile, so a difference alone
//! proves nothing. For a merged page it is an error if the page stays what it is: its record, read
//! again after the memory, names the same copy, and that several times over, since a guest may
//! write and merge again in between.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::Serialize;
use twinpage_engine::engine::wire::{
    PageState,
    Record, //
};

use crate::console::{
    Console,
    Format, //
};
use crate::digest::Digest;
use crate::digests::{
    digest_of,
    Digests,
    Tally, //
};
use crate::error::Error;
use crate::host::Host;
use crate::slots::{
    Gfn,
    Slots, //
};
use crate::uapi::PAGE_BYTES;
use crate::vm::{
    self,
    Vm, //
};

/// How often the whole is started over when memslots change.
const RUNS: u32 = 3;

/// How often a page must differ while it stays what it is.
const LOOKS: u32 = 3;

/// How many errors are told one by one.
const TOLD_ERRORS: u64 = 20;

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Findings {
    /// The attachment.
    id: u32,
    /// Pages by state, as first read.
    #[serde(flatten)]
    states: Tally,
    /// Pages whose memory has the digest of their record.
    matching: u64,
    /// Pages that changed while they were looked at.
    changed: u64,
    /// Pages whose memory cannot be read.
    unreadable: u64,
    /// Merged and zero pages that differ from their digest.
    errors: u64,
}

/// What became of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// There is no digest to compare with.
    NoDigest,
    /// The memory has that digest.
    Matching,
    /// It differs, and may.
    Changed,
    /// The memory cannot be read.
    Unreadable,
    /// It differs, and must not.
    Wrong(Digest),
}

/// Runs the command.
pub fn run(vm: &Vm, host: &Host, format: Format, console: &mut Console<'_>) -> Result<(), Error> {
    let mut runs = 0;
    let findings = loop {
        runs += 1;
        match verify(vm, host, console) {
            Err(Error::LayoutChanged(_)) if runs < RUNS => (),
            findings => break findings?,
        }
    };
    match format {
        Format::Json => console.json(&findings)?,
        Format::Text => show(vm, &findings, console)?,
    }
    let id = vm.stats.id;
    match (findings.errors, findings.unreadable) {
        (0, 0) => Ok(()),
        (0, pages) => Err(Error::Uncompared { id, pages }),
        (pages, _) => Err(Error::WrongDigests { id, pages }),
    }
}

/// Looks at every page once.
fn verify(vm: &Vm, host: &Host, console: &mut Console<'_>) -> Result<Findings, Error> {
    let mut digests = Digests::open(host, vm.stats.id)?;
    let slots = vm::slots(host, vm.stats.id)?;
    let memory = Memory {
        slots,
        file: host.open(vm.stats.pid.file("mem"))?,
    };
    let mut findings = Findings {
        id: vm.stats.id.0,
        ..Findings::default()
    };
    while let Some((place, record)) = digests.read_next()? {
        findings.states.count(record.state);
        let verdict = look(
            record,
            || memory.digest(Gfn(record.gfn)),
            || digests.read_again(place),
        );
        match verdict? {
            Verdict::NoDigest => (),
            Verdict::Matching => findings.matching += 1,
            Verdict::Changed => findings.changed += 1,
            Verdict::Unreadable => findings.unreadable += 1,
            Verdict::Wrong(found) => {
                findings.errors += 1;
                if findings.errors <= TOLD_ERRORS {
                    writeln!(console.err, "{}", complaint(&record, found))?;
                }
            }
        }
    }
    digests.check_layout()?;
    Ok(findings)
}

/// Compares one page with its record, as first read.
///
/// `memory` gives the digest of the page's memory now, `again` the record now.
fn look(
    first: Record,
    mut memory: impl FnMut() -> Option<Digest>,
    mut again: impl FnMut() -> Result<Record, Error>,
) -> Result<Verdict, Error> {
    let Some(expected) = digest_of(first.state) else {
        return Ok(Verdict::NoDigest);
    };
    let private = matches!(first.state, PageState::Unmerged { .. });
    let mut verdict = Verdict::Matching;
    for _ in 0..LOOKS {
        verdict = match memory() {
            Some(found) if found == expected => return Ok(Verdict::Matching),
            // The guest may write to its own page at any time.
            Some(_) if private => return Ok(Verdict::Changed),
            Some(found) => Verdict::Wrong(found),
            None => Verdict::Unreadable,
        };
        if again()? != first {
            return Ok(Verdict::Changed);
        }
    }
    Ok(verdict)
}

/// The memory of a guest.
struct Memory {
    /// Where it is in the process.
    slots: Slots,
    /// The memory of the process.
    file: File,
}

impl Memory {
    /// The digest of guest page `gfn`, if it can be read.
    fn digest(&self, gfn: Gfn) -> Option<Digest> {
        let address = self.slots.address_of(gfn)?;
        let mut page = [0; PAGE_BYTES];
        self.file.read_exact_at(&mut page, address.0).ok()?;
        Some(Digest::of(&page))
    }
}

/// What is wrong with a page.
fn complaint(record: &Record, found: Digest) -> String {
    let (expected, state) = match record.state {
        PageState::Merged { serial, digest } => (Digest(digest), format!("merged copy {serial}")),
        state => (digest_of(state).unwrap_or(found), "zero page".to_owned()),
    };
    format!(
        "ERROR: gfn {}: {state} has digest {expected}, memory has {found}",
        record.gfn
    )
}

/// Shows what was found.
fn show(vm: &Vm, findings: &Findings, console: &mut Console<'_>) -> Result<(), Error> {
    let states = &findings.states;
    writeln!(
        console.out,
        "VM {} ({}): {} merged, {} zero, {} unmerged, {} absent, {} skipped",
        findings.id,
        vm.name,
        states.merged,
        states.zero,
        states.unmerged,
        states.absent,
        states.skipped,
    )?;
    writeln!(
        console.out,
        "{} match, {} changed meanwhile, {} unreadable, {} wrong",
        findings.matching, findings.changed, findings.unreadable, findings.errors,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is looked for.
    const EXPECTED: Digest = Digest([1; 32]);

    /// What must not be there.
    const OTHER: Digest = Digest([2; 32]);

    /// The record of a page that maps copy `serial`.
    fn merged(serial: u64) -> Record {
        let digest = EXPECTED.0;
        let state = PageState::Merged { serial, digest };
        Record { gfn: 7, state }
    }

    /// The verdict on a merged page of which memory and record read like this, one after the other.
    fn verdict(memory: &[Option<Digest>], records: &[Record]) -> Verdict {
        let (mut memory, mut records) = (memory.iter(), records.iter());
        let next_record = || Ok(*records.next().unwrap());
        look(merged(5), || *memory.next().unwrap(), next_record).unwrap()
    }

    #[test]
    fn equal_memory_matches_at_once() {
        assert_eq!(verdict(&[Some(EXPECTED)], &[]), Verdict::Matching);
    }

    #[test]
    fn page_that_is_no_longer_merged_has_changed() {
        let state = PageState::Unmerged { digest: OTHER.0 };
        let broken = Record { gfn: 7, state };
        assert_eq!(verdict(&[Some(OTHER)], &[broken]), Verdict::Changed);
        assert_eq!(verdict(&[Some(OTHER)], &[merged(6)]), Verdict::Changed);
    }

    #[test]
    fn page_that_was_written_and_merged_again_matches() {
        let memory = [Some(OTHER), Some(EXPECTED)];
        assert_eq!(verdict(&memory, &[merged(5)]), Verdict::Matching);
    }

    #[test]
    fn page_that_stays_merged_and_differs_is_wrong() {
        let memory = [Some(OTHER); LOOKS as usize];
        let records = [merged(5); LOOKS as usize];
        assert_eq!(verdict(&memory, &records), Verdict::Wrong(OTHER));
    }

    #[test]
    fn unreadable_memory_is_told_apart() {
        let records = [merged(5); LOOKS as usize];
        assert_eq!(
            verdict(&[None; LOOKS as usize], &records),
            Verdict::Unreadable
        );
    }

    #[test]
    fn private_pages_may_differ() {
        let digest = EXPECTED.0;
        let state = PageState::Unmerged { digest };
        let record = Record { gfn: 7, state };
        let verdict = look(record, || Some(OTHER), || unreachable!()).unwrap();
        assert_eq!(verdict, Verdict::Changed);
    }
}
