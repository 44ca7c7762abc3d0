// SPDX-License-Identifier: GPL-2.0

//! A segment that is published: pages, their index, and when they were last used.
//!
//! | File | Content |
//! |---|---|
//! | `index-N` | database of the storage engine: digest (32 bytes) to slot (u32) |
//! | `pages-N` | page in slot s at byte 4096 * s |
//! | `used-N` | u16, little-endian, at byte 2 * s: day of last use, counted from 1970-01-01 |

use std::fs::{
    File,
    OpenOptions, //
};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::atomic::{
    AtomicU16,
    Ordering, //
};
use std::sync::OnceLock;

use redb::{
    Database,
    ReadOnlyTable,
    ReadableTableMetadata, //
};
use twinpage_wire::{
    Digest,
    Page,
    PAGE_BYTES, //
};

use super::backend::Frozen;
use super::directory::{
    checksum,
    Directory,
    Part, //
};
use super::draft::database;
use super::index::SLOTS;
use super::manifest::{
    hex,
    SegmentEntry, //
};
use crate::error::Error;
use crate::hash;

/// Bytes of an index that are kept in memory; the kernel keeps more.
const READ_CACHE: usize = 32 << 20;

/// Pages that are read and hashed in one go.
const CHUNK_PAGES: u64 = 1024;

/// Bytes of a day of last use.
const DAY_BYTES: u64 = 2;

/// A published segment.
pub(super) struct Segment {
    number: u64,
    count: u64,
    // SHA-256 of the index, as the manifest has it.
    index: String,
    index_path: PathBuf,
    pages_path: PathBuf,
    pages: File,
    used: Option<File>,
    /// The days of last use as they were when one was noted first, and those noted since: two bytes
    /// a page are little, and the file need not be asked for each page.
    noted: OnceLock<Vec<AtomicU16>>,
    // Goes before the database that it reads.
    table: ReadOnlyTable<&'static [u8; 32], u32>,
    _database: Database,
}

/// A slot as a scan finds it.
pub(super) struct Found<'a> {
    /// Which slot.
    pub(super) slot: u32,
    /// The digest of what is there.
    pub(super) digest: Digest,
    /// What is there.
    pub(super) page: &'a Page,
    /// Whether that is what should be there.
    pub(super) good: bool,
}

impl Segment {
    /// Opens the segment of a manifest's entry and checks its index.
    pub(super) fn open(directory: &Directory, entry: &SegmentEntry) -> Result<Self, Error> {
        let index_path = directory.part(Part::Index, entry.number);
        let file = File::open(&index_path).map_err(Error::file("open", &index_path))?;
        if hex(&checksum(&file, &index_path)?) != entry.index {
            return Err(Error::damaged(&index_path, "its checksum is wrong"));
        }
        let frozen = Frozen::new(file).map_err(Error::file("read", &index_path))?;
        let database = database(frozen, READ_CACHE, &index_path)?;
        let table = database
            .begin_read()
            .map_err(Error::engine("read", &index_path))?
            .open_table(SLOTS)
            .map_err(Error::engine("read", &index_path))?;
        let pages_path = directory.part(Part::Pages, entry.number);
        let pages = File::open(&pages_path).map_err(Error::file("open", &pages_path))?;
        let segment = Self {
            number: entry.number,
            count: entry.pages,
            index: entry.index.clone(),
            index_path,
            pages_path,
            pages,
            used: open_used(&directory.part(Part::Used, entry.number), entry.pages),
            noted: OnceLock::new(),
            table,
            _database: database,
        };
        segment.check_sizes()?;
        Ok(segment)
    }

    /// Whether it is what `entry` names. A segment never changes, so it need not be opened again.
    pub(super) fn is(&self, entry: &SegmentEntry) -> bool {
        (self.number, self.count, &self.index) == (entry.number, entry.pages, &entry.index)
    }

    /// Whether index, pages and manifest speak of one number of pages.
    fn check_sizes(&self) -> Result<(), Error> {
        let entries = self
            .table
            .len()
            .map_err(Error::engine("read", &self.index_path))?;
        if entries != self.count {
            let what = format!("it has {entries} entries instead of {}", self.count);
            return Err(Error::damaged(&self.index_path, what));
        }
        let meta = self
            .pages
            .metadata()
            .map_err(Error::file("look at", &self.pages_path))?;
        if Some(meta.len()) != self.count.checked_mul(PAGE_BYTES as u64) {
            let what = format!(
                "it has {} bytes instead of {} pages",
                meta.len(),
                self.count
            );
            return Err(Error::damaged(&self.pages_path, what));
        }
        Ok(())
    }

    /// The number in the names of its files.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// How many pages it has.
    pub(super) fn pages(&self) -> u64 {
        self.count
    }

    /// Where its pages are.
    pub(super) fn pages_path(&self) -> &Path {
        &self.pages_path
    }

    /// The slot of `digest`.
    pub(super) fn find(&self, digest: &Digest) -> Result<Option<u32>, Error> {
        let found = self
            .table
            .get(&digest.0)
            .map_err(Error::engine("read", &self.index_path))?;
        match found.map(|slot| slot.value()) {
            Some(slot) if u64::from(slot) >= self.count => {
                let what = format!("it names slot {slot} of {}", self.count);
                Err(Error::damaged(&self.index_path, what))
            }
            slot => Ok(slot),
        }
    }

    /// Copies what is in `slot` to `into`, without a look at it.
    pub(super) fn read(&self, slot: u32, into: &mut Page) -> Result<(), Error> {
        let at = u64::from(slot) * PAGE_BYTES as u64;
        self.pages
            .read_exact_at(into, at)
            .map_err(Error::file("read", &self.pages_path))
    }

    /// Calls `each` with every digest.
    pub(super) fn digests(&self, each: &mut dyn FnMut(Digest)) -> Result<(), Error> {
        use redb::ReadableTable;
        let all = self
            .table
            .iter()
            .map_err(Error::engine("read", &self.index_path))?;
        for entry in all {
            let (digest, _) = entry.map_err(Error::engine("read", &self.index_path))?;
            each(Digest(*digest.value()));
        }
        Ok(())
    }

    /// Calls `each` with every slot in order, hashing what is there. What cannot be read is no good
    /// page.
    pub(super) fn scan(
        &self,
        each: &mut dyn FnMut(Found<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut bytes = vec![0; CHUNK_PAGES as usize * PAGE_BYTES];
        let mut first = 0;
        while first < self.count {
            let pages = CHUNK_PAGES.min(self.count - first);
            let chunk = &mut bytes[..pages as usize * PAGE_BYTES];
            self.read_slots(first, chunk);
            let digests = hash::digests(chunk);
            for ((page, digest), slot) in hash::pages(chunk).zip(digests).zip(first as u32..) {
                let good = self.find(&digest)? == Some(slot);
                each(Found {
                    slot,
                    digest,
                    page,
                    good,
                })?;
            }
            first += pages;
        }
        Ok(())
    }

    /// Reads slots from `first` on into `chunk`: one by one where that fails, as the disk may have one
    /// bad place. A page that cannot be read becomes one of zeroes, which no segment has.
    fn read_slots(&self, first: u64, chunk: &mut [u8]) {
        let read = |slot: u64, into: &mut [u8]| {
            let at = slot * PAGE_BYTES as u64;
            self.pages.read_exact_at(into, at).is_ok()
        };
        if read(first, chunk) {
            return;
        }
        for (slot, page) in (first..).zip(chunk.chunks_exact_mut(PAGE_BYTES)) {
            if !read(slot, page) {
                page.fill(0);
            }
        }
    }

    /// Notes that the page in `slot` was used on `day`. At most one write a page and day; it is
    /// no failure when it cannot be written, the page only looks older.
    pub(super) fn touch(&self, slot: u32, day: u16) {
        let noted = self.noted.get_or_init(|| self.all_days());
        let last = noted.get(slot as usize);
        let is_new = last.is_some_and(|last| last.fetch_max(day, Ordering::Relaxed) < day);
        if let (Some(used), true) = (&self.used, is_new) {
            let at = u64::from(slot) * DAY_BYTES;
            // Nothing depends on it, as said above.
            let _ = used.write_all_at(&day.to_le_bytes(), at);
        }
    }

    /// The days of last use of all pages; empty when they are not known.
    fn all_days(&self) -> Vec<AtomicU16> {
        let mut days = Vec::new();
        match self.used.is_some() && self.days(&mut |day| days.push(day.into())).is_ok() {
            true => days,
            false => Vec::new(),
        }
    }

    /// The day of last use of the page in `slot`, 0 when that is not known.
    pub(super) fn day(&self, slot: u32) -> Result<u16, Error> {
        let Some(used) = &self.used else {
            return Ok(0);
        };
        let mut day = [0; DAY_BYTES as usize];
        match used.read_exact_at(&mut day, u64::from(slot) * DAY_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            read => {
                read.map_err(Error::file("read", &self.pages_path))?;
                Ok(u16::from_le_bytes(day))
            }
        }
    }
}

/// Days that are read in one go.
const CHUNK_DAYS: u64 = 32 << 10;

impl Segment {
    /// Calls `each` with the day of last use of every page, in the order of slots.
    pub(super) fn days(&self, each: &mut dyn FnMut(u16)) -> Result<(), Error> {
        let mut bytes = vec![0; (CHUNK_DAYS * DAY_BYTES) as usize];
        let mut first = 0;
        while first < self.count {
            let days = CHUNK_DAYS.min(self.count - first);
            let chunk = &mut bytes[..(days * DAY_BYTES) as usize];
            if let Some(used) = &self.used {
                used.read_exact_at(chunk, first * DAY_BYTES)
                    .map_err(Error::file("read", &self.pages_path))?;
            }
            chunk
                .chunks_exact(2)
                .for_each(|day| each(u16::from_le_bytes([day[0], day[1]])));
            first += days;
        }
        Ok(())
    }
}

/// The file of days of last use, writable if that is permitted; `None` when it is of no use.
fn open_used(path: &Path, pages: u64) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .or_else(|_| File::open(path))
        .ok()?;
    let bytes = file.metadata().ok()?.len();
    (Some(bytes) == pages.checked_mul(DAY_BYTES)).then_some(file)
}
