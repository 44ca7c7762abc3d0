// SPDX-License-Identifier: GPL-2.0

//! What can go wrong with a guest.

use std::io;

use crate::wait;

/// What can go wrong with a guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, a socket or a process.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The guest or QEMU said something that was not expected.
    #[error("{who} said '{said}'")]
    Said {
        /// Who.
        who: String,
        /// What.
        said: String,
    },
    /// Something did not happen in time.
    #[error(transparent)]
    Late(#[from] wait::Late),
}

impl Error {
    /// The error of the system when it was told to do `what`.
    pub fn of(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}
