// SPDX-License-Identifier: GPL-2.0

//! Time, and the user who does not want to wait any longer.

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

/// How a pause ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The time is over.
    Elapsed,
    /// `SIGINT` or `SIGTERM` came.
    Interrupted,
}

/// Time as a command sees it.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;

    /// Waits, but not longer than until a signal asks to end.
    fn pause(&self, duration: Duration) -> Pause;

    /// From here on `SIGINT` and `SIGTERM` end pauses and interrupt system calls, and no longer end
    /// the program.
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
            // Sending fails when the program is about to end anyway.
            let handler = move || sender.send(()).unwrap_or_default();
            // Without a handler a signal ends the program, as it does by default.
            ctrlc::set_handler(handler).ok()?;
            Some(Mutex::new(receiver))
        });
    }
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
