// SPDX-License-Identifier: GPL-2.0

//! Takes links, hears what each is for, and begins it or refuses.

use std::path::{
    Path,
    PathBuf, //
};
use std::sync::atomic::{
    AtomicUsize,
    Ordering, //
};
use std::sync::mpsc::{
    self,
    RecvTimeoutError, //
};
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::time::{
    Duration,
    Instant, //
};

use twinpage_store::Sources;
use twinpage_wire::{
    Agreed,
    Direction,
    Filter,
    FilterKey,
    Hello,
    Message,
    PeerError,
    Purpose,
    Sealer,
    SessionId, //
};

use crate::net::{
    Link,
    LinkHandle,
    LinkWriter,
    Listener, //
};
use crate::proxy::error::Error;
use crate::proxy::handshake::{
    self,
    Greeting, //
};
use crate::proxy::inbox::Inbox;
use crate::proxy::outbox::{
    Outbox,
    Sent, //
};
use crate::proxy::qemu::Qemu;
use crate::proxy::receive::channel::Connection;
use crate::proxy::receive::{
    offer,
    OfDomain, //
};
use crate::proxy::session::{
    chain,
    no_thread,
    Begun,
    Channel,
    Session, //
};

/// How long the other end may take to read a filter, and to close the link.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to read why it is refused.
const REFUSAL: Duration = Duration::from_secs(5);
/// Links that may be about to say what they are for, or be told what this host holds.
const GUESTS: usize = 64;

/// What the receiver serves.
pub struct Host {
    /// The migration.
    pub session: Arc<Session>,
    /// The socket of QEMU.
    pub qemu: Option<PathBuf>,
    /// Gives the sources of a domain.
    pub sources: Arc<OfDomain>,
    /// How long QEMU may take to listen.
    pub connect_wait: Duration,
    /// Hears of links that came to nothing.
    pub notice: Arc<dyn Fn(&str) + Send + Sync>,
    /// Whose migration it is, once one has begun.
    pub migration: Mutex<Option<Migration>>,
    /// Links that are not channels (yet).
    pub guests: Arc<AtomicUsize>,
    /// Held while the filter of a plan is made, which takes much more memory than the filter.
    pub filters: Arc<Mutex<()>>,
}

/// The one migration of a receiver.
pub struct Migration {
    /// Its name.
    id: SessionId,
    /// Its domain.
    domain: String,
    /// The key of its filter.
    key: FilterKey,
    /// Where its pages are.
    sources: Arc<Sources>,
}

/// A link whose sender has said HELLO.
struct Caller {
    handle: LinkHandle,
    inbox: Inbox,
    writer: LinkWriter,
    sealer: Sealer,
    hello: Hello,
}

/// A channel whose QEMU has taken the connection.
struct Joined {
    qemu: Qemu,
    answer: Hello,
    agreed: Agreed,
}

/// Counts a link, or what is still done for it, until it is dropped.
struct Guest(Arc<AtomicUsize>);

impl Host {
    /// Takes links until the session is over.
    pub fn listen(self: &Arc<Self>, listener: &Listener) {
        while !self.session.stop.failed() {
            let link = match listener.accept(None) {
                Ok(link) => link,
                Err(error) => {
                    if !self.session.finished() && !self.session.main_ended() {
                        self.session.stop.fail(Error::Listen {
                            address: listener.address().to_string(),
                            reason: error.chain(),
                        });
                    }
                    return;
                }
            };
            let Some(guest) = Guest::new(&self.guests) else {
                (self.notice)(&format!("{}: too many connections", link.peer()));
                continue;
            };
            let host = Arc::clone(self);
            let thread = self.session.roster.spawn("greet", move || {
                let peer = link.peer().to_owned();
                if let Err(error) = host.greet(link, guest) {
                    (host.notice)(&format!("{peer}: {error}"));
                }
            });
            if let Err(error) = thread {
                (self.notice)(&format!("Cannot start a thread: {error}"));
            }
        }
    }

    /// The sources of the migration.
    pub fn sources_in_use(&self) -> Option<Arc<Sources>> {
        let migration = self.lock();
        migration
            .as_ref()
            .map(|migration| Arc::clone(&migration.sources))
    }

    /// Hears what a link is for, and serves it.
    fn greet(&self, link: Link, guest: Guest) -> Result<(), Error> {
        let handle = link.handle();
        let (reader, writer) = link.split();
        let limits = &self.session.limits;
        let mut inbox = Inbox::new(reader, Direction::ToReceiver, limits.silence);
        let patience = limits.handshake;
        inbox.set_deadline(Some(Instant::now() + patience));
        let failed = |what: String| Error::Protocol {
            channel: 0,
            offset: 0,
            what,
        };
        let hello = match handshake::read(&mut inbox).map_err(|b| failed(b.to_string()))? {
            Greeting::Hello(hello) => hello,
            Greeting::Refused(_, text) => return Err(failed(text)),
        };
        inbox.set_deadline(None);
        let caller = Caller {
            handle,
            inbox,
            writer,
            sealer: Sealer::new(Direction::ToSender, &hello.session, hello.channel),
            hello,
        };
        let guest = Arc::new(guest);
        match caller.hello.purpose {
            Purpose::Plan => self.plan(caller, guest),
            Purpose::Migrate => self.migrate(caller, &guest),
        }
    }

    /// Sends the filter, and closes.
    fn plan(&self, mut caller: Caller, guest: Arc<Guest>) -> Result<(), Error> {
        let failed = |what: String| Error::Protocol {
            channel: 0,
            offset: 0,
            what,
        };
        let sources = match self.sources_of(&caller.hello.domain, &guest) {
            Ok(sources) => sources,
            Err(error) => return caller.refuse(error),
        };
        let key = FilterKey(handshake::random()?);
        let answer = handshake::of_receiver(&caller.hello, key, &self.session.limits);
        if let Err(error) = answer.agree(&caller.hello) {
            return caller.refuse(failed(error.to_string()));
        }
        caller
            .say(&Message::Hello(answer))
            .map_err(|e| failed(e.to_string()))?;
        let filter = self.filter_meanwhile(&mut caller, sources, key, Arc::clone(&guest));
        let filter = filter.map_err(failed)?;
        for part in filter.parts() {
            let sent = caller.say(&Message::Filter(part));
            sent.map_err(|error| failed(error.to_string()))?;
        }
        caller.part(PATIENCE);
        drop(guest);
        Ok(())
    }

    /// Makes the filter of `sources` when it is its turn, which may take long, and says meanwhile
    /// that it does. The `guest` counts until then, even if nobody waits for it any more.
    fn filter_meanwhile(
        &self,
        caller: &mut Caller,
        sources: Arc<Sources>,
        key: FilterKey,
        guest: Arc<Guest>,
    ) -> Result<Filter, String> {
        let (give, take) = mpsc::channel();
        let asker = Arc::new(());
        let (asks, filters) = (Arc::downgrade(&asker), Arc::clone(&self.filters));
        let work = move || {
            // It guards nothing that a panic could leave half done.
            let turn = filters.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody waits any more if the link broke.
            if asks.strong_count() > 0 {
                let _ = give.send(offer::filter(&sources, &key));
            }
            drop(turn);
            drop(guest);
        };
        let thread = self.session.roster.spawn("filter", work);
        thread.map_err(|error| error.to_string())?;
        loop {
            match take.recv_timeout(self.session.limits.ping) {
                Ok(filter) => return filter.map_err(|error| error.to_string()),
                Err(RecvTimeoutError::Timeout) => {
                    let said = caller.say(&Message::Ping);
                    said.map_err(|error| chain(&error))?;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("The filter could not be made".to_owned());
                }
            }
        }
    }

    /// Begins a channel of the migration.
    fn migrate(&self, caller: Caller, guest: &Arc<Guest>) -> Result<(), Error> {
        let Some(path) = &self.qemu else {
            return caller.refuse(Error::PlanOnly);
        };
        let hello = &caller.hello;
        let sources = match self.sources_if_first(hello, guest) {
            Ok(sources) => sources,
            Err(error) => return caller.refuse(error),
        };
        // Held until QEMU has taken the connection, so that it sees them in the sender's order.
        let mut migration = self.lock();
        let admitted = self.admit(&mut migration, hello, sources);
        let admitted = admitted.and_then(|found| {
            let begun = self.session.begin(Some(hello.channel))?;
            let joined = self.join(path, &begun.channel, hello, found.0);
            Ok((begun, joined, found.1))
        });
        drop(migration);
        match admitted {
            Err(error) => caller.refuse(error),
            Ok((begun, Err(error), _)) => self.give_up(caller, begun, error),
            Ok((begun, Ok(joined), sources)) => self.start(caller, begun, joined, sources),
        }
    }

    /// Agrees with the sender, and connects to QEMU.
    fn join(
        &self,
        path: &Path,
        channel: &Channel,
        hello: &Hello,
        key: FilterKey,
    ) -> Result<Joined, Error> {
        self.session.note_peer(hello.software.clone());
        let answer = handshake::of_receiver(hello, key, &self.session.limits);
        let agreed = answer.agree(hello);
        let agreed = agreed.map_err(|error| channel.protocol(error))?;
        let stop = &self.session.stop;
        let qemu = Qemu::connect(path, self.connect_wait, || stop.failed());
        let qemu = qemu.map_err(|source| Error::Destination {
            path: path.to_owned(),
            source,
        })?;
        let closer = qemu.closer.clone();
        stop.on_failure(move || closer.close());
        Ok(Joined {
            qemu,
            answer,
            agreed,
        })
    }

    /// Answers the sender and starts the channel.
    fn start(
        &self,
        mut caller: Caller,
        begun: Begun,
        joined: Joined,
        sources: Arc<Sources>,
    ) -> Result<(), Error> {
        let channel = Arc::clone(&begun.channel);
        if let Err(error) = caller.say(&Message::Hello(joined.answer)) {
            let error = channel.link(&error);
            return self.give_up(caller, begun, error);
        }
        let outbox = Outbox::start(caller.writer, caller.sealer, &channel, Sent::Back);
        let started = outbox.map_err(no_thread).and_then(|outbox| {
            Connection {
                begun,
                qemu: joined.qemu,
                link: caller.handle,
                inbox: caller.inbox,
                outbox,
                agreed: joined.agreed,
                sources,
            }
            .start()
        });
        if let Err(error) = started {
            self.session.stop.fail(error);
        }
        Ok(())
    }

    /// Fails the session for a channel that did not come about, and tells the sender why.
    fn give_up(&self, caller: Caller, begun: Begun, error: Error) -> Result<(), Error> {
        let said = PeerError::new(error.code(), &error.to_string());
        self.session.stop.fail(error);
        let told = caller.refuse_with(said);
        // Only now may the session, and with it the process, be over.
        drop(begun);
        told
    }

    /// Decides whether a channel belongs to the migration, or begins one.
    fn admit(
        &self,
        migration: &mut Option<Migration>,
        hello: &Hello,
        sources: Option<Arc<Sources>>,
    ) -> Result<(FilterKey, Arc<Sources>), Error> {
        if self.session.stop.failed() || self.session.main_ended() {
            return Err(Error::Busy);
        }
        let current = match (&mut *migration, sources) {
            (Some(current), _) if current.id == hello.session && current.domain == hello.domain => {
                current
            }
            (None, Some(sources)) => migration.insert(Migration {
                id: hello.session,
                domain: hello.domain.clone(),
                key: FilterKey(handshake::random()?),
                sources,
            }),
            _ => return Err(Error::Busy),
        };
        Ok((current.key, Arc::clone(&current.sources)))
    }

    /// The sources of a migration that may begin with `hello`. To open them may take long, and the
    /// migration is not held meanwhile.
    fn sources_if_first(
        &self,
        hello: &Hello,
        guest: &Arc<Guest>,
    ) -> Result<Option<Arc<Sources>>, Error> {
        let first = hello.channel == 0 && self.lock().is_none();
        let sources = first.then(|| self.sources_of(&hello.domain, guest));
        sources.transpose()
    }

    /// The sources of `domain`. The `guest` counts until they are open, even if that takes longer
    /// than anybody waits.
    fn sources_of(&self, domain: &str, guest: &Arc<Guest>) -> Result<Arc<Sources>, Error> {
        let (give, take) = mpsc::channel();
        let work = {
            let (open, guest) = (Arc::clone(&self.sources), Arc::clone(guest));
            let domain = domain.to_owned();
            move || {
                // Nobody waits any more if it took too long.
                let _ = give.send(open(&domain));
                drop(guest);
            }
        };
        let thread = self.session.roster.spawn("sources", work);
        thread.map_err(no_thread)?;
        let opened = match take.recv_timeout(self.session.limits.handshake) {
            Ok(opened) => opened,
            Err(_) => Err("they did not open in time".to_owned()),
        };
        opened.map_err(|reason| Error::Sources {
            domain: domain.to_owned(),
            reason,
        })
    }

    /// The migration, also after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, Option<Migration>> {
        self.migration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Caller {
    /// Writes a message.
    fn say(&mut self, message: &Message) -> std::io::Result<()> {
        handshake::write(&mut self.writer, &mut self.sealer, message)
    }

    /// Says why this link comes to nothing, and gives that back.
    fn refuse(self, error: Error) -> Result<(), Error> {
        let said = PeerError::new(error.code(), &error.to_string());
        // It is refused whether it hears why or not.
        let _ = self.refuse_with(said);
        Err(error)
    }

    /// Says why this link comes to nothing, before any answer to its HELLO.
    fn refuse_with(mut self, error: PeerError) -> Result<(), Error> {
        self.sealer = Sealer::new(Direction::ToSender, &SessionId::NONE, 0);
        // It is refused whether it hears why or not.
        let _ = self.say(&Message::Error(error));
        self.part(REFUSAL);
        Ok(())
    }

    /// Closes the link once the sender has, or after `patience`.
    fn part(mut self, patience: Duration) {
        // What was written is what counts.
        let _ = self.writer.finish();
        self.inbox.set_deadline(Some(Instant::now() + patience));
        while let Ok(Some(_)) = self.inbox.next() {}
        self.handle.abort();
    }
}

impl Guest {
    /// Counts one more, if that is not too many.
    fn new(count: &Arc<AtomicUsize>) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::SeqCst);
        let guest = Self(Arc::clone(count));
        (before < GUESTS).then_some(guest)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
