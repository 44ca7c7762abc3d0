// SPDX-License-Identifier: GPL-2.0

//! The side that connects.

use std::io;
use std::net::{
    TcpStream,
    ToSocketAddrs, //
};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use super::handshake::{
    establish,
    Kind,
    Terms, //
};
use super::identity::server_name;
use super::socket::{
    connect_unix,
    Socket, //
};
use super::{
    tls,
    Address,
    Error,
    Limits,
    Link,
    Security, //
};

/// Between two tries.
const RETRY: Duration = Duration::from_millis(20);

/// The name that a client says it expects if names do not matter; it never travels.
const ANY_NAME: &str = "twinpage.invalid";

/// Connects to `address` and agrees with who listens there.
///
/// # Errors
///
/// [`Error::Io`]: nobody listens, or the name is unknown; otherwise why the handshake failed.
pub fn connect(address: &Address, security: &Security, limits: Limits) -> Result<Link, Error> {
    let start = Instant::now();
    let terms = terms(address, security)?;
    let socket = dial(address, limits.handshake)
        .map_err(|source| Error::io(format!("connect to {address}"), source))?;
    establish(socket, &terms, &address.to_string(), limits, start)
}

/// What this side brings to the handshake.
fn terms(address: &Address, security: &Security) -> Result<Terms, Error> {
    Ok(match security {
        Security::Insecure => Terms::Plain,
        Security::Psk(psk) => Terms::Client(
            tls::psk_client(psk)?,
            server_name(ANY_NAME)?,
            Kind::Key(psk.fingerprint()),
        ),
        Security::Certificates(own) => {
            let name = match (&own.peer_name, address) {
                (Some(name), _) => name.clone(),
                (None, Address::Tcp { host, .. }) => server_name(host)?,
                (None, Address::Unix(_)) => {
                    let reason = "a unix socket has no name to expect: say the peer's name";
                    return Err(Error::address(address.to_string(), reason));
                }
            };
            Terms::Client(tls::certificate_client(own)?, name, Kind::Certificates)
        }
    })
}

/// Connects to the first of the addresses of a name that answers, within `limit` in total.
pub(crate) fn dial(address: &Address, limit: Duration) -> io::Result<Socket> {
    let (host, port) = match address {
        Address::Unix(path) => return dial_unix(path, limit).map(Socket::from),
        Address::Tcp { host, port } => (host.as_str(), *port),
    };
    let deadline = Instant::now() + limit;
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "The name has no address");
    for resolved in (host, port).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&resolved, left) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Connects to a unix socket once there is room for another who waits, within `limit`.
fn dial_unix(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + limit;
    loop {
        match connect_unix(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}
