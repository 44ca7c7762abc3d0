// SPDX-License-Identifier: GPL-2.0

//! Pages that were asked for because no source had them.

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicU64,
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
    Digest,
    Page, //
};

/// The pages of one channel, by the numbers of their references.
///
/// There are at most as many as the window of the stream has pages.
#[derive(Default)]
pub struct Heals {
    /// What is open.
    state: Mutex<State>,
    /// Signalled when a page comes, or none will.
    changed: Condvar,
    /// Bytes that the link has brought, pages and all else.
    brought: Arc<AtomicU64>,
}

/// What [`Heals`] guards.
#[derive(Default)]
struct State {
    /// Pages asked for, and those that came.
    open: HashMap<u64, (Digest, Option<Box<Page>>)>,
    /// None will come.
    closed: bool,
}

/// What is wrong with a page that came.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// It was not asked for, or came before.
    Unasked,
    /// It is another page.
    Wrong {
        /// What was asked for.
        asked: Digest,
        /// What came.
        came: Digest,
    },
}

/// Why no page came.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    /// The session has failed.
    Closed,
    /// It took too long.
    TimedOut,
}

impl Heals {
    /// No pages yet. They come behind what the link brings first, which `brought` counts.
    pub fn behind(brought: Arc<AtomicU64>) -> Self {
        Self {
            brought,
            ..Self::default()
        }
    }

    /// Notes that the page of reference `number` is asked for.
    pub fn expect(&self, number: u64, digest: Digest) {
        self.lock().open.insert(number, (digest, None));
    }

    /// Takes a page that came.
    ///
    /// # Errors
    ///
    /// It is not what was asked for.
    pub fn put(&self, number: u64, page: Box<Page>) -> Result<(), Refused> {
        let came = Digest::of(&page);
        let mut state = self.lock();
        match state.open.get_mut(&number) {
            Some((asked, _)) if *asked != came => {
                let asked = *asked;
                Err(Refused::Wrong { asked, came })
            }
            Some((_, place @ None)) => {
                *place = Some(page);
                self.changed.notify_all();
                Ok(())
            }
            _ => Err(Refused::Unasked),
        }
    }

    /// Waits for the page of reference `number`, and gives up when the link has brought nothing for
    /// `wait` (or up to twice that). On a slow link much may be before the page, but no more than
    /// the windows allow.
    ///
    /// # Errors
    ///
    /// It does not come.
    pub fn take(&self, number: u64, wait: Duration) -> Result<Box<Page>, Missing> {
        let mut end = Instant::now() + wait;
        let mut before = self.brought.load(Ordering::Relaxed);
        let mut state = self.lock();
        loop {
            if let Some((_, Some(_))) = state.open.get(&number) {
                if let Some((_, Some(page))) = state.open.remove(&number) {
                    return Ok(page);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed {
                return Err(Missing::Closed);
            }
            if left.is_zero() {
                let now = self.brought.load(Ordering::Relaxed);
                if now == before {
                    return Err(Missing::TimedOut);
                }
                before = now;
                end = Instant::now() + wait;
                continue;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Wakes everybody who waits.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The state, also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn page(fill: u8) -> Box<Page> {
        Box::new([fill; 4096])
    }

    #[test]
    fn only_what_was_asked_for_is_taken_and_only_once() {
        let heals = Heals::default();
        heals.expect(7, Digest::of(&page(1)));
        assert_eq!(heals.put(8, page(1)), Err(Refused::Unasked));
        assert!(matches!(heals.put(7, page(2)), Err(Refused::Wrong { .. })));
        assert_eq!(heals.put(7, page(1)), Ok(()));
        assert_eq!(heals.put(7, page(1)), Err(Refused::Unasked));
        assert_eq!(heals.take(7, Duration::ZERO).unwrap(), page(1));
        assert_eq!(heals.put(7, page(1)), Err(Refused::Unasked));
    }

    #[test]
    fn waiting_goes_on_while_the_link_brings_something() {
        let brought = Arc::new(AtomicU64::new(0));
        let heals = Arc::new(Heals::behind(Arc::clone(&brought)));
        heals.expect(1, Digest::of(&page(1)));
        let other = Arc::clone(&heals);
        let waiter = thread::spawn(move || other.take(1, Duration::from_secs(2)));
        for _ in 0..30 {
            thread::sleep(Duration::from_millis(100));
            brought.fetch_add(1, Ordering::Relaxed);
        }
        heals.put(1, page(1)).unwrap();
        assert!(waiter.join().unwrap().is_ok());
        let short = Duration::from_millis(20);
        assert_eq!(heals.take(2, short).unwrap_err(), Missing::TimedOut);
    }

    #[test]
    fn waiting_ends_by_a_page_by_time_and_by_closing() {
        let heals = Arc::new(Heals::default());
        heals.expect(1, Digest::of(&page(1)));
        let short = Duration::from_millis(20);
        assert_eq!(heals.take(1, short).unwrap_err(), Missing::TimedOut);
        let other = Arc::clone(&heals);
        let waiter = thread::spawn(move || other.take(1, Duration::from_secs(60)));
        thread::sleep(short);
        heals.put(1, page(1)).unwrap();
        assert!(waiter.join().unwrap().is_ok());
        let other = Arc::clone(&heals);
        let waiter = thread::spawn(move || other.take(2, Duration::from_secs(60)));
        thread::sleep(short);
        heals.close();
        assert_eq!(waiter.join().unwrap().unwrap_err(), Missing::Closed);
    }
}
