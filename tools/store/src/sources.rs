// SPDX-License-Identifier: GPL-2.0

//! The places where a receiver looks for pages, in the order in which it looks.
//!
//! No source is believed. A page counts as found only when the receiver's own copy of it has the
//! digest that was asked for. A source that fails or gives wrong pages too often is set aside for
//! the rest of the session, and each of these things is said once.

use std::fmt;
use std::sync::atomic::{
    AtomicBool,
    AtomicU32,
    AtomicU64,
    Ordering, //
};

use serde::Serialize;
use twinpage_wire::{
    Digest,
    Page, //
};

use crate::error::Error;
use crate::source::PageSource;

/// How many errors and wrong pages a source may give before it is set aside.
const ERROR_LIMIT: u32 = 8;

/// An ordered chain of sources.
pub struct Sources {
    entries: Vec<Entry>,
    error_limit: u32,
    notice: Box<dyn Fn(&Notice) + Send + Sync>,
}

/// A source and what happened with it.
struct Entry {
    source: Box<dyn PageSource>,
    enabled: AtomicBool,
    set_aside: AtomicBool,
    said_failed: AtomicBool,
    said_wrong: AtomicBool,
    faults: AtomicU32,
    hits: AtomicU64,
    misses: AtomicU64,
    wrong: AtomicU64,
    errors: AtomicU64,
}

/// What became of the questions to one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SourceCount {
    /// Its name.
    pub name: &'static str,
    /// Whether it may be asked.
    pub enabled: bool,
    /// Whether it failed so often that it is not asked any more.
    pub set_aside: bool,
    /// Pages that it gave, and that were right.
    pub hits: u64,
    /// Pages that it has not.
    pub misses: u64,
    /// Pages that it gave, and that were others.
    pub wrong: u64,
    /// Questions that failed.
    pub errors: u64,
}

/// Something that a person should hear once about a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It failed for the first time.
    Failed {
        /// The source.
        name: &'static str,
        /// Why, with causes.
        error: String,
    },
    /// It gave a wrong page for the first time.
    Wrong {
        /// The source.
        name: &'static str,
        /// What was asked for.
        asked: Digest,
        /// What came.
        found: Digest,
    },
    /// It is not asked any more.
    SetAside {
        /// The source.
        name: &'static str,
        /// After so many errors and wrong pages.
        after: u32,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { name, error } => write!(f, "Pages from the {name}: {error}"),
            Self::Wrong { name, asked, found } => write!(
                f,
                "Pages from the {name}: it gave a page with digest {found} for {asked}"
            ),
            Self::SetAside { name, after } => write!(
                f,
                "Pages from the {name}: not asked any more after {after} failures"
            ),
        }
    }
}

impl Default for Sources {
    fn default() -> Self {
        Self::new()
    }
}

impl Sources {
    /// A chain without sources, which has no page.
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            error_limit: ERROR_LIMIT,
            notice: Box::new(|_| ()),
        }
    }

    /// Sets aside a source after so many errors and wrong pages, at least 1.
    pub fn with_error_limit(mut self, errors: u32) -> Self {
        self.error_limit = errors.max(1);
        self
    }

    /// Tells `notice` what a person should hear; from any thread that fetches.
    pub fn with_notices(mut self, notice: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.notice = Box::new(notice);
        self
    }

    /// Appends a source, which is asked after all that are there.
    pub fn push(&mut self, source: Box<dyn PageSource>) {
        self.entries.push(Entry::new(source));
    }

    /// The names of the sources in the order in which they are asked.
    pub fn names(&self) -> Vec<&'static str> {
        self.entries
            .iter()
            .map(|entry| entry.source.name())
            .collect()
    }

    /// Switches all sources of that name on or off. `false`: there is none.
    pub fn set_enabled(&self, name: &str, on: bool) -> bool {
        let mut any = false;
        for entry in self
            .entries
            .iter()
            .filter(|entry| entry.source.name() == name)
        {
            entry.enabled.store(on, Ordering::Relaxed);
            any = true;
        }
        any
    }

    /// Calls `each` with the digests of all sources that may be asked; repeated where several have
    /// a page. The page of zeros is left out: it needs no source.
    ///
    /// What fails is counted and said; what was given until then is true all the same.
    pub fn digests(&self, each: &mut dyn FnMut(Digest)) {
        for entry in self.asked() {
            let listed = entry.source.digests(&mut |digest| {
                if digest != Digest::ZERO_PAGE {
                    each(digest);
                }
            });
            if let Err(error) = listed {
                self.failed(entry, &error);
            }
        }
    }

    /// Copies the page with `digest` to `into` and names the source that had it.
    ///
    /// `Some` means that the bytes in `into` have this digest. With `None` they are zeros.
    pub fn fetch(&self, digest: &Digest, into: &mut Page) -> Option<&'static str> {
        for entry in self.asked() {
            match entry.source.fetch(digest, into) {
                Ok(true) if self.is_right(entry, digest, into) => {
                    entry.hits.fetch_add(1, Ordering::Relaxed);
                    return Some(entry.source.name());
                }
                Ok(true) => (),
                Ok(false) => {
                    entry.misses.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => self.failed(entry, &error),
            }
        }
        into.fill(0);
        None
    }

    /// What became of the questions, by source, in the order of asking.
    pub fn counts(&self) -> Vec<SourceCount> {
        self.entries.iter().map(Entry::count).collect()
    }

    /// The sources that may be asked.
    fn asked(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| {
            entry.enabled.load(Ordering::Relaxed) && !entry.set_aside.load(Ordering::Relaxed)
        })
    }

    /// Whether `page`, which `entry` gave for `digest`, has it.
    fn is_right(&self, entry: &Entry, digest: &Digest, page: &Page) -> bool {
        if entry.source.rehashes() {
            return true;
        }
        let found = Digest::of(page);
        if found == *digest {
            return true;
        }
        entry.wrong.fetch_add(1, Ordering::Relaxed);
        if !entry.said_wrong.swap(true, Ordering::Relaxed) {
            (self.notice)(&Notice::Wrong {
                name: entry.source.name(),
                asked: *digest,
                found,
            });
        }
        self.fault(entry);
        false
    }

    /// Counts an error of `entry` and says the first.
    fn failed(&self, entry: &Entry, error: &Error) {
        entry.errors.fetch_add(1, Ordering::Relaxed);
        if !entry.said_failed.swap(true, Ordering::Relaxed) {
            (self.notice)(&Notice::Failed {
                name: entry.source.name(),
                error: error.chain(),
            });
        }
        self.fault(entry);
    }

    /// Counts an error or a wrong page, and sets `entry` aside when there were too many.
    fn fault(&self, entry: &Entry) {
        let faults = entry
            .faults
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        if faults >= self.error_limit && !entry.set_aside.swap(true, Ordering::Relaxed) {
            (self.notice)(&Notice::SetAside {
                name: entry.source.name(),
                after: faults,
            });
        }
    }
}

impl Entry {
    /// A source that was not asked yet.
    fn new(source: Box<dyn PageSource>) -> Self {
        Self {
            source,
            enabled: AtomicBool::new(true),
            set_aside: AtomicBool::new(false),
            said_failed: AtomicBool::new(false),
            said_wrong: AtomicBool::new(false),
            faults: AtomicU32::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    /// Its counters.
    fn count(&self) -> SourceCount {
        SourceCount {
            name: self.source.name(),
            enabled: self.enabled.load(Ordering::Relaxed),
            set_aside: self.set_aside.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            wrong: self.wrong.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}
