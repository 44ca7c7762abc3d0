// SPDX-License-Identifier: GPL-2.0

//! What is measured.

use std::fs;
use std::time::Instant;

use twinpage_lab::module::DEBUGFS;
use twinpage_lab::tap::Failure;

use crate::data::{
    rewrite,
    Data, //
};
use crate::merger::{
    Merger,
    Setting,
    Which,
    BOTH, //
};
use crate::rows::Row;

/// One kind of measurement, for memory of so many pages.
pub struct Measure {
    /// Its name for `--only`.
    pub name: &'static str,
    /// Makes it.
    pub run: fn(usize) -> Result<Vec<Row>, Failure>,
}

/// All of them.
pub const MEASURES: &[Measure] = &[
    Measure {
        name: "look",
        run: look,
    },
    Measure {
        name: "smart",
        run: smart,
    },
    Measure {
        name: "volatile",
        run: volatile,
    },
    Measure {
        name: "merge",
        run: merge,
    },
    Measure {
        name: "default",
        run: default,
    },
    Measure {
        name: "write",
        run: write,
    },
    Measure {
        name: "unmerge",
        run: unmerge,
    },
    Measure {
        name: "metadata",
        run: metadata,
    },
    Measure {
        name: "digests",
        run: digests,
    },
];

/// Passes after which nothing new is known of pages that nobody writes, and those measured then.
const SETTLE: i64 = 5;
const MEASURED: i64 = 6;

/// Passes after which pages are left out as often as they will ever be, and those measured then.
const SETTLE_SMART: i64 = 40;
const MEASURED_SMART: i64 = 64;

const EACH: &str = "instructions/page";

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
    [Data::Unique, Data::Tail, Data::Zero, Data::Copies]
        .into_iter()
        .map(row)
        .collect()
}

/// What a pass costs while every page is rewritten all the time.
fn volatile(size: usize) -> Result<Vec<Row>, Failure> {
    let cost = both(|which| {
        let merger = over(which, Setting::Full, Data::Unique, size)?;
        let passes = |count: i64| -> Result<(i64, u64), Failure> {
            let end = merger.counter("full_scans")? + count;
            while merger.counter("full_scans")? < end {
                rewrite(merger.guests());
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
    Ok(vec![Row::of("look", "volatile", size, EACH, cost)])
}

/// What had been saved when so much had been spent.
struct Moment {
    spent: u64,
    saved: usize,
}

/// How memory came together.
struct Curve {
    moments: Vec<Moment>,
    possible: usize,
}

impl Curve {
    /// Lets the merger run until nothing is saved any more for some passes.
    fn of(merger: &Merger, data: Data, size: usize) -> Result<Curve, Failure> {
        const REST: i64 = 3;
        let mut moments: Vec<Moment> = Vec::new();
        let before = merger.spent()?;
        let mut changed = merger.counter("full_scans")?;
        let first = changed;
        merger.set("run", 1)?;
        merger.wait("rest", || {
            let saved = merger.saved()?;
            let passes = merger.counter("full_scans")?;
            if moments.last().is_none_or(|last| last.saved != saved) {
                changed = passes;
                moments.push(Moment {
                    spent: merger.spent()? - before,
                    saved,
                });
            }
            Ok(passes > changed + REST && passes > first + REST)
        })?;
        merger.set("run", 0)?;
        Ok(Curve {
            moments,
            possible: data.possible(size),
        })
    }

    /// The first moment at which this part of what is possible was saved.
    fn reached(&self, part: f64) -> Option<&Moment> {
        let enough = part * self.possible as f64;
        self.moments
            .iter()
            .find(|moment| moment.saved as f64 >= enough)
    }

    /// The part of what is possible that was saved in the end.
    fn part(&self) -> f64 {
        let saved = self.moments.last().map_or(0, |moment| moment.saved);
        saved as f64 / self.possible as f64
    }
}

/// What it takes until equal pages are one, all passes together.
fn merge(size: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for data in [Data::Equal, Data::Copies, Data::Mixed] {
        let mut curves = Vec::new();
        for which in BOTH {
            let merger = over(which, Setting::Full, data, size)?;
            curves.push(Curve::of(&merger, data, size)?);
            merger.end()?;
        }
        // Never reached is no number, which a table shows as such.
        let at = |part: f64, value: fn(&Moment) -> f64| {
            [0, 1].map(|index: usize| curves[index].reached(part).map_or(f64::NAN, value))
        };
        for part in [0.5, 0.9, 0.99] {
            let metric = format!("spent to {:.0} %", part * 100.0);
            let spent = at(part, |moment| moment.spent as f64 / 1e6);
            rows.push(Row::of(
                &metric,
                data.name(),
                size,
                "million instructions",
                spent,
            ));
        }
        let each = at(0.99, |moment| moment.spent as f64 / moment.saved as f64);
        rows.push(Row::of("merge", data.name(), size, EACH, each));
        let part = [0, 1].map(|index: usize| 100.0 * curves[index].part());
        rows.push(Row::of("merged", data.name(), size, "% of possible", part));
    }
    Ok(rows)
}

/// How long a user waits who sets nothing.
fn default(size: usize) -> Result<Vec<Row>, Failure> {
    let data = Data::Copies;
    let seconds = both(|which| {
        let merger = over(which, Setting::Default, data, size)?;
        let (start, enough) = (Instant::now(), data.possible(size) * 9 / 10);
        merger.set("run", 1)?;
        merger.wait("90 %", || Ok(merger.saved()? >= enough))?;
        let seconds = start.elapsed().as_secs_f64();
        merger.end()?;
        Ok(seconds)
    })?;
    let metric = "defaults, to 90 %";
    Ok(vec![Row::of(
        metric,
        data.name(),
        size,
        "emulated s",
        seconds,
    )])
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

/// What reading the digests of all pages takes, when they must be computed and when they are known.
fn digests(size: usize) -> Result<Vec<Row>, Failure> {
    let merger = merged(Which::Twinpage, size)?;
    let read = || -> Result<f64, Failure> {
        let start = Instant::now();
        for directory in fs::read_dir(DEBUGFS)?.flatten() {
            let file = directory.path().join("digests");
            if file.exists() {
                fs::read(file)?;
            }
        }
        Ok(start.elapsed().as_nanos() as f64 / size as f64)
    };
    let (cold, cached) = (read()?, read()?);
    merger.end()?;
    let row = |metric: &str, value| Row::alone(metric, Data::Copies.name(), size, EACH, value);
    Ok(vec![
        row("digest, cold", cold),
        row("digest, cached", cached),
    ])
}
