// SPDX-License-Identifier: GPL-2.0

//! Pages that were not seen in enough sources yet: tags only.
//!
//! A file of candidates is a database of the storage engine: tag of a page (16 bytes) to the day
//! when it was last seen in a further source (u16, little-endian) and the tags of these sources
//! (8 bytes each). A published file is never changed: a build works on a copy.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use redb::TableDefinition;

use super::directory::{
    checksum,
    Directory,
    Part, //
};
use super::draft::Draft;
use super::manifest::{
    hex,
    CandidatesEntry, //
};
use crate::error::Error;
use crate::tag::{
    PageTag,
    SourceTag,
    PAGE_TAG,
    SOURCE_TAG, //
};

/// The one table of the file.
const SEEN: TableDefinition<'static, &'static [u8; PAGE_TAG], &'static [u8]> =
    TableDefinition::new("seen");

/// Bytes of the day.
const DAY_BYTES: usize = 2;

/// Changes that are written in one go, sorted.
const BATCH: usize = 256 << 10;

/// Candidates that are being changed, and that nobody else sees yet.
pub(super) struct CandidatesWriter {
    number: u64,
    draft: Draft<&'static [u8; PAGE_TAG], &'static [u8]>,
    // No source: the candidate goes.
    pending: HashMap<PageTag, Vec<SourceTag>>,
    day: u16,
}

impl CandidatesWriter {
    /// A copy of the published candidates `base`, or none, changed on `day`.
    pub(super) fn new(
        directory: &Directory,
        number: u64,
        base: Option<&CandidatesEntry>,
        day: u16,
    ) -> Result<Self, Error> {
        let path = directory.part(Part::Candidates, number);
        let mut file = directory.make(&path)?;
        if let Some(base) = base {
            let from_path = directory.part(Part::Candidates, base.number);
            let mut from = File::open(&from_path).map_err(Error::file("open", &from_path))?;
            io::copy(&mut from, &mut file).map_err(Error::file("copy", &from_path))?;
            if hex(&checksum(&file, &path)?) != base.sha256 {
                return Err(Error::damaged(&from_path, "its checksum is wrong"));
            }
        }
        Ok(Self {
            number,
            draft: Draft::new(path, file, SEEN)?,
            pending: HashMap::new(),
            day,
        })
    }

    /// The sources that a candidate was seen in.
    pub(super) fn sources(&self, page: &PageTag) -> Result<Vec<SourceTag>, Error> {
        if let Some(sources) = self.pending.get(page) {
            return Ok(sources.clone());
        }
        let found = self.draft.get(page)?;
        Ok(found.map_or_else(Vec::new, |value| decode(value.value())))
    }

    /// Says in which sources a candidate was seen; none if it is no candidate any more.
    pub(super) fn set(&mut self, page: &PageTag, sources: Vec<SourceTag>) -> Result<(), Error> {
        self.pending.insert(*page, sources);
        if self.pending.len() >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Drops the candidates that were last seen before `day`, and counts them.
    pub(super) fn forget_before(&mut self, day: u16) -> Result<u64, Error> {
        self.flush()?;
        self.draft.change(|table| {
            let mut dropped = 0;
            table.retain(|_, value| {
                let keep = day_of(value) >= day;
                dropped += u64::from(!keep);
                keep
            })?;
            Ok(dropped)
        })
    }

    /// Hands the changes to the engine and makes them readable.
    fn flush(&mut self) -> Result<(), Error> {
        let mut batch: Vec<_> = self.pending.drain().collect();
        batch.sort_unstable();
        self.draft.change(|table| {
            for (page, sources) in batch {
                if sources.is_empty() {
                    table.remove(&page)?;
                } else {
                    table.insert(&page, &encode(self.day, &sources)[..])?;
                }
            }
            Ok(())
        })
    }

    /// Waits until all is on the disk, and says what the manifest should.
    pub(super) fn finish(mut self) -> Result<CandidatesEntry, Error> {
        self.flush()?;
        let (sha256, count) = self.draft.seal()?;
        Ok(CandidatesEntry {
            number: self.number,
            count,
            sha256,
        })
    }
}

/// The value of a candidate.
fn encode(day: u16, sources: &[SourceTag]) -> Vec<u8> {
    let mut value = day.to_le_bytes().to_vec();
    value.extend(sources.iter().flatten());
    value
}

/// The day in the value of a candidate.
fn day_of(value: &[u8]) -> u16 {
    match value {
        [low, high, ..] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    }
}

/// The sources in the value of a candidate.
fn decode(value: &[u8]) -> Vec<SourceTag> {
    let tags = value.get(DAY_BYTES..).unwrap_or_default();
    tags.chunks_exact(SOURCE_TAG)
        .filter_map(|tag| tag.try_into().ok())
        .collect()
}
