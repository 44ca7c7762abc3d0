// SPDX-License-Identifier: GPL-2.0

//! A database of the storage engine that is being made, and that nobody else sees yet.

use std::fs::File;
use std::path::{
    Path,
    PathBuf, //
};

use redb::{
    AccessGuard,
    Builder,
    Database,
    Key,
    ReadOnlyTable,
    ReadableTableMetadata,
    StorageBackend,
    StorageError,
    Table,
    TableDefinition,
    Value, //
};

use super::backend::Scratch;
use super::directory::checksum;
use super::manifest::hex;
use crate::error::Error;

/// Bytes that the engine may keep in memory while it writes.
const WRITE_CACHE: usize = 64 << 20;

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

/// A database with one table, in a file that nobody else sees yet.
pub(super) struct Draft<K: Key + 'static, V: Value + 'static> {
    path: PathBuf,
    file: File,
    definition: TableDefinition<'static, K, V>,
    // Goes before the database that it reads.
    table: Option<ReadOnlyTable<K, V>>,
    database: Database,
}

impl<K: Key + 'static, V: Value + 'static> Draft<K, V> {
    /// Goes on with the database in `file`, or makes one in an empty file.
    pub(super) fn new(
        path: PathBuf,
        file: File,
        definition: TableDefinition<'static, K, V>,
    ) -> Result<Self, Error> {
        let own = file.try_clone().map_err(Error::file("open", &path))?;
        let mut draft = Self {
            database: database(Scratch(own), WRITE_CACHE, &path)?,
            path,
            file,
            definition,
            table: None,
        };
        // This makes the table.
        draft.change(|_| Ok(()))?;
        Ok(draft)
    }

    /// What the last change left at `key`.
    pub(super) fn get(
        &self,
        key: K::SelfType<'_>,
    ) -> Result<Option<AccessGuard<'static, V>>, Error> {
        match &self.table {
            Some(table) => table.get(key).map_err(Error::engine("read", &self.path)),
            None => Ok(None),
        }
    }

    /// Changes the table.
    pub(super) fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Table<'_, K, V>) -> Result<T, StorageError>,
    ) -> Result<T, Error> {
        // A reader would keep the engine from using the space of what changes.
        self.table = None;
        let result = self
            .transact(change)
            .map_err(Error::engine("change", &self.path))?;
        self.table = Some(self.view().map_err(Error::engine("read", &self.path))?);
        Ok(result)
    }

    fn transact<T>(
        &self,
        change: impl FnOnce(&mut Table<'_, K, V>) -> Result<T, StorageError>,
    ) -> Result<T, redb::Error> {
        let transaction = self.database.begin_write()?;
        let result = change(&mut transaction.open_table(self.definition)?)?;
        transaction.commit()?;
        Ok(result)
    }

    fn view(&self) -> Result<ReadOnlyTable<K, V>, redb::Error> {
        Ok(self.database.begin_read()?.open_table(self.definition)?)
    }

    /// Makes the file small, waits for the disk, and gives its checksum and the number of
    /// entries.
    pub(super) fn seal(mut self) -> Result<(String, u64), Error> {
        let entries = match self.table.take() {
            Some(table) => table.len().map_err(Error::engine("read", &self.path))?,
            None => 0,
        };
        self.database
            .compact()
            .map_err(Error::engine("compact", &self.path))?;
        drop(self.database);
        self.file
            .sync_all()
            .map_err(Error::file("write", &self.path))?;
        Ok((hex(&checksum(&self.file, &self.path)?), entries))
    }
}
