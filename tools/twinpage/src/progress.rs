// SPDX-License-Identifier: GPL-2.0

//! What is known of a running migration, and how it is shown: a bar on a terminal, else lines.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use indicatif::{
    ProgressBar,
    ProgressDrawTarget,
    ProgressStyle, //
};
use twinpage_migrate::proxy::Phase;

use crate::console::{
    Console,
    Live, //
};
use crate::error::Error;
use crate::table::percent;
use crate::uapi::PAGE_BYTES;
use crate::units::Size;

/// How often the bar is drawn.
pub const TICK: Duration = Duration::from_millis(200);

/// Seconds between two lines where there is no bar.
const LINE_SECONDS: f64 = 5.0;

/// Seconds of which the speed is the average.
const PACE_SECONDS: f64 = 3.0;

/// The bar: how much of RAM has been covered, and what the numbers are.
const BAR: &str = "{bar:24} {percent:>3} %  {msg}";

/// What is there in its place as long as it is not known how much there is.
const NO_BAR: &str = "{msg}";

/// The bar for work that is counted in one number.
const STEPS_BAR: &str = "{bar:24} {percent:>3} %  {msg} ({eta} left)";

/// One look at a migration.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// What it is doing.
    pub phase: Phase,
    /// Seconds since QEMU connected.
    pub seconds: f64,
    /// Bytes of RAM of the VM, once known; a receiver never knows.
    pub ram_bytes: u64,
    /// Bytes of RAM that still have to be sent, if QEMU was asked.
    pub left_bytes: Option<u64>,
    /// Bytes of QEMU's stream.
    pub stream_bytes: u64,
    /// Bytes between the hosts, from source to destination.
    pub wire_bytes: u64,
    /// Pages sent as they are.
    pub sent: u64,
    /// Pages that were sent before, as a number.
    pub back: u64,
    /// Pages that the destination has, as a digest.
    pub referenced: u64,
    /// Records of zero pages.
    pub zero: u64,
    /// Whole pages of zeroes.
    pub zero_body: u64,
    /// Pass over memory, from 1, if QEMU was asked.
    pub round: u64,
    /// How long QEMU stopped the VM.
    pub downtime_ms: Option<u64>,
    /// How long it expects to do so.
    pub expected_downtime_ms: Option<u64>,
}

/// How fast pages were covered lately.
#[derive(Debug, Default)]
pub struct Pace(VecDeque<(f64, u64)>);

/// When there is to be another line: with each phase, with the first numbers, and every so many
/// seconds.
#[derive(Debug)]
pub struct Rhythm {
    /// Seconds between two lines.
    every: f64,
    /// Seconds of the last one, its phase, and whether it had numbers.
    last: Option<(f64, Phase, bool)>,
}

/// Shows one moment after the other.
pub struct Display {
    /// The bar, on a terminal.
    bar: Option<ProgressBar>,
    /// Whether lines are written instead.
    lines: bool,
    /// When the next one comes.
    rhythm: Rhythm,
    /// How fast it is.
    pace: Pace,
}

impl Default for Moment {
    /// Nothing has happened.
    fn default() -> Self {
        Self {
            phase: Phase::Waiting,
            seconds: 0.0,
            ram_bytes: 0,
            left_bytes: None,
            stream_bytes: 0,
            wire_bytes: 0,
            sent: 0,
            back: 0,
            referenced: 0,
            zero: 0,
            zero_body: 0,
            round: 0,
            downtime_ms: None,
            expected_downtime_ms: None,
        }
    }
}

impl Moment {
    /// Whether there is more to tell than that nothing has happened.
    fn has_begun(&self) -> bool {
        self.ram_bytes > 0 || self.stream_bytes > 0
    }

    /// Bytes of RAM that were covered: sent, referenced or told to be zero, once or more often.
    fn covered(&self) -> u64 {
        let pages = self.sent.saturating_add(self.known());
        let pages = pages.saturating_add(self.zeroes());
        pages.saturating_mul(PAGE_BYTES as u64)
    }

    /// Pages of which a digest or number was sent.
    fn known(&self) -> u64 {
        self.back.saturating_add(self.referenced)
    }

    /// Pages of zeroes, in either form.
    fn zeroes(&self) -> u64 {
        self.zero.saturating_add(self.zero_body)
    }

    /// Bytes of RAM that still have to be covered, as far as can be known.
    pub fn left(&self) -> u64 {
        let left = self.ram_bytes.saturating_sub(self.covered());
        self.left_bytes.unwrap_or(left).min(self.ram_bytes)
    }

    /// How many bytes of the stream one byte between the hosts stands for.
    pub fn ratio(&self) -> f64 {
        // CAST: For display.
        self.stream_bytes as f64 / self.wire_bytes.max(1) as f64
    }
}

impl Pace {
    /// Takes note of a moment, unless time stands still, as it does before QEMU connects.
    pub fn observe(&mut self, moment: &Moment) {
        if self.0.back().is_some_and(|last| moment.seconds <= last.0) {
            return;
        }
        self.0.push_back((moment.seconds, moment.covered()));
        while let (Some(first), Some(second)) = (self.0.front(), self.0.get(1)) {
            let old = moment.seconds - second.0 >= PACE_SECONDS;
            if !old || first.0 > second.0 {
                break;
            }
            self.0.pop_front();
        }
    }

    /// Bytes of RAM a second.
    pub fn rate(&self) -> Option<f64> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let seconds = last.0 - first.0;
        let bytes = last.1.saturating_sub(first.1);
        // CAST: For display.
        (seconds > 0.0 && bytes > 0).then(|| bytes as f64 / seconds)
    }
}

impl Rhythm {
    /// One with so many seconds between two lines, of which none has been.
    pub fn new(every: f64) -> Self {
        Self { every, last: None }
    }

    /// Whether it is time for another line.
    pub fn is_due(&self, moment: &Moment) -> bool {
        self.last.is_none_or(|(seconds, phase, begun)| {
            let late = moment.seconds - seconds >= self.every;
            phase != moment.phase || (moment.has_begun() && (late || !begun))
        })
    }

    /// Takes note of a line.
    pub fn beat(&mut self, moment: &Moment) {
        self.last = Some((moment.seconds, moment.phase, moment.has_begun()));
    }
}

impl Display {
    /// A display where `console` wants it, or none.
    pub fn new(quiet: bool, console: &Console<'_>) -> Self {
        Self {
            lines: !quiet && console.live == Live::Lines,
            bar: bar(quiet, console, BAR),
            rhythm: Rhythm::new(LINE_SECONDS),
            pace: Pace::default(),
        }
    }

    /// Shows `moment`.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn show(&mut self, moment: &Moment, console: &mut Console<'_>) -> Result<(), Error> {
        self.pace.observe(moment);
        if let Some(bar) = &self.bar {
            bar.set_style(style(match moment.ram_bytes {
                0 => NO_BAR,
                _ => BAR,
            }));
            bar.set_length(moment.ram_bytes.max(1));
            bar.set_position(moment.ram_bytes - moment.left());
            bar.set_message(text(moment, self.pace.rate(), "\n"));
        }
        if self.lines && self.rhythm.is_due(moment) {
            self.rhythm.beat(moment);
            let text = text(moment, self.pace.rate(), "; ");
            writeln!(console.err, "[{:>4.0} s] {text}", moment.seconds)?;
            console.err.flush()?;
        }
        Ok(())
    }

    /// Lets `write` write to the terminal between two drawings of the bar.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A bar, if `console` is for bars.
fn bar(quiet: bool, console: &Console<'_>, template: &str) -> Option<ProgressBar> {
    (!quiet && console.live == Live::Bars).then(|| {
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
        bar.with_style(style(template))
    })
}

/// How a bar looks.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A phase for people.
fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting for QEMU",
        Phase::Filter => "waiting for the filter",
        Phase::Ram => "RAM",
        Phase::Switchover => "switchover",
        Phase::Device => "device state",
        Phase::Postcopy => "postcopy",
        Phase::Ended => "ended",
        Phase::Failed => "failed",
    }
}

/// What to say of `moment`, in two parts with `between` between them.
fn text(moment: &Moment, rate: Option<f64>, between: &str) -> String {
    let mut first = phase_name(moment.phase).to_owned();
    if !moment.has_begun() {
        return first;
    }
    if moment.round > 0 {
        first += &format!(", round {}", moment.round);
    }
    first += &match moment.ram_bytes {
        0 => format!(", {} of QEMU's stream", Size(moment.stream_bytes)),
        all => format!(", {} of {} of RAM", Size(all - moment.left()), Size(all)),
    };
    first += &format!(
        ", {} on the wire (1 : {:.1})",
        Size(moment.wire_bytes),
        moment.ratio(),
    );
    let mut second = format!(
        "pages: {} sent, {} referenced, {} zero",
        moment.sent,
        moment.known(),
        moment.zeroes()
    );
    if let Some(rate) = rate {
        // CAST: For display.
        second += &format!("; {}/s", Size(rate as u64));
        if moment.ram_bytes > 0 {
            // CAST: For display.
            second += &format!(", {:.0} s left", moment.left() as f64 / rate);
        }
    }
    if let Some(downtime) = moment.downtime_ms.or(moment.expected_downtime_ms) {
        second += &format!(", downtime {downtime} ms");
    }
    first + between + &second
}

/// A bar or lines for work that is counted in one number.
pub struct Steps {
    /// The bar, on a terminal.
    bar: Option<ProgressBar>,
    /// Whether lines are written instead.
    lines: bool,
    /// When it began.
    began: Duration,
    /// When the last line was written, or it began.
    last: Duration,
}

/// How far work is that is counted in one number.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// What is done, in words.
    pub what: &'a str,
    /// How much of it is done.
    pub done: u64,
    /// All there is to do.
    pub total: u64,
}

impl Steps {
    /// A display from `now` on where `console` wants it, or none.
    pub fn new(quiet: bool, console: &Console<'_>, now: Duration) -> Self {
        Self {
            bar: bar(quiet, console, STEPS_BAR),
            lines: !quiet && console.live == Live::Lines,
            began: now,
            last: now,
        }
    }

    /// Shows how far it is `now`; lines go to `err`, as long as they can be written. Work that is
    /// done soon has none.
    pub fn show(&mut self, step: Step<'_>, now: Duration, err: &mut dyn Write) {
        let Step { what, done, total } = step;
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(1));
            bar.set_position(done);
            if bar.message() != what {
                bar.set_message(what.to_owned());
                bar.reset_eta();
            }
        }
        let waited = now.saturating_sub(self.last).as_secs_f64();
        if self.lines && waited >= LINE_SECONDS {
            self.last = now;
            let seconds = now.saturating_sub(self.began).as_secs_f64();
            let percent = percent(done, total);
            let written = writeln!(err, "[{seconds:>4.0} s] {what}, {percent} %");
            self.lines = written.and_then(|()| err.flush()).is_ok();
        }
    }
}

impl Drop for Steps {
    /// Takes the bar away.
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment in the middle of a migration.
    fn middle() -> Moment {
        Moment {
            phase: Phase::Ram,
            seconds: 10.0,
            ram_bytes: 1 << 30,
            stream_bytes: 300 << 20,
            wire_bytes: 30 << 20,
            sent: 10_000,
            back: 20_000,
            referenced: 70_000,
            zero: 31_000,
            zero_body: 72,
            ..Moment::default()
        }
    }

    /// What a display on `live` says of moments.
    fn shown(live: Live, quiet: bool, moments: &[Moment]) -> String {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut console = Console {
            out: &mut out,
            err: &mut err,
            screen: None,
            live,
        };
        let mut display = Display::new(quiet, &console);
        for moment in moments {
            display.show(moment, &mut console).unwrap();
        }
        display.end();
        String::from_utf8(err).unwrap()
    }

    #[test]
    fn lines_say_everything() {
        let later = Moment {
            seconds: 16.0,
            sent: 10_100,
            left_bytes: Some(64 << 20),
            round: 2,
            expected_downtime_ms: Some(80),
            ..middle()
        };
        assert_eq!(
            shown(Live::Lines, false, &[middle(), later]),
            "[  10 s] RAM, 512.0 MiB of 1.0 GiB of RAM, 30.0 MiB on the wire (1 : 10.0); \
             pages: 10000 sent, 90000 referenced, 31072 zero\n\
             [  16 s] RAM, round 2, 960.0 MiB of 1.0 GiB of RAM, 30.0 MiB on the wire (1 : 10.0); \
             pages: 10100 sent, 90000 referenced, 31072 zero; 66.7 KiB/s, 983 s left, \
             downtime 80 ms\n"
        );
    }

    #[test]
    fn lines_come_every_few_seconds_and_with_each_phase() {
        let at = |seconds: f64, phase| Moment {
            seconds,
            phase,
            ..middle()
        };
        let moments = [
            at(0.0, Phase::Ram),
            at(0.2, Phase::Ram),
            at(4.9, Phase::Ram),
            at(5.0, Phase::Ram),
            at(5.2, Phase::Device),
            at(5.4, Phase::Device),
        ];
        let text = shown(Live::Lines, false, &moments);
        let starts: Vec<&str> = text.lines().map(|line| &line[..18]).collect();
        assert_eq!(
            starts,
            [
                "[   0 s] RAM, 512.",
                "[   5 s] RAM, 512.",
                "[   5 s] device st"
            ]
        );
    }

    #[test]
    fn receiver_has_no_total() {
        let moment = Moment {
            ram_bytes: 0,
            ..middle()
        };
        let later = Moment {
            seconds: 15.0,
            sent: 11_280,
            ..moment.clone()
        };
        assert_eq!(
            shown(Live::Lines, false, &[moment, later]),
            "[  10 s] RAM, 300.0 MiB of QEMU's stream, 30.0 MiB on the wire (1 : 10.0); \
             pages: 10000 sent, 90000 referenced, 31072 zero\n\
             [  15 s] RAM, 300.0 MiB of QEMU's stream, 30.0 MiB on the wire (1 : 10.0); \
             pages: 11280 sent, 90000 referenced, 31072 zero; 1.0 MiB/s\n"
        );
    }

    /// What steps say at these seconds of work that began at second 100.
    fn steps(live: Live, quiet: bool, seconds: &[u64]) -> String {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let console = Console {
            out: &mut out,
            err: &mut err,
            screen: None,
            live,
        };
        let at = |second| Duration::from_secs(100 + second);
        let mut steps = Steps::new(quiet, &console, at(0));
        for &done in seconds {
            let step = Step {
                what: "work",
                done,
                total: 200,
            };
            steps.show(step, at(done), &mut err);
        }
        String::from_utf8(err).unwrap()
    }

    #[test]
    fn long_work_says_a_line_every_few_seconds() {
        let seconds = [0, 4, 6, 7, 10, 11, 20];
        assert_eq!(
            steps(Live::Lines, false, &seconds),
            "[   6 s] work, 3 %\n[  11 s] work, 5 %\n[  20 s] work, 10 %\n"
        );
        assert_eq!(steps(Live::Lines, true, &seconds), "");
        assert_eq!(steps(Live::Nothing, false, &seconds), "");
    }

    #[test]
    fn numbers_follow_as_soon_as_there_are_some() {
        let before = Moment {
            phase: Phase::Ram,
            ..Moment::default()
        };
        let short = Moment {
            seconds: 0.2,
            ..middle()
        };
        let text = shown(Live::Lines, false, &[before, short]);
        assert!(text.contains(" on the wire"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn waiting_is_told_once() {
        let waiting = |seconds| Moment {
            seconds,
            ..Moment::default()
        };
        assert_eq!(
            shown(
                Live::Lines,
                false,
                &[waiting(0.0), waiting(9.0), waiting(3600.0)]
            ),
            "[   0 s] waiting for QEMU\n"
        );
    }

    #[test]
    fn quiet_is_quiet() {
        assert_eq!(shown(Live::Lines, true, &[middle()]), "");
        assert_eq!(shown(Live::Nothing, false, &[middle()]), "");
    }

    #[test]
    fn speed_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        for second in 0..10 {
            let sent = if second < 5 { 0 } else { (second - 4) * 256 };
            pace.observe(&Moment {
                seconds: second as f64,
                sent,
                ..Moment::default()
            });
        }
        assert_eq!(pace.rate(), Some((1 << 20) as f64));
        assert!(pace.0.len() <= 5, "{pace:?}");
    }

    #[test]
    fn waiting_takes_no_memory() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.observe(&Moment::default());
        }
        assert_eq!(pace.0.len(), 1);
    }

    #[test]
    fn numbers_without_sense_do_no_harm() {
        let wild = Moment {
            ram_bytes: 1,
            left_bytes: Some(u64::MAX),
            sent: u64::MAX,
            referenced: u64::MAX,
            seconds: f64::NAN,
            ..middle()
        };
        assert!(!shown(Live::Lines, false, &[wild, Moment::default()]).is_empty());
    }
}
