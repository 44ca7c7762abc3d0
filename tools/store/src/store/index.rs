// SPDX-License-Identifier: GPL-2.0

//! An index that is being made: digest to slot, in the storage engine.

use std::collections::HashMap;
use std::fs::File;
use std::path::{
    Path,
    PathBuf, //
};

use redb::{
    Builder,
    Database,
    ReadOnlyTable,
    ReadableTableMetadata,
    StorageBackend,
    TableDefinition, //
};
use twinpage_wire::Digest;

use super::backend::Scratch;
use super::directory::{
    checksum,
    Directory, //
};
use super::manifest::hex;
use crate::error::Error;

/// The one table of an index.
pub(super) const SLOTS: TableDefinition<'static, &'static [u8; 32], u32> =
    TableDefinition::new("slots");

/// Bytes that the engine may keep in memory while it writes.
pub(super) const WRITE_CACHE: usize = 64 << 20;

/// Entries that are written in one go, sorted.
const BATCH: usize = 64 << 10;

/// Opens a database on `backend`.
pub(super) fn database(
    backend: impl StorageBackend,
    cache: usize,
    path: &Path,
) -> Result<Database, Error> {
    Builder::new()
        .set_cache_size(cache)
        .create_with_file_format_v3(true)
        .create_with_backend(backend)
        .map_err(Error::engine("open", path))
}

/// Makes the file of `database` small, closes it, waits for the disk, and gives its checksum.
pub(super) fn seal(mut database: Database, file: &File, path: &Path) -> Result<String, Error> {
    database.compact().map_err(Error::engine("compact", path))?;
    drop(database);
    file.sync_all().map_err(Error::file("write", path))?;
    Ok(hex(&checksum(file, path)?))
}

/// An index that nobody else sees yet.
pub(super) struct IndexWriter {
    path: PathBuf,
    file: File,
    // Goes before the database that it reads.
    table: Option<ReadOnlyTable<&'static [u8; 32], u32>>,
    database: Database,
    pending: HashMap<Digest, u32>,
}

impl IndexWriter {
    /// Makes an empty index.
    pub(super) fn new(directory: &Directory, path: PathBuf) -> Result<Self, Error> {
        let file = directory.make(&path)?;
        let own = file.try_clone().map_err(Error::file("open", &path))?;
        let database = database(Scratch(own), WRITE_CACHE, &path)?;
        let mut index = Self {
            path,
            file,
            table: None,
            database,
            pending: HashMap::new(),
        };
        index.flush()?;
        Ok(index)
    }

    /// Whether `digest` has a slot.
    pub(super) fn contains(&self, digest: &Digest) -> Result<bool, Error> {
        if self.pending.contains_key(digest) {
            return Ok(true);
        }
        let Some(table) = &self.table else {
            return Ok(false);
        };
        let found = table
            .get(&digest.0)
            .map_err(Error::engine("read", &self.path))?;
        Ok(found.is_some())
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
        // A reader would keep the engine from using the space of what changes.
        self.table = None;
        let mut batch: Vec<_> = self.pending.drain().collect();
        batch.sort_unstable();
        let change = self
            .database
            .begin_write()
            .map_err(Error::engine("change", &self.path))?;
        {
            let mut table = change
                .open_table(SLOTS)
                .map_err(Error::engine("change", &self.path))?;
            for (digest, slot) in batch {
                table
                    .insert(&digest.0, slot)
                    .map_err(Error::engine("change", &self.path))?;
            }
        }
        change
            .commit()
            .map_err(Error::engine("change", &self.path))?;
        let read = self
            .database
            .begin_read()
            .map_err(Error::engine("read", &self.path))?;
        let table = read
            .open_table(SLOTS)
            .map_err(Error::engine("read", &self.path))?;
        self.table = Some(table);
        Ok(())
    }

    /// Completes the index: its checksum and number of entries.
    pub(super) fn finish(mut self) -> Result<(String, u64), Error> {
        self.flush()?;
        let entries = match self.table.take() {
            Some(table) => table.len().map_err(Error::engine("read", &self.path))?,
            None => 0,
        };
        Ok((seal(self.database, &self.file, &self.path)?, entries))
    }
}
