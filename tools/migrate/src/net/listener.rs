// SPDX-License-Identifier: GPL-2.0

//! The side that listens.
//!
//! A thread accepts connections and gives each one a thread for its handshake, so that whoever
//! connects and says nothing keeps nobody else waiting. At most [`SLOTS`] handshakes go on at
//! once. When one more comes, the oldest is ended if it has lasted [`GRACE`]; until then the new
//! one waits in the kernel's queue. So strangers who open connections slow the real peer down, and
//! keep it out only if they open more than [`SLOTS`] in each [`GRACE`].

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{
    sync_channel,
    Receiver,
    RecvTimeoutError,
    SyncSender,
    TrySendError, //
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
use std::time::{
    Duration,
    Instant, //
};

use rustix::event::{
    poll,
    PollFd,
    PollFlags, //
};

use super::bound::Bound;
use super::handshake::{
    establish,
    Kind,
    Terms, //
};
use super::socket::Socket;
use super::{
    tls,
    Address,
    Error,
    Limits,
    Link,
    Security, //
};

/// How many handshakes go on at once.
const SLOTS: usize = 32;

/// How long a handshake is left alone while others wait.
const GRACE: Duration = Duration::from_secs(2);

/// How long to wait after the kernel refused to accept a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits for peers and agrees with them.
pub struct Listener {
    address: Address,
    inner: Arc<Inner>,
    links: Mutex<Receiver<Link>>,
    thread: Option<JoinHandle<()>>,
}

/// Ends a listener from another thread.
#[derive(Clone)]
pub struct Stopper(Arc<Inner>);

/// What the threads of a listener share.
struct Inner {
    terms: Terms,
    limits: Limits,
    note: Box<dyn Fn(&Error) + Send + Sync>,
    state: Mutex<State>,
    /// Signalled when a handshake ends and when the listener is stopped.
    changed: Condvar,
    /// Written to when the listener is stopped; the accepting thread polls the other end.
    wake: UnixStream,
}

/// The part that changes.
#[derive(Default)]
struct State {
    stopped: bool,
    slots: Vec<Slot>,
    next_id: u64,
    failed: u64,
    last: Option<String>,
}

/// A handshake that is going on.
struct Slot {
    id: u64,
    start: Instant,
    /// A duplicate of its socket, to end it by.
    socket: Socket,
}

impl Listener {
    /// Listens at `address`; `note` is told why a handshake failed, from another thread.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: the address cannot be listened at; [`Error::BadIdentity`]: the certificates
    /// and the key do not fit together.
    pub fn bind(
        address: &Address,
        security: &Security,
        limits: Limits,
        note: impl Fn(&Error) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let terms = terms(security)?;
        let listening = |source| Error::io(format!("listen at {address}"), source);
        let bound = Bound::new(address)?;
        let address = bound.address(address).map_err(listening)?;
        let (wake, woken) = UnixStream::pair().map_err(listening)?;
        let inner = Arc::new(Inner {
            terms,
            limits,
            note: Box::new(note),
            state: Mutex::default(),
            changed: Condvar::new(),
            wake,
        });
        let (sender, links) = sync_channel(SLOTS);
        let thread = thread::Builder::new().name("listen".to_owned());
        let shared = inner.clone();
        let thread = thread
            .spawn(move || shared.accept_all(&bound, &woken, &sender))
            .map_err(listening)?;
        Ok(Self {
            address,
            inner,
            links: Mutex::new(links),
            thread: Some(thread),
        })
    }

    /// Where it listens, with the port that the kernel chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Ends the listener from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.inner.clone())
    }

    /// Waits for the next peer that could prove who it is, until `deadline` if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::NoPeer`]: the deadline passed; [`Error::Stopped`]: the listener was stopped.
    pub fn accept(&self, deadline: Option<Instant>) -> Result<Link, Error> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let link = match deadline {
            None => links.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => links.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        link.map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                let state = self.inner.state();
                Error::NoPeer {
                    failed: state.failed,
                    last: state.last.clone(),
                }
            }
            RecvTimeoutError::Disconnected => Error::Stopped,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.inner.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed; there is nothing to do about it here.
            let _panicked = thread.join();
        }
    }
}

impl Stopper {
    /// Ends the listener: no further handshakes, and [`Listener::accept`] returns.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl Inner {
    /// The part that changes.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all handshakes and the accepting thread.
    fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        for slot in &state.slots {
            slot.socket.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
        // The thread polls the other end. If it is gone, nobody needs waking.
        let _end = self.wake.shutdown(Shutdown::Write);
    }

    /// Accepts connections until the listener is stopped.
    fn accept_all(self: &Arc<Self>, bound: &Bound, woken: &UnixStream, links: &SyncSender<Link>) {
        while self.wait_for_room() {
            let mut ready = [
                PollFd::from_borrowed_fd(bound.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(woken.as_fd(), PollFlags::IN),
            ];
            // An error is a signal that came in between; what is ready is asked again then.
            let polled = poll(&mut ready, None);
            let listening = ready[0].revents().contains(PollFlags::IN);
            if polled.is_err() || !listening {
                continue;
            }
            match bound.accept() {
                Ok((socket, peer)) => self.handshake(socket, peer, links.clone()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(source) => {
                    (self.note)(&Error::io("accept a connection", source));
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Waits until one more handshake may start; `false`: the listener was stopped.
    fn wait_for_room(&self) -> bool {
        let mut state = self.state();
        while !state.stopped && state.slots.len() >= SLOTS {
            let oldest = state.slots.iter().min_by_key(|slot| slot.start);
            let age = oldest.map_or(GRACE, |slot| slot.start.elapsed());
            if let (Some(slot), true) = (oldest, age >= GRACE) {
                slot.socket.shutdown(Shutdown::Both);
            }
            let wait = GRACE.saturating_sub(age).max(Duration::from_millis(10));
            state = match self.changed.wait_timeout(state, wait) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        !state.stopped
    }

    /// Starts a thread for the handshake with `peer`.
    fn handshake(self: &Arc<Self>, socket: Socket, peer: String, links: SyncSender<Link>) {
        let start = Instant::now();
        let id = match self.enter(&socket, start) {
            Ok(id) => id,
            Err(source) => return (self.note)(&Error::io("accept a connection", source)),
        };
        let inner = self.clone();
        let spawned = thread::Builder::new()
            .name("handshake".to_owned())
            .spawn(move || {
                let result = establish(socket, &inner.terms, &peer, inner.limits, start);
                // From here on the socket is the link's, and stopping the listener spares it.
                inner.leave(id);
                match result.map(|link| links.try_send(link)) {
                    // Nobody takes the link if the listener is gone.
                    Ok(Ok(()) | Err(TrySendError::Disconnected(_))) => {}
                    Ok(Err(TrySendError::Full(link))) => inner.failed(&Error::Unwanted {
                        peer: link.peer().to_owned(),
                    }),
                    Err(error) => inner.failed(&error),
                }
            });
        if let Err(source) = spawned {
            self.leave(id);
            (self.note)(&Error::io("start a thread", source));
        }
    }

    /// Notes a handshake that starts.
    fn enter(&self, socket: &Socket, start: Instant) -> io::Result<u64> {
        let socket = socket.duplicate()?;
        let mut state = self.state();
        let id = state.next_id;
        state.next_id += 1;
        state.slots.push(Slot { id, start, socket });
        Ok(id)
    }

    /// Notes that a handshake is over.
    fn leave(&self, id: u64) {
        self.state().slots.retain(|slot| slot.id != id);
        self.changed.notify_all();
    }

    /// Notes why a handshake failed.
    fn failed(&self, error: &Error) {
        let mut state = self.state();
        if state.stopped {
            return;
        }
        state.failed += 1;
        state.last = Some(error.chain());
        drop(state);
        (self.note)(error);
    }
}

/// What this side brings to handshakes.
fn terms(security: &Security) -> Result<Terms, Error> {
    Ok(match security {
        Security::Insecure => Terms::Plain,
        Security::Psk(psk) => Terms::Server(tls::psk_server(psk)?, Kind::Key(psk.fingerprint())),
        Security::Certificates(own) => {
            Terms::Server(tls::certificate_server(own)?, Kind::Certificates)
        }
    })
}
