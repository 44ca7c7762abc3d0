// SPDX-License-Identifier: GPL-2.0

//! Threads that hash pages for all channels of a session.
//!
//! Work is handed in by [`Pool::submit`], which gives a [`Ticket`] back. Whoever holds the tickets
//! in order has the results in order, whichever thread finishes first; the pool itself knows no
//! order. The queue needs no limit of its own: every ticket is held in a queue that has one.

use std::io;
use std::sync::mpsc::{
    channel,
    sync_channel,
    Receiver,
    RecvTimeoutError,
    Sender, //
};
use std::sync::{
    Arc,
    Mutex,
    PoisonError, //
};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::proxy::threads::{
    join,
    Roster, //
};

/// A piece of work.
type Job = Box<dyn FnOnce() + Send>;

/// The threads.
pub struct Pool {
    /// Where work goes in; empty once the pool ends.
    jobs: Mutex<Option<Sender<Job>>>,
    /// The threads, joined at the end.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What a job will give.
pub struct Ticket<T>(Receiver<T>);

/// The job panicked or the pool has ended.
#[derive(Debug)]
pub struct Lost;

impl Pool {
    /// Starts `threads` threads (at least one), counted in `roster`.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn new(threads: usize, roster: &Arc<Roster>) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..threads.max(1))
            .map(|_| {
                let queue = Arc::clone(&queue);
                roster.spawn("hash", move || work(&queue))
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            threads: Mutex::new(threads),
        })
    }

    /// Has `job` done by one of the threads.
    pub fn submit<T, F>(&self, job: F) -> Ticket<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (give, take) = sync_channel(1);
        let job = Box::new(move || {
            // Nobody waits any more when the session failed.
            let _ = give.send(job());
        });
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = &*jobs {
            // A pool without threads drops the job, and with it `give`: the ticket says so.
            let _ = jobs.send(job);
        }
        Ticket(take)
    }

    /// Ends the threads once they have done what was handed in, and leaves those that take too long.
    pub fn finish(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        *jobs = None;
        drop(jobs);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        join(threads.drain(..));
    }
}

impl<T> Ticket<T> {
    /// Waits for the result.
    ///
    /// # Errors
    ///
    /// The job panicked or the pool has ended.
    pub fn wait(self) -> Result<T, Lost> {
        self.0.recv().map_err(|_| Lost)
    }

    /// Waits for the result until `end`; empty if it does not come.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn wait_until(self, end: Instant) -> Result<Option<T>, Lost> {
        match self
            .0
            .recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            Ok(result) => Ok(Some(result)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Lost),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Does jobs until the pool ends.
fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => {
                // The ticket of a job that panics is lost, the thread is not.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_to_their_tickets() {
        let pool = Pool::new(3, &Arc::new(Roster::default())).unwrap();
        let tickets: Vec<_> = (0..500u64).map(|n| pool.submit(move || n * n)).collect();
        for (n, ticket) in (0u64..).zip(tickets) {
            assert_eq!(ticket.wait().unwrap(), n * n);
        }
    }

    #[test]
    fn a_panic_loses_only_its_own_ticket() {
        let pool = Pool::new(1, &Arc::new(Roster::default())).unwrap();
        let bad = pool.submit(|| -> u8 { panic!("on purpose") });
        let good = pool.submit(|| 7);
        assert!(bad.wait().is_err());
        assert_eq!(good.wait().unwrap(), 7);
    }
}
