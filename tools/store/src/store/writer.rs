// SPDX-License-Identifier: GPL-2.0

//! A segment that is being made.

use std::fs::File;
use std::io::{
    BufWriter,
    Write, //
};
use std::path::PathBuf;

use twinpage_wire::{
    Digest,
    Page, //
};

use super::directory::{
    Directory,
    Part, //
};
use super::index::IndexWriter;
use super::manifest::SegmentEntry;
use crate::error::Error;

/// Bytes that are written to the file of pages in one go.
const BUFFER: usize = 1 << 20;

/// Pages and their index, which nobody else sees yet.
pub(super) struct SegmentWriter {
    number: u64,
    index: IndexWriter,
    pages: BufWriter<File>,
    pages_path: PathBuf,
    used: BufWriter<File>,
    used_path: PathBuf,
    count: u32,
}

impl SegmentWriter {
    /// Makes an empty segment.
    pub(super) fn new(directory: &Directory, number: u64) -> Result<Self, Error> {
        let pages_path = directory.part(Part::Pages, number);
        let used_path = directory.part(Part::Used, number);
        Ok(Self {
            number,
            index: IndexWriter::new(directory, directory.part(Part::Index, number))?,
            pages: BufWriter::with_capacity(BUFFER, directory.make(&pages_path)?),
            pages_path,
            used: BufWriter::new(directory.make(&used_path)?),
            used_path,
            count: 0,
        })
    }

    /// Whether it has a page.
    pub(super) fn contains(&self, digest: &Digest) -> Result<bool, Error> {
        self.index.contains(digest)
    }

    /// Appends a page that it does not have, and that was last used on `day`.
    pub(super) fn push(&mut self, digest: &Digest, page: &Page, day: u16) -> Result<(), Error> {
        let slot = self.count;
        self.count = slot.checked_add(1).ok_or_else(|| Error::Full {
            path: self.pages_path.clone(),
            limit: u32::MAX.into(),
        })?;
        self.pages
            .write_all(page)
            .map_err(Error::file("write", &self.pages_path))?;
        let day = day.to_le_bytes();
        self.used
            .write_all(&day)
            .map_err(Error::file("write", &self.used_path))?;
        self.index.insert(digest, slot)
    }

    /// Waits until all is on the disk, and says what the manifest should.
    pub(super) fn finish(self) -> Result<SegmentEntry, Error> {
        for (buffer, path) in [(self.pages, self.pages_path), (self.used, self.used_path)] {
            let file = buffer.into_inner().map_err(|error| error.into_error());
            file.and_then(|file| file.sync_all())
                .map_err(Error::file("write", &path))?;
        }
        let (index, pages) = self.index.finish()?;
        Ok(SegmentEntry {
            number: self.number,
            pages,
            index,
        })
    }
}
