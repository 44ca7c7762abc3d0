// SPDX-License-Identifier: GPL-2.0

//! Files and block devices that are their content.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    seek,
    SeekFrom, //
};
use rustix::io::Errno;
use twinpage_wire::PAGE_BYTES;

use super::{
    Chunks,
    Step,
    CHUNK, //
};
use crate::error::Error;

/// Reads the file at `path` from its start. Bytes behind the last whole page are no page.
pub(super) fn read(path: &Path, each: Chunks<'_>, step: Step<'_>) -> Result<(String, u64), Error> {
    let file = open(path)?;
    let bytes = size(&file, path)?;
    let mut reader = Reader::new(&file, path);
    reader.range(0, bytes, each, &mut |done| step(done, bytes))?;
    Ok(("raw".to_owned(), bytes))
}

/// Opens what is a file or block device; others could make us wait for ever.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata(path)
        .map_err(Error::file("look at", path))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::Input {
            path: path.to_owned(),
            offset: 0,
            what: "it is neither a file nor a block device".to_owned(),
        });
    }
    File::open(path).map_err(Error::file("open", path))
}

/// Bytes of a file or block device.
pub(super) fn size(file: &File, path: &Path) -> Result<u64, Error> {
    seek(file, SeekFrom::End(0)).map_err(Error::file("find the size of", path))
}

/// Reads ranges of a file in large pieces, without what holes there are.
pub(super) struct Reader<'f> {
    file: &'f File,
    path: &'f Path,
    buffer: Vec<u8>,
}

impl<'f> Reader<'f> {
    /// Reads `file`, which is at `path`.
    pub(super) fn new(file: &'f File, path: &'f Path) -> Self {
        Self {
            file,
            path,
            buffer: vec![0; CHUNK],
        }
    }

    /// Gives the whole pages from `start` up to `end`, where both may be anywhere in the file;
    /// `step` hears up to where it was read. It ends early when the file does.
    pub(super) fn range(
        &mut self,
        start: u64,
        end: u64,
        each: Chunks<'_>,
        step: &mut dyn FnMut(u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut at = start;
        while end.saturating_sub(at) >= PAGE_BYTES as u64 {
            at = start
                + self.next_data(at)?.saturating_sub(start) / PAGE_BYTES as u64 * PAGE_BYTES as u64;
            let left = end.saturating_sub(at);
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK) / PAGE_BYTES * PAGE_BYTES;
            let got = self.fill(at, want)? / PAGE_BYTES * PAGE_BYTES;
            each(&self.buffer[..got])?;
            at += got as u64;
            step(at.min(end))?;
            if got == 0 {
                break;
            }
        }
        step(end)
    }

    /// The first byte at or behind `at` that is in no hole, as far as the file system tells.
    fn next_data(&self, at: u64) -> Result<u64, Error> {
        match seek(self.file, SeekFrom::Data(at)) {
            Ok(data) => Ok(data.max(at)),
            // Only a hole is left.
            Err(Errno::NXIO) => Ok(u64::MAX),
            // Not every file system and device knows holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(at),
            Err(errno) => Err(Error::file("read", self.path)(errno)),
        }
    }

    /// Fills the buffer with up to `want` bytes at `at`.
    fn fill(&mut self, at: u64, want: usize) -> Result<usize, Error> {
        let mut got = 0;
        while got < want {
            match self
                .file
                .read_at(&mut self.buffer[got..want], at + got as u64)
            {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(Error::file("read", self.path)(error)),
            }
        }
        Ok(got)
    }
}
