// SPDX-License-Identifier: GPL-2.0

//! Where to listen and where to connect: `HOST:PORT` or `unix:PATH`.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{
    Path,
    PathBuf, //
};
use std::str::FromStr;

use super::Error;

/// The port that the proxies use if none is said.
///
/// It is not registered with IANA, and outside of the range that Linux takes local ports from.
pub const DEFAULT_PORT: u16 = 6174;

/// The longest path of a unix socket: `sun_path` is 108 bytes, and the last one is zero.
pub const MAX_SOCKET_PATH: usize = 107;

/// The longest host name: what DNS allows.
const MAX_HOST: usize = 253;

/// An address of a stream socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A host, by name or by number, and a TCP port.
    Tcp {
        /// The name or number, an IPv6 number without its brackets.
        host: String,
        /// The port; when listening, 0 stands for any that is free.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl Address {
    /// The address of the unix socket at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Address`]: the path is empty, too long or has a zero byte.
    pub fn unix(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let bytes = path.as_os_str().as_bytes();
        let reason = match bytes.len() {
            0 => "the path is empty",
            _ if bytes.contains(&0) => "the path has a zero byte",
            len if len > MAX_SOCKET_PATH => "the path is longer than the 107 bytes of a socket",
            _ => return Ok(Self::Unix(path)),
        };
        Err(Error::address(format!("unix:{}", path.display()), reason))
    }

    /// The TCP address of `host` and `port`.
    ///
    /// # Errors
    ///
    /// [`Error::Address`]: the host is empty, too long, or has characters that no host has.
    pub fn tcp(host: &str, port: u16) -> Result<Self, Error> {
        let known = |c: char| c.is_ascii_alphanumeric() || ".-_:%".contains(c);
        let reason = match host.len() {
            0 => "the host is empty",
            len if len > MAX_HOST => "the host is longer than 253 characters",
            _ if !host.chars().all(known) => "the host has characters that no host has",
            _ => {
                let host = host.to_owned();
                return Ok(Self::Tcp { host, port });
            }
        };
        Err(Error::address(host, reason))
    }

    /// The path, if it is a unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp { .. } => None,
        }
    }

    /// Splits `HOST:PORT`, `[HOST]:PORT`, `HOST` and `[HOST]`; a number with several colons and no
    /// brackets is an IPv6 number without a port.
    fn split(text: &str) -> Result<(&str, Option<&str>), &'static str> {
        if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
            return match rest.strip_prefix(':') {
                Some(port) => Ok((host, Some(port))),
                None if rest.is_empty() => Ok((host, None)),
                None => Err("after the bracket comes something else than a port"),
            };
        }
        match text.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => Ok((text, None)),
            Some((host, port)) => Ok((host, Some(port))),
            None => Ok((text, None)),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    /// Reads `unix:PATH`, `tcp:HOST:PORT`, `HOST:PORT`, `[IPV6]:PORT` or a bare `HOST`.
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::unix(OsStr::new(path));
        }
        let rest = text.strip_prefix("tcp:").unwrap_or(text);
        let (host, port) = Self::split(rest).map_err(|reason| Error::address(text, reason))?;
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port
                .parse()
                .map_err(|_| Error::address(text, "the port is not a number from 0 to 65535"))?,
            Some(_) => {
                return Err(Error::address(
                    text,
                    "the port is not a number from 0 to 65535",
                ));
            }
        };
        Self::tcp(host, port)
    }
}

impl fmt::Display for Address {
    /// As [`FromStr`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, shown) in [
            ("host:4711", "host:4711"),
            ("tcp:host:4711", "host:4711"),
            ("host", "host:6174"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("[fe80::1%eth0]:65535", "[fe80::1%eth0]:65535"),
            ("[::1]", "[::1]:6174"),
            ("::1", "[::1]:6174"),
            ("unix:/run/a b.sock", "unix:/run/a b.sock"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let long = format!("unix:/{}", "x".repeat(MAX_SOCKET_PATH));
        let host = "h".repeat(254);
        for (text, reason) in [
            ("", "empty"),
            (":1", "empty"),
            ("host:", "65535"),
            ("host:65536", "65535"),
            ("host:+1", "65535"),
            ("host:1x", "65535"),
            ("[::1", "bracket"),
            ("[::1]x", "bracket"),
            ("a b:1", "characters"),
            ("a/b:1", "characters"),
            (host.as_str(), "253"),
            ("unix:", "empty"),
            ("unix:a\0b", "zero byte"),
            (long.as_str(), "107"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
