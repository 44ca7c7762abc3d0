// SPDX-License-Identifier: GPL-2.0

//! When merging has settled: what `status --until-stable` waits for.

use crate::error::Error;
use crate::snapshot::Snapshot;

/// Passes that must bring nothing new.
const PASSES: u64 = 2;

/// Pages that may come or go in them: guests always write a little.
const FEW_PAGES: u64 = 16;

/// Watches how many pages are saved from pass to pass.
///
/// It has no mark until every page was looked at once. Then the mark is the number of passes and
/// of saved pages; [`PASSES`] later it is either settled or the mark is set anew.
#[derive(Debug, Default)]
pub struct Settling {
    /// Passes and saved pages that the next ones are compared with.
    mark: Option<(u64, u64)>,
}

impl Settling {
    /// Looks at one more snapshot, and says whether it has settled.
    ///
    /// # Errors
    ///
    /// It never will: nothing is attached or nothing runs.
    pub fn observe(&mut self, snapshot: &Snapshot) -> Result<bool, Error> {
        let counters = &snapshot.totals.counters;
        if snapshot.vms.is_empty() {
            return Err(Error::NothingToWaitFor("no VM is attached"));
        }
        if counters.run != 1 {
            return Err(Error::NothingToWaitFor("the scanner is stopped"));
        }
        let unseen = snapshot.vms.iter().any(|row| row.vm.stats.pages_unseen > 0);
        let now = (counters.full_scans, snapshot.totals.pages_saved);
        let Some((scans, saved)) = self.mark.filter(|_| !unseen) else {
            self.mark = (!unseen).then_some(now);
            return Ok(false);
        };
        // A reloaded module counts from zero again.
        if now.0 < scans {
            self.mark = Some(now);
            return Ok(false);
        }
        if now.0 - scans < PASSES {
            return Ok(false);
        }
        let tolerance = (saved / 200).max(FEW_PAGES);
        self.mark = Some(now);
        Ok(now.1.abs_diff(saved) <= tolerance)
    }
}
