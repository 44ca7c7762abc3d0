// SPDX-License-Identifier: GPL-2.0

//! Guests that begin one after the other, watched for minutes: with ksmd as it comes, with Twinpage as
//! it comes, with ksmd and a daemon that tunes it, and with nobody who merges.

use std::fs;
use std::time::{
    Duration,
    Instant, //
};

use nix::sys::signal::{
    kill,
    Signal, //
};
use nix::unistd::Pid;
use twinpage_lab::oracle::Judgement;
use twinpage_lab::process::keep_lists_short;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::ksmtuned::Ksmtuned;
use crate::merger::{
    Mergeable,
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
use crate::rows::Row;

/// How many guests there are.
pub const GUESTS: usize = 4;

/// How long they are watched.
const WATCHED: Duration = Duration::from_secs(600);

/// How long after one guest the next begins.
const APART: Duration = Duration::from_secs(20);

/// Pages of a MiB.
const MIB: f64 = 256.0;

/// Who merges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Ksmd,
    Twinpage,
    Ksmtuned,
    Nobody,
}

/// What became of memory with one of them.
struct Run {
    moments: Vec<Moment>,
    early: Judgement,
    late: Judgement,
}

impl Run {
    fn of<G: Mergeable>(
        method: Method,
        begin: impl Fn(usize) -> Result<G, Failure>,
    ) -> Result<Run, Failure> {
        let which = match method {
            Method::Twinpage => Which::Twinpage,
            Method::Ksmd | Method::Ksmtuned | Method::Nobody => Which::Ksmd,
        };
        let mut tuned = (method == Method::Ksmtuned)
            .then(Ksmtuned::new)
            .transpose()?;
        let mut merger = Merger::idle(which, Setting::Default)?;
        let runs = matches!(method, Method::Ksmd | Method::Twinpage);
        merger.set("run", u8::from(runs))?;
        keep_lists_short()?;
        // This empties them, and makes room for huge pages.
        fs::write("/proc/sys/vm/compact_memory", "1")?;
        let mut moments = Vec::new();
        let mut early = None;
        let mut start = Instant::now();
        while start.elapsed() < WATCHED {
            moments.push(moment(&merger, start)?);
            let count = merger.guests().len();
            if count < GUESTS && start.elapsed() >= APART * count as u32 {
                merger.adopt(begin(count)?)?;
            }
            if let Some(tuned) = &mut tuned {
                tuned.look(&merger)?;
            }
            if start.elapsed() >= JUDGED && early.is_none() {
                early = Some(paused(&merger, &mut start)?);
            }
            std::thread::sleep(LOOK);
        }
        moments.push(moment(&merger, start)?);
        let late = paused(&merger, &mut start)?;
        merger.end()?;
        Ok(Run {
            moments,
            early: early.ok_or_else(|| Failure::Failed("nobody judged".into()))?,
            late,
        })
    }

    /// What there was at a time, in seconds.
    fn at(&self, time: f64) -> &Moment {
        let later = self.moments.partition_point(|moment| moment.at < time);
        &self.moments[later.min(self.moments.len() - 1)]
    }

    /// Pages that the host had given out.
    fn used(&self, moment: &Moment) -> f64 {
        self.moments[0].free as f64 - moment.free as f64
    }

    /// The load between two times.
    fn load(&self, from: f64, to: f64) -> f64 {
        load(self.at(from), self.at(to))
    }

    /// Milliseconds of a processor, of all the time.
    fn spent(&self) -> f64 {
        (self.at(f64::INFINITY).spent - self.moments[0].spent) as f64 / 1e6
    }

    fn load_line(&self) -> Vec<(f64, f64)> {
        const SPAN: usize = 5;
        let spans = self.moments.windows(SPAN + 1).step_by(SPAN);
        spans
            .map(|span| (span[SPAN].at, load(&span[0], &span[SPAN])))
            .collect()
    }
}

/// Asks the oracle, while the guests and the merger rest and the clock stands still.
fn paused<G: Mergeable>(merger: &Merger<G>, start: &mut Instant) -> Result<Judgement, Failure> {
    let before = Instant::now();
    let run = merger.counter("run")?;
    merger.set("run", 0)?;
    signal(merger.guests(), Signal::SIGSTOP)?;
    let judgement = judge(merger)?;
    signal(merger.guests(), Signal::SIGCONT)?;
    merger.set("run", run)?;
    *start += before.elapsed();
    Ok(judgement)
}

/// Sends a signal to every guest that is a process of its own.
fn signal<G: Mergeable>(guests: &[G], signal: Signal) -> Outcome {
    let pids = guests.iter().map(|guest| guest.ram().pid);
    for pid in pids.filter(|&pid| pid != std::process::id()) {
        kill(Pid::from_raw(pid as i32), signal)?;
    }
    Ok(())
}

/// The same guests with each method.
pub struct Watched {
    ksmd: Run,
    twinpage: Run,
    ksmtuned: Run,
    nobody: Run,
}

impl Watched {
    /// Watches guests, which `begin` starts by their number.
    pub fn of<G: Mergeable>(
        begin: impl Fn(usize) -> Result<G, Failure>,
    ) -> Result<Watched, Failure> {
        Ok(Watched {
            ksmd: Run::of(Method::Ksmd, &begin)?,
            twinpage: Run::of(Method::Twinpage, &begin)?,
            ksmtuned: Run::of(Method::Ksmtuned, &begin)?,
            nobody: Run::of(Method::Nobody, &begin)?,
        })
    }

    /// What was measured, for guests that are called so. A millisecond of a processor is a million of
    /// `count`.
    pub fn rows(&self, data: &str, count: &str) -> Vec<Row> {
        let size = self.twinpage.late.mapped;
        let tuned = format!("{data}, ksmtuned");
        let mut rows = Vec::new();
        for (peer, name) in [(&self.ksmd, data), (&self.ksmtuned, &tuned)] {
            let mut add = |metric: &str, unit: &str, value: &dyn Fn(&Run) -> f64| {
                let both = [value(peer), value(&self.twinpage)];
                rows.push(Row::of(metric, name, size, unit, both));
            };
            let unit = "% of possible";
            add("merged after 5 min", unit, &|run| percent(&run.early));
            add("merged after 10 min", unit, &|run| percent(&run.late));
            add("to 90 %", "emulated s", &|run| self.reached(run, 0.9));
            add("in use after 10 min", "% of unmerged", &|run| {
                let used = |run: &Run| run.used(run.at(f64::INFINITY));
                100.0 * used(run) / used(&self.nobody)
            });
            add("huge pages kept", "MiB per MiB saved", &|run| {
                run.late.huge as f64 / run.late.merged as f64
            });
            add("spent in 10 min", &format!("million {count}"), &Run::spent);
            add("load, tenth minute", "% of a processor", &|run| {
                run.load(540.0, 600.0)
            });
        }
        rows
    }

    /// Pages that the host had not given out, and would have without merging.
    fn saved(&self, run: &Run, moment: &Moment) -> f64 {
        let saved = self.nobody.used(self.nobody.at(moment.at)) - run.used(moment);
        saved.max(0.0)
    }

    /// From when on so much of what is possible was saved. While guests begin, which takes more or
    /// less time, what is saved is not known well.
    fn reached(&self, run: &Run, part: f64) -> f64 {
        let enough = part * run.late.possible as f64;
        let less = |moment: &Moment| self.saved(run, moment) < enough;
        let since = run.moments.iter().rposition(less).map_or(0, |at| at + 1);
        run.moments.get(since).map_or(f64::NAN, |moment| moment.at)
    }

    /// Draws what was saved and what it took, to the file of this name.
    pub fn draw(&self, file: &str, title: &str) -> Outcome {
        let panel = |title: String, y, legend, points: &dyn Fn(&Run) -> Vec<(f64, f64)>| Panel {
            title,
            x: "emulated s",
            y,
            legend,
            lines: [
                ("ksmd", &self.ksmd),
                ("Twinpage", &self.twinpage),
                ("ksmd with ksmtuned", &self.ksmtuned),
            ]
            .map(|(name, run)| Line {
                name,
                points: points(run),
            })
            .into(),
        };
        let saved = |run: &Run| {
            let point = |moment: &Moment| (moment.at, self.saved(run, moment) / MIB);
            run.moments.iter().map(point).collect()
        };
        let panels = [
            panel(format!("{title}: saved"), "MiB", Corner::LowerRight, &saved),
            panel(
                "load of the scanner".into(),
                "% of a processor",
                Corner::UpperRight,
                &Run::load_line,
            ),
        ];
        plot::draw(file, 1, &panels)
    }
}
