// SPDX-License-Identifier: GPL-2.0

//! What is measured.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::slice;
use std::time::Instant;

use twinpage_lab::module::DEBUGFS;
use twinpage_lab::tap::Failure;

use crate::boot;
use crate::curves::{
    self,
    Curve, //
};
use crate::data::{
    rewrite,
    Data,
    GUESTS,
    UNSAMPLED, //
};
use crate::invalidations;
use crate::locks;
use crate::merger::{
    Merger,
    Setting,
    Which,
    BOTH, //
};
use crate::minutes;
use crate::real;
use crate::rows::Row;

/// Which host a measurement is made on (`scripts/bench.sh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The stock kernel.
    Stock,
    /// The same with the memory of real guests on disks.
    Real,
    /// One with the disk of a Debian that counts no instructions.
    Boot,
    /// The debug kernel.
    Debug,
}

impl Host {
    /// All of them.
    pub const ALL: [Host; 4] = [Host::Stock, Host::Real, Host::Boot, Host::Debug];

    /// Its name for `--host`.
    pub fn name(self) -> &'static str {
        match self {
            Host::Stock => "stock",
            Host::Real => "real",
            Host::Boot => "boot",
            Host::Debug => "debug",
        }
    }
}

/// One kind of measurement, for memory of so many pages.
pub struct Measure {
    /// Its name for `--only`.
    pub name: &'static str,
    /// Where it is made.
    pub host: Host,
    /// Makes it.
    pub run: fn(usize) -> Result<Vec<Row>, Failure>,
}

const fn measure(
    name: &'static str,
    host: Host,
    run: fn(usize) -> Result<Vec<Row>, Failure>,
) -> Measure {
    Measure { name, host, run }
}

/// All of them.
pub const MEASURES: &[Measure] = &[
    measure("look", Host::Stock, look),
    measure("smart", Host::Stock, smart),
    measure("volatile", Host::Stock, volatile),
    measure("merge", Host::Stock, curves::merge),
    measure("default", Host::Stock, curves::default),
    measure("rewritten", Host::Stock, minutes::rewritten),
    measure("write", Host::Stock, write),
    measure("unmerge", Host::Stock, unmerge),
    measure("invalidations", Host::Stock, invalidations::longest),
    measure("metadata", Host::Stock, metadata),
    measure("digests", Host::Stock, digests),
    measure("real", Host::Real, real::real),
    measure("boot", Host::Boot, boot::boot),
    measure("locks", Host::Debug, locks::held),
];

/// Passes after which nothing new is known of pages that nobody writes, and those measured then.
const SETTLE: i64 = 5;
const MEASURED: i64 = 6;

/// Passes after which pages are left out as often as they will ever be, and those measured then.
const SETTLE_SMART: i64 = 40;
const MEASURED_SMART: i64 = 64;

/// The unit of most.
pub const EACH: &str = "instructions/page";

/// The same measurement with either.
fn both(measure: impl Fn(Which) -> Result<f64, Failure>) -> Result<[f64; 2], Failure> {
    Ok([measure(BOTH[0])?, measure(BOTH[1])?])
}

/// A merger with guests that hold this.
fn over(which: Which, setting: Setting, data: Data, size: usize) -> Result<Merger, Failure> {
    Merger::new(which, setting, data.guests(size)?)
}

/// What a pass costs when nothing has changed and every page is looked at.
fn look(size: usize) -> Result<Vec<Row>, Failure> {
    steady("look", Setting::Full, SETTLE, MEASURED, size)
}

/// The same when pages that did not merge are left out.
fn smart(size: usize) -> Result<Vec<Row>, Failure> {
    steady(
        "look, smart_scan",
        Setting::Smart,
        SETTLE_SMART,
        MEASURED_SMART,
        size,
    )
}

fn steady(
    metric: &str,
    setting: Setting,
    settle: i64,
    measured: i64,
    size: usize,
) -> Result<Vec<Row>, Failure> {
    let row = |data: Data| {
        let cost = both(|which| {
            let merger = over(which, setting, data, size)?;
            merger.passes(settle)?;
            let cost = merger.passes(measured)?;
            merger.end()?;
            Ok(cost / size as f64)
        })?;
        Ok(Row::of(metric, data.name(), size, EACH, cost))
    };
    [
        Data::Unique,
        Data::Tail,
        Data::Unsampled,
        Data::Zero,
        Data::Copies,
    ]
    .into_iter()
    .map(row)
    .collect()
}

/// What a pass costs while every page is rewritten all the time: where Twinpage's sample of it is,
/// where it is not, and there in pages that all have one sample.
fn volatile(size: usize) -> Result<Vec<Row>, Failure> {
    let unsampled = UNSAMPLED.start;
    Ok(vec![
        rewritten_at(0, Data::Unique, "volatile", size)?,
        rewritten_at(unsampled, Data::Unique, "volatile, unsampled", size)?,
        rewritten_at(unsampled, Data::Unsampled, "volatile, one sample", size)?,
    ])
}

/// What a pass costs while that word of every page is rewritten all the time.
fn rewritten_at(word: usize, data: Data, name: &str, size: usize) -> Result<Row, Failure> {
    let cost = both(|which| {
        let merger = over(which, Setting::Full, data, size)?;
        // All of it is rewritten while they rest.
        merger.set("pages_to_scan", size)?;
        merger.set("sleep_millisecs", 200)?;
        let passes = |count: i64| -> Result<(i64, u64), Failure> {
            let end = merger.counter("full_scans")? + count;
            while merger.counter("full_scans")? < end {
                rewrite(merger.guests(), word);
            }
            Ok((merger.counter("full_scans")?, merger.spent()?))
        };
        merger.set("run", 1)?;
        let start = passes(2)?;
        let end = passes(4)?;
        let cost = (end.1 - start.1) as f64 / (end.0 - start.0) as f64;
        merger.end()?;
        Ok(cost / size as f64)
    })?;
    Ok(Row::of("look", name, size, EACH, cost))
}

/// Equal pages, merged; and nothing goes on.
fn merged(which: Which, size: usize) -> Result<Merger, Failure> {
    let merger = over(which, Setting::Full, Data::Copies, size)?;
    Curve::of(&merger, Data::Copies, size)?;
    Ok(merger)
}

/// What a write to a merged page takes, with the fault and the two looks at the clock.
fn write(size: usize) -> Result<Vec<Row>, Failure> {
    let mut took = Vec::new();
    for which in BOTH {
        let merger = merged(which, size)?;
        let memory = &merger.guests()[0].memory;
        let mut each: Vec<_> = (0..memory.pages())
            .map(|page| {
                let start = Instant::now();
                memory.set_word(page, 1, 1);
                start.elapsed().as_nanos() as f64
            })
            .collect();
        each.sort_by(f64::total_cmp);
        took.push(each);
        merger.end()?;
    }
    let row = |(name, part): (&str, f64)| {
        let value = [0, 1].map(|index: usize| {
            let each: &Vec<f64> = &took[index];
            each[((each.len() - 1) as f64 * part) as usize]
        });
        Row::of(name, Data::Copies.name(), size, "instructions", value)
    };
    let parts = [
        ("write p50", 0.5),
        ("write p99", 0.99),
        ("write p99.9", 0.999),
    ];
    Ok(parts.map(row).to_vec())
}

/// What it takes to give every page its frame back.
fn unmerge(size: usize) -> Result<Vec<Row>, Failure> {
    let cost = both(|which| {
        let merger = merged(which, size)?;
        let saved = merger.saved()?;
        let start = Instant::now();
        merger.set("run", 2)?;
        let took = start.elapsed().as_nanos() as f64;
        let left = merger.saved()?;
        if left > 0 {
            return Err(Failure::Failed(format!("{left} pages are still merged")));
        }
        merger.end()?;
        Ok(took / saved as f64)
    })?;
    Ok(vec![Row::of(
        "unmerge",
        Data::Copies.name(),
        size,
        EACH,
        cost,
    )])
}

/// What the records take.
fn metadata(size: usize) -> Result<Vec<Row>, Failure> {
    let row = |data: Data| {
        let bytes = both(|which| {
            let merger = over(which, Setting::Full, data, size)?;
            let before = slabs()?;
            merger.passes(SETTLE)?;
            let bytes = match merger.which() {
                Which::Ksmd => slabs()?.saturating_sub(before) as f64,
                Which::Twinpage => merger.counter("metadata_bytes")? as f64,
            };
            merger.end()?;
            Ok(bytes / size as f64)
        })?;
        Ok(Row::of("records", data.name(), size, "bytes/page", bytes))
    };
    [Data::Unique, Data::Copies].into_iter().map(row).collect()
}

/// Bytes of ksmd's slab caches, which the kernel keeps apart with `slab_nomerge`.
fn slabs() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/slabinfo")?;
    let bytes = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        // Slabs, with what is left over in them, each of some pages.
        let slabs = number(words.len().checked_sub(2)?)?;
        Some(slabs * number(5)? * 4096)
    };
    let ksm = text.lines().filter(|line| line.starts_with("ksm_"));
    Ok(ksm.filter_map(bytes).sum())
}

/// What reading digests takes: of one VM, none of whose copies has one yet; of all the others, whose
/// copies are the same; of all of them once they are known.
fn digests(size: usize) -> Result<Vec<Row>, Failure> {
    let merger = merged(Which::Twinpage, size)?;
    let files = fs::read_dir(DEBUGFS)?.flatten();
    let files = files.map(|directory| directory.path().join("digests"));
    let files: Vec<_> = files.filter(|file| file.exists()).collect();
    let Some((first, others)) = files.split_first() else {
        return Err(Failure::Failed("no VM shows its digests".into()));
    };
    let cold = read_digests(slice::from_ref(first), size)?;
    let found = read_digests(others, size)?;
    let cached = read_digests(&files, size)?;
    merger.end()?;
    let row = |metric: &str, value| Row::alone(metric, Data::Copies.name(), size, EACH, value);
    Ok(vec![
        row("digest, cold", cold),
        row("digest, found by another VM", found),
        row("digest, cached", cached),
    ])
}

/// The time that reading some of the files of [`GUESTS`] VMs takes, for each page of theirs.
fn read_digests(files: &[PathBuf], size: usize) -> Result<f64, Failure> {
    // As much as the tool reads at once. It is in memory, so that no page fault is counted.
    let mut room = vec![1; 64 << 10];
    let start = Instant::now();
    for file in files {
        let mut file = fs::File::open(file)?;
        while file.read(&mut room)? > 0 {}
    }
    let pages = size * files.len() / GUESTS;
    Ok(start.elapsed().as_nanos() as f64 / pages as f64)
}
