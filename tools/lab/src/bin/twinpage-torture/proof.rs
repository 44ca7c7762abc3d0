// SPDX-License-Identifier: GPL-2.0

//! Whether a run did what it says: what never happened shows nothing.

use std::collections::BTreeMap;
use std::io;

use twinpage_lab::process::field;

use crate::events::with_ksmd;
use crate::fleet::Count;

/// Seconds from which on a run must have done everything that it tried so often.
pub const LONG: u64 = 900;
const TRIES: u64 = 20;

/// Pages that went to swap and came back, since the machine booted or since another look.
pub struct Swapped {
    /// Came back.
    pub came: u64,
    /// Went.
    pub went: u64,
}

impl Swapped {
    /// Since the machine booted.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn now() -> io::Result<Swapped> {
        Ok(Swapped {
            came: field("/proc/vmstat", "pswpin")?,
            went: field("/proc/vmstat", "pswpout")?,
        })
    }

    /// Since an earlier look.
    pub fn since(self, earlier: &Swapped) -> Swapped {
        Swapped {
            came: self.came - earlier.came,
            went: self.went - earlier.went,
        }
    }
}

/// Why something may be refused each time, if it may.
fn excused(name: &str, seed: u64) -> Option<&'static str> {
    let why = match name {
        "madvise collapse" => "merged pages and short ranges are refused",
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

/// What was tried often in a long run, refused each time, and has no excuse.
pub fn never_done(table: &BTreeMap<String, Count>, seed: u64) -> Vec<String> {
    let vain = |(name, count): (&String, &Count)| {
        let vain = count.did == 0 && count.refused >= TRIES && excused(name, seed).is_none();
        vain.then(|| format!("{name} ({})", count.why))
    };
    table.iter().filter_map(vain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_refused_is_named() {
        let count = |did, refused| Count {
            did,
            refused,
            why: "no".into(),
        };
        let table = BTreeMap::from([
            ("mremap".to_owned(), count(0, TRIES)),
            ("munmap".to_owned(), count(1, 100)),
            ("fork".to_owned(), count(0, TRIES - 1)),
            ("isolation".to_owned(), count(0, TRIES)),
        ]);
        assert_eq!(never_done(&table, 1), ["isolation (no)", "mremap (no)"]);
        assert_eq!(never_done(&table, 2), ["mremap (no)"]);
    }
}
