// SPDX-License-Identifier: GPL-2.0

//! The sending proxy: takes QEMU's connections, and sends digests instead of pages where it can.

mod back;
mod channel;
mod chunk;
mod encoder;
mod kept;
mod reader;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{
    poll,
    PollFd,
    PollFlags,
    Timespec, //
};
use twinpage_wire::SessionId;

use crate::net::{
    Address,
    Node,
    RateLimit,
    Security, //
};
use crate::proxy::error::Error;
use crate::proxy::filter::FilterGate;
use crate::proxy::handle::Handle;
use crate::proxy::handshake;
use crate::proxy::limits::Limits;
use crate::proxy::qemu::Qemu;
use crate::proxy::send::channel::Lanes;
use crate::proxy::session::{
    no_thread,
    Session, //
};

/// Where QEMU's stream comes from.
pub enum Input {
    /// Connections to a unix socket (`migrate unix:PATH`), which is removed in the end.
    Listener(UnixListener, PathBuf),
    /// One connection by the helper's standard input and output (`migrate exec:...`).
    Streams {
        /// Standard input: the stream.
        input: OwnedFd,
        /// Standard output: the return path.
        output: OwnedFd,
    },
}

/// How to send.
pub struct Options {
    /// Where QEMU's stream comes from.
    pub input: Input,
    /// Where the receiver listens.
    pub to: Address,
    /// How the link is secured.
    pub security: Security,
    /// Bytes per second that all links together may take.
    pub rate: Option<RateLimit>,
    /// Level of zstd for what is not a reference; empty: nothing is compressed.
    pub compression: Option<u8>,
    /// Name of the domain whose pages the receiver may use.
    pub domain: String,
    /// How long RAM waits for the receiver's filter.
    pub filter_wait: Duration,
    /// Whether QEMU's capability `return-path` is known to be on. Else a stream is refused that is
    /// not understood before it asks for a return path.
    pub return_path_is_on: bool,
    /// Called with what should be known while the migration goes on.
    pub notice: Arc<dyn Fn(&str) + Send + Sync>,
    /// Limits.
    pub limits: Limits,
}

impl Options {
    /// The usual options.
    pub fn new(input: Input, to: Address, security: Security) -> Self {
        Self {
            input,
            to,
            security,
            rate: None,
            compression: Some(1),
            domain: String::new(),
            filter_wait: Duration::from_secs(30),
            return_path_is_on: false,
            notice: Arc::new(|_| ()),
            limits: Limits::default(),
        }
    }
}

/// What all channels of a sender share.
pub(crate) struct Sender {
    /// The session.
    session: Arc<Session>,
    /// Its name on the wire.
    id: SessionId,
    /// The receiver's filter.
    gate: Arc<FilterGate>,
    /// How far each channel is.
    lanes: Arc<Lanes>,
    /// Where the receiver listens.
    to: Address,
    /// How the link is secured.
    security: Security,
    /// Bytes per second.
    rate: Option<RateLimit>,
    /// Level of zstd.
    compression: Option<u8>,
    /// The domain.
    domain: String,
    /// How long RAM waits for the filter.
    filter_wait: Duration,
    /// Whether QEMU is known to ask for a return path.
    return_path_is_on: bool,
    /// Hears what should be known at once.
    notice: Arc<dyn Fn(&str) + Send + Sync>,
}

/// Between two looks at whether the session is over, while no connection comes.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Begins to send. QEMU may connect as soon as this returns.
///
/// # Errors
///
/// The limits cannot be used, or the system lacks something.
pub fn start(options: Options) -> Result<Handle, Error> {
    let session = Session::new(options.limits)?;
    let gate = Arc::new(FilterGate::new(session.limits.filter_bytes));
    let waiting = Arc::clone(&gate);
    session.stop.on_failure(move || waiting.give_up());
    let sender = Arc::new(Sender {
        session: Arc::clone(&session),
        id: SessionId(handshake::random()?),
        gate,
        lanes: Arc::default(),
        to: options.to,
        security: options.security,
        rate: options.rate,
        compression: options.compression,
        domain: options.domain,
        filter_wait: options.filter_wait,
        return_path_is_on: options.return_path_is_on,
        notice: options.notice,
    });
    let (address, listener) = match options.input {
        Input::Listener(listener, path) => {
            let address = format!("unix:{}", path.display());
            let node = Node::at(&path).map_err(|source| Error::System {
                what: "look at the socket for QEMU",
                source,
            })?;
            let work = move || sender.listen(&listener, &node);
            (address, session.spawn(0, "listen", work))
        }
        Input::Streams { input, output } => {
            let work = move || sender.serve(Qemu::pipes(input, output));
            ("-".to_owned(), session.spawn(0, "listen", work))
        }
    };
    let listener = listener.map_err(no_thread)?;
    Ok(Handle::new(session, address, listener))
}

impl Sender {
    /// Takes QEMU's connections until the first of them has ended or the session has failed.
    fn listen(self: &Arc<Self>, listener: &UnixListener, node: &Node) {
        if let Err(error) = self.accept_all(listener) {
            self.session.stop.fail(error);
        }
        // QEMU finds nobody there any more, which is true.
        let _ = node.remove();
    }

    /// Takes connections one after the other; QEMU opens the main one first.
    fn accept_all(self: &Arc<Self>, listener: &UnixListener) -> Result<(), Error> {
        let failed = |source| Error::System {
            what: "take a connection of QEMU",
            source,
        };
        listener.set_nonblocking(true).map_err(failed)?;
        while !self.session.main_ended() && !self.session.stop.failed() {
            let mut ready = [PollFd::new(listener, PollFlags::IN)];
            match poll(&mut ready, Some(&TICK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => (),
                Err(error) => return Err(failed(error.into())),
            }
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(failed(error)),
            };
            socket.set_nonblocking(false).map_err(failed)?;
            self.serve(Qemu::socket(socket).map_err(failed)?);
        }
        Ok(())
    }

    /// Opens a channel for a connection of QEMU, and leaves it to its own thread.
    fn serve(self: &Arc<Self>, qemu: Qemu) {
        if let Err(error) = channel::open(self, qemu) {
            self.session.stop.fail(error);
        }
    }
}
