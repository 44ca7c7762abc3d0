// SPDX-License-Identifier: GPL-2.0

//! The places where a receiver looks for pages, in the order in which it looks.
//!
//! No source is believed. A page counts as found only when the receiver's own copy of it has the
//! digest that was asked for. A source that fails or gives wrong pages too often is set aside for
//! the rest of the session, and each of these things is said once. So is that one could not be
//! opened.

use std::fmt;
use std::sync::atomic::{
    AtomicBool,
    AtomicU32,
    AtomicU64,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};

use serde::Serialize;
use twinpage_wire::{
    Digest,
    Page,
    PAGE_BYTES, //
};

use crate::error::Error;
use crate::source::PageSource;

/// How many errors and wrong pages a source may give before it is set aside.
const ERROR_LIMIT: u32 = 8;

/// An error that took so long counts as half of them: a source that hangs must be set aside before
/// those give up who wait for pages.
const LONG: Duration = Duration::from_secs(1);

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
    // Errors and wrong pages, by weight.
    faults: AtomicU32,
    hits: AtomicU64,
    misses: AtomicU64,
    wrong: AtomicU64,
    errors: AtomicU64,
}

/// Stands for a source that could not be opened.
struct LeftOut(&'static str);

/// A page that is wanted.
struct Want<'a> {
    /// Which of those that are asked for together.
    place: usize,
    digest: &'a Digest,
    page: &'a mut Page,
}

/// What became of the questions to one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SourceCount {
    /// Its name.
    pub name: &'static str,
    /// Whether it may be asked.
    pub enabled: bool,
    /// Whether it is not asked any more: it failed too often, or could not be opened.
    pub set_aside: bool,
    /// Pages that it gave, and that were right.
    pub hits: u64,
    /// Pages that it has not.
    pub misses: u64,
    /// Pages that it gave, and that were others.
    pub wrong: u64,
    /// Questions that failed; 1 if it could not be opened.
    pub errors: u64,
}

/// Something that a person should hear once about a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It could not be opened.
    LeftOut {
        /// The source.
        name: &'static str,
        /// Why, with causes.
        error: String,
    },
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
        after: u64,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftOut { name, error } => write!(
                f,
                "Pages from the {name}: left out, it cannot be opened: {error}"
            ),
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

    /// Sets aside a source after so many errors and wrong pages, at least 1, or after two errors
    /// that took a second each.
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

    /// Appends a source that could not be opened, for this reason. That is said, and it is counted,
    /// but never asked.
    pub fn leave_out(&mut self, name: &'static str, error: String) {
        let entry = Entry::new(Box::new(LeftOut(name)));
        entry.set_aside.store(true, Ordering::Relaxed);
        entry.errors.store(1, Ordering::Relaxed);
        self.entries.push(entry);
        (self.notice)(&Notice::LeftOut { name, error });
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
            let since = Instant::now();
            let listed = entry.source.digests(&mut |digest| {
                if digest != Digest::ZERO_PAGE {
                    each(digest);
                }
            });
            if let Err(error) = listed {
                self.failed(entry, &error, since.elapsed());
            }
        }
    }

    /// Copies the page with `digest` to `into` and names the source that had it.
    ///
    /// `Some` means that the bytes in `into` have this digest. With `None` they are zeros.
    pub fn fetch(&self, digest: &Digest, into: &mut Page) -> Option<&'static str> {
        for entry in self.asked() {
            if self.copy(entry, digest, into) && self.is_right(entry, digest, Digest::of(into)) {
                return Some(entry.source.name());
            }
        }
        into.fill(0);
        None
    }

    /// Copies the pages with `digests` to the pages of `into`, in order. Gives the places of those
    /// that no source has or that `into` has no room for, in order.
    ///
    /// The bytes of the others have the digests; those of pages that are missing are zeros.
    pub fn fetch_all(&self, digests: &[Digest], into: &mut [u8]) -> Vec<usize> {
        let pages = into.chunks_exact_mut(PAGE_BYTES);
        let pages = pages.filter_map(|page| <&mut Page>::try_from(page).ok());
        let mut open: Vec<_> = digests
            .iter()
            .zip(pages)
            .enumerate()
            .map(Want::new)
            .collect();
        let room = open.len();
        for entry in &self.entries {
            open = self.fetch_from(entry, open);
        }
        open.iter_mut().for_each(|want| want.page.fill(0));
        let mut missing: Vec<_> = open.iter().map(|want| want.place).collect();
        missing.sort_unstable();
        missing.extend(room..digests.len());
        missing
    }

    /// Asks `entry` for `wants`, and gives those that remain. Pages are hashed two at a time.
    fn fetch_from<'a>(&self, entry: &Entry, wants: Vec<Want<'a>>) -> Vec<Want<'a>> {
        let mut open = Vec::new();
        let mut pair = Vec::with_capacity(2);
        for want in wants {
            if !entry.may_be_asked() || !self.copy(entry, want.digest, want.page) {
                open.push(want);
                continue;
            }
            pair.push(want);
            if pair.len() == 2 {
                self.check(entry, &mut pair, &mut open);
            }
        }
        self.check(entry, &mut pair, &mut open);
        open
    }

    /// Hashes pages that `entry` gave, and puts those that are others back to `open`.
    fn check<'a>(&self, entry: &Entry, given: &mut Vec<Want<'a>>, open: &mut Vec<Want<'a>>) {
        let found = Digest::of_pages(given.iter().map(|want| &*want.page));
        let wrong = given
            .drain(..)
            .zip(found)
            .filter(|(want, found)| !self.is_right(entry, want.digest, *found));
        open.extend(wrong.map(|(want, _)| want));
    }

    /// What became of the questions, by source, in the order of asking.
    pub fn counts(&self) -> Vec<SourceCount> {
        self.entries.iter().map(Entry::count).collect()
    }

    /// The sources that may be asked.
    fn asked(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.may_be_asked())
    }

    /// Has `entry` copy a page, if it has one that it takes for the right one.
    fn copy(&self, entry: &Entry, digest: &Digest, into: &mut Page) -> bool {
        let since = Instant::now();
        match entry.source.copy(digest, into) {
            Ok(true) => return true,
            Ok(false) => {
                entry.misses.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.failed(entry, &error, since.elapsed()),
        }
        false
    }

    /// Whether a page that `entry` gave for `digest` is the right one: it has the digest `found`.
    fn is_right(&self, entry: &Entry, digest: &Digest, found: Digest) -> bool {
        if found == *digest {
            entry.hits.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        if let Some(damage) = entry.source.damage(digest) {
            self.failed(entry, &damage, Duration::ZERO);
            return false;
        }
        entry.wrong.fetch_add(1, Ordering::Relaxed);
        if !entry.said_wrong.swap(true, Ordering::Relaxed) {
            (self.notice)(&Notice::Wrong {
                name: entry.source.name(),
                asked: *digest,
                found,
            });
        }
        self.fault(entry, 1);
        false
    }

    /// Counts an error of `entry` that took so long, and says the first.
    fn failed(&self, entry: &Entry, error: &Error, took: Duration) {
        entry.errors.fetch_add(1, Ordering::Relaxed);
        if !entry.said_failed.swap(true, Ordering::Relaxed) {
            (self.notice)(&Notice::Failed {
                name: entry.source.name(),
                error: error.chain(),
            });
        }
        let weight = match took >= LONG {
            true => self.error_limit.div_ceil(2),
            false => 1,
        };
        self.fault(entry, weight);
    }

    /// Counts an error or a wrong page as so many, and sets `entry` aside when there were too many.
    fn fault(&self, entry: &Entry, weight: u32) {
        let faults = entry
            .faults
            .fetch_add(weight, Ordering::Relaxed)
            .saturating_add(weight);
        if faults >= self.error_limit && !entry.set_aside.swap(true, Ordering::Relaxed) {
            let count = entry.count();
            (self.notice)(&Notice::SetAside {
                name: count.name,
                after: count.errors + count.wrong,
            });
        }
    }
}

impl PageSource for LeftOut {
    fn name(&self) -> &'static str {
        self.0
    }

    fn digests(&self, _: &mut dyn FnMut(Digest)) -> Result<(), Error> {
        Ok(())
    }

    fn fetch(&self, _: &Digest, _: &mut Page) -> Result<bool, Error> {
        Ok(false)
    }
}

impl<'a> Want<'a> {
    /// A page that nobody was asked for yet.
    fn new((place, (digest, page)): (usize, (&'a Digest, &'a mut Page))) -> Self {
        Self {
            place,
            digest,
            page,
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

    /// Whether it may be asked.
    fn may_be_asked(&self) -> bool {
        self.enabled.load(Ordering::Relaxed) && !self.set_aside.load(Ordering::Relaxed)
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
