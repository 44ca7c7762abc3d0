// SPDX-License-Identifier: GPL-2.0

//! Whether a run did what it says: what never happened shows nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use twinpage_lab::process::field;

use crate::events::with_ksmd;
use crate::fleet::Count;

/// Seconds from which on a run must have done everything that it tried so often, or so many turns on
/// end, if a refusal is no matter of chance.
pub const LONG: u64 = 900;
const TRIES: u64 = 20;
const TURNS: u64 = 4;

/// What `/proc/vmstat` counts: pages that went to swap and came back,
pub const SWAPS: [&str; 2] = ["pswpout", "pswpin"];
/// what a long run never leaves at 0,
pub const ALWAYS: [&str; 2] = ["pgmigrate_success", "thp_collapse_alloc"];
/// and what it may, where there is nothing to do.
const SOMETIMES: [&str; 2] = ["compact_migrate_scanned", "numa_hint_faults"];

/// Passes of ksmd.
const PASSES: &str = "/sys/kernel/mm/ksm/full_scans";

/// What the kernel did, as it counts, since the machine booted or since another look.
pub struct Meanwhile(BTreeMap<&'static str, u64>);

impl Meanwhile {
    /// Since the machine booted. What this kernel does not count is 0.
    pub fn now() -> Meanwhile {
        let names = SWAPS.into_iter().chain(ALWAYS).chain(SOMETIMES);
        let count = |name: &'static str| (name, field("/proc/vmstat", name).unwrap_or(0));
        let mut counts: BTreeMap<_, _> = names.map(count).collect();
        let passes = fs::read_to_string(PASSES).unwrap_or_default();
        counts.insert("full_scans", passes.trim_end().parse().unwrap_or(0));
        Meanwhile(counts)
    }

    /// Since an earlier look.
    pub fn since(mut self, earlier: &Meanwhile) -> Meanwhile {
        for (name, count) in &mut self.0 {
            *count = count.saturating_sub(earlier.of(name));
        }
        self
    }

    /// Which of these it never did.
    pub fn idle(&self, names: &[&'static str]) -> Vec<&'static str> {
        let idle = names.iter().filter(|name| self.of(name) == 0);
        idle.copied().collect()
    }

    fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

impl fmt::Display for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [out, back] = SWAPS.map(|name| self.of(name));
        write!(f, "swapped: {out} pages out, {back} in")?;
        let mut others = self.0.iter().filter(|(name, _)| !SWAPS.contains(name));
        others.try_for_each(|(name, count)| write!(f, ", {name} {count}"))
    }
}

/// What looks at the monitors' memory found while the run went on.
#[derive(Default)]
pub struct Looks {
    looks: u64,
    most: usize,
    none: u64,
}

impl Looks {
    /// Adds one, which found so many pages saved.
    pub fn add(&mut self, saved: usize) {
        self.looks += 1;
        self.most = self.most.max(saved);
        self.none += u64::from(saved == 0);
    }

    /// Whether most of them found some.
    pub fn mostly_some(&self) -> bool {
        2 * self.none < self.looks
    }
}

impl fmt::Display for Looks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} looks, at most {} pages saved, {} with none",
            self.looks, self.most, self.none
        )
    }
}

/// Why something may be refused each time, if it may.
fn excused(name: &str, seed: u64) -> Option<&'static str> {
    let why = match name {
        "memory offline" => "a block with a copy, or a page that somebody holds, stays",
        "soft offline" => "most pages are merged, and copies stay where they are",
        "isolation" if with_ksmd(seed) => "ksmd knows no domains",
        "memory failure of a copy" | "soft offline of a copy" if with_ksmd(seed) => {
            "a copy may look like ksmd's"
        }
        "ksmd" if !with_ksmd(seed) => "a run without it",
        _ => return None,
    };
    Some(why)
}

/// What depends on what was met, and may be refused the few times that a slow run tries it.
const CHANCE: &[&str] = &[
    // The VM must be detached, or attached.
    "attach",
    "detach",
    // The kernel must find enough to take, in time, or no more than that.
    "memcg reclaim",
    "memcg hard limit",
    "OOM kill",
    // The module must allocate meanwhile.
    "allocation failures",
    // There must be a copy, which stays one.
    "memory failure of a copy",
    "soft offline of a copy",
    // Pages must not be merged, or not be where they shall go.
    "madvise collapse",
    "move_pages",
    "userfaultfd move",
    // The guest must come by meanwhile.
    "userfaultfd missing",
    "userfaultfd write-protect",
    // There must be one left.
    "hugetlb in its place",
];

/// What a long run tried, was refused each time, and has no excuse.
pub fn never_done(table: &BTreeMap<String, Count>, seed: u64) -> Vec<String> {
    let vain = |(name, count): (&String, &Count)| {
        let each_turn = count.turns >= TURNS && count.refused == count.turns;
        let often = count.refused >= TRIES || (each_turn && !CHANCE.contains(&name.as_str()));
        let vain = count.did == 0 && often && excused(name, seed).is_none();
        vain.then(|| format!("{name} ({})", count.why))
    };
    table.iter().filter_map(vain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_refused_is_named() {
        let count = |did, refused, turns| Count {
            did,
            refused,
            turns,
            why: "no".into(),
        };
        let table = BTreeMap::from([
            ("mremap".to_owned(), count(0, TURNS, TURNS)),
            ("munmap".to_owned(), count(1, 100, 101)),
            ("fork".to_owned(), count(0, TURNS - 1, TURNS - 1)),
            ("suspend to freezer".to_owned(), count(0, TURNS, TURNS + 1)),
            ("attach".to_owned(), count(0, TRIES - 1, TRIES - 1)),
            ("detach".to_owned(), count(0, TRIES, TRIES)),
            ("isolation".to_owned(), count(0, TRIES, TRIES)),
        ]);
        let odd = ["detach (no)", "isolation (no)", "mremap (no)"];
        assert_eq!(never_done(&table, 1), odd);
        assert_eq!(never_done(&table, 2), ["detach (no)", "mremap (no)"]);
    }

    #[test]
    fn looks_must_find_something_in_most_cases() {
        let mut looks = Looks::default();
        assert!(!looks.mostly_some());
        [0, 5, 7].into_iter().for_each(|saved| looks.add(saved));
        assert!(looks.mostly_some());
        looks.add(0);
        assert!(!looks.mostly_some());
        assert_eq!(
            looks.to_string(),
            "4 looks, at most 7 pages saved, 2 with none"
        );
    }
}
