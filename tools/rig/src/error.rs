// SPDX-License-Identifier: GPL-2.0

//! What can go wrong around a QEMU.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why the rig gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The variable that names the directory of the second QEMU is not set.
    #[error(
        "TWINPAGE_PEERS is not set: run the tests with TWINPAGE_PEERS=$(scripts/prepare.sh peers)"
    )]
    NoPeers,
    /// There is no such program.
    #[error("There is no {0}: is this the build root (scripts/root.sh)?")]
    NoProgram(PathBuf),
    /// A file, socket or process did not do what was asked.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU ended.
    #[error("{name} ended, saying: {log}")]
    Ended {
        /// Name of the QEMU.
        name: String,
        /// The end of what it wrote.
        log: String,
    },
    /// QEMU refused a command.
    #[error("QEMU refuses {command}: {answer}")]
    Refused {
        /// The command.
        command: String,
        /// Its answer.
        answer: String,
    },
    /// QEMU sent something that is not QMP.
    #[error("QEMU sent no QMP: {0}")]
    NotQmp(String),
    /// Something did not happen in time.
    #[error("{what} did not happen within {limit:?}; last seen: {seen}")]
    TooLate {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The state when time was up.
        seen: String,
    },
    /// The guest's memory is not what it can be.
    #[error("Page {page:#x} of the guest {why}")]
    WrongMemory {
        /// Number of the page.
        page: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Two memories differ.
    #[error("{pages} pages differ, the first at {first:#x}")]
    Differ {
        /// How many pages.
        pages: u64,
        /// Address of the first.
        first: u64,
    },
}

impl Error {
    /// For `map_err`: an [`Error::Io`] that says what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
