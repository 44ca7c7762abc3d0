// SPDX-License-Identifier: GPL-2.0

//! What the channels of a session share, and how they end together.

use std::io;
use std::sync::atomic::{
    AtomicBool,
    AtomicU64,
    Ordering, //
};
use std::sync::mpsc::{
    channel,
    Receiver,
    Sender, //
};
use std::sync::{
    Arc,
    Condvar,
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::thread::{
    self,
    JoinHandle, //
};

use crate::proxy::error::Error;
use crate::proxy::limits::Limits;
use crate::proxy::pool::Pool;
use crate::proxy::progress::{
    OpaqueNote,
    Phase,
    Progress, //
};
use crate::proxy::stop::Stop;
use crate::proxy::threads::Roster;

/// A migration, at one of its ends.
pub struct Session {
    /// Ends it early.
    pub stop: Stop,
    /// Its threads.
    pub roster: Arc<Roster>,
    /// Its counters.
    pub progress: Arc<Progress>,
    /// Its limits.
    pub limits: Limits,
    /// Where pages are hashed.
    pub pool: Arc<Pool>,
    /// The rest.
    ledger: Mutex<Ledger>,
    /// Signalled when a channel ends or the session fails.
    changed: Condvar,
}

/// What is known of the channels.
#[derive(Default)]
struct Ledger {
    /// Channels that have begun.
    begun: u16,
    /// Channels that have not ended.
    running: u16,
    /// The first channel, which carries the state of devices, has ended well.
    main_ended: bool,
    /// What the destination said in SHUT.
    destination: Option<u32>,
    /// The destination said something after which SHUT cannot be told.
    unreadable: bool,
    /// Where channels turned opaque.
    opaque: Vec<OpaqueNote>,
    /// Software of the other end.
    peer: String,
}

/// Opaque places that are remembered; more are only counted.
const OPAQUE_NOTES: usize = 64;

/// A channel, for its threads.
pub struct Channel {
    /// Its number.
    pub number: u16,
    /// Its session.
    pub session: Arc<Session>,
    /// How far its stream is, for errors.
    position: AtomicU64,
    /// All that counts has happened, and well; how the link ends changes nothing.
    done: AtomicBool,
    /// To the thread that oversees the channel.
    events: Sender<Event>,
}

/// What the threads of a channel tell the one that oversees it.
#[derive(Debug)]
pub enum Event {
    /// The session has failed.
    Stopped,
    /// The stream has ended and all of it was acknowledged or written.
    Delivered,
    /// The return path has ended.
    ReturnEnded,
    /// The other end has closed the link in order.
    LinkEnded,
    /// The link broke. An ERROR of the other end that arrives meanwhile says more.
    LinkBroken(Error),
    /// Nothing more is written to the link.
    OutboxEnded,
}

impl Session {
    /// A session of no channels yet.
    ///
    /// # Errors
    ///
    /// The limits cannot be used, or the system gives no threads.
    pub fn new(limits: Limits) -> Result<Arc<Self>, Error> {
        limits.check()?;
        let roster = Arc::new(Roster::default());
        let pool = Pool::new(limits.threads, &roster).map_err(no_thread)?;
        let session = Arc::new(Self {
            stop: Stop::default(),
            roster,
            progress: Arc::new(Progress::new()),
            limits,
            pool: Arc::new(pool),
            ledger: Mutex::default(),
            changed: Condvar::new(),
        });
        let weak = Arc::downgrade(&session);
        session.stop.on_failure(move || {
            if let Some(session) = weak.upgrade() {
                session.progress.enter(Phase::Failed);
                session.changed.notify_all();
            }
        });
        Ok(session)
    }

    /// Begins the channel with the next number, or with just `number`.
    ///
    /// # Errors
    ///
    /// There are too many, or `number` is not the next.
    pub fn begin(self: &Arc<Self>, number: Option<u16>) -> Result<Begun, Error> {
        let mut ledger = self.lock();
        let next = ledger.begun;
        if next >= self.limits.channels {
            let limit = self.limits.channels;
            return Err(Error::Channels { limit });
        }
        if let Some(wrong) = number.filter(|number| *number != next) {
            return Err(Error::Protocol {
                channel: wrong,
                offset: 0,
                what: format!("channel {wrong} begins where {next} is the next"),
            });
        }
        ledger.begun += 1;
        ledger.running += 1;
        drop(ledger);
        self.progress.connected();
        let (events, told) = channel();
        let failed = events.clone();
        self.stop.on_failure(move || {
            // A channel that has ended listens no more.
            let _ = failed.send(Event::Stopped);
        });
        let channel = Arc::new(Channel {
            number: next,
            session: Arc::clone(self),
            position: AtomicU64::new(0),
            done: AtomicBool::new(false),
            events,
        });
        let running = Running(Arc::clone(&channel));
        Ok(Begun {
            channel,
            told,
            running,
        })
    }

    /// Starts a thread that does `work` for `channel`, and fails the session if it panics: what
    /// others wait for would never come.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn spawn(
        self: &Arc<Self>,
        channel: u16,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let session = Arc::clone(self);
        self.roster.spawn(name, move || {
            let _guard = Guard { session, channel };
            work();
        })
    }

    /// Waits until the channels have ended: all, after the first ended well or the session failed.
    pub fn wait(&self) {
        let mut ledger = self.lock();
        while ledger.running > 0 || !(ledger.main_ended || self.stop.failed()) {
            ledger = self
                .changed
                .wait_timeout(ledger, std::time::Duration::from_millis(500))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Whether [`Session::wait`] would wait.
    pub fn finished(&self) -> bool {
        let ledger = self.lock();
        ledger.running == 0 && (ledger.main_ended || self.stop.failed())
    }

    /// Whether the first channel has ended well.
    pub fn main_ended(&self) -> bool {
        self.lock().main_ended
    }

    /// Notes what the destination said on its way to the source.
    pub fn note_destination(&self, shut: Option<u32>, unreadable: bool) {
        let mut ledger = self.lock();
        ledger.destination = ledger.destination.or(shut);
        ledger.unreadable |= unreadable;
        if shut.is_some() {
            self.progress.arrived();
        }
    }

    /// Whether and how the destination has ended the migration.
    pub fn destination(&self) -> (Option<u32>, bool) {
        let ledger = self.lock();
        (ledger.destination, ledger.unreadable)
    }

    /// Whether QEMU at the source may leave: the destination has answered, or what it says cannot be
    /// read. One that leaves before that gives the migration up, and runs its guest again.
    pub fn may_leave(&self) -> bool {
        let ledger = self.lock();
        ledger.destination.is_some() || ledger.unreadable
    }

    /// Whether the destination may have all that it needs to run the guest.
    pub fn handed_over(&self) -> bool {
        self.progress.was_complete() || self.destination().0 == Some(0)
    }

    /// Notes where a channel turns opaque.
    pub fn note_opaque(&self, note: OpaqueNote) {
        self.progress.opaque_channels.add(1);
        let mut ledger = self.lock();
        if ledger.opaque.len() < OPAQUE_NOTES {
            ledger.opaque.push(note);
        }
    }

    /// Where channels turned opaque.
    pub fn opaque(&self) -> Vec<OpaqueNote> {
        self.lock().opaque.clone()
    }

    /// Notes the software of the other end.
    pub fn note_peer(&self, peer: String) {
        self.lock().peer = peer;
    }

    /// Software of the other end.
    pub fn peer(&self) -> String {
        self.lock().peer.clone()
    }

    /// The ledger, also after a panic elsewhere: it is whole at any time.
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that has begun, and the place where its events arrive.
pub struct Begun {
    /// The channel.
    pub channel: Arc<Channel>,
    /// Its events.
    pub told: Receiver<Event>,
    /// Held until it ends.
    pub running: Running,
}

/// Fails the session of a thread that panics.
struct Guard {
    session: Arc<Session>,
    channel: u16,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if thread::panicking() {
            let channel = self.channel;
            self.session.stop.fail(Error::Bug { channel });
        }
    }
}

/// Takes a channel off the ledger when it is dropped, which a panic does too.
pub struct Running(Arc<Channel>);

impl Drop for Running {
    fn drop(&mut self) {
        let channel = &self.0;
        if thread::panicking() {
            channel.fail(channel.bug());
        }
        let mut ledger = channel.session.lock();
        ledger.running = ledger.running.saturating_sub(1);
        if channel.number == 0 && channel.done.load(Ordering::SeqCst) && !channel.failed() {
            ledger.main_ended = true;
        }
        drop(ledger);
        channel.session.changed.notify_all();
    }
}

impl Channel {
    /// Notes how far the stream is.
    pub fn advance(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
    }

    /// How far the stream is.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Tells the thread that oversees the channel.
    pub fn tell(&self, event: Event) {
        // It has gone when the channel has ended; then nobody needs to know.
        let _ = self.events.send(event);
    }

    /// Notes that all that counts has happened.
    pub fn set_done(&self) {
        self.done.store(true, Ordering::SeqCst);
    }

    /// Says that nothing more comes over the link: in order, or too late to matter, or as a
    /// failure of the session.
    pub fn link_ended(&self, result: Result<(), Error>) {
        if let Err(error) = result {
            if !self.done.load(Ordering::SeqCst) {
                self.fail(error);
            }
        }
        self.tell(Event::LinkEnded);
    }

    /// Fails the session.
    pub fn fail(&self, error: Error) {
        self.session.stop.fail(error);
    }

    /// Whether the session has failed.
    pub fn failed(&self) -> bool {
        self.session.stop.failed()
    }

    /// The error for something that the other end must not send.
    pub fn protocol(&self, what: impl ToString) -> Error {
        Error::Protocol {
            channel: self.number,
            offset: self.position(),
            what: what.to_string(),
        }
    }

    /// The error for a failure of the link.
    pub fn link(&self, error: &io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::TimedOut => Error::Silence {
                channel: self.number,
                offset: self.position(),
                silence: self.session.limits.silence,
            },
            _ => Error::Link {
                channel: self.number,
                offset: self.position(),
                reason: chain(error),
            },
        }
    }

    /// The error for a destination that takes nothing while the guest stands still.
    pub fn stalled(&self) -> Error {
        Error::Stalled {
            channel: self.number,
            offset: self.position(),
            waited: self.session.limits.silence,
        }
    }

    /// The error for a thread that ended without doing its work.
    pub fn bug(&self) -> Error {
        Error::Bug {
            channel: self.number,
        }
    }
}

/// What an error says, and what caused it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The error for a thread that the system does not give.
pub fn no_thread(source: io::Error) -> Error {
    Error::System {
        what: "start a thread",
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_fails_the_session_and_ends_the_channel() {
        let session = Session::new(Limits::default()).unwrap();
        let begun = session.begin(None).unwrap();
        let thread = session.spawn(0, "x", move || {
            let _begun = begun;
            panic!("on purpose");
        });
        thread.unwrap().join().unwrap_err();
        assert!(session.finished());
        let error = session.stop.take();
        assert!(matches!(error, Some(Error::Bug { channel: 0 })));
    }

    #[test]
    fn only_a_channel_that_has_done_all_ends_the_session() {
        let session = Session::new(Limits::default()).unwrap();
        drop(session.begin(None).unwrap());
        assert!(!session.finished());
    }
}
