// SPDX-License-Identifier: GPL-2.0

//! The progress of a migration for programs: one JSON object a line, on standard output.

use serde::Serialize;
use twinpage_migrate::proxy::Phase;

use crate::console::Console;
use crate::error::Error;
use crate::progress::{
    Moment,
    Pace,
    Rhythm, //
};
use crate::report::SCHEMA;

/// Seconds between two lines.
const LINE_SECONDS: f64 = 1.0;

/// One look at a migration. What its end has too is called as there.
#[derive(Debug, Serialize)]
struct Line {
    /// Version of the JSON.
    schema: u32,
    /// What the line is.
    event: &'static str,
    /// Seconds since QEMU connected.
    seconds: f64,
    /// How long the VM stood still, if QEMU was asked and knows.
    downtime_ms: Option<u64>,
    /// How long QEMU expects it to.
    expected_downtime_ms: Option<u64>,
    /// Pass over memory, if QEMU was asked.
    rounds: Option<u64>,
    /// Bytes of RAM that still have to be covered, if it is known how much there is.
    remaining_bytes: Option<u64>,
    /// Bytes of RAM that were covered lately in a second.
    ram_bytes_per_second: Option<u64>,
    /// Seconds until all is covered at that pace.
    eta_seconds: Option<f64>,
    /// Bytes of the stream for each one between the hosts.
    ratio: f64,
    /// Counters.
    totals: Totals,
}

/// Counters of the proxy.
#[derive(Debug, Serialize)]
struct Totals {
    /// What it is doing.
    phase: Phase,
    /// Bytes of RAM, 0 as long as that is not known.
    ram_bytes: u64,
    /// Bytes of QEMU's stream.
    stream_bytes: u64,
    /// Bytes from source to destination.
    wire_bytes: u64,
    /// Pages sent as they are.
    pages_sent: u64,
    /// Pages that were earlier in the stream.
    pages_back: u64,
    /// Pages that the destination has.
    pages_referenced: u64,
    /// Records of zero pages.
    pages_zero: u64,
    /// Whole pages of zeroes.
    pages_zero_body: u64,
}

/// Writes one line after the other, until one cannot be written.
pub struct Events {
    /// Whether all could be written so far.
    open: bool,
    /// When the next one comes.
    rhythm: Rhythm,
    /// How fast it is.
    pace: Pace,
}

impl Events {
    /// Nothing was written yet.
    pub fn new() -> Self {
        Self {
            open: true,
            rhythm: Rhythm::new(LINE_SECONDS),
            pace: Pace::default(),
        }
    }

    /// Writes a line on `moment` if it is time for one, and if standard output `takes` it at once:
    /// whoever reads slowly must not keep signals from being heard. After one that cannot be
    /// written there is no other; the result says why, which goes the same way.
    pub fn show(
        &mut self,
        moment: &Moment,
        takes: impl FnOnce() -> bool,
        console: &mut Console<'_>,
    ) {
        self.pace.observe(moment);
        if self.open && self.rhythm.is_due(moment) && takes() {
            self.rhythm.beat(moment);
            self.open = self.write(moment, console).is_ok();
        }
    }

    /// Writes a line on `moment`.
    fn write(&self, moment: &Moment, console: &mut Console<'_>) -> Result<(), Error> {
        console.json_line(&line(moment, self.pace.rate()))?;
        Ok(console.out.flush()?)
    }
}

/// What to say of `moment`, with so many bytes of RAM covered in a second.
fn line(moment: &Moment, rate: Option<f64>) -> Line {
    let remaining = (moment.ram_bytes > 0).then(|| moment.left());
    // CAST: For display.
    let seconds = |left: u64, rate: f64| left as f64 / rate;
    Line {
        schema: SCHEMA,
        event: "progress",
        seconds: moment.seconds,
        downtime_ms: moment.downtime_ms,
        expected_downtime_ms: moment.expected_downtime_ms,
        rounds: (moment.round > 0).then_some(moment.round),
        remaining_bytes: remaining,
        // CAST: For display.
        ram_bytes_per_second: rate.map(|rate| rate as u64),
        eta_seconds: remaining.zip(rate).map(|(left, rate)| seconds(left, rate)),
        ratio: moment.ratio(),
        totals: Totals {
            phase: moment.phase,
            ram_bytes: moment.ram_bytes,
            stream_bytes: moment.stream_bytes,
            wire_bytes: moment.wire_bytes,
            pages_sent: moment.sent,
            pages_back: moment.back,
            pages_referenced: moment.referenced,
            pages_zero: moment.zero,
            pages_zero_body: moment.zero_body,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use serde_json::{
        json,
        Value, //
    };

    use super::*;
    use crate::console::Live;

    /// A moment of a migration of 1 GiB.
    fn at(seconds: f64) -> Moment {
        Moment {
            phase: Phase::Ram,
            seconds,
            ram_bytes: 1 << 30,
            stream_bytes: 300,
            wire_bytes: 30,
            ..Moment::default()
        }
    }

    /// Shows moments on `out`, which `takes` lines.
    fn show(out: &mut dyn io::Write, takes: bool, moments: &[Moment]) {
        let mut err = Vec::new();
        let mut console = Console {
            out,
            err: &mut err,
            screen: None,
            live: Live::Lines,
        };
        let mut events = Events::new();
        for moment in moments {
            events.show(moment, || takes, &mut console);
        }
        assert!(err.is_empty());
    }

    /// What is written of moments to somebody who `takes` lines.
    fn written(takes: bool, moments: &[Moment]) -> String {
        let mut out = Vec::new();
        show(&mut out, takes, moments);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn line_says_everything() {
        let moments = [
            Moment::default(),
            at(1.0),
            Moment {
                left_bytes: Some(15 * 4096),
                sent: 1,
                back: 2,
                referenced: 3,
                zero: 4,
                zero_body: 5,
                round: 6,
                downtime_ms: Some(7),
                expected_downtime_ms: Some(8),
                ..at(2.0)
            },
        ];
        let text = written(true, &moments);
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let [first, _, last] = &lines[..] else {
            panic!("{text}");
        };
        assert_eq!(first["totals"]["phase"], "waiting");
        for name in ["rounds", "downtime_ms", "remaining_bytes", "eta_seconds"] {
            assert_eq!(first[name], Value::Null, "{name}");
        }
        let expected = json!({
            "schema": 1,
            "event": "progress",
            "seconds": 2.0,
            "downtime_ms": 7,
            "expected_downtime_ms": 8,
            "rounds": 6,
            "remaining_bytes": 15 * 4096,
            "ram_bytes_per_second": 15 * 4096 / 2,
            "eta_seconds": 2.0,
            "ratio": 10.0,
            "totals": {
                "phase": "ram",
                "ram_bytes": 1 << 30,
                "stream_bytes": 300,
                "wire_bytes": 30,
                "pages_sent": 1,
                "pages_back": 2,
                "pages_referenced": 3,
                "pages_zero": 4,
                "pages_zero_body": 5,
            },
        });
        assert_eq!(*last, expected);
    }

    #[test]
    fn lines_come_every_second_and_with_each_phase() {
        let device = Moment {
            phase: Phase::Device,
            ..at(2.2)
        };
        let moments = [at(0.5), at(0.7), at(1.4), at(1.5), at(2.0), device];
        assert_eq!(written(true, &moments).lines().count(), 3);
    }

    #[test]
    fn nobody_is_waited_for() {
        assert_eq!(written(false, &[at(0.0), at(1.0)]), "");
    }

    /// Output that breaks, and counts how often it was tried.
    struct Breaks(u32);

    impl io::Write for Breaks {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0 += 1;
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_that_breaks_is_left_alone() {
        let mut out = Breaks(0);
        show(&mut out, true, &[0.0, 1.0, 2.0, 3.0, 4.0].map(at));
        assert_eq!(out.0, 1);
    }

    #[test]
    fn line_is_short_enough_to_be_taken_whole() {
        let most = Some(u64::MAX);
        let moment = Moment {
            phase: Phase::Switchover,
            seconds: 1e9 / 3.0,
            ram_bytes: u64::MAX,
            left_bytes: most,
            stream_bytes: u64::MAX,
            wire_bytes: u64::MAX,
            sent: u64::MAX,
            back: u64::MAX,
            referenced: u64::MAX,
            zero: u64::MAX,
            zero_body: u64::MAX,
            round: u64::MAX,
            downtime_ms: most,
            expected_downtime_ms: most,
        };
        assert!(written(true, &[moment]).len() < 4096);
    }
}
