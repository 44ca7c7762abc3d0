// SPDX-License-Identifier: GPL-2.0

//! What kind of memory a VM has, and whether the module can do anything with it.

use std::ops::Range;

use crate::error::Error;
use crate::host::Host;
use crate::parse::decimal;
use crate::process::Pid;
use crate::skip::meaning;
use crate::slots::{
    Slot,
    Slots, //
};
use crate::smaps::{
    self,
    Mapping, //
};
use crate::table::mib;
use crate::uapi::PAGE_BYTES;
use crate::vm::{
    self,
    Id, //
};

/// Whether `ksmd` runs.
const KSM_RUN: &str = "/sys/kernel/mm/ksm/run";

/// A part of a VM's memory that is too small to speak of: firmware, video memory.
const SMALL_BYTES: u64 = 16 << 20;

/// Bytes of a VM's memory, by what keeps them from merging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kinds {
    /// All of it.
    total: u64,
    /// In shared mappings.
    shared: u64,
    /// In hugetlbfs.
    hugetlb: u64,
    /// Mlocked.
    locked: u64,
    /// What `ksmd` may merge.
    mergeable: u64,
    /// In slots whose private half is a guest_memfd.
    guest_memfd: u64,
}

/// Whether the kernel's own merging runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ksmd {
    /// It merges pages now.
    Runs,
    /// It does not.
    Rests,
}

/// Why part of the memory of VM `id` of process `pid` will be skipped, in sentences.
///
/// An unknown answer is a sentence too: attaching has worked, so it is no error.
pub fn obstacles(host: &Host, pid: Pid, id: Id) -> Vec<String> {
    match measure(host, pid, id) {
        Ok(kinds) => sentences(kinds, ksmd(host)),
        Err(error) => vec![format!("cannot tell what memory it has: {error}")],
    }
}

/// Measures the memory of VM `id`.
fn measure(host: &Host, pid: Pid, id: Id) -> Result<Kinds, Error> {
    let slots = vm::slots(host, id)?;
    let path = pid.file("smaps");
    let text = host.read_text(&path, smaps::FILE_BYTES)?;
    let mappings = smaps::parse(&path, &text)?;
    Ok(kinds(&slots, &mappings))
}

/// Adds up the memory of `slots`; an address that two slots name counts once. `mappings` are in
/// order of their addresses.
fn kinds(slots: &Slots, mut mappings: &[Mapping]) -> Kinds {
    let mut kinds = Kinds::default();
    for range in union(slots.iter().map(Slot::addresses).collect()) {
        kinds.total += range.end - range.start;
        let below = mappings.partition_point(|mapping| mapping.addresses.end <= range.start);
        mappings = &mappings[below..];
        let inside = |mapping: &&Mapping| mapping.addresses.start < range.end;
        for mapping in mappings.iter().take_while(inside) {
            let bytes = overlap(&range, &mapping.addresses);
            for (applies, sum) in [
                (mapping.shared && !mapping.hugetlb, &mut kinds.shared),
                (mapping.hugetlb, &mut kinds.hugetlb),
                (mapping.locked, &mut kinds.locked),
                (mapping.mergeable, &mut kinds.mergeable),
            ] {
                *sum = sum.saturating_add(if applies { bytes } else { 0 });
            }
        }
    }
    let private = slots.iter().filter(|slot| slot.is_guest_memfd());
    let private = union(private.map(Slot::addresses).collect());
    kinds.guest_memfd = private.iter().map(|range| range.end - range.start).sum();
    kinds
}

/// The sentences for the parts that are worth one.
fn sentences(kinds: Kinds, ksmd: Ksmd) -> Vec<String> {
    let ksm = match ksmd {
        Ksmd::Runs => kinds.mergeable,
        Ksmd::Rests => 0,
    };
    [
        ("shared", kinds.shared),
        ("hugetlb", kinds.hugetlb),
        ("locked", kinds.locked),
        ("ksm", ksm),
        ("gmem", kinds.guest_memfd),
    ]
    .into_iter()
    .filter(|&(_, bytes)| bytes >= SMALL_BYTES || bytes.saturating_mul(8) > kinds.total)
    .filter(|&(_, bytes)| bytes > 0)
    .filter_map(|(reason, bytes)| {
        let meaning = meaning(reason)?;
        let remedy = meaning
            .remedy
            .map_or(String::new(), |remedy| format!("; {remedy}"));
        Some(format!(
            "{} of {} MiB will be skipped: {}{remedy}",
            mib(bytes / PAGE_BYTES as u64),
            mib(kinds.total / PAGE_BYTES as u64),
            meaning.text,
        ))
    })
    .collect()
}

/// Whether `ksmd` merges pages now. A kernel without it does not.
fn ksmd(host: &Host) -> Ksmd {
    match host.read_text(KSM_RUN, 64) {
        Ok(run) if decimal::<u64>(run.trim()) == Ok(1) => Ksmd::Runs,
        _ => Ksmd::Rests,
    }
}

/// How many bytes two ranges have in common.
fn overlap(a: &Range<u64>, b: &Range<u64>) -> u64 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}

/// The same addresses without overlap.
fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut union: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match union.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => union.push(range),
        }
    }
    union
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A private mapping.
    fn mapping(addresses: Range<u64>) -> Mapping {
        Mapping {
            addresses,
            shared: false,
            hugetlb: false,
            locked: false,
            mergeable: false,
        }
    }

    #[test]
    fn memory_in_two_slots_counts_once() {
        let text = "as_id slot base_gfn npages userspace_addr flags\n\
             0 0 0 256 0x100000 0x0\n\
             0 1 512 128 0x180000 0x0\n";
        let slots = Slots::parse(Path::new("/slots"), text).unwrap();
        let mut shared = mapping(0x1c0000..0x400000);
        shared.shared = true;
        let kinds = kinds(&slots, &[mapping(0..0x1c0000), shared]);
        assert_eq!((kinds.total, kinds.shared), (0x100000, 0x40000));
    }

    #[test]
    fn small_parts_are_not_spoken_of() {
        let all = Kinds {
            total: 1 << 30,
            shared: SMALL_BYTES - 1,
            mergeable: 1 << 30,
            ..Kinds::default()
        };
        assert!(sentences(all, Ksmd::Rests).is_empty());
        let table = [
            (
                all,
                Ksmd::Runs,
                "1024.0 of 1024.0 MiB will be skipped: owned by ksmd",
            ),
            (
                Kinds {
                    shared: SMALL_BYTES,
                    ..all
                },
                Ksmd::Rests,
                "16.0 of 1024.0 MiB will be skipped: shared",
            ),
            (
                Kinds {
                    guest_memfd: 1 << 29,
                    ..all
                },
                Ksmd::Rests,
                "512.0 of 1024.0 MiB will be skipped: memory that only the guest may see",
            ),
        ];
        for (kinds, ksmd, sentence) in table {
            let found = sentences(kinds, ksmd);
            assert!(
                found.len() == 1 && found[0].starts_with(sentence),
                "{found:?}"
            );
        }
    }
}
