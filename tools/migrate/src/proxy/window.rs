// SPDX-License-Identifier: GPL-2.0

//! How much may be under way between the two ends of a channel.
//!
//! Two amounts are bounded: bytes of QEMU's stream, which the receiver may have to hold while it
//! waits for a page, and bytes between the proxies, which its reader must take off the link at any
//! time. The sender waits in [`Window::reserve`]; the receiver holds it to the same numbers.

use std::sync::{
    Condvar,
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::time::{
    Duration,
    Instant, //
};

/// What a block costs beside its own bytes: the receiver's bookkeeping of a block.
pub const BLOCK_CHARGE: u64 = 1024;

/// An amount of both kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes of QEMU's stream.
    pub stream: u64,
    /// Bytes between the proxies, with [`BLOCK_CHARGE`] for each block.
    pub wire: u64,
}

/// The account of a channel at its sender.
pub struct Window {
    /// How much may be under way.
    limit: Amount,
    /// The account.
    state: Mutex<State>,
    /// Signalled when the account changes.
    changed: Condvar,
}

/// What was sent and what has arrived.
#[derive(Debug)]
struct State {
    /// Sent so far.
    sent: Amount,
    /// Acknowledged so far.
    acked: Amount,
    /// When more was acknowledged, or something was sent while nothing was under way.
    moved: Instant,
    /// Nobody shall wait any more.
    closed: bool,
}

/// The channel has failed; nothing more will be acknowledged.
#[derive(Debug)]
pub struct Closed;

/// More was acknowledged than sent, or less than before.
#[derive(Debug, PartialEq, Eq)]
pub struct BadAck;

impl Window {
    /// An account with nothing under way.
    pub fn new(limit: Amount) -> Self {
        Self {
            limit,
            state: Mutex::new(State {
                sent: Amount::default(),
                acked: Amount::default(),
                moved: Instant::now(),
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Waits until `amount` may be sent, and counts it as sent.
    ///
    /// An amount above the limit waits until nothing else is under way.
    ///
    /// # Errors
    ///
    /// The channel has failed.
    pub fn reserve(&self, amount: Amount) -> Result<(), Closed> {
        let mut state = self.lock();
        while !state.closed && !state.fits(amount, self.limit) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(Closed);
        }
        if state.acked == state.sent {
            state.moved = Instant::now();
        }
        state.sent.stream = state.sent.stream.saturating_add(amount.stream);
        state.sent.wire = state.sent.wire.saturating_add(amount.wire);
        Ok(())
    }

    /// Takes the receiver's word that everything up to `acked` has arrived.
    ///
    /// # Errors
    ///
    /// That is more than was sent, or less than it said before.
    pub fn acknowledge(&self, acked: Amount) -> Result<(), BadAck> {
        let mut state = self.lock();
        let grows = acked.stream >= state.acked.stream && acked.wire >= state.acked.wire;
        if !grows || acked.stream > state.sent.stream || acked.wire > state.sent.wire {
            return Err(BadAck);
        }
        if acked != state.acked {
            state.acked = acked;
            state.moved = Instant::now();
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until everything sent is acknowledged.
    ///
    /// # Errors
    ///
    /// The channel has failed.
    pub fn drain(&self) -> Result<(), Closed> {
        let mut state = self.lock();
        while !state.closed && state.acked != state.sent {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.acked == state.sent {
            Ok(())
        } else {
            Err(Closed)
        }
    }

    /// Waits until the first `stream` bytes are acknowledged, or `patience` is at its end; says
    /// whether they are.
    ///
    /// # Errors
    ///
    /// The channel has ended before that.
    pub fn reach(&self, stream: u64, patience: Duration) -> Result<bool, Closed> {
        let not_yet = |state: &mut State| !state.closed && state.acked.stream < stream;
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), patience, not_yet)
            .unwrap_or_else(PoisonError::into_inner);
        let reached = state.acked.stream >= stream;
        if state.closed && !reached {
            return Err(Closed);
        }
        Ok(reached)
    }

    /// Whether nothing is under way.
    pub fn is_drained(&self) -> bool {
        let state = self.lock();
        state.acked == state.sent
    }

    /// When more was acknowledged last, or something was sent while nothing was under way.
    pub fn moved(&self) -> Instant {
        self.lock().moved
    }

    /// Wakes everybody who waits; the channel has failed.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Bytes of QEMU's stream under way.
    pub fn in_flight(&self) -> u64 {
        let state = self.lock();
        state.sent.stream.saturating_sub(state.acked.stream)
    }

    /// The account, also after a panic elsewhere: it is plain numbers.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether `amount` may follow what is under way.
    fn fits(&self, amount: Amount, limit: Amount) -> bool {
        let stream = self.sent.stream.saturating_sub(self.acked.stream);
        let wire = self.sent.wire.saturating_sub(self.acked.wire);
        if stream == 0 && wire == 0 {
            return true;
        }
        stream.saturating_add(amount.stream) <= limit.stream
            && wire.saturating_add(amount.wire) <= limit.wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    const LIMIT: Amount = Amount {
        stream: 100,
        wire: 10,
    };

    fn amount(stream: u64, wire: u64) -> Amount {
        Amount { stream, wire }
    }

    #[test]
    fn either_limit_holds_the_sender_back_until_an_ack() {
        for too_much in [amount(51, 1), amount(1, 6)] {
            let window = Arc::new(Window::new(LIMIT));
            window.reserve(amount(50, 5)).unwrap();
            let other = Arc::clone(&window);
            let waiter = thread::spawn(move || other.reserve(too_much).is_ok());
            thread::sleep(Duration::from_millis(50));
            assert!(!waiter.is_finished());
            window.acknowledge(amount(50, 5)).unwrap();
            assert!(waiter.join().unwrap());
            assert_eq!(window.in_flight(), too_much.stream);
        }
    }

    #[test]
    fn an_amount_above_the_limit_goes_alone() {
        let window = Window::new(LIMIT);
        window.reserve(amount(1000, 1000)).unwrap();
        assert_eq!(window.in_flight(), 1000);
    }

    #[test]
    fn a_lying_ack_is_refused() {
        let window = Window::new(LIMIT);
        window.reserve(amount(50, 5)).unwrap();
        window.acknowledge(amount(40, 5)).unwrap();
        for lie in [amount(51, 5), amount(50, 6), amount(39, 5), amount(40, 4)] {
            assert_eq!(window.acknowledge(lie), Err(BadAck));
        }
        assert_eq!(window.in_flight(), 10);
    }

    #[test]
    fn a_part_of_what_was_sent_is_waited_for() {
        let window = Arc::new(Window::new(LIMIT));
        window.reserve(amount(90, 9)).unwrap();
        let other = Arc::clone(&window);
        let waiter = thread::spawn(move || other.reach(50, Duration::MAX).unwrap());
        window.acknowledge(amount(49, 5)).unwrap();
        thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished());
        window.acknowledge(amount(50, 5)).unwrap();
        assert!(waiter.join().unwrap());
        assert!(!window.reach(51, Duration::from_millis(1)).unwrap());
        // A channel closes its account when it has ended in order, too.
        window.close();
        assert!(window.reach(50, Duration::MAX).unwrap());
        assert!(window.reach(51, Duration::MAX).is_err());
    }

    #[test]
    fn only_more_that_is_acknowledged_is_a_move() {
        let window = Window::new(LIMIT);
        let pause = || thread::sleep(Duration::from_millis(2));
        let made = window.moved();
        assert!(window.is_drained());
        pause();
        window.reserve(amount(10, 1)).unwrap();
        let sent = window.moved();
        assert!(sent > made && !window.is_drained());
        pause();
        window.reserve(amount(10, 1)).unwrap();
        window.acknowledge(amount(0, 0)).unwrap();
        assert_eq!(window.moved(), sent);
        window.acknowledge(amount(1, 1)).unwrap();
        assert!(window.moved() > sent && !window.is_drained());
        window.acknowledge(amount(20, 2)).unwrap();
        assert!(window.is_drained());
    }

    #[test]
    fn closing_wakes_all_who_wait() {
        let window = Arc::new(Window::new(LIMIT));
        window.reserve(amount(100, 10)).unwrap();
        let waiters: Vec<_> = (0..3)
            .map(|n| {
                let window = Arc::clone(&window);
                thread::spawn(move || match n {
                    0 => window.reserve(amount(1, 1)).is_err(),
                    1 => window.reach(1, Duration::MAX).is_err(),
                    _ => window.drain().is_err(),
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(20));
        window.close();
        assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
    }
}
