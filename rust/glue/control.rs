// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/mm/twinpage`: settings and counters.
//!
//! `Documentation/ABI/sysfs-kernel-mm-twinpage` describes each file.

use super::shared::Shared;
use crate::{
    engine::{
        knobs::{
            Knob,
            Run, //
        },
        stats::Gauge, //
    },
    sys::sysfs::{
        File,
        Serve, //
    },
};
use core::fmt::Write;
use kernel::{
    prelude::*,
    str::Formatter, //
};

/// Modes: nobody but root reads, as a count of merged pages tells what is in guests.
const READ_WRITE: u16 = 0o600;
const READ_ONLY: u16 = 0o400;

/// What a file shows.
#[derive(Clone, Copy)]
enum Shows {
    Knob(Knob),
    PagesShared,
    PagesSharing,
    PagesUnshared,
    PagesVolatile,
    PagesSkipped,
    PagesScanned,
    ZeroPages,
    FullScans,
    GeneralProfit,
    CpuNs,
    MetadataBytes,
    Features,
}

const fn knob(name: &'static CStr) -> File {
    let mode = READ_WRITE;
    File { name, mode }
}

const fn counter(name: &'static CStr) -> File {
    let mode = READ_ONLY;
    File { name, mode }
}

/// Every file; [`SHOWS`] says, in the same order, what each shows.
pub(crate) static FILES: [File; 25] = [
    knob(c"run"),
    knob(c"pages_to_scan"),
    knob(c"sleep_millisecs"),
    knob(c"use_zero_pages"),
    knob(c"smart_scan"),
    knob(c"max_page_sharing"),
    knob(c"merge_across_nodes"),
    knob(c"advisor_mode"),
    knob(c"advisor_max_cpu"),
    knob(c"thp_split_threshold"),
    knob(c"merge_batch"),
    knob(c"max_break_rate"),
    knob(c"unmerge_on_exit"),
    counter(c"pages_shared"),
    counter(c"pages_sharing"),
    counter(c"pages_unshared"),
    counter(c"pages_volatile"),
    counter(c"pages_skipped"),
    counter(c"pages_scanned"),
    counter(c"zero_pages"),
    counter(c"full_scans"),
    counter(c"general_profit"),
    counter(c"cpu_ns"),
    counter(c"metadata_bytes"),
    counter(c"features"),
];

/// What the files show.
static SHOWS: [Shows; FILES.len()] = [
    Shows::Knob(Knob::Run),
    Shows::Knob(Knob::PagesToScan),
    Shows::Knob(Knob::SleepMillisecs),
    Shows::Knob(Knob::UseZeroPages),
    Shows::Knob(Knob::SmartScan),
    Shows::Knob(Knob::MaxPageSharing),
    Shows::Knob(Knob::MergeAcrossNodes),
    Shows::Knob(Knob::AdvisorMode),
    Shows::Knob(Knob::AdvisorMaxCpu),
    Shows::Knob(Knob::ThpSplitThreshold),
    Shows::Knob(Knob::MergeBatch),
    Shows::Knob(Knob::MaxBreakRate),
    Shows::Knob(Knob::UnmergeOnExit),
    Shows::PagesShared,
    Shows::PagesSharing,
    Shows::PagesUnshared,
    Shows::PagesVolatile,
    Shows::PagesSkipped,
    Shows::PagesScanned,
    Shows::ZeroPages,
    Shows::FullScans,
    Shows::GeneralProfit,
    Shows::CpuNs,
    Shows::MetadataBytes,
    Shows::Features,
];

impl Serve for Shared {
    fn show(&self, file: usize, page: &mut [u8]) -> Result<usize> {
        let shows = *SHOWS.get(file).ok_or(ENOENT)?;
        let mut out = Formatter::new(page);
        self.write(shows, &mut out).map_err(|_| ENOSPC)?;
        Ok(out.bytes_written())
    }

    fn store(&self, file: usize, text: &[u8]) -> Result {
        let Shows::Knob(knob) = *SHOWS.get(file).ok_or(ENOENT)? else {
            return Err(EACCES);
        };
        let run = {
            let mut state = self.state.lock();
            let mut knobs = state.knobs;
            knobs.store(knob, text)?;
            // Copies that are shared across nodes would stay so: KSM refuses as well.
            let moved = knobs.merge_across_nodes != state.knobs.merge_across_nodes;
            if moved && state.totals().shared > 0 {
                return Err(EBUSY);
            }
            state.knobs = knobs;
            knobs.run
        };
        self.ring();
        if matches!(knob, Knob::Run) && run == Run::Unmerge {
            self.unmerge_all().inspect_err(|_| {
                let run = &mut self.state.lock().knobs.run;
                // Unless somebody has set it meanwhile.
                if *run == Run::Unmerge {
                    *run = Run::Stop;
                }
            })?;
        }
        Ok(())
    }
}

impl Shared {
    fn write(&self, shows: Shows, out: &mut impl Write) -> core::fmt::Result {
        let totals = || self.state.lock().totals();
        let gauge = |gauge| totals().gauges.get(gauge);
        match shows {
            Shows::Knob(knob) => {
                let knobs = self.state.lock().knobs;
                writeln!(out, "{}", knobs.show(knob))
            }
            Shows::PagesShared => writeln!(out, "{}", totals().shared),
            Shows::PagesSharing => writeln!(out, "{}", totals().sharing()),
            Shows::PagesUnshared => writeln!(out, "{}", gauge(Gauge::Unshared)),
            Shows::PagesVolatile => writeln!(out, "{}", gauge(Gauge::Volatile)),
            Shows::PagesSkipped => writeln!(out, "{}", totals().counters.skipped),
            Shows::PagesScanned => writeln!(out, "{}", totals().counters.scanned),
            Shows::ZeroPages => writeln!(out, "{}", gauge(Gauge::Zero)),
            Shows::FullScans => writeln!(out, "{}", self.state.lock().full_scans()),
            Shows::GeneralProfit => writeln!(out, "{}", totals().general_profit()),
            Shows::CpuNs => writeln!(out, "{}", totals().counters.cpu_ns),
            Shows::MetadataBytes => writeln!(out, "{}", totals().metadata_bytes),
            Shows::Features => self.write_features(out),
        }
    }

    fn write_features(&self, out: &mut impl Write) -> core::fmt::Result {
        let features = [
            ("thp_split", self.symbols.has_split()),
            ("free_swap", self.symbols.has_free_swap()),
            ("lru_drain", self.symbols.has_lru_drain()),
        ];
        for (name, available) in features {
            let state = if available { "available" } else { "missing" };
            writeln!(out, "{name} {state}")?;
        }
        Ok(())
    }
}
