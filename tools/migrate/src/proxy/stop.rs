// SPDX-License-Identifier: GPL-2.0

//! How a session ends early: the first error wins, and everything that waits is woken.
//!
//! [`Stop::fail`] closes both QEMU sockets of every channel at once and abruptly, before anything
//! else happens: QEMU at the source sees its stream break and lets the guest run on, QEMU at the
//! destination sees an end of file in the middle and gives up. Only then do the channels tell each
//! other why.

use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::sync::{
    Mutex,
    MutexGuard,
    PoisonError, //
};

use twinpage_wire::PeerError;

use crate::proxy::error::Error;

/// Something to do when the session fails.
type Closer = Box<dyn Fn() + Send>;

/// The state of a session that has not ended well yet.
#[derive(Default)]
pub struct Stop {
    /// Whether it failed, for those who poll.
    failed: AtomicBool,
    /// The rest.
    inner: Mutex<Inner>,
}

/// What [`Stop`] guards.
#[derive(Default)]
struct Inner {
    /// The first error, until it is taken.
    error: Option<Error>,
    /// What is to be closed.
    closers: Vec<Closer>,
}

impl Stop {
    /// Ends the session with `error`, unless another error came first.
    pub fn fail(&self, error: Error) {
        self.fail_if(error, || true);
    }

    /// As [`Stop::fail`], if `may` says so; says whether it did. Nothing that goes through
    /// [`Stop::unless_failed`] comes between.
    pub fn fail_if(&self, error: Error, may: impl FnOnce() -> bool) -> bool {
        let mut inner = self.lock();
        if !may() {
            return false;
        }
        if !self.failed.swap(true, Ordering::SeqCst) {
            inner.error = Some(error);
            inner.closers.iter().for_each(|close| close());
        }
        true
    }

    /// Does `act` unless the session has failed; says whether it did.
    pub fn unless_failed(&self, act: impl FnOnce()) -> bool {
        let _held = self.lock();
        let goes_on = !self.failed();
        if goes_on {
            act();
        }
        goes_on
    }

    /// Whether the session has failed.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Has `close` called when the session fails, at once if it did already.
    pub fn on_failure(&self, close: impl Fn() + Send + 'static) {
        let mut inner = self.lock();
        if self.failed() {
            close();
        }
        inner.closers.push(Box::new(close));
    }

    /// What the first error says, for the peer.
    pub fn reason(&self) -> Option<PeerError> {
        let inner = self.lock();
        let error = inner.error.as_ref()?;
        Some(PeerError::new(error.code(), &error.to_string()))
    }

    /// Whether the first error came from the peer, who need not be told of it.
    pub fn is_from_peer(&self) -> bool {
        matches!(self.lock().error, Some(Error::Peer { .. }))
    }

    /// Takes the first error.
    pub fn take(&self) -> Option<Error> {
        let mut inner = self.lock();
        // What is closed is let go of, or sockets would stay open as long as the session object.
        inner.closers.clear();
        inner.error.take()
    }

    /// The state, also after a panic elsewhere: it is whole at any time.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::Arc;

    #[test]
    fn the_first_error_wins_and_everything_closes_once() {
        let stop = Stop::default();
        let closed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&closed);
        stop.on_failure(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        stop.fail(Error::Cancelled);
        stop.fail(Error::NoReturnPath { channel: 0 });
        assert!(matches!(stop.take(), Some(Error::Cancelled)));
        assert_eq!(closed.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_is_done_first_decides() {
        let stop = Stop::default();
        let released = AtomicBool::new(false);
        let release = || stop.unless_failed(|| released.store(true, Ordering::SeqCst));
        let early = || !released.load(Ordering::SeqCst);
        assert!(release());
        assert!(!stop.fail_if(Error::Cancelled, early));
        assert!(!stop.failed());

        released.store(false, Ordering::SeqCst);
        assert!(stop.fail_if(Error::Cancelled, early));
        assert!(!release());
        assert!(early());
    }

    #[test]
    fn what_comes_after_the_failure_is_closed_at_once() {
        let stop = Stop::default();
        stop.fail(Error::Cancelled);
        let closed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&closed);
        stop.on_failure(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(closed.load(Ordering::SeqCst), 1);
    }
}
