// SPDX-License-Identifier: GPL-2.0

//! Which pages may become canonical.
//!
//! A database of pages that several hosts read must not become a copy of some tenant's memory. So a
//! page is admitted only when it was seen in at least *k* distinct sources, or when the operator
//! says that a source is public. Until then nothing is kept of it but a keyed tag, from which
//! neither its content nor its digest can be told without the key, and tags of the sources.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;
use twinpage_wire::{
    Digest,
    Page, //
};

use crate::error::Error;

/// The least number of sources that a setting may ask for.
pub const LEAST_SOURCES: u32 = 2;

/// The greatest number of sources that a setting may ask for.
pub const MOST_SOURCES: u32 = 16;

/// What tells one source from another: two sources are distinct when these are.
///
/// It must be the same each time the source is read, or one source would count twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceId(Vec<u8>);

/// Whether the content of a source may be known to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The operator says so: all of its pages are admitted.
    Public,
    /// Its pages are admitted when enough sources have them.
    Counted,
}

/// What became of a page that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is the page of zeros, which is never stored.
    Zero,
    /// It is there already.
    Present,
    /// It was admitted now.
    Admitted,
    /// It was seen, but not in enough sources yet.
    Counted,
    /// It is decided with those that come after it; the counters tell.
    Later,
}

/// What became of all pages that were offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// Pages that were offered.
    pub offered: u64,
    /// Pages of zeros.
    pub zero: u64,
    /// Pages that were there already.
    pub present: u64,
    /// Pages that were admitted.
    pub admitted: u64,
    /// Pages that were not seen in enough sources yet.
    pub counted: u64,
}

/// Something that pages can be loaded into.
pub trait Admit {
    /// Takes note of a page of `source`, and admits it when the rule allows.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDigest`] when the page would be admitted and `digest` is not its digest; other
    /// errors when it cannot be written or looked up.
    fn offer(
        &mut self,
        source: &SourceId,
        trust: Trust,
        digest: &Digest,
        page: &Page,
    ) -> Result<Offered, Error>;

    /// Makes what was offered durable and visible. More may be offered afterwards.
    ///
    /// # Errors
    ///
    /// When it cannot; what was there before is still there then.
    fn finish(&mut self) -> Result<(), Error>;

    /// What became of the pages so far.
    fn loaded(&self) -> Loaded;
}

impl SourceId {
    /// A source that is known by `text`, for example the VMs of a domain by its number.
    pub fn new(text: impl AsRef<[u8]>) -> Self {
        Self(text.as_ref().to_vec())
    }

    /// A file, known by its inode number, so that links and other paths are no further sources. A
    /// copy of the file is one.
    ///
    /// The number of a device is another after a reboot for some file systems (NFS, btrfs, overlay,
    /// those on device mapper), and would make the same file a further source. So files of several
    /// file systems that happen to have the same number are one source, and so are all block
    /// devices: too few sources admit too little, which does no harm.
    ///
    /// # Errors
    ///
    /// When there is no such file.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::FileTypeExt;
        let meta = std::fs::metadata(path).map_err(Error::file("look at", path))?;
        let text = if meta.file_type().is_block_device() {
            "block device".to_owned()
        } else {
            format!("file {}", meta.ino())
        };
        Ok(Self::new(text))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Loaded {
    /// Counts one page.
    pub(crate) fn count(&mut self, offered: Offered) {
        self.offered += 1;
        match offered {
            Offered::Zero => self.zero += 1,
            Offered::Present => self.present += 1,
            Offered::Admitted => self.admitted += 1,
            Offered::Counted => self.counted += 1,
            Offered::Later => self.offered -= 1,
        }
    }
}

/// Checks a number of sources that somebody set.
pub(crate) fn check_sources(needed: u32) -> Result<(), Error> {
    if (LEAST_SOURCES..=MOST_SOURCES).contains(&needed) {
        return Ok(());
    }
    Err(Error::Setting {
        name: "The number of sources",
        value: needed.into(),
        least: LEAST_SOURCES.into(),
        most: MOST_SOURCES.into(),
    })
}
