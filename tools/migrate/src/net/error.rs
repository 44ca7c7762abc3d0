// SPDX-License-Identifier: GPL-2.0

//! What can go wrong before a link stands, in words for the user.

use std::io;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::Duration;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address makes no sense.
    #[error("The address {text:?} cannot be used: {reason}")]
    Address {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A system call failed.
    #[error("Cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others can read a secret.
    #[error("{} may be read by others (mode {mode:03o}); make it chmod 600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file of the identity says what it must not say.
    #[error("{} is no {what}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// TLS cannot be set up with these certificates.
    #[error("The certificates cannot be used: {0}")]
    BadIdentity(String),
    /// This side wants TLS, the peer plain text.
    #[error("{peer} does not encrypt (it runs with --insecure), and this side does")]
    PeerInsecure {
        /// The peer.
        peer: String,
    },
    /// This side wants plain text, the peer TLS.
    #[error("{peer} encrypts, and this side does not (it runs with --insecure)")]
    PeerSecure {
        /// The peer.
        peer: String,
    },
    /// The peer has another pre-shared key.
    #[error("{peer} does not have the same key")]
    WrongKey {
        /// The peer.
        peer: String,
    },
    /// One side has a pre-shared key and the other certificates.
    #[error("{peer} has the other kind of identity: both need a key, or both certificates")]
    OtherKind {
        /// The peer.
        peer: String,
    },
    /// TLS did not come to an agreement.
    #[error("The TLS handshake with {peer} failed")]
    Tls {
        /// The peer.
        peer: String,
        /// Why.
        source: rustls::Error,
    },
    /// What answers is something else.
    #[error("{peer} does not speak the protocol of twinpage migrate")]
    NotTwinpage {
        /// The peer.
        peer: String,
    },
    /// The peer closed the connection in the handshake.
    #[error("{peer} closed the connection during the handshake")]
    Closed {
        /// The peer.
        peer: String,
    },
    /// The handshake took too long.
    #[error("{peer} did not finish the handshake within {} s", limit.as_secs_f32())]
    Slow {
        /// The peer.
        peer: String,
        /// How long it may take.
        limit: Duration,
    },
    /// Nobody came.
    #[error("No peer connected in time; {failed} connections failed{}", Self::last(.last))]
    NoPeer {
        /// Connections that came and failed.
        failed: u64,
        /// Why the last one failed.
        last: Option<String>,
    },
    /// Links wait to be taken, and there is no room for more.
    #[error("{peer} was turned away: too many other peers wait")]
    Unwanted {
        /// The peer.
        peer: String,
    },
    /// The listener was stopped.
    #[error("Waiting for a peer was interrupted")]
    Stopped,
}

impl Error {
    /// An address that makes no sense.
    pub(super) fn address(text: impl Into<String>, reason: &'static str) -> Self {
        let text = text.into();
        Self::Address { text, reason }
    }

    /// A failed system call.
    pub(super) fn io(action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        Self::Io { action, source }
    }

    /// A file that says what it must not say.
    pub(super) fn file(path: &Path, what: &'static str, reason: impl ToString) -> Self {
        Self::BadFile {
            path: path.to_owned(),
            what,
            reason: reason.to_string(),
        }
    }

    /// The end of the sentence about failed connections.
    fn last(last: &Option<String>) -> String {
        match last {
            Some(last) => format!(", the last one because: {last}"),
            None => String::new(),
        }
    }

    /// The message with all its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        text
    }
}
