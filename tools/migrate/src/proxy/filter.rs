// SPDX-License-Identifier: GPL-2.0

//! The receiver's filter at the sender: it comes in parts over the first channel and is used by
//! all.

use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::sync::{
    Arc,
    Condvar,
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::time::{
    Duration,
    Instant, //
};

use twinpage_wire::{
    Filter,
    FilterAssembler,
    FilterKey,
    FilterPart, //
};

/// Where the filter arrives.
pub struct FilterGate {
    /// Bytes of the largest filter that is taken.
    limit: u64,
    /// Whether only what the receiver has for certain may be left out.
    certain: AtomicBool,
    /// What has arrived.
    state: Mutex<State>,
    /// Signalled when the filter is there, or will not come.
    changed: Condvar,
}

/// How far the filter is.
enum State {
    /// No part has come.
    Waiting,
    /// Some have.
    Parts(Box<FilterAssembler>),
    /// All have.
    Ready(Arc<Filter>),
    /// There will be none.
    Without,
}

/// What a filter part led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// More are to come.
    More,
    /// The filter is there, of so many pages.
    Ready(u64),
    /// The filter is larger than allowed, and is not used.
    TooLarge,
}

impl FilterGate {
    /// A gate for filters of at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            certain: AtomicBool::new(false),
            state: Mutex::new(State::Waiting),
            changed: Condvar::new(),
        }
    }

    /// Takes a part of the filter under `key`.
    ///
    /// # Errors
    ///
    /// The part does not fit those before, or the whole is not a filter.
    pub fn push(&self, key: &FilterKey, part: &FilterPart) -> Result<Taken, twinpage_wire::Error> {
        let mut state = self.lock();
        if matches!(*state, State::Waiting) {
            *state = if part.total > self.limit {
                State::Without
            } else {
                let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
                State::Parts(Box::new(FilterAssembler::new(key, limit)))
            };
        }
        let taken = match &mut *state {
            State::Parts(assembler) => match assembler.push(part)? {
                Some(filter) => {
                    let keys = filter.keys();
                    *state = State::Ready(Arc::new(filter));
                    Taken::Ready(keys)
                }
                None => Taken::More,
            },
            // Parts of a filter that is too large pass by.
            _ => Taken::TooLarge,
        };
        self.changed.notify_all();
        Ok(taken)
    }

    /// The filter, if it is there.
    pub fn now(&self) -> Option<Arc<Filter>> {
        match &*self.lock() {
            State::Ready(filter) => Some(Arc::clone(filter)),
            _ => None,
        }
    }

    /// Whether nothing is known yet.
    pub fn is_open(&self) -> bool {
        matches!(*self.lock(), State::Waiting | State::Parts(_))
    }

    /// Lets no channel use the filter any more: the guest stands still.
    pub fn shut(&self) {
        self.certain.store(true, Ordering::Relaxed);
    }

    /// Whether the filter is not to be used any more.
    pub fn is_shut(&self) -> bool {
        self.certain.load(Ordering::Relaxed)
    }

    /// Waits for the filter, `wait` at most.
    pub fn wait(&self, wait: Duration) {
        let end = Instant::now() + wait;
        let mut state = self.lock();
        while matches!(*state, State::Waiting | State::Parts(_)) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// No filter will come; wakes who waits for it.
    pub fn give_up(&self) {
        let mut state = self.lock();
        if !matches!(*state, State::Ready(_)) {
            *state = State::Without;
        }
        self.changed.notify_all();
    }

    /// The state, also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
