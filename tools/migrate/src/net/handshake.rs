// SPDX-License-Identifier: GPL-2.0

//! From a connected socket to a link: TLS if it is wanted, then a greeting in both directions.
//!
//! The greeting is the first thing that both sides say, in plain text on a link without TLS and
//! inside of it on one with. So a side without TLS and one with it recognise each other by the
//! first byte, and a client learns before its first frame whether the server accepted its
//! certificate, which TLS 1.3 alone does not tell it.

use std::io::{
    self,
    IoSlice,
    Read,
    Write, //
};
use std::sync::Arc;
use std::time::{
    Duration,
    Instant, //
};

use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription,
    CertificateError,
    ClientConfig,
    ClientConnection,
    Connection,
    ServerConfig,
    ServerConnection, //
};

use super::link::{
    Link,
    LinkError, //
};
use super::records::Records;
use super::socket::Socket;
use super::{
    Error,
    Limits, //
};

/// The first bytes of both sides.
const GREETING: [u8; 8] = *b"TWPLINK1";

/// How a TLS record with a handshake message starts.
const TLS_HANDSHAKE: u8 = 22;

/// How a TLS record with an alert starts.
const TLS_ALERT: u8 = 21;

/// The alert "unexpected message", for a peer that does not encrypt but knows its first byte.
const ALERT: [u8; 7] = [TLS_ALERT, 3, 3, 0, 2, 2, 10];

/// How much is read at once during a handshake.
const CHUNK: usize = 4096;

/// What one side brings to a handshake.
#[derive(Clone)]
pub(super) enum Terms {
    /// Nothing.
    Plain,
    /// What a TLS client needs, and the name that it expects.
    Client(Arc<ClientConfig>, ServerName<'static>, Kind),
    /// What a TLS server needs.
    Server(Arc<ServerConfig>, Kind),
}

/// By what the sides of a TLS link know each other.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// A pre-shared key with this fingerprint.
    Key(String),
    /// Certificates.
    Certificates,
}

/// A handshake that is going on.
struct Handshake<'a> {
    socket: &'a Socket,
    peer: &'a str,
    kind: &'a Kind,
    deadline: Instant,
    limit: Duration,
}

/// Makes a link out of a connected socket, within the limit for handshakes from `start`.
///
/// # Errors
///
/// Every variant of [`Error`] that names a peer.
pub(super) fn establish(
    socket: Socket,
    terms: &Terms,
    peer: &str,
    limits: Limits,
    start: Instant,
) -> Result<Link, Error> {
    let deadline = start + limits.handshake;
    socket
        .prepare()
        .map_err(|source| Error::io(format!("set up the socket to {peer}"), source))?;
    let (connection, kind) = match terms {
        Terms::Plain => {
            let link = Link::insecure(socket, peer, limits)?;
            return greet(link, deadline, limits, None);
        }
        Terms::Client(config, name, kind) => (
            ClientConnection::new(config.clone(), name.clone()).map(Connection::from),
            kind,
        ),
        Terms::Server(config, kind) => (
            ServerConnection::new(config.clone()).map(Connection::from),
            kind,
        ),
    };
    let peer = peer.to_owned();
    let mut connection = connection.map_err(|source| Error::Tls {
        peer: peer.clone(),
        source,
    })?;
    let handshake = Handshake {
        socket: &socket,
        peer: &peer,
        kind,
        deadline,
        limit: limits.handshake,
    };
    let staged = handshake.run(&mut connection)?;
    let records = Records::new(connection);
    if !records.speaks_twinpage() {
        return Err(Error::NotTwinpage { peer });
    }
    let identity = match kind {
        Kind::Key(fingerprint) => format!("key {fingerprint}"),
        Kind::Certificates => "certificates".to_owned(),
    };
    let security = format!("{}, {identity}", records.description());
    let link = Link::new(socket, Some(records), &peer, security, limits, staged)?;
    greet(link, deadline, limits, Some(kind))
}

impl Handshake<'_> {
    /// Sends and receives until the handshake is over; gives what came after it.
    fn run(&self, connection: &mut Connection) -> Result<Vec<u8>, Error> {
        let mut buffer = [0; CHUNK];
        let mut first = true;
        loop {
            self.send(connection)?;
            if !connection.is_handshaking() {
                return Ok(Vec::new());
            }
            let len = self.receive(&mut buffer)?;
            let mut rest = &buffer[..len];
            if std::mem::take(&mut first) {
                self.check_first(rest)?;
            }
            while !rest.is_empty() && connection.is_handshaking() {
                self.feed(connection, &mut rest)?;
            }
            if !connection.is_handshaking() {
                let staged = rest.to_vec();
                self.send(connection)?;
                return Ok(staged);
            }
        }
    }

    /// Whether the peer's first bytes can be TLS.
    fn check_first(&self, bytes: &[u8]) -> Result<(), Error> {
        let peer = self.peer.to_owned();
        match bytes.first() {
            Some(&TLS_HANDSHAKE | &TLS_ALERT) => Ok(()),
            Some(first) if *first == GREETING[0] => {
                // The peer gets the same message then. If it does not, it sees the end.
                let _told = self.socket.write(&[IoSlice::new(&ALERT)]);
                Err(Error::PeerInsecure { peer })
            }
            _ => Err(Error::NotTwinpage { peer }),
        }
    }

    /// Gives the connection some of the bytes that came.
    fn feed(&self, connection: &mut Connection, rest: &mut &[u8]) -> Result<(), Error> {
        let read = connection.read_tls(rest);
        read.map_err(|_| Error::NotTwinpage {
            peer: self.peer.to_owned(),
        })?;
        match connection.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => {
                // The alert that tells the peer why; without it the peer sees the end.
                let _told = self.send(connection);
                Err(tls_error(error, self.peer, Some(self.kind)))
            }
        }
    }

    /// Sends what the connection has to say.
    fn send(&self, connection: &mut Connection) -> Result<(), Error> {
        let mut bytes = Vec::new();
        while connection.wants_write() {
            connection
                .write_tls(&mut bytes)
                .map_err(|source| self.io(source))?;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let left = self.left()?;
            let written = self
                .socket
                .set_write_timeout(left)
                .and_then(|()| self.socket.write(&[IoSlice::new(rest)]));
            let written = written.map_err(|source| self.io(source))?;
            rest = rest.get(written.max(1)..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits for bytes from the peer.
    fn receive(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        let left = self.left()?;
        let read = self
            .socket
            .set_read_timeout(left)
            .and_then(|()| self.socket.read(buffer));
        match read {
            Ok(0) => Err(Error::Closed {
                peer: self.peer.to_owned(),
            }),
            Ok(len) => Ok(len),
            Err(source) => Err(self.io(source)),
        }
    }

    /// How much time is left.
    fn left(&self) -> Result<Duration, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(slow(self.peer, self.limit)),
            false => Ok(left),
        }
    }

    /// An error of the socket.
    fn io(&self, source: io::Error) -> Error {
        io_error(source, self.peer, self.limit)
    }
}

/// Sends the greeting and waits for the peer's.
fn greet(
    link: Link,
    deadline: Instant,
    limits: Limits,
    kind: Option<&Kind>,
) -> Result<Link, Error> {
    let peer = link.peer().to_owned();
    let (mut reader, mut writer) = link.split();
    let wrong = |error: io::Error| {
        let link = error.get_ref().and_then(|inner| inner.downcast_ref());
        let cause = link.and_then(|LinkError { source, .. }| source.get_ref());
        match cause.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => tls_error(tls.clone(), &peer, kind),
            None => io_error(error, &peer, limits.handshake),
        }
    };
    reader.set_deadline(Some(deadline));
    let sent = writer.write_all(&GREETING).and_then(|()| writer.flush());
    let mut greeting = [0; GREETING.len()];
    // What the peer said comes first: it may say why it closed, which makes sending fail.
    let read = read_greeting(&mut reader, &mut greeting);
    if read.is_ok() && greeting != GREETING || matches!(greeting[0], TLS_HANDSHAKE | TLS_ALERT) {
        return Err(match greeting[0] {
            TLS_HANDSHAKE | TLS_ALERT if kind.is_none() => Error::PeerSecure { peer },
            _ => Error::NotTwinpage { peer },
        });
    }
    read.map_err(wrong)?;
    sent.map_err(wrong)?;
    reader.set_deadline(None);
    Ok(Link::join(reader, writer))
}

/// Reads the peer's greeting, but no further than to a first byte that is none.
fn read_greeting(reader: &mut impl Read, greeting: &mut [u8; 8]) -> io::Result<()> {
    let (first, rest) = greeting.split_at_mut(1);
    reader.read_exact(first)?;
    match first[0] == GREETING[0] {
        true => reader.read_exact(rest),
        false => Ok(()),
    }
}

/// The error for a peer that took too long.
fn slow(peer: &str, limit: Duration) -> Error {
    let peer = peer.to_owned();
    Error::Slow { peer, limit }
}

/// What an error of the socket means.
fn io_error(source: io::Error, peer: &str, limit: Duration) -> Error {
    use io::ErrorKind::{
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        TimedOut,
        UnexpectedEof,
        WouldBlock, //
    };
    let name = peer.to_owned();
    match source.kind() {
        WouldBlock | TimedOut => slow(peer, limit),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => {
            Error::Closed { peer: name }
        }
        _ => Error::io(format!("talk to {peer}"), source),
    }
}

/// What an error of TLS means.
fn tls_error(source: rustls::Error, peer: &str, kind: Option<&Kind>) -> Error {
    use rustls::Error as Tls;
    let key = matches!(kind, Some(Kind::Key(_)));
    let peer = peer.to_owned();
    match source {
        Tls::InvalidCertificate(CertificateError::ApplicationVerificationFailure) if key => {
            Error::WrongKey { peer }
        }
        Tls::AlertReceived(AlertDescription::AccessDenied) if key => Error::WrongKey { peer },
        // What both sides of this program offer but for the certificates is the same.
        Tls::AlertReceived(
            AlertDescription::UnsupportedCertificate | AlertDescription::HandshakeFailure,
        )
        | Tls::PeerIncompatible(rustls::PeerIncompatible::IncorrectCertificateTypeExtension)
        | Tls::PeerIncompatible(rustls::PeerIncompatible::UnsolicitedCertificateTypeExtension) => {
            Error::OtherKind { peer }
        }
        Tls::InvalidMessage(_) => Error::NotTwinpage { peer },
        source => Error::Tls { peer, source },
    }
}
