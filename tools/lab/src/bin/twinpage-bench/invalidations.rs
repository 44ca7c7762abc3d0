// SPDX-License-Identifier: GPL-2.0

//! How long a virtual CPU may be held off. From the begin of an invalidation to its end KVM lets no
//! fault of a guest in that range through (virt/kvm/kvm_main.c, `kvm_mmu_invalidate_begin`).

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::mount::{
    mount,
    MsFlags, //
};
use twinpage_lab::ensure;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::data::Data;
use crate::merger::{
    Merger,
    Setting,
    Which, //
};
use crate::rows::Row;

const TRACING: &str = "/sys/kernel/tracing";

/// Two events of the name that follows, where an invalidation begins and where it ends.
const PROBES: &str = "\
p:twinpage/begin __mmu_notifier_invalidate_range_start
p:twinpage/end __mmu_notifier_invalidate_range_end
";
const EVENTS: &str = "events/twinpage";

/// Room for what is traced in a measurement.
const BUFFER_KIB: usize = 32 << 10;

/// The longest invalidation while memory came together, with as many pages at once as it comes with
/// and with fewer.
pub fn longest(size: usize) -> Result<Vec<Row>, Failure> {
    if !Path::new(TRACING).join("trace").exists() {
        let (none, type_) = (None::<&str>, Some("tracefs"));
        mount(none, TRACING, type_, MsFlags::empty(), none)?;
    }
    tell("buffer_size_kb", BUFFER_KIB)?;
    tell("kprobe_events", PROBES)?;
    let ksmd = traced(Which::Ksmd, None, size)?;
    let mut rows = Vec::new();
    for batch in [None, Some(8), Some(1)] {
        let data = Data::Copies.name();
        let data = batch.map_or(data.into(), |batch| format!("{data}, merge_batch {batch}"));
        let both = [ksmd, traced(Which::Twinpage, batch, size)?];
        let unit = "thousand instructions";
        rows.push(Row::of("longest invalidation", &data, size, unit, both));
    }
    tell("kprobe_events", "")?;
    Ok(rows)
}

/// How long the longest invalidation took, in microseconds.
fn traced(which: Which, batch: Option<u32>, size: usize) -> Result<f64, Failure> {
    const REST: Duration = Duration::from_secs(1);
    let data = Data::Copies;
    let merger = Merger::new(which, Setting::Full, data.guests(size)?)?;
    if let Some(batch) = batch {
        merger.set("merge_batch", batch)?;
    }
    let filter = format!("common_pid == {}", merger.thread());
    tell(&format!("{EVENTS}/filter"), filter)?;
    tell("trace", "")?;
    tell(&format!("{EVENTS}/enable"), 1)?;
    merger.set("run", 1)?;
    // Whoever looks meanwhile takes the processor away.
    while merger.saved()? < data.possible(size) {
        std::thread::sleep(REST);
    }
    merger.set("run", 0)?;
    tell(&format!("{EVENTS}/enable"), 0)?;
    let trace = fs::read_to_string(Path::new(TRACING).join("trace"))?;
    merger.end()?;
    let took = durations(&trace);
    ensure!(!took.is_empty(), "{which:?} invalidated nothing");
    Ok(took.into_iter().fold(0.0, f64::max))
}

/// Writes a setting of the tracer.
fn tell(setting: &str, value: impl ToString) -> Outcome {
    let path = Path::new(TRACING).join(setting);
    fs::write(&path, value.to_string())
        .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

/// From each begin to the end that follows, in microseconds.
fn durations(trace: &str) -> Vec<f64> {
    let (mut took, mut begun) = (Vec::new(), None);
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        match event(line) {
            Some((time, "begin")) => begun = Some(time),
            Some((time, "end")) => took.extend(begun.take().map(|begun| (time - begun) * 1e6)),
            _ => {}
        }
    }
    took
}

/// The time of an event, in seconds, and its name.
fn event(line: &str) -> Option<(f64, &str)> {
    let (head, rest) = line.split_once(": ")?;
    let time = head.split_whitespace().next_back()?.parse().ok()?;
    Some((time, rest.split_once(':')?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
        ksmd-31      [000] ...1.    12.000100: begin: (__mmu_notifier_invalidate_range_start+0x0/0x40)
        ksmd-31      [000] ...1.    12.000125: end: (__mmu_notifier_invalidate_range_end+0x0/0x40)
        ksmd-31      [000] ...1.    12.000300: end: (__mmu_notifier_invalidate_range_end+0x0/0x40)
        ksmd-31      [000] ...1.    12.000500: begin: (__mmu_notifier_invalidate_range_start+0x0/0x40)
        ksmd-31      [000] ...1.    12.000504: end: (__mmu_notifier_invalidate_range_end+0x0/0x40)
";

    #[test]
    fn an_end_belongs_to_the_begin_before_it() {
        let rounded: Vec<_> = durations(TRACE).into_iter().map(f64::round).collect();
        assert_eq!(rounded, [25.0, 4.0]);
    }
}
