// SPDX-License-Identifier: GPL-2.0

//! What can go wrong where pages come from.

use std::error::Error as StdError;
use std::io;
use std::path::{
    Path,
    PathBuf, //
};

use twinpage_wire::Digest;

/// Why a page, a store or an image cannot be used.
///
/// The message does not repeat its source: who prints it prints the chain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be used.
    #[error("Cannot {action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no store at that path.
    #[error("{} is no page store", .0.display())]
    NoStore(PathBuf),
    /// A store should be made where something is.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The store was written by a newer program.
    #[error("{} has format {found}; this program knows format {known}", path.display())]
    Format {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format of this program.
        known: u64,
    },
    /// Another process writes to the store.
    #[error("Another process is writing to the page store {}", .0.display())]
    Locked(PathBuf),
    /// A change was asked of a store that was opened for reading.
    #[error("The page store {} was opened for reading only", .0.display())]
    ReadOnly(PathBuf),
    /// Somebody else may read or write what must be private.
    #[error("{} has mode {mode:04o}; a page store is for its owner only", path.display())]
    Permissions {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file of the store is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, with numbers.
        what: String,
    },
    /// The storage engine failed.
    #[error("Cannot {action} the index {}", path.display())]
    Engine {
        /// What was tried, as a verb.
        action: &'static str,
        /// Its file.
        path: PathBuf,
        /// What the engine said.
        source: Box<redb::Error>,
    },
    /// A store or one of its parts has reached its greatest size.
    #[error("{} is full: {limit} pages", path.display())]
    Full {
        /// What is full.
        path: PathBuf,
        /// Its greatest number of pages.
        limit: u64,
    },
    /// A setting is out of its range.
    #[error("{name} is {value}; it must be from {least} to {most}")]
    Setting {
        /// What is set.
        name: &'static str,
        /// What was asked for.
        value: u64,
        /// The least that is possible.
        least: u64,
        /// The most that is possible.
        most: u64,
    },
    /// A page was offered under another digest than its own.
    #[error("A page was offered with digest {given}, but has {found}")]
    WrongDigest {
        /// The digest that came with it.
        given: Digest,
        /// Its digest.
        found: Digest,
    },
    /// An image or dump cannot be read as what it should be.
    #[error("{}: offset {offset}: {what}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A program that reads images failed.
    #[error("{program} failed on {}: {said}", path.display())]
    Program {
        /// The program.
        program: &'static str,
        /// The image.
        path: PathBuf,
        /// The last line it said, or how it ended.
        said: String,
    },
    /// The address of a fleet cannot be understood.
    #[error("The address of the fleet is wrong: {0}")]
    Address(String),
    /// A fleet would be spoken to without encryption, and nobody asked for that.
    #[error("By redis:// digests, pages and the password travel in clear")]
    Plaintext,
    /// A fleet's server cannot do what was asked.
    #[error("The fleet cannot {action}")]
    Server {
        /// What was tried, as a verb.
        action: &'static str,
        /// What the client said.
        source: Box<redis::RedisError>,
    },
    /// A fleet's server answered with something else than was asked for.
    #[error("The fleet answered {action} with {what}")]
    Answer {
        /// What was asked.
        action: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
    /// Without a key candidates cannot be counted, so only public sources may be loaded.
    #[error("Without a key, a fleet takes pages of public sources only")]
    NoKey,
    /// The caller asked to stop.
    #[error("Stopped")]
    Stopped,
    /// A source outside of this crate failed.
    #[error("{what}")]
    Other {
        /// What failed.
        what: String,
        /// Why.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// An error of a source that is implemented elsewhere.
    pub fn other(
        what: impl Into<String>,
        cause: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::Other {
            what: what.into(),
            source: cause.into(),
        }
    }

    /// The message and its causes on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        text
    }

    /// Whether the caller asked for this end.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped)
    }

    /// Whether there was no room for what was to be written.
    pub(crate) fn no_room(&self) -> bool {
        let source = match self {
            Self::File { source, .. } => source,
            Self::Engine { source, .. } => match &**source {
                redb::Error::Io(source) => source,
                _ => return false,
            },
            _ => return false,
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// What a failed system call on `path` gives.
    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source: source.into(),
        }
    }

    /// What a failure of the storage engine gives.
    pub(crate) fn engine<E: Into<redb::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Engine {
            action,
            path,
            source: Box::new(source.into()),
        }
    }

    /// What a failure of the client of a fleet gives.
    pub(crate) fn server(action: &'static str) -> impl FnOnce(redis::RedisError) -> Self {
        move |source| Self::Server {
            action,
            source: Box::new(source),
        }
    }

    /// What a damaged file gives.
    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }
}
