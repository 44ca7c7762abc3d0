// SPDX-License-Identifier: GPL-2.0

//! Real guests that begin one after the other, watched for minutes: ksmd as it comes, Twinpage as it
//! comes, ksmd with a daemon that tunes it.

use std::fs;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_lab::oracle::Judgement;
use twinpage_lab::process::keep_lists_short;
use twinpage_lab::tap::Failure;

use crate::ksmtuned::Ksmtuned;
use crate::merger::{
    Merger,
    Setting,
    Which, //
};
use crate::minutes::{
    judge,
    load,
    moment,
    percent,
    Moment,
    JUDGED,
    LOOK, //
};
use crate::plot::{
    self,
    Corner,
    Line,
    Panel, //
};
use crate::real;
use crate::rows::Row;

/// How long they are watched.
const WATCHED: Duration = Duration::from_secs(600);

/// How long after one guest the next begins.
const APART: Duration = Duration::from_secs(20);

/// Pages of a MiB.
const MIB: f64 = 256.0;

/// Who is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Ksmd,
    Twinpage,
    Ksmtuned,
}

/// What one of the three did.
struct Run {
    /// With the pages that are saved, as far as the host has more free ones than without merging.
    moments: Vec<(Moment, usize)>,
    early: Judgement,
    late: Judgement,
}

impl Run {
    fn of(method: Method) -> Result<Run, Failure> {
        let which = match method {
            Method::Twinpage => Which::Twinpage,
            Method::Ksmd | Method::Ksmtuned => Which::Ksmd,
        };
        let mut tuned = (method == Method::Ksmtuned)
            .then(Ksmtuned::new)
            .transpose()?;
        let mut merger = Merger::idle(which, Setting::Default)?;
        merger.set("run", u8::from(tuned.is_none()))?;
        keep_lists_short()?;
        // This empties them, and makes room for huge pages.
        fs::write("/proc/sys/vm/compact_memory", "1")?;
        let mut moments = Vec::new();
        let mut early = None;
        let mut start = Instant::now();
        let mut unmerged = moment(&merger, start)?.free;
        while start.elapsed() < WATCHED {
            let count = merger.guests().len();
            if count < real::GUESTS && start.elapsed() >= APART * count as u32 {
                let (guest, touched) = real::guest(count)?;
                unmerged -= touched;
                merger.adopt(guest)?;
            }
            if let Some(tuned) = &mut tuned {
                tuned.look(&merger)?;
            }
            let now = moment(&merger, start)?;
            let saved = now.free.saturating_sub(unmerged);
            moments.push((now, saved));
            if start.elapsed() >= JUDGED && early.is_none() {
                early = Some(paused(&merger, &mut start)?);
            }
            std::thread::sleep(LOOK);
        }
        let late = paused(&merger, &mut start)?;
        merger.end()?;
        Ok(Run {
            moments,
            early: early.ok_or_else(|| Failure::Failed("nobody judged".into()))?,
            late,
        })
    }

    /// When so much of what is possible was saved.
    fn reached(&self, part: f64) -> f64 {
        let enough = part * self.late.possible as f64;
        let reached = self
            .moments
            .iter()
            .find(|(_, saved)| *saved as f64 >= enough);
        reached.map_or(f64::NAN, |(moment, _)| moment.at)
    }

    /// The load between two times, in seconds.
    fn load(&self, from: f64, to: f64) -> f64 {
        let at = |time| self.moments.iter().find(|(moment, _)| moment.at >= time);
        match (at(from), at(to).or(self.moments.last())) {
            (Some((from, _)), Some((to, _))) => load(from, to),
            _ => f64::NAN,
        }
    }

    /// Millions of instructions, of all the time.
    fn spent(&self) -> f64 {
        match (self.moments.first(), self.moments.last()) {
            (Some((from, _)), Some((to, _))) => (to.spent - from.spent) as f64 / 1e6,
            _ => f64::NAN,
        }
    }

    fn saved_line(&self) -> Vec<(f64, f64)> {
        let point = |(moment, saved): &(Moment, usize)| (moment.at, *saved as f64 / MIB);
        self.moments.iter().map(point).collect()
    }

    fn load_line(&self) -> Vec<(f64, f64)> {
        const SPAN: usize = 5;
        let spans = self.moments.windows(SPAN + 1).step_by(SPAN);
        spans
            .map(|span| (span[SPAN].0.at, load(&span[0].0, &span[SPAN].0)))
            .collect()
    }
}

/// Asks the oracle, while the merger rests and the clock stands still.
fn paused(merger: &Merger, start: &mut Instant) -> Result<Judgement, Failure> {
    let before = Instant::now();
    let run = merger.counter("run")?;
    merger.set("run", 0)?;
    let judgement = judge(merger)?;
    merger.set("run", run)?;
    *start += before.elapsed();
    Ok(judgement)
}

/// The memory of real guests that begin one after the other.
pub fn watched(_size: usize) -> Result<Vec<Row>, Failure> {
    let ksmd = Run::of(Method::Ksmd)?;
    let twinpage = Run::of(Method::Twinpage)?;
    let tuned = Run::of(Method::Ksmtuned)?;
    draw(&[
        ("ksmd", &ksmd),
        ("Twinpage", &twinpage),
        ("ksmd with ksmtuned", &tuned),
    ])?;
    let size = twinpage.late.mapped;
    let mut rows = Vec::new();
    for (peer, name) in [(&ksmd, "D4 real"), (&tuned, "D4 real, ksmtuned")] {
        let mut add = |metric: &str, unit: &str, value: &dyn Fn(&Run) -> f64| {
            let both = [value(peer), value(&twinpage)];
            rows.push(Row::of(metric, name, size, unit, both));
        };
        let unit = "% of possible";
        add("merged after 5 min", unit, &|run| percent(&run.early));
        add("merged after 10 min", unit, &|run| percent(&run.late));
        add("to 90 %", "emulated s", &|run| run.reached(0.9));
        add("huge pages kept", "MiB per MiB saved", &|run| {
            run.late.huge as f64 / run.late.merged as f64
        });
        add("spent in 10 min", "million instructions", &Run::spent);
        add("load, tenth minute", "% of a processor", &|run| {
            run.load(540.0, 600.0)
        });
    }
    Ok(rows)
}

fn draw(runs: &[(&'static str, &Run)]) -> Result<(), Failure> {
    let panel = |title: &str, y, legend, points: &dyn Fn(&Run) -> Vec<(f64, f64)>| Panel {
        title: title.into(),
        x: "emulated s",
        y,
        legend,
        lines: runs
            .iter()
            .map(|&(name, run)| Line {
                name,
                points: points(run),
            })
            .collect(),
    };
    let panels = [
        panel(
            "four real guests: saved",
            "MiB",
            Corner::LowerRight,
            &Run::saved_line,
        ),
        panel(
            "load of the scanner",
            "% of a processor",
            Corner::UpperRight,
            &Run::load_line,
        ),
    ];
    plot::draw("watched.svg", 1, &panels)
}
