// SPDX-License-Identifier: GPL-2.0

//! `twinpage migrate run`: a whole migration, driven through the monitors of the QEMUs.

use std::time::Duration;

use twinpage_migrate::run::{
    self,
    Ending,
    Handle,
    Outcome,
    Place,
    Report,
    Resume,
    Snapshot, //
};

use crate::cli::migrate::{
    Run,
    WatchOptions, //
};
use crate::console::Console;
use crate::error::Error;
use crate::host::Host;
use crate::notices::{
    Notices,
    Speaker, //
};
use crate::progress::Moment;
use crate::report::{
    self,
    printable,
    Role,
    Told, //
};
use crate::session::{
    self,
    Running, //
};

use super::send::Prepared;

/// Runs the command.
pub fn run(arguments: &Run, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let (speaker, notices) = Notices::new();
    let mut whole = Whole(run::start(options(arguments, speaker)?)?);
    let shown = session::watch(&mut whole, arguments.show, &notices, host, console);
    let report = whole.0.wait()?;
    let mut notes = report.outcome.notes.iter();
    let warned = notes.try_for_each(|note| console.warn(&printable(note)));
    let told = show(&report, arguments.show, console);
    let verdict = judge(&report.outcome, report.proxy_error.as_deref());
    session::conclude(verdict, shown.and(warned).and(told), console)
}

/// A migration with everything that belongs to it.
struct Whole(Handle);

impl Running for Whole {
    fn look(&mut self) -> Moment {
        moment(&self.0.snapshot())
    }

    fn is_over(&self) -> bool {
        self.0.finished()
    }

    fn cancel(&self) {
        self.0.cancel();
    }

    fn refuses(&self) -> bool {
        self.0.refused()
    }

    fn force(&self) {
        self.0.force();
    }
}

/// What is to be done; the `speaker` says what the proxy notices.
fn options(arguments: &Run, speaker: Speaker) -> Result<run::Options, Error> {
    let prepared = Prepared::new(&arguments.options)?;
    let rates = [arguments.link_rate, arguments.options.limit_rate];
    Ok(run::Options {
        from: arguments.from.clone(),
        to: arguments.to_qmp.clone(),
        incoming: arguments
            .incoming
            .as_ref()
            .map(|path| format!("unix:{}", path.display())),
        send: Box::new(|input| prepared.options(input, speaker)),
        downtime: Duration::from_millis(arguments.downtime_ms),
        link_rate: rates.into_iter().flatten().min().map(|rate| rate.0),
        resume: match arguments.no_start {
            true => Resume::Leave,
            false => Resume::Start,
        },
        timeout: arguments.timeout.map(Duration::from_secs),
    })
}

/// What proxy and QEMU say.
fn moment(snapshot: &Snapshot) -> Moment {
    let qemu = &snapshot.migration;
    let proxy = session::moment(&snapshot.proxy);
    Moment {
        ram_bytes: qemu.total_bytes.unwrap_or(proxy.ram_bytes),
        left_bytes: qemu.remaining_bytes,
        round: qemu.rounds,
        downtime_ms: qemu.downtime_ms,
        expected_downtime_ms: qemu.expected_downtime_ms,
        ..proxy
    }
}

/// Shows what became of it: in words only if it went well, since the error says the rest.
fn show(report: &Report, show: WatchOptions, console: &mut Console<'_>) -> Result<(), Error> {
    let qemu = &report.outcome.migration;
    // CAST: For display.
    let seconds = qemu.total_ms.map(|ms| ms as f64 / 1e3);
    let result = report::Summary {
        role: Role::Run,
        seconds: seconds.unwrap_or(report.proxy.totals.active_seconds),
        told: Told {
            downtime_ms: qemu.downtime_ms,
            total_ms: qemu.total_ms,
            rounds: Some(qemu.rounds),
        },
        outcome: Some(&report.outcome),
        proxy_error: report.proxy_error.clone(),
        report: &report.proxy,
    };
    match show.json || report.outcome.ending == Ending::Completed {
        true => result.show(show, console),
        false => Ok(()),
    }
}

/// Whether the VM is where it should be.
fn judge(outcome: &Outcome, proxy_error: Option<&str>) -> Result<(), Error> {
    let place = outcome.guest.place;
    if outcome.ending == Ending::Completed && place == Place::Destination {
        return match &outcome.stopped {
            None => Ok(()),
            Some(why) => Err(Error::Stopped(printable(why))),
        };
    }
    let what = match (&outcome.ending, proxy_error) {
        (Ending::Completed, _) => "is complete, says QEMU, but".to_owned(),
        (Ending::Cancelled, _) => "was cancelled".to_owned(),
        (Ending::Failed { reason }, None) => format!("failed: {}", printable(reason)),
        (Ending::Failed { reason }, Some(proxy)) => {
            format!("failed: {}; {}", printable(reason), printable(proxy))
        }
    };
    let evidence = printable(&outcome.guest.evidence);
    Err(match place {
        Place::Source => Error::NotMigrated { what, evidence },
        _ => Error::Doubt { what, evidence },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::migrate::Migrate;
    use crate::cli::{
        Cli,
        Command, //
    };
    use crate::error::Exit;
    use clap::Parser;
    use twinpage_migrate::run::{
        Guest,
        Migration, //
    };

    #[test]
    fn qemu_learns_the_lowest_rate() {
        for (rates, expected) in [
            ("", None),
            ("--link-rate 1Gbit", Some(125_000_000)),
            ("--limit-rate 100Mbit", Some(12_500_000)),
            ("--link-rate 1Gbit --limit-rate 100Mbit", Some(12_500_000)),
        ] {
            let line = format!("twinpage migrate run --from /q --to b --insecure {rates}");
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            let Command::Migrate(Migrate::Run(arguments)) = cli.command else {
                panic!("{line}");
            };
            let (speaker, _) = Notices::new();
            let options = options(&arguments, speaker).unwrap();
            assert_eq!(options.link_rate, expected, "{line}");
        }
    }

    #[test]
    fn code_1_is_only_for_a_vm_at_the_source() {
        for (place, stopped, exit) in [
            (Place::Destination, None, None),
            (Place::Destination, Some("no"), Some(Exit::Unsure)),
            (Place::Source, None, Some(Exit::Failed)),
            (Place::Unknown, None, Some(Exit::Unsure)),
        ] {
            let outcome = Outcome {
                ending: Ending::Completed,
                guest: Guest {
                    place,
                    running: None,
                    evidence: String::new(),
                },
                migration: Migration::default(),
                notes: Vec::new(),
                stopped: stopped.map(str::to_owned),
                start_ms: None,
            };
            let judged = judge(&outcome, None).map_err(|error| error.exit());
            assert_eq!(judged.err(), exit, "{place:?}");
        }
    }
}
