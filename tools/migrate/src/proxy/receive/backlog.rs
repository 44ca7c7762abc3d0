// SPDX-License-Identifier: GPL-2.0

//! Memory of blocks that are decoded, and not yet written to QEMU.
//!
//! The windows bound bytes of the stream and of the link. Either may become several times as many
//! in memory: an operation of three bytes that stands for nine of the stream takes 24. An honest
//! sender makes such blocks, too, so they are not refused: the decoder waits, which holds up
//! nothing but what comes later. What the writer waits for (a HEAL) does not pass through it.

use std::sync::{
    Condvar,
    Mutex,
    MutexGuard,
    PoisonError, //
};

/// The account of a channel's memory.
pub struct Backlog {
    /// Bytes that there may be.
    limit: u64,
    /// What there is.
    state: Mutex<State>,
    /// Signalled when it becomes less.
    changed: Condvar,
}

/// What [`Backlog`] guards.
#[derive(Default)]
struct State {
    /// Bytes.
    bytes: u64,
    /// Nobody shall wait any more.
    closed: bool,
}

impl Backlog {
    /// Nothing, where `limit` bytes may be.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Waits until there is room for `bytes` more, and counts them. More than the limit waits until
    /// there is nothing else.
    pub fn add(&self, bytes: u64) {
        let is_full = |state: &mut State| {
            let sum = state.bytes.saturating_add(bytes);
            !state.closed && state.bytes > 0 && sum > self.limit
        };
        let mut state = self
            .changed
            .wait_while(self.lock(), is_full)
            .unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_add(bytes);
    }

    /// Takes off `bytes` that were counted.
    pub fn remove(&self, bytes: u64) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
        self.changed.notify_all();
    }

    /// Wakes everybody who waits; the session has failed.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The account, also after a panic elsewhere: it is plain numbers.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread::{
        self,
        JoinHandle, //
    };
    use std::time::Duration;

    /// One who adds, and has had time to wait.
    fn adds(backlog: &Arc<Backlog>, bytes: u64) -> JoinHandle<()> {
        let backlog = Arc::clone(backlog);
        let thread = thread::spawn(move || backlog.add(bytes));
        thread::sleep(Duration::from_millis(50));
        thread
    }

    #[test]
    fn what_does_not_fit_waits_for_room() {
        let backlog = Arc::new(Backlog::new(100));
        backlog.add(60);
        backlog.add(40);
        let waiter = adds(&backlog, 50);
        backlog.remove(40);
        thread::sleep(Duration::from_millis(50));
        assert!(!waiter.is_finished());
        backlog.remove(60);
        waiter.join().unwrap();
        assert_eq!(backlog.lock().bytes, 50);
    }

    #[test]
    fn more_than_the_limit_goes_alone() {
        let backlog = Arc::new(Backlog::new(100));
        backlog.add(1000);
        let waiter = adds(&backlog, 1);
        assert!(!waiter.is_finished());
        backlog.remove(1000);
        waiter.join().unwrap();
    }

    #[test]
    fn nobody_waits_after_the_end() {
        let backlog = Arc::new(Backlog::new(100));
        backlog.add(100);
        let waiter = adds(&backlog, 1);
        assert!(!waiter.is_finished());
        backlog.close();
        waiter.join().unwrap();
        backlog.add(1);
    }
}
