// SPDX-License-Identifier: GPL-2.0

//! Reading the debugfs file `digests` of a VM (`Documentation/export.rst`).
//!
//! The bytes are decoded by the engine's `wire`, the same source that encodes them in the module.
//! Nothing is believed of the header but its own arithmetic: memory is never sized by it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use twinpage_engine::engine::wire::{
    Header,
    Malformed,
    PageState,
    Record,
    HEADER_BYTES,
    RECORD_BYTES, //
};

use crate::digest::Digest;
use crate::error::Error;
use crate::host::{
    FileError,
    Host, //
};
use crate::parse::ParseError;
use crate::vm::{
    digests_file,
    Id, //
};

/// Records that are read at once.
const CHUNK_RECORDS: u64 = 1024;

/// An open file of digests, read from front to back.
pub struct Digests {
    /// The file.
    file: File,
    /// Its path.
    path: PathBuf,
    /// Its header when it was opened.
    header: Header,
    /// Number of the next record.
    next: u64,
    /// The guest page of the last record.
    last_gfn: Option<u64>,
    /// Bytes of records that were read ahead.
    chunk: Vec<u8>,
    /// How many of them are used up.
    used: usize,
}

/// Number of a record, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u64);

/// How many pages are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Nothing mapped.
    pub absent: u64,
    /// Private.
    pub unmerged: u64,
    /// Mapping a merged copy.
    pub merged: u64,
    /// Mapping the zero page.
    pub zero: u64,
    /// Not readable.
    pub skipped: u64,
}

impl Tally {
    /// Counts a page.
    pub fn count(&mut self, state: PageState) {
        let field = match state {
            PageState::Absent => &mut self.absent,
            PageState::Unmerged { .. } => &mut self.unmerged,
            PageState::Merged { .. } => &mut self.merged,
            PageState::Zero => &mut self.zero,
            PageState::Skipped => &mut self.skipped,
        };
        // OVERFLOW: A file has fewer than 2^64 records.
        *field += 1;
    }
}

impl Digests {
    /// Opens the digests of VM `id`.
    ///
    /// # Errors
    ///
    /// The VM is not attached, or the file is not of the expected format.
    pub fn open(host: &Host, id: Id) -> Result<Self, Error> {
        let path = digests_file(host, id)?;
        let file = host.open(&path).map_err(|error| match error {
            error if error.is_gone() => Error::NoSuchId(id),
            error => error.into(),
        })?;
        let header = Header {
            id: id.0,
            domain: 0,
            records: 0,
            layout: 0,
        };
        let mut digests = Self {
            file,
            path,
            header,
            next: 0,
            last_gfn: None,
            chunk: Vec::new(),
            used: 0,
        };
        digests.header = digests.read_header()?;
        Ok(digests)
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next record and its place, or nothing at the end.
    ///
    /// # Errors
    ///
    /// The file cannot be read, ends early, or a record is malformed or out of order.
    pub fn read_next(&mut self) -> Result<Option<(Place, Record)>, Error> {
        if self.next == self.header.records {
            return Ok(None);
        }
        if self.used == self.chunk.len() {
            self.fill()?;
        }
        let mut bytes = [0; RECORD_BYTES];
        bytes.copy_from_slice(&self.chunk[self.used..self.used + RECORD_BYTES]);
        let place = Place(self.next);
        let record = self.decode(&bytes)?;
        if self.last_gfn.is_some_and(|last| record.gfn <= last) {
            return Err(self.malformed("guest pages are out of order").into());
        }
        self.last_gfn = Some(record.gfn);
        self.used += RECORD_BYTES;
        self.next += 1;
        Ok(Some((place, record)))
    }

    /// The record at `place` as it is now.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or the record is malformed.
    pub fn read_again(&self, place: Place) -> Result<Record, Error> {
        let mut bytes = [0; RECORD_BYTES];
        self.read_at(&mut bytes, offset(place.0))?;
        self.decode(&bytes)
    }

    /// Checks that the memslots are still those that the records are about.
    ///
    /// # Errors
    ///
    /// They changed, or the file cannot be read.
    pub fn check_layout(&self) -> Result<(), Error> {
        let now = self.read_header()?;
        if (now.layout, now.records) != (self.header.layout, self.header.records) {
            return Err(Error::LayoutChanged(Id(self.header.id)));
        }
        Ok(())
    }

    /// Reads the header that the file has now.
    fn read_header(&self) -> Result<Header, Error> {
        let mut bytes = [0; HEADER_BYTES];
        self.read_at(&mut bytes, 0)?;
        let header = Header::decode(&bytes).map_err(|error| self.malformed(Reason(error)))?;
        if header.id != self.header.id {
            return Err(self.malformed("it is about another VM").into());
        }
        // Every offset is then a valid one.
        let fits = header.records <= (i64::MAX.unsigned_abs() >> 7);
        if !fits {
            return Err(self.malformed("it has too many records").into());
        }
        Ok(header)
    }

    /// Reads the next records ahead.
    fn fill(&mut self) -> Result<(), Error> {
        let records = CHUNK_RECORDS.min(self.header.records - self.next);
        // CAST: At most 64 KiB.
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.resize(records as usize * RECORD_BYTES, 0);
        // A file that became shorter has another layout, which is the better explanation.
        self.read_at(&mut chunk, offset(self.next))
            .or_else(|error| self.check_layout().and(Err(error)))?;
        self.chunk = chunk;
        self.used = 0;
        Ok(())
    }

    /// Reads bytes at `offset`.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), Error> {
        let read = self.file.read_exact_at(bytes, offset);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.malformed("it ends early").into(),
            _ => FileError::new("read", &self.path, error).into(),
        })
    }

    /// Decodes one record.
    fn decode(&self, bytes: &[u8; RECORD_BYTES]) -> Result<Record, Error> {
        Ok(Record::decode(bytes).map_err(|error| self.malformed(Reason(error)))?)
    }

    /// The file is not as it should be.
    fn malformed(&self, problem: impl fmt::Display) -> ParseError {
        ParseError::file(&self.path, problem.to_string())
    }
}

/// The digest that goes with a state.
pub fn digest_of(state: PageState) -> Option<Digest> {
    match state {
        PageState::Absent | PageState::Skipped => None,
        PageState::Unmerged { digest } | PageState::Merged { digest, .. } => Some(Digest(digest)),
        PageState::Zero => Some(Digest(twinpage_engine::engine::wire::ZERO_DIGEST)),
    }
}

/// Why bytes cannot be decoded, for people.
struct Reason(Malformed);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Malformed::Magic => f.write_str("it does not start with TWPDGST1"),
            Malformed::Version(version) => write!(f, "its version is {version} instead of 1"),
            Malformed::Size => f.write_str("its header or records have another size"),
            Malformed::State(state) => write!(f, "a record has the unknown state {state}"),
        }
    }
}

/// Where record `number` starts.
fn offset(number: u64) -> u64 {
    // OVERFLOW: `read_header` bounds the number of records.
    HEADER_BYTES as u64 + number * RECORD_BYTES as u64
}
