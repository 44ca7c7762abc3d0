// SPDX-License-Identifier: GPL-2.0

//! The database of canonical pages: a directory for root alone.
//!
//! Pages are in segments that never change once they are published, each with an index in the
//! storage engine; a manifest names the segments. So any number of processes read while one writes,
//! each the state in which it opened the store, and a crash loses at most what was not published.
//! Every page is hashed when it is fetched: damage on the disk gives an error, not another page.

mod backend;
mod candidates;
mod directory;
mod draft;
mod index;
mod load;
mod manifest;
mod rewrite;
mod segment;
mod writer;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{
    SystemTime,
    UNIX_EPOCH, //
};

use serde::Serialize;
use twinpage_wire::{
    Digest,
    Page,
    PAGE_BYTES, //
};

use crate::admit;
use crate::error::Error;
use crate::source::PageSource;
use directory::{
    Directory,
    Part, //
};
use manifest::{
    Manifest,
    SegmentEntry,
    MANIFEST_BYTES, //
};
use segment::Segment;

pub use load::Load;

/// How often a reader tries again when a writer replaces what it is about to open.
const OPEN_TRIES: u32 = 16;

/// Seconds of a day.
const DAY_SECONDS: u64 = 24 * 60 * 60;

/// What is set for good when a store is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many distinct sources must have a page that is not public: 2 to 16.
    pub sources_needed: u32,
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To fetch pages, as they are now. Any number of processes may.
    Read,
    /// To change it. One process may.
    Write,
}

/// The database of canonical pages.
pub struct Store {
    directory: Directory,
    manifest: Manifest,
    // Shared with stores that were opened again.
    segments: Vec<Arc<Segment>>,
}

/// What is in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// The format of its files.
    pub version: u64,
    /// How many distinct sources must have a page that is not public.
    pub sources_needed: u32,
    /// Parts that it consists of.
    pub segments: u64,
    /// Pages that it has.
    pub pages: u64,
    /// Bytes of all of its files.
    pub bytes_on_disk: u64,
    /// Pages that were not seen in enough sources yet.
    pub candidates: u64,
    /// Bytes of what is kept about these.
    pub candidate_bytes: u64,
    /// Days since the page was used that was not used for longest; `None` without pages.
    pub oldest_use_days: Option<u32>,
}

/// What hashing all pages showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Pages that were hashed.
    pub pages: u64,
    /// Pages that are not what they should be.
    pub bad: u64,
    /// Those of them that were dropped.
    pub dropped: u64,
}

/// What a store may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all pages.
    pub max_bytes: Option<u64>,
    /// Days since a page was used.
    pub max_unused_days: Option<u32>,
    /// Days since a candidate was seen in a further source.
    pub max_candidate_days: Option<u32>,
}

/// What a collection of garbage did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Pages that stay.
    pub pages_kept: u64,
    /// Pages that are gone.
    pub pages_dropped: u64,
    /// Candidates that stay.
    pub candidates_kept: u64,
    /// Candidates that are gone.
    pub candidates_dropped: u64,
    /// Bytes of all files before.
    pub bytes_before: u64,
    /// Bytes of all files now.
    pub bytes_after: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sources_needed: admit::LEAST_SOURCES,
        }
    }
}

impl Store {
    /// Makes a store and opens it for writing.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] when something is there that is no empty directory, [`Error::Setting`],
    /// or when it cannot be written.
    pub fn create(path: &Path, settings: &Settings) -> Result<Self, Error> {
        admit::check_sources(settings.sources_needed)?;
        let directory = Directory::create(path)?;
        let manifest = Manifest::new(settings.sources_needed);
        directory.replace_manifest(&manifest.encode(&directory.manifest_path())?)?;
        Ok(Self {
            directory,
            manifest,
            segments: Vec::new(),
        })
    }

    /// Opens a store. All indexes are read once, to be sure of them.
    ///
    /// # Errors
    ///
    /// [`Error::NoStore`], [`Error::Locked`], [`Error::Permissions`], [`Error::Format`],
    /// [`Error::Damaged`], or when it cannot be read.
    pub fn open(path: &Path, mode: Mode) -> Result<Self, Error> {
        Self::open_with(&[], path, mode)
    }

    /// Opens the same store for reading, as it is now. Only indexes that are new are read.
    ///
    /// # Errors
    ///
    /// As for [`Store::open`].
    pub fn reopen(&self) -> Result<Self, Error> {
        Self::open_with(&self.segments, self.directory.path(), Mode::Read)
    }

    /// Opens a store of which some segments are `known`.
    fn open_with(known: &[Arc<Segment>], path: &Path, mode: Mode) -> Result<Self, Error> {
        let mut directory = Directory::open(path)?;
        if mode == Mode::Write {
            directory.lock()?;
        }
        let mut manifest = read_manifest(&directory)?;
        let mut tries = 0;
        let segments = loop {
            match open_segments(known, &directory, &manifest) {
                Err(error) if tries < OPEN_TRIES => {
                    let now = read_manifest(&directory)?;
                    if now == manifest {
                        return Err(error);
                    }
                    manifest = now;
                    tries += 1;
                }
                segments => break segments?,
            }
        };
        let store = Self {
            directory,
            manifest,
            segments,
        };
        if mode == Mode::Write {
            store.sweep()?;
        }
        Ok(store)
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.segments.iter().map(|segment| segment.pages()).sum()
    }

    /// Begins to load pages. They are in the store after [`finish`](crate::Admit::finish); after
    /// that, [`Store::merge`] keeps its parts few.
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], or when the key cannot be read.
    pub fn load(&mut self) -> Result<Load<'_>, Error> {
        Load::new(self)
    }

    /// What is in it.
    ///
    /// # Errors
    ///
    /// When its files cannot be looked at.
    pub fn stat(&self) -> Result<Stat, Error> {
        let mut oldest = None;
        for segment in &self.segments {
            segment.days(&mut |day| {
                oldest = Some(oldest.map_or(day, |oldest: u16| oldest.min(day)));
            })?;
        }
        let candidates = self.manifest.candidates.as_ref();
        Ok(Stat {
            version: self.manifest.format,
            sources_needed: self.manifest.sources_needed,
            segments: self.segments.len() as u64,
            pages: self.pages(),
            bytes_on_disk: self.bytes_on_disk()?,
            candidates: candidates.map_or(0, |it| it.count),
            candidate_bytes: match candidates {
                Some(it) => self.size(Part::Candidates, it.number)?,
                None => 0,
            },
            oldest_use_days: oldest.map(|day| u32::from(today().saturating_sub(day))),
        })
    }

    /// Where `digest` is.
    fn find(&self, digest: &Digest) -> Result<Option<(&Segment, u32)>, Error> {
        for segment in self.segments.iter().rev() {
            if let Some(slot) = segment.find(digest)? {
                return Ok(Some((segment.as_ref(), slot)));
            }
        }
        Ok(None)
    }

    /// Bytes of all of its files.
    fn bytes_on_disk(&self) -> Result<u64, Error> {
        let mut bytes = 0;
        for entry in &self.manifest.segments {
            for part in [Part::Index, Part::Pages, Part::Used] {
                bytes += self.size(part, entry.number)?;
            }
        }
        if let Some(candidates) = &self.manifest.candidates {
            bytes += self.size(Part::Candidates, candidates.number)?;
        }
        Ok(bytes)
    }

    /// Bytes of a file; 0 when a writer replaced it meanwhile.
    fn size(&self, part: Part, number: u64) -> Result<u64, Error> {
        let path = self.directory.part(part, number);
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            meta => Ok(meta.map_err(Error::file("look at", &path))?.len()),
        }
    }

    /// Makes `manifest` the state of the store, and removes what it does not name.
    fn publish(&mut self, manifest: Manifest) -> Result<(), Error> {
        let bytes = manifest.encode(&self.directory.manifest_path())?;
        self.directory.replace_manifest(&bytes)?;
        self.manifest = manifest;
        self.segments = open_segments(&self.segments, &self.directory, &self.manifest)?;
        self.sweep()
    }

    /// Removes files that neither manifest names: the one on the disk is another when the disk
    /// failed just after it was replaced. If it cannot be read, nothing is removed.
    fn sweep(&self) -> Result<(), Error> {
        let Ok(on_disk) = read_manifest(&self.directory) else {
            return Ok(());
        };
        self.directory
            .sweep(|part, number| self.manifest.has(part, number) || on_disk.has(part, number))
    }
}

impl PageSource for Store {
    fn name(&self) -> &'static str {
        "store"
    }

    fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), Error> {
        self.segments
            .iter()
            .try_for_each(|segment| segment.digests(each))
    }

    fn fetch(&self, digest: &Digest, into: &mut Page) -> Result<bool, Error> {
        let Some((segment, slot)) = self.find(digest)? else {
            return Ok(false);
        };
        segment.read(slot, into)?;
        if Digest::of(into) != *digest {
            return Err(damaged(segment, slot, digest));
        }
        segment.touch(slot, today());
        Ok(true)
    }

    fn copy(&self, digest: &Digest, into: &mut Page) -> Result<bool, Error> {
        let Some((segment, slot)) = self.find(digest)? else {
            return Ok(false);
        };
        segment.read(slot, into)?;
        segment.touch(slot, today());
        Ok(true)
    }

    fn damage(&self, digest: &Digest) -> Option<Error> {
        let (segment, slot) = self.find(digest).ok()??;
        Some(damaged(segment, slot, digest))
    }
}

/// The error for a page that has another digest than its index says.
fn damaged(segment: &Segment, slot: u32, digest: &Digest) -> Error {
    let offset = u64::from(slot) * PAGE_BYTES as u64;
    let what = format!("the page at offset {offset} is not {digest}");
    Error::damaged(segment.pages_path(), what)
}

/// The manifest of the store in `directory`.
fn read_manifest(directory: &Directory) -> Result<Manifest, Error> {
    let bytes = directory.manifest(MANIFEST_BYTES)?;
    Manifest::decode(&bytes, &directory.manifest_path(), directory.path())
}

/// All segments that `manifest` names; those that are not `known` are opened.
fn open_segments(
    known: &[Arc<Segment>],
    directory: &Directory,
    manifest: &Manifest,
) -> Result<Vec<Arc<Segment>>, Error> {
    let open = |entry: &SegmentEntry| match known.iter().find(|segment| segment.is(entry)) {
        Some(segment) => Ok(Arc::clone(segment)),
        None => Segment::open(directory, entry).map(Arc::new),
    };
    manifest.segments.iter().map(open).collect()
}

/// The number of this day, counted from 1970-01-01.
fn today() -> u16 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u16::try_from(since.as_secs() / DAY_SECONDS).unwrap_or(u16::MAX)
}

/// The number of the day so many days ago.
fn days_ago(days: u32) -> u16 {
    today().saturating_sub(u16::try_from(days).unwrap_or(u16::MAX))
}
