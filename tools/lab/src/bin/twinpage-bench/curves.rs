// SPDX-License-Identifier: GPL-2.0

//! How memory comes together: what is saved, by what was spent on it and by when.

use std::time::Instant;

use twinpage_lab::tap::Failure;

use crate::data::Data;
use crate::measures::EACH;
use crate::merger::{
    Merger,
    Setting,
    BOTH, //
};
use crate::plot::{
    self,
    Corner,
    Line,
    Panel, //
};
use crate::rows::Row;

/// Passes without anything new after which nothing more will come.
const REST: i64 = 3;

/// What had been saved when so much had been spent.
struct Moment {
    spent: u64,
    /// Emulated seconds since the start.
    at: f64,
    saved: usize,
}

/// How memory came together.
pub struct Curve {
    moments: Vec<Moment>,
    possible: usize,
}

impl Curve {
    /// Lets the merger run until `enough` says so of the pages that are saved and of those that
    /// could be, and of the passes that were made since anything was.
    fn until(
        merger: &Merger,
        data: Data,
        size: usize,
        enough: impl Fn(usize, usize, i64) -> bool,
    ) -> Result<Curve, Failure> {
        let mut moments = vec![Moment {
            spent: 0,
            at: 0.0,
            saved: 0,
        }];
        let (before, start) = (merger.spent()?, Instant::now());
        let possible = data.possible(size);
        let mut changed = merger.counter("full_scans")?;
        merger.set("run", 1)?;
        merger.wait("rest", || {
            let saved = merger.saved()?;
            let passes = merger.counter("full_scans")?;
            if moments.last().is_none_or(|last| last.saved != saved) {
                changed = passes;
                moments.push(Moment {
                    spent: merger.spent()? - before,
                    at: start.elapsed().as_secs_f64(),
                    saved,
                });
            }
            Ok(enough(saved, possible, passes - changed))
        })?;
        merger.set("run", 0)?;
        Ok(Curve { moments, possible })
    }

    /// Lets the merger run until nothing is saved any more for some passes.
    pub fn of(merger: &Merger, data: Data, size: usize) -> Result<Curve, Failure> {
        Curve::until(merger, data, size, |_, _, passes| passes > REST)
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

    /// Its points, MiB saved over whatever.
    fn line(&self, name: &'static str, x: fn(&Moment) -> f64) -> Line {
        let point = |moment: &Moment| (x(moment), moment.saved as f64 / 256.0);
        Line {
            name,
            points: self.moments.iter().map(point).collect(),
        }
    }
}

const NAMES: [&str; 2] = ["ksmd", "Twinpage"];

/// A panel with the curves of both.
fn panel(title: String, x: &'static str, curves: &[Curve], value: fn(&Moment) -> f64) -> Panel {
    let lines = curves.iter().zip(NAMES);
    Panel {
        title,
        x,
        y: "MiB saved",
        legend: Corner::LowerRight,
        lines: lines.map(|(curve, name)| curve.line(name, value)).collect(),
    }
}

/// What it takes until equal pages are one, all passes together.
pub fn merge(size: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let mut panels = Vec::new();
    for data in [Data::Equal, Data::Copies, Data::Mixed] {
        let mut curves = Vec::new();
        for which in BOTH {
            let merger = Merger::new(which, Setting::Full, data.guests(size)?)?;
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
        let title = format!("{}, {size} pages", data.name());
        panels.push(panel(title, "million instructions", &curves, |moment| {
            moment.spent as f64 / 1e6
        }));
    }
    plot::draw(&format!("merge-{size}.svg"), panels.len(), &panels)?;
    Ok(rows)
}

/// How long a user waits who sets nothing; and one who turns ksmd's advisor on, which Twinpage's is.
pub fn default(size: usize) -> Result<Vec<Row>, Failure> {
    let data = Data::Copies;
    let mut rows = Vec::new();
    let mut panels = Vec::new();
    for (setting, metric) in [
        (Setting::Default, "defaults, to 90 %"),
        (Setting::Advisor, "with advisor, to 90 %"),
    ] {
        let mut curves = Vec::new();
        for which in BOTH {
            let merger = Merger::new(which, setting, data.guests(size)?)?;
            let most = |saved, possible, _| saved * 100 >= possible * 99;
            curves.push(Curve::until(&merger, data, size, most)?);
            merger.end()?;
        }
        let seconds = [0, 1].map(|index: usize| {
            let reached = curves[index].reached(0.9);
            reached.map_or(f64::NAN, |moment| moment.at)
        });
        rows.push(Row::of(metric, data.name(), size, "emulated s", seconds));
        let title = format!("{metric}: {}, {size} pages", data.name());
        panels.push(panel(title, "emulated s", &curves, |moment| moment.at));
    }
    plot::draw(&format!("default-{size}.svg"), panels.len(), &panels)?;
    Ok(rows)
}
