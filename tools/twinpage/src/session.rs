// SPDX-License-Identifier: GPL-2.0

//! Running a proxy from the command line: its options, its progress, its end.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::time::Duration;

use twinpage_migrate::net::RateLimit;
use twinpage_migrate::proxy::{
    self,
    Handle,
    Limits,
    Report,
    Snapshot, //
};

use crate::cli::migrate::{
    SendOptions,
    WatchOptions, //
};
use crate::clock::Pause;
use crate::console::Console;
use crate::error::Error;
use crate::events::Events;
use crate::host::Host;
use crate::notices::Notices;
use crate::progress::{
    Display,
    Moment,
    TICK, //
};
use crate::report::{
    Role,
    Summary, //
};
use crate::uapi::PAGE_BYTES;
use crate::units::{
    Rate,
    Size, //
};

/// How long to wait for an end that was asked for, before looking again.
const REST: Duration = Duration::from_millis(20);

/// What is said when it cannot.
const CANNOT_CANCEL: &str = "cannot cancel now: the destination may have everything that it needs \
                             to run the VM, and its answer is waited for. A second signal ends the \
                             migration in doubt";

/// Something that migrates in threads of its own.
pub trait Running {
    /// How far it is.
    fn look(&mut self) -> Moment;
    /// Whether it is over.
    fn is_over(&self) -> bool;
    /// Ends it, as long as the VM cannot run at both sides then.
    fn cancel(&self);
    /// Whether it should end, and cannot without that danger.
    fn refuses(&self) -> bool;
    /// Ends it even so.
    fn force(&self);
}

/// A proxy that came to an end.
pub struct Finished {
    /// What it counted.
    pub report: Report,
    /// Whether that was the end it should come to.
    pub verdict: Result<(), Error>,
    /// Seconds since QEMU connected.
    pub seconds: f64,
    /// Whether its progress could be shown.
    pub shown: Result<(), Error>,
}

/// A proxy that is watched.
struct Watched {
    /// The proxy.
    handle: Handle,
    /// Whether it did not end when it was told to.
    refused: Cell<bool>,
}

impl Running for Watched {
    fn look(&mut self) -> Moment {
        moment(&self.handle.progress().snapshot())
    }

    fn is_over(&self) -> bool {
        self.handle.finished()
    }

    fn cancel(&self) {
        self.refused.set(!self.handle.cancel_early());
    }

    fn refuses(&self) -> bool {
        self.refused.get()
    }

    fn force(&self) {
        self.handle.cancel();
    }
}

/// Shows how far `running` is until it is over, or as long as that can be shown. A signal cancels
/// it. When that is not safe it is said, and its end is waited for; a second signal cancels it all
/// the same.
///
/// # Errors
///
/// Progress could not be shown to the end.
pub fn watch(
    running: &mut dyn Running,
    show: WatchOptions,
    notices: &Notices,
    host: &Host,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    host.clock().catch_signals();
    let mut display = Display::new(show.quiet || show.progress, console);
    let mut events = show.progress.then(Events::new);
    let mut shown = Ok(());
    let mut refused = false;
    loop {
        // In this order, so that the last look sees the end.
        let over = running.is_over();
        let moment = running.look();
        if let Some(events) = &mut events {
            events.show(&moment, || host.output_takes(), console);
        }
        if shown.is_ok() {
            shown = display.show(&moment, console);
            shown = shown.and_then(|()| display.aside(|| notices.show(console)));
        }
        if over {
            break;
        }
        if running.refuses() && !refused {
            refused = true;
            shown = shown.and_then(|()| display.aside(|| console.warn(CANNOT_CANCEL)));
        }
        match host.clock().pause(TICK) {
            Pause::Elapsed => (),
            Pause::Interrupted if refused => running.force(),
            Pause::Interrupted => {
                running.cancel();
                // A pause may not last any more.
                std::thread::sleep(REST);
            }
        }
    }
    display.end();
    shown.and_then(|()| notices.show(console))
}

/// Follows the proxy of `handle` to its end.
pub fn follow(
    handle: Handle,
    show: WatchOptions,
    notices: &Notices,
    host: &Host,
    console: &mut Console<'_>,
) -> Finished {
    let mut watched = Watched {
        handle,
        refused: Cell::new(false),
    };
    let shown = watch(&mut watched, show, notices, host, console);
    let (report, verdict) = watched.handle.end();
    Finished {
        seconds: report.totals.active_seconds,
        report,
        verdict: verdict.map_err(Error::from),
        shown,
    }
}

/// Shows what the proxy of `role` came to, in words only if that was good, since the error says the
/// rest; then ends the command.
///
/// # Errors
///
/// As for [`conclude`].
pub fn tell(
    role: Role,
    finished: Finished,
    show: WatchOptions,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let told = match show.json || finished.verdict.is_ok() {
        true => Summary::of_proxy(role, &finished).show(show, console),
        false => Ok(()),
    };
    conclude(finished.verdict, finished.shown.and(told), console)
}

/// Ends a command by the `verdict` on its migration, which counts more than whether everything
/// could be `shown`: who reads the exit code must not take a VM that has left for one that has not.
///
/// # Errors
///
/// The migration failed; else [`Error::Unshown`].
pub fn conclude(
    verdict: Result<(), Error>,
    shown: Result<(), Error>,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let flushed = console.out.flush().map_err(Error::Output);
    verdict?;
    match shown.and(flushed) {
        Err(Error::Output(source)) => Err(Error::Unshown(source)),
        result => result,
    }
}

/// What the counters say.
pub fn moment(snapshot: &Snapshot) -> Moment {
    Moment {
        phase: snapshot.phase,
        seconds: snapshot.active_seconds,
        ram_bytes: snapshot.ram_bytes,
        left_bytes: None,
        stream_bytes: snapshot.stream_bytes,
        wire_bytes: snapshot.wire_bytes,
        sent: snapshot.pages_sent,
        back: snapshot.pages_back,
        referenced: snapshot.pages_referenced,
        zero: snapshot.pages_zero,
        zero_body: snapshot.pages_zero_body,
        round: snapshot.round,
        downtime_ms: None,
        expected_downtime_ms: None,
    }
}

/// The limits that options ask for.
///
/// # Errors
///
/// They are out of bounds.
pub fn limits(
    window: Size,
    wire_window: Size,
    dictionary: Size,
    threads: Option<u16>,
) -> Result<Limits, Error> {
    let mut limits = Limits {
        stream_window: window.0,
        wire_window: wire_window.0,
        dictionary_pages: pages(dictionary),
        ..Limits::default()
    };
    if let Some(threads) = threads {
        limits.threads = usize::from(threads);
    }
    limits.check()?;
    Ok(limits)
}

/// How many pages fit in `size`.
fn pages(size: Size) -> u32 {
    u32::try_from(size.0 / PAGE_BYTES as u64).unwrap_or(u32::MAX)
}

/// The limits of a sender.
///
/// # Errors
///
/// They are out of bounds.
pub fn send_limits(options: &SendOptions) -> Result<Limits, Error> {
    limits(
        options.window,
        options.wire_window,
        options.dictionary,
        options.threads,
    )
}

/// The limit of the bytes a second that `rate` asks for.
pub fn rate_limit(rate: Option<Rate>) -> Option<RateLimit> {
    rate.and_then(|rate| NonZeroU64::new(rate.0))
        .map(RateLimit::new)
}

impl From<proxy::Error> for Error {
    fn from(error: proxy::Error) -> Self {
        Self::Migration(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::console::Live;
    use crate::device;
    use std::sync::atomic::{
        AtomicUsize,
        Ordering, //
    };
    use std::sync::Arc;

    /// A clock that does not wait; so many signals come first.
    struct Signals(AtomicUsize);

    impl Clock for Signals {
        fn now(&self) -> Duration {
            Duration::ZERO
        }

        fn pause(&self, _: Duration) -> Pause {
            let left = self.0.load(Ordering::Relaxed);
            self.0.store(left.saturating_sub(1), Ordering::Relaxed);
            match left {
                0 => Pause::Elapsed,
                _ => Pause::Interrupted,
            }
        }

        fn catch_signals(&self) {}
    }

    /// A migration whose VM may have been handed over, and that ends after some looks at it, with
    /// ten minutes between them.
    #[derive(Default)]
    struct Late {
        looks: u32,
        refused: Cell<bool>,
        forced: Cell<bool>,
    }

    impl Running for Late {
        fn look(&mut self) -> Moment {
            self.looks += 1;
            Moment {
                seconds: 600.0 * f64::from(self.looks),
                ..Moment::default()
            }
        }

        fn is_over(&self) -> bool {
            self.looks == 5 || self.forced.get()
        }

        fn cancel(&self) {
            self.refused.set(true);
        }

        fn refuses(&self) -> bool {
            self.refused.get()
        }

        fn force(&self) {
            self.forced.set(true);
        }
    }

    #[test]
    fn only_a_second_signal_ends_what_may_be_handed_over() {
        for (signals, forced) in [(1, false), (2, true)] {
            let clock = Arc::new(Signals(AtomicUsize::new(signals)));
            let host = Host::new("/", Arc::new(device::Running), clock);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut console = Console {
                out: &mut out,
                err: &mut err,
                screen: None,
                live: Live::Nothing,
            };
            let show = WatchOptions {
                quiet: true,
                ..WatchOptions::default()
            };
            let (_, notices) = Notices::new();
            let mut late = Late::default();
            watch(&mut late, show, &notices, &host, &mut console).unwrap();
            assert_eq!(late.forced.get(), forced);
            assert!(String::from_utf8(err).unwrap().contains(CANNOT_CANCEL));
        }
    }
}
