// SPDX-License-Identifier: GPL-2.0

//! Sockets that listen.

use std::fs::{
    File,
    Permissions, //
};
use std::io;
use std::net::{
    TcpListener,
    ToSocketAddrs, //
};
use std::os::fd::{
    AsFd,
    BorrowedFd,
    OwnedFd, //
};
use std::os::unix::fs::{
    FileTypeExt,
    MetadataExt,
    PermissionsExt, //
};
use std::os::unix::net::UnixListener;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::net::{
    bind,
    connect,
    listen,
    socket_with,
    AddressFamily,
    SocketAddrUnix,
    SocketFlags,
    SocketType, //
};

use super::socket::Socket;
use super::{
    Address,
    Error, //
};

/// Connections that wait in the kernel.
const BACKLOG: i32 = 128;

/// A socket that listens.
pub(super) enum Bound {
    /// For TCP.
    Tcp(TcpListener),
    /// For unix sockets, at this node.
    Unix(UnixListener, Node),
}

impl Bound {
    /// Listens at `address`.
    pub(super) fn new(address: &Address) -> Result<Self, Error> {
        let listening = |source| Error::io(format!("listen at {address}"), source);
        match address {
            Address::Unix(path) => {
                let listener = listen_unix(path)?;
                listener.set_nonblocking(true).map_err(listening)?;
                let node = Node::at(path).map_err(listening)?;
                Ok(Self::Unix(listener, node))
            }
            Address::Tcp { host, port } => {
                let resolved = (host.as_str(), *port).to_socket_addrs();
                let resolved: Vec<_> = resolved.map_err(listening)?.collect();
                let listener = TcpListener::bind(&resolved[..]).map_err(listening)?;
                listener.set_nonblocking(true).map_err(listening)?;
                Ok(Self::Tcp(listener))
            }
        }
    }

    /// Where it listens: `asked`, with the port that the kernel chose.
    pub(super) fn address(&self, asked: &Address) -> io::Result<Address> {
        match (self, asked) {
            (Self::Tcp(listener), Address::Tcp { host, .. }) => Ok(Address::Tcp {
                host: host.clone(),
                port: listener.local_addr()?.port(),
            }),
            _ => Ok(asked.clone()),
        }
    }

    /// The next connection and who it is.
    pub(super) fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((stream.into(), peer.to_string()))
            }
            Self::Unix(listener, node) => {
                let (stream, _) = listener.accept()?;
                Ok((stream.into(), format!("unix:{}", node.path.display())))
            }
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Self::Unix(_, node) = self {
            // Somebody else may have removed it.
            let _gone = node.remove();
        }
    }
}

/// A node in the file system, to be told from others that come to its path.
pub struct Node {
    path: PathBuf,
    /// Device, inode, and birth where the file system knows it: inodes are used again.
    id: (u64, u64, Option<SystemTime>),
    is_socket: bool,
}

impl Node {
    /// The node at `path`.
    ///
    /// # Errors
    ///
    /// There is none, or it cannot be looked at.
    pub fn at(path: &Path) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            id: (found.dev(), found.ino(), found.created().ok()),
            is_socket: found.file_type().is_socket(),
        })
    }

    /// Removes it, and nothing that is at its path instead.
    ///
    /// # Errors
    ///
    /// It cannot be looked at, or removed.
    pub fn remove(&self) -> io::Result<()> {
        match Self::at(&self.path)?.id == self.id {
            true => std::fs::remove_file(&self.path),
            false => Ok(()),
        }
    }
}

/// Listens at a unix socket that only its owner may connect to.
///
/// The node at `path` takes its permissions from the socket, where they are set before there is a
/// node: whoever may write to the directory could have put something else there afterwards. A
/// socket that nobody listens at any more is replaced.
///
/// # Errors
///
/// [`Error::Address`]: the path cannot be that of a socket; [`Error::Io`]: somebody listens there,
/// or the socket cannot be made.
pub fn listen_unix(path: &Path) -> Result<UnixListener, Error> {
    Address::unix(path)?;
    let make = || -> io::Result<UnixListener> {
        remove_stale(path)?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let socket = File::from(socket);
        socket.set_permissions(Permissions::from_mode(0o600))?;
        let socket = OwnedFd::from(socket);
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(UnixListener::from(socket))
    };
    make().map_err(|source| Error::io(format!("listen at unix:{}", path.display()), source))
}

/// Removes a socket that nobody has open.
fn remove_stale(path: &Path) -> io::Result<()> {
    let node = match Node::at(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(node) if !node.is_socket => {
            let text = "A file that is no socket is in the way";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Ok(node) => node,
    };
    match probe(path) {
        // Somebody else who starts now may have removed it, and listen there.
        Err(Errno::CONNREFUSED) => node.remove(),
        Ok(()) | Err(Errno::PROTOTYPE) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error.into()),
    }
}

/// Asks the kernel about the socket at `path`, of which nobody gets to know: a connection would be
/// taken for one of QEMU's. A socket that somebody has open is there, but of another type
/// (net/unix/af_unix.c:unix_find_bsd).
fn probe(path: &Path) -> Result<(), Errno> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_node_that_was_seen_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let _first = listen_unix(&path).unwrap();
        let node = Node::at(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = listen_unix(&path).unwrap();
        node.remove().unwrap();
        assert!(path.exists());
        Node::at(&path).unwrap().remove().unwrap();
        assert!(!path.exists());
        assert!(node.remove().is_err());
    }
}
