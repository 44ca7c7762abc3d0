// SPDX-License-Identifier: GPL-2.0

//! What becomes of memory over minutes, when nobody sets anything.

use std::time::{
    Duration,
    Instant, //
};

use twinpage_lab::oracle::{
    Judgement,
    Snapshot, //
};
use twinpage_lab::process::field;
use twinpage_lab::tap::Failure;

use crate::data::{
    rewrite_some,
    Data, //
};
use crate::merger::{
    Mergeable,
    Merger,
    Setting,
    BOTH, //
};
use crate::rows::Row;

/// How often it is looked how far things are, and a tenth of D5 is rewritten.
pub const LOOK: Duration = Duration::from_secs(1);

/// When it is judged what is merged.
pub const JUDGED: Duration = Duration::from_secs(300);

/// Of D5, one page of so many is rewritten each second.
const REWRITTEN: usize = 10;

/// What there was at a moment.
pub struct Moment {
    /// Emulated seconds since the start.
    pub at: f64,
    /// Instructions of the merger's thread.
    pub spent: u64,
    /// Pages that are free, of the whole host.
    pub free: usize,
}

/// What an oracle says, which knows pages by their bytes and frames alone.
pub fn judge<G: Mergeable>(merger: &Merger<G>) -> Result<Judgement, Failure> {
    let ranges: Vec<_> = merger.guests().iter().map(Mergeable::ram).collect();
    Ok(Snapshot::of(&ranges)?.judge())
}

/// Saved pages of a hundred possible ones.
pub fn percent(judgement: &Judgement) -> f64 {
    100.0 * judgement.merged as f64 / judgement.possible as f64
}

/// How far it is.
pub fn moment<G: Mergeable>(merger: &Merger<G>, start: Instant) -> Result<Moment, Failure> {
    Ok(Moment {
        at: start.elapsed().as_secs_f64(),
        spent: merger.spent()?,
        free: field("/proc/meminfo", "MemFree")? as usize / 4,
    })
}

/// Of a processor, the percentage that was used between two moments.
pub fn load(from: &Moment, to: &Moment) -> f64 {
    (to.spent - from.spent) as f64 / (to.at - from.at) / 1e7
}

/// Guests that hold the same, of which a tenth is rewritten each second.
pub fn rewritten(size: usize) -> Result<Vec<Row>, Failure> {
    let mut percents = Vec::new();
    let mut loads = Vec::new();
    for which in BOTH {
        let guests = Data::Copies.guests(size)?;
        let merger = Merger::new(which, Setting::Default, guests)?;
        let start = Instant::now();
        merger.set("run", 1)?;
        let mut minute = moment(&merger, start)?;
        for second in 0.. {
            rewrite_some(merger.guests(), REWRITTEN, second);
            std::thread::sleep(LOOK);
            if start.elapsed() < JUDGED - Duration::from_secs(60) {
                minute = moment(&merger, start)?;
            }
            if start.elapsed() >= JUDGED {
                break;
            }
        }
        loads.push(load(&minute, &moment(&merger, start)?));
        percents.push(percent(&judge(&merger)?));
        merger.end()?;
    }
    let row = |metric, unit, values: Vec<f64>| {
        Row::of(metric, "D5 rewritten", size, unit, [values[0], values[1]])
    };
    Ok(vec![
        row("merged after 5 min", "% of possible", percents),
        row("load, fifth minute", "% of a processor", loads),
    ])
}
