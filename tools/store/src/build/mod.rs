// SPDX-License-Identifier: GPL-2.0

//! Where pages for a store are read from.
//!
//! Disk images hold the data of files at 4096-byte alignment, and so does the page cache of the
//! guests that read them: that is why an image knows pages of memory. Memory dumps hold all pages,
//! and running VMs are read by whoever can, through [`load_pages`].
//!
//! What is read is not trusted. Sizes, offsets and headers have bounds, each byte of a dump is read
//! at most once, images are opened without the other files that they name, and `qemu-img` has
//! limits of memory and of a processor's time.

mod dump;
mod image;
mod qemu;
mod raw;

use std::path::{
    Path,
    PathBuf, //
};

use serde::Serialize;
use twinpage_wire::{
    Digest,
    Page,
    PAGE_BYTES, //
};

use crate::admit::{
    Admit,
    SourceId,
    Trust, //
};
use crate::error::Error;
use crate::hash;
use crate::watch::{
    step,
    Watch, //
};

/// Bytes that are read, hashed and offered in one go.
const CHUNK: usize = 4 << 20;

/// Something with pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A disk image or block device of any format that `qemu-img` knows and that is one file. Its
    /// format is found out from its content. Other files that it names (backing files) are not
    /// read: build from those too.
    Image(PathBuf),
    /// A disk image or block device that is its content. Nothing in it is taken for a header, as a
    /// guest could write one to its disk.
    RawImage(PathBuf),
    /// Memory of a guest: raw, as `pmemsave` writes it, or ELF, as `dump-guest-memory` does.
    Dump(PathBuf),
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Read {
    /// The format as it was found.
    pub format: String,
    /// Bytes that the input stands for.
    pub bytes: u64,
    /// Pages that are not zero, with repetitions.
    pub pages: u64,
    /// Pages of zeros.
    pub zero: u64,
}

/// Takes the bytes of whole pages, and stops the work with an error.
type Chunks<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Error>;

/// Says how many bytes of how many are done, and stops the work with an error.
type Step<'a> = &'a mut dyn FnMut(u64, u64) -> Result<(), Error>;

/// A page of a running VM: who has it, its digest, its bytes.
pub type VmPage = (SourceId, Digest, Box<Page>);

impl Input {
    /// Its file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Image(path) | Self::RawImage(path) | Self::Dump(path) => path,
        }
    }
}

/// Calls `each` with the pages of `input` that are not zero, repeated as often as they are there.
///
/// # Errors
///
/// What `each` returns, [`Error::Stopped`], or when the input cannot be read as what it is said to
/// be.
pub fn read_pages(
    input: &Input,
    each: &mut dyn FnMut(&Page) -> Result<(), Error>,
    watch: Watch<'_>,
) -> Result<Read, Error> {
    let mut pages = 0;
    let (format, bytes) = read_chunks(
        input,
        &mut |chunk| {
            for page in hash::pages(chunk).filter(|page| !twinpage_wire::is_zero(page)) {
                pages += 1;
                each(page)?;
            }
            Ok(())
        },
        watch,
    )?;
    Ok(read(format, bytes, pages))
}

/// Reads `input` once and offers its pages to all of `into`. Nothing is finished here.
///
/// # Errors
///
/// As [`read_pages`], and what `into` returns.
pub fn load(
    input: &Input,
    trust: Trust,
    into: &mut [&mut dyn Admit],
    watch: Watch<'_>,
) -> Result<Read, Error> {
    let source = SourceId::of_file(input.path())?;
    let mut pages = 0;
    let (format, bytes) = read_chunks(
        input,
        &mut |chunk| {
            let digests = hash::digests(chunk);
            for (page, digest) in hash::pages(chunk).zip(&digests) {
                if *digest == Digest::ZERO_PAGE {
                    continue;
                }
                pages += 1;
                for admit in into.iter_mut() {
                    admit.offer(&source, trust, digest, page)?;
                }
            }
            Ok(())
        },
        watch,
    )?;
    Ok(read(format, bytes, pages))
}

/// Offers pages of running VMs to all of `into`; says how many. Nothing is finished here.
///
/// # Errors
///
/// The first that `pages` gives, and what `into` returns.
pub fn load_pages(
    pages: &mut dyn Iterator<Item = Result<VmPage, Error>>,
    trust: Trust,
    into: &mut [&mut dyn Admit],
) -> Result<u64, Error> {
    let mut count = 0;
    for page in pages {
        let (source, digest, page) = page?;
        for admit in into.iter_mut() {
            admit.offer(&source, trust, &digest, &page)?;
        }
        count += 1;
    }
    Ok(count)
}

/// The sum of what was read: all that is not a page with content is zeros, holes included.
fn read(format: String, bytes: u64, pages: u64) -> Read {
    Read {
        format,
        bytes,
        pages,
        zero: (bytes / PAGE_BYTES as u64).saturating_sub(pages),
    }
}

/// Reads `input`: its format and how many bytes it stands for.
fn read_chunks(input: &Input, each: Chunks<'_>, watch: Watch<'_>) -> Result<(String, u64), Error> {
    let mut step = |done, total| step(watch, done, total);
    match input {
        Input::RawImage(path) => raw::read(path, each, &mut step),
        Input::Image(path) => image::read(path, each, &mut step),
        Input::Dump(path) => dump::read(path, each, &mut step),
    }
}
