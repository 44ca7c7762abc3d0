// SPDX-License-Identifier: GPL-2.0

//! The threads of a session and the processor time each of them took.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::{
    Mutex,
    PoisonError, //
};
use std::thread::{
    Builder,
    JoinHandle, //
};
use std::time::{
    Duration,
    Instant, //
};

use serde::Serialize;

/// How long threads may take to see that all they wait for has gone.
const END: Duration = Duration::from_secs(5);

/// Processor time of the ended threads, by what they do.
#[derive(Debug, Default)]
pub struct Roster(Mutex<Vec<ThreadTime>>);

/// Processor time of all threads that do one kind of work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ThreadTime {
    /// What they do.
    pub name: String,
    /// Seconds on a processor, in the kernel's accounting.
    pub cpu_seconds: f64,
}

/// Joins threads that should end by themselves, and leaves those that do not within [`END`].
///
/// One that reads from a pipe, or asks a source of pages, may wait for ever; it ends with the process.
pub(crate) fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    let end = Instant::now() + END;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            // A panic was noticed by what did not come.
            let _ = thread.join();
        }
    }
}

impl Roster {
    /// Starts a thread that does `work` and notes its processor time when it ends.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn spawn<F>(self: &Arc<Self>, name: &'static str, work: F) -> io::Result<JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        let roster = Arc::clone(self);
        Builder::new().name(format!("tw-{name}")).spawn(move || {
            work();
            roster.note(name, cpu_seconds());
        })
    }

    /// The times of the threads that have ended, added up by name.
    pub fn times(&self) -> Vec<ThreadTime> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Adds `cpu_seconds` to `name`.
    fn note(&self, name: &str, cpu_seconds: f64) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match times.iter_mut().find(|time| time.name == name) {
            Some(time) => time.cpu_seconds += cpu_seconds,
            None => times.push(ThreadTime {
                name: name.to_owned(),
                cpu_seconds,
            }),
        }
    }
}

/// Seconds that the calling thread was on a processor; 0 where the kernel does not say.
fn cpu_seconds() -> f64 {
    fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0.0, |ns| ns as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_add_up_by_name() {
        let roster = Arc::new(Roster::default());
        for _ in 0..3 {
            roster.spawn("x", || ()).unwrap().join().unwrap();
        }
        roster.spawn("y", || ()).unwrap().join().unwrap();
        let names: Vec<_> = roster.times().into_iter().map(|time| time.name).collect();
        assert_eq!(names, ["x", "y"]);
    }
}
