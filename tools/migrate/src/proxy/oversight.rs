// SPDX-License-Identifier: GPL-2.0

//! Sees how a channel ends, in order or not, and cleans up after it.
//!
//! In order: the stream is delivered and the return path has ended; then both ends close the link.
//! The other end may do so before the threads here have told that, which they get time for.
//! Else: the QEMU sockets are closed already when the news arrives here; the other end is told why,
//! and the link is broken.

use std::sync::mpsc::{
    Receiver,
    RecvTimeoutError, //
};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_wire::Message;

use crate::net::LinkHandle;
use crate::proxy::error::Error;
use crate::proxy::outbox::Outbox;
use crate::proxy::qemu::QemuCloser;
use crate::proxy::session::{
    Channel,
    Event,
    Running, //
};
use crate::proxy::threads::join;

/// How long an ERROR may take to be written.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long a better reason for a broken link may take to arrive.
const BETTER_REASON: Duration = Duration::from_millis(500);
/// How long a thread here may take to tell that it has done the last part, of which the other end
/// knows already: a busy machine may not run it for seconds.
const LATE_WORD: Duration = Duration::from_secs(5);
/// How long the other end may take to close the link.
const FAREWELL: Duration = Duration::from_secs(5);
/// Between two looks at QEMU's socket.
const LOOK: Duration = Duration::from_millis(100);

/// A channel to oversee.
pub struct Task {
    /// The channel.
    pub channel: Arc<Channel>,
    /// Held until it ends.
    pub running: Running,
    /// What its threads tell.
    pub told: Receiver<Event>,
    /// Its link.
    pub link: LinkHandle,
    /// Where its last frame goes.
    pub outbox: Outbox,
    /// Its threads.
    pub threads: Vec<JoinHandle<()>>,
    /// QEMU, if its closing the socket means that the rest of the stream is of no use.
    pub source: Option<QemuCloser>,
}

/// What has happened on a channel.
#[derive(Default)]
struct Seen {
    /// The stream is delivered.
    delivered: bool,
    /// The return path has ended.
    returned: bool,
    /// The other end has closed the link.
    link_ended: bool,
    /// Nothing more is written to the link.
    outbox_ended: bool,
    /// Since when the link is broken, and how.
    broken: Option<(Instant, Error)>,
    /// Since when only the return path is missing.
    waiting: Option<Instant>,
    /// Since when the other end has closed the link, and something is missing.
    closed: Option<Instant>,
    /// Since when QEMU's socket is closed.
    hung_up: Option<Instant>,
}

/// Sees a channel to its end.
pub fn oversee(task: Task) {
    let mut seen = Seen::default();
    let channel = Arc::clone(&task.channel);
    match task.watch(&mut seen) {
        Ok(()) => task.part(&mut seen),
        Err(error) => {
            channel.fail(error);
            task.tell_why(&mut seen);
        }
    }
    task.link.abort();
    let Task {
        threads,
        outbox,
        running,
        ..
    } = task;
    drop(outbox);
    join(threads);
    drop(running);
}

impl Task {
    /// Waits until the channel has done its work.
    fn watch(&self, seen: &mut Seen) -> Result<(), Error> {
        while !(seen.delivered && seen.returned) {
            let wait = if seen.is_closing() {
                BETTER_REASON / 4
            } else {
                LOOK
            };
            match self.told.recv_timeout(wait) {
                // The error is in the session already; this one changes nothing.
                Ok(Event::Stopped) => return Err(Error::Cancelled),
                Ok(event) => seen.note(event),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => return Err(self.channel.bug()),
            }
            self.judge(seen)?;
        }
        Ok(())
    }

    /// Whether what has happened and what has not is an error by now.
    fn judge(&self, seen: &mut Seen) -> Result<(), Error> {
        if let Some((since, _)) = &seen.broken {
            if since.elapsed() >= BETTER_REASON {
                return match seen.broken.take() {
                    Some((_, error)) => Err(error),
                    None => Ok(()),
                };
            }
        }
        if seen.link_ended {
            let patience = self.patience(seen);
            let since = seen.closed.get_or_insert_with(Instant::now);
            if since.elapsed() >= patience {
                let reason = "the other end closed it too early";
                return Err(self.channel.link(&std::io::Error::other(reason)));
            }
        } else if seen.delivered {
            let since = seen.waiting.get_or_insert_with(Instant::now);
            let waited = self.channel.session.limits.silence;
            if since.elapsed() >= waited {
                let channel = self.channel.number;
                return Err(Error::DestinationStuck { channel, waited });
            }
        } else if self.source.as_ref().is_some_and(QemuCloser::hung_up) {
            let since = seen.hung_up.get_or_insert_with(Instant::now);
            let session = &self.channel.session;
            let given_up = self.channel.number == 0 && !session.may_leave();
            if given_up || since.elapsed() >= session.limits.silence {
                return Err(Error::SourceGone {
                    channel: self.channel.number,
                    offset: self.channel.position(),
                });
            }
        }
        Ok(())
    }

    /// How long what is missing may take once the other end has closed the link. It does so when it
    /// has everything, so a thread here may only be late to tell of its part. But at the sender the
    /// thread that tells of the link's end has told of the return path before, if that has ended.
    fn patience(&self, seen: &Seen) -> Duration {
        let is_sender = self.source.is_some();
        match seen.returned || (seen.delivered && !is_sender) {
            true => LATE_WORD,
            false => BETTER_REASON,
        }
    }

    /// Closes the link in order.
    fn part(&self, seen: &mut Seen) {
        self.channel.set_done();
        self.outbox.finish(None, FAREWELL);
        self.await_both(seen, FAREWELL);
    }

    /// Tells the other end why the session has failed, if it does not know.
    fn tell_why(&self, seen: &mut Seen) {
        let stop = &self.channel.session.stop;
        if stop.is_from_peer() || seen.outbox_ended {
            return;
        }
        let frame = stop
            .reason()
            .and_then(|error| Message::Error(error).frame().ok());
        self.outbox.finish(frame, LAST_WORD);
        let end = Instant::now() + LAST_WORD;
        // A link that is closed while the other end still writes forgets what was not read there.
        while !(seen.outbox_ended && seen.link_ended) {
            if !self.next_before(seen, end) {
                return;
            }
        }
    }

    /// Waits until nothing more goes or comes over the link.
    fn await_both(&self, seen: &mut Seen, wait: Duration) {
        let end = Instant::now() + wait;
        while !(seen.outbox_ended && seen.link_ended) && seen.broken.is_none() {
            if !self.next_before(seen, end) {
                return;
            }
        }
    }

    /// Notes the next event; false if none comes before `end`.
    fn next_before(&self, seen: &mut Seen, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        match self.told.recv_timeout(left) {
            Ok(event) => {
                seen.note(event);
                true
            }
            Err(_) => false,
        }
    }
}

impl Seen {
    /// Notes an event.
    fn note(&mut self, event: Event) {
        match event {
            Event::Stopped => (),
            Event::Delivered => self.delivered = true,
            Event::ReturnEnded => self.returned = true,
            Event::LinkEnded => self.link_ended = true,
            Event::OutboxEnded => self.outbox_ended = true,
            Event::LinkBroken(error) => {
                self.broken.get_or_insert((Instant::now(), error));
            }
        }
    }

    /// Whether the end is near, so that time is looked at more often.
    fn is_closing(&self) -> bool {
        self.broken.is_some() || self.link_ended
    }
}
