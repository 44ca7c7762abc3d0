// SPDX-License-Identifier: GPL-2.0

//! The state of everything at one moment, as `status` shows it.

use std::time::Duration;

use serde::Serialize;

use crate::counters::Counters;
use crate::error::Error;
use crate::host::Host;
use crate::notes::notes;
use crate::vm::{
    self,
    Vm, //
};

/// Version of the JSON; raised when a field changes or goes.
const SCHEMA: u32 = 1;

/// The state of everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// Version of the JSON.
    schema: u32,
    /// When it was taken.
    #[serde(skip)]
    taken: Duration,
    /// All VMs together.
    pub totals: Totals,
    /// Each VM.
    pub vms: Vec<Row>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// All VMs together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// What the module counts.
    #[serde(flatten)]
    pub counters: Counters,
    /// Pages saved: further mappings and zero pages.
    pub pages_saved: u64,
    /// What the scanner took of one CPU since the snapshot before; unknown in the first.
    pub scanner_cpu_percent: Option<f64>,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What the module says of it.
    #[serde(flatten)]
    pub vm: Vm,
    /// Its part of the saved pages, an estimate: see [`pages_saved`].
    pub pages_saved: u64,
}

impl Snapshot {
    /// Reads the state, and compares it with an earlier one.
    ///
    /// # Errors
    ///
    /// sysfs or debugfs cannot be read, or say what they must not say.
    pub fn take(host: &Host, before: Option<&Self>) -> Result<Self, Error> {
        let vms = vm::list(host)?;
        let counters = Counters::read(host)?;
        let taken = host.clock().now();
        let vms: Vec<Row> = vms
            .into_iter()
            .map(|vm| Row {
                pages_saved: pages_saved(&vm, &counters),
                vm,
            })
            .collect();
        let notes = notes(&counters, &vms);
        let cpu = before.and_then(|before| {
            let past = before.totals.counters.cpu_ns;
            cpu_percent(counters.cpu_ns.checked_sub(past)?, taken - before.taken)
        });
        Ok(Self {
            schema: SCHEMA,
            taken,
            totals: Totals {
                pages_saved: counters.pages_saved(),
                scanner_cpu_percent: cpu,
                counters,
            },
            vms,
            notes,
        })
    }
}

/// What share of one CPU `cpu_ns` is of the time `passed`, in percent with one decimal.
fn cpu_percent(cpu_ns: u64, passed: Duration) -> Option<f64> {
    let passed_ns = u64::try_from(passed.as_nanos()).ok()?;
    // CAST: For display.
    let permille = (cpu_ns as f64 * 1000.0 / passed_ns as f64).round();
    (passed_ns > 0).then_some(permille / 10.0)
}

/// The part of the saved pages that is due to `vm`.
///
/// A copy that n pages map saves n - 1 pages, which belong to no single VM. So every mapping of a
/// merged copy gets the same part of what all copies save; the parts then add up to the whole.
fn pages_saved(vm: &Vm, counters: &Counters) -> u64 {
    let sharing = u128::from(counters.pages_sharing);
    let mappings = sharing + u128::from(counters.pages_shared);
    let part = u128::from(vm.stats.pages_merged) * sharing / mappings.max(1);
    let part = u64::try_from(part).unwrap_or(u64::MAX);
    part.saturating_add(vm.stats.zero_pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_share_is_of_the_time_between() {
        let second = Duration::from_secs(1);
        assert_eq!(cpu_percent(50_000_000, second), Some(5.0));
        assert_eq!(cpu_percent(1_234_567, second), Some(0.1));
        assert_eq!(cpu_percent(1, Duration::ZERO), None);
    }
}
