// SPDX-License-Identifier: GPL-2.0

//! What is known of a running migration, and how it is shown: a bar on a terminal, else lines.

use std::collections::VecDeque;
use std::time::Duration;

use indicatif::{
    ProgressBar,
    ProgressDrawTarget,
    ProgressStyle, //
};

use crate::console::{
    Console,
    Live, //
};
use crate::error::Error;
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

/// One look at a migration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moment {
    /// What it is doing.
    pub phase: &'static str,
    /// Seconds since it began.
    pub seconds: f64,
    /// Bytes of RAM of the VM, once known.
    pub ram_bytes: u64,
    /// Bytes of RAM that still have to be sent, if QEMU was asked.
    pub left_bytes: Option<u64>,
    /// Bytes of QEMU's stream.
    pub stream_bytes: u64,
    /// Bytes between the hosts, from source to destination.
    pub wire_bytes: u64,
    /// Pages sent as they are.
    pub sent: u64,
    /// Pages of which a digest or number was sent.
    pub referenced: u64,
    /// Pages of zeroes.
    pub zero: u64,
    /// Pass over memory, from 1, if QEMU was asked.
    pub round: u64,
    /// How long QEMU expects to stop the VM.
    pub downtime_ms: Option<u64>,
}

/// How fast pages were covered lately.
#[derive(Debug, Default)]
struct Pace(VecDeque<(f64, u64)>);

/// Shows one moment after the other.
pub struct Display {
    /// The bar, on a terminal.
    bar: Option<ProgressBar>,
    /// Whether lines are written instead.
    lines: bool,
    /// Seconds of the last line, and its phase.
    last: Option<(f64, &'static str)>,
    /// How fast it is.
    pace: Pace,
}

impl Moment {
    /// Whether there is more to tell than that nothing has happened.
    fn has_begun(&self) -> bool {
        self.ram_bytes > 0
    }

    /// Bytes of RAM that were covered: sent, referenced or told to be zero, once or more often.
    fn covered(&self) -> u64 {
        let pages = self.sent.saturating_add(self.referenced);
        let pages = pages.saturating_add(self.zero);
        pages.saturating_mul(PAGE_BYTES as u64)
    }

    /// Bytes of RAM that still have to be covered, as far as can be known.
    fn left(&self) -> u64 {
        let left = self.ram_bytes.saturating_sub(self.covered());
        self.left_bytes.unwrap_or(left).min(self.ram_bytes)
    }

    /// How many bytes of the stream one byte between the hosts stands for.
    fn ratio(&self) -> f64 {
        // CAST: For display.
        self.stream_bytes as f64 / self.wire_bytes.max(1) as f64
    }
}

impl Pace {
    /// Takes note of a moment.
    fn observe(&mut self, moment: &Moment) {
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
    fn rate(&self) -> Option<f64> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let seconds = last.0 - first.0;
        let bytes = last.1.saturating_sub(first.1);
        // CAST: For display.
        (seconds > 0.0 && bytes > 0).then(|| bytes as f64 / seconds)
    }
}

impl Display {
    /// A display where `console` wants it, or none.
    pub fn new(quiet: bool, console: &Console<'_>) -> Self {
        let bar = (!quiet && console.live == Live::Bars).then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(BAR);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self {
            lines: !quiet && console.live == Live::Lines,
            bar,
            last: None,
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
            bar.set_length(moment.ram_bytes.max(1));
            bar.set_position(moment.ram_bytes - moment.left());
            bar.set_message(text(moment, self.pace.rate(), "\n"));
        }
        if self.lines && self.is_due(moment) {
            self.last = Some((moment.seconds, moment.phase));
            let text = text(moment, self.pace.rate(), "; ");
            writeln!(console.err, "[{:>4.0} s] {text}", moment.seconds)?;
            console.err.flush()?;
        }
        Ok(())
    }

    /// Whether it is time for another line.
    fn is_due(&self, moment: &Moment) -> bool {
        self.last.is_none_or(|(seconds, phase)| {
            let late = moment.seconds - seconds >= LINE_SECONDS;
            phase != moment.phase || (late && moment.has_begun())
        })
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

/// What to say of `moment`, in two parts with `between` between them.
fn text(moment: &Moment, rate: Option<f64>, between: &str) -> String {
    let mut first = moment.phase.to_owned();
    if !moment.has_begun() {
        return first;
    }
    if moment.round > 0 {
        first += &format!(", round {}", moment.round);
    }
    let done = moment.ram_bytes - moment.left();
    first += &format!(
        ", {} of {} of RAM, {} on the wire (1 : {:.1})",
        Size(done),
        Size(moment.ram_bytes),
        Size(moment.wire_bytes),
        moment.ratio(),
    );
    let mut second = format!(
        "pages: {} sent, {} referenced, {} zero",
        moment.sent, moment.referenced, moment.zero
    );
    if let Some(rate) = rate {
        // CAST: For display.
        let seconds = moment.left() as f64 / rate;
        second += &format!("; {}/s, {seconds:.0} s left", Size(rate as u64));
    }
    if let Some(downtime) = moment.downtime_ms {
        second += &format!(", downtime {downtime} ms");
    }
    first + between + &second
}

/// A bar or lines for work that is counted in one number.
pub struct Steps {
    /// The bar, on a terminal.
    bar: Option<ProgressBar>,
}

impl Steps {
    /// A display where `console` wants it, or none. Where there is no terminal, there is none.
    pub fn new(quiet: bool, console: &Console<'_>) -> Self {
        let bar = (!quiet && console.live == Live::Bars).then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {msg} ({eta} left)");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar }
    }

    /// Shows that `done` of `total` is done, in words `what`.
    pub fn show(&self, done: u64, total: u64, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(1));
            bar.set_position(done);
            if bar.message() != what {
                bar.set_message(what.to_owned());
            }
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
            phase: "RAM",
            seconds: 10.0,
            ram_bytes: 1 << 30,
            left_bytes: None,
            stream_bytes: 300 << 20,
            wire_bytes: 30 << 20,
            sent: 10_000,
            referenced: 90_000,
            zero: 31_072,
            round: 0,
            downtime_ms: None,
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
            downtime_ms: Some(80),
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
            at(0.0, "RAM"),
            at(0.2, "RAM"),
            at(4.9, "RAM"),
            at(5.0, "RAM"),
            at(5.2, "device state"),
            at(5.4, "device state"),
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
    fn waiting_is_told_once() {
        let waiting = |seconds| Moment {
            phase: "waiting for QEMU",
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
    fn numbers_without_sense_do_no_harm() {
        let wild = Moment {
            ram_bytes: 1,
            left_bytes: Some(u64::MAX),
            sent: u64::MAX,
            referenced: u64::MAX,
            seconds: f64::NAN,
            ..middle()
        };
        let zero = Moment {
            phase: "waiting",
            ..Moment::default()
        };
        assert!(!shown(Live::Lines, false, &[wild, zero]).is_empty());
    }
}
