// SPDX-License-Identifier: GPL-2.0

//! Time, and the user who does not want to wait any longer.

use std::fs;
use std::sync::mpsc::{
    channel,
    Receiver,
    RecvTimeoutError, //
};
use std::sync::{
    Mutex,
    OnceLock,
    PoisonError, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use signal_hook::consts::{
    SIGHUP,
    SIGINT,
    SIGTERM, //
};
use signal_hook::iterator::Signals;

/// Signals that ask the program to end.
const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// How a pause ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The time is over.
    Elapsed,
    /// A signal came that asks to end.
    Interrupted,
}

/// Time as a command sees it.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;

    /// Waits, but not longer than until a signal asks to end.
    fn pause(&self, duration: Duration) -> Pause;

    /// From here on `SIGINT`, `SIGTERM` and `SIGHUP` end pauses and interrupt system calls, and no
    /// longer end the program. One that the program was started with ignored stays so: `nohup`
    /// means it.
    fn catch_signals(&self);
}

/// The clock of this machine.
#[derive(Debug)]
pub struct SystemClock {
    /// The fixed moment.
    start: Instant,
    /// One message a signal, once they are caught.
    signals: OnceLock<Option<Mutex<Receiver<()>>>>,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            signals: OnceLock::new(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn pause(&self, duration: Duration) -> Pause {
        let Some(Some(signals)) = self.signals.get() else {
            thread::sleep(duration);
            return Pause::Elapsed;
        };
        // A receiver cannot be left in a bad state.
        let signals = signals.lock().unwrap_or_else(PoisonError::into_inner);
        match signals.recv_timeout(duration) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Pause::Interrupted,
            Err(RecvTimeoutError::Timeout) => Pause::Elapsed,
        }
    }

    fn catch_signals(&self) {
        self.signals.get_or_init(|| {
            let (sender, receiver) = channel();
            let ignored = ignored();
            let caught = ENDING
                .iter()
                .filter(|&signal| (ignored >> (signal - 1)) & 1 == 0);
            // Without a handler a signal ends the program, as it does by default.
            let mut signals = Signals::new(caught).ok()?;
            thread::spawn(move || {
                // Sending fails when the program is about to end anyway.
                signals
                    .forever()
                    .for_each(|_| sender.send(()).unwrap_or_default());
            });
            Some(Mutex::new(receiver))
        });
    }
}

/// Which signals this program ignores, as the one that started it wanted: signal 1 is bit 0.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_takes_its_time() {
        let clock = SystemClock::default();
        let before = clock.now();
        assert_eq!(clock.pause(Duration::from_millis(5)), Pause::Elapsed);
        assert!(clock.now() - before >= Duration::from_millis(5));
    }
}
