// SPDX-License-Identifier: GPL-2.0

//! An index that is being made: digest to slot, in the storage engine.

use std::collections::HashMap;
use std::path::PathBuf;

use redb::TableDefinition;
use twinpage_wire::Digest;

use super::directory::Directory;
use super::draft::Draft;
use crate::error::Error;

/// The one table of an index.
pub(super) const SLOTS: TableDefinition<'static, &'static [u8; 32], u32> =
    TableDefinition::new("slots");

/// Entries that are written in one go, sorted.
const BATCH: usize = 64 << 10;

/// An index that nobody else sees yet.
pub(super) struct IndexWriter {
    draft: Draft<&'static [u8; 32], u32>,
    pending: HashMap<Digest, u32>,
}

impl IndexWriter {
    /// Makes an empty index.
    pub(super) fn new(directory: &Directory, path: PathBuf) -> Result<Self, Error> {
        let file = directory.make(&path)?;
        Ok(Self {
            draft: Draft::new(path, file, SLOTS)?,
            pending: HashMap::new(),
        })
    }

    /// Whether `digest` has a slot.
    pub(super) fn contains(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.pending.contains_key(digest) || self.draft.get(&digest.0)?.is_some())
    }

    /// Gives `digest` a slot.
    pub(super) fn insert(&mut self, digest: &Digest, slot: u32) -> Result<(), Error> {
        self.pending.insert(*digest, slot);
        if self.pending.len() >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Hands the entries to the engine and makes them readable.
    fn flush(&mut self) -> Result<(), Error> {
        let mut batch: Vec<_> = self.pending.drain().collect();
        batch.sort_unstable();
        self.draft.change(|table| {
            for (digest, slot) in batch {
                table.insert(&digest.0, slot)?;
            }
            Ok(())
        })
    }

    /// Completes the index: its checksum and number of entries.
    pub(super) fn finish(mut self) -> Result<(String, u64), Error> {
        self.flush()?;
        self.draft.seal()
    }
}
