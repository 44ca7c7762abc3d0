// SPDX-License-Identifier: GPL-2.0

//! Disk images of all formats, read by `qemu-img`.
//!
//! `qemu-img convert` cannot write to a pipe, `qemu-nbd` and `qemu-storage-daemon` need a client of
//! their protocol and a server that must be ended. But `convert` can copy a piece of an image to a
//! file, when the raw driver with an offset and a size is put on top: no server, no privilege, and
//! temporary space for one piece only. (`qemu-img dd` can too, but what its `count` means with
//! `skip` depends on the version.) `qemu-img map` tells which pieces have data at all.
//!
//! An image can name other files: a backing file, a file with its data, extents. Whoever wrote the
//! image chose these names, and could choose secrets of this host. So backing files are left out
//! (`"backing": null`), and formats and variants that need other files are refused.

use std::ffi::OsString;
use std::path::Path;

use serde::Deserialize;

use super::raw::{
    self,
    Reader, //
};
use super::{
    qemu,
    Chunks,
    Step, //
};
use crate::error::Error;

/// Bytes of an image that are copied in one go.
const PIECE: u64 = 128 << 20;

/// The largest image that is read: what a VHDX can be, and more than file systems of guests are. It
/// bounds the pieces, each of which is a process, where a header of a few bytes claims any size.
const LARGEST: u64 = 64 << 40;

/// Pieces begin at a multiple of this.
const BLOCK: u64 = 1 << 20;

/// Zeros of this length are read rather than left out, since each piece is a process.
const NEAR: u64 = 16 << 20;

/// Formats that are one file and that may have a backing file.
const BACKED: [&str; 4] = ["qcow2", "qcow", "qed", "vmdk"];

/// Formats that are one file.
const ALONE: [&str; 3] = ["vdi", "vhdx", "vpc"];

/// Variants of vmdk that are one file.
const VMDK_ALONE: [&str; 2] = ["monolithicSparse", "streamOptimized"];

/// What `qemu-img info` says.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<Specific>,
}

/// What it says about one format.
#[derive(Deserialize)]
struct Specific {
    #[serde(default)]
    data: Data,
}

/// The parts of that which name other files.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Data {
    data_file: Option<String>,
    create_type: Option<String>,
}

/// A piece of an image, as `qemu-img map` says.
#[derive(Deserialize)]
struct Extent {
    start: u64,
    length: u64,
    zero: bool,
}

/// Reads the image at `path`.
pub(super) fn read(path: &Path, each: Chunks<'_>, step: Step<'_>) -> Result<(String, u64), Error> {
    // A look before QEMU: it must be a file or block device.
    raw::open(path)?;
    let path = std::path::absolute(path).map_err(Error::file("find", path))?;
    let info = inspect(&path)?;
    if info.format == "raw" {
        return raw::read(&path, each, step);
    }
    check(&info, &path)?;
    let image = Image::new(&path, &info)?;
    for (start, end) in image.pieces()? {
        image.piece(start, end, each)?;
        step(end, info.virtual_size)?;
    }
    step(info.virtual_size, info.virtual_size)?;
    Ok((info.format, info.virtual_size))
}

/// The error of an image that is not read.
fn refuse(path: &Path, what: String) -> Error {
    Error::Input {
        path: path.to_owned(),
        offset: 0,
        what,
    }
}

/// What the image says that it is. Backing files are not opened for that.
fn inspect(path: &Path) -> Result<Info, Error> {
    // An absolute path is never taken for the name of a protocol.
    let arguments = [OsString::from("info"), "--output=json".into(), path.into()];
    let said = qemu::run(&arguments, qemu::LOOK, path)?;
    serde_json::from_slice(&said).map_err(|error| refuse(path, format!("qemu-img info: {error}")))
}

/// Refuses images that are not one file, or whose content only a key tells.
fn check(info: &Info, path: &Path) -> Result<(), Error> {
    let format = &info.format[..];
    if !BACKED.contains(&format) && !ALONE.contains(&format) {
        return Err(refuse(
            path,
            format!("images of format {format} are not read"),
        ));
    }
    if info.virtual_size > LARGEST {
        return Err(refuse(
            path,
            format!("the image is larger than {} TiB", LARGEST >> 40),
        ));
    }
    if info.encrypted {
        return Err(refuse(path, "the image is encrypted".to_owned()));
    }
    let data = info.format_specific.as_ref().map(|specific| &specific.data);
    if data.is_some_and(|data| data.data_file.is_some()) {
        return Err(refuse(
            path,
            "the image keeps its data in another file".to_owned(),
        ));
    }
    if format == "vmdk" {
        let variant = data
            .and_then(|data| data.create_type.as_deref())
            .unwrap_or("unknown");
        if !VMDK_ALONE.contains(&variant) {
            return Err(refuse(
                path,
                format!("a vmdk of type {variant} names other files"),
            ));
        }
    }
    Ok(())
}

/// An image that is fit to be read.
struct Image<'p> {
    path: &'p Path,
    bytes: u64,
    source: serde_json::Value,
    // Private, and gone when the image is.
    directory: tempfile::TempDir,
}

impl<'p> Image<'p> {
    /// The image at `path`, of which `info` is known.
    fn new(path: &'p Path, info: &Info) -> Result<Self, Error> {
        use std::os::unix::fs::FileTypeExt;
        let name = path.to_str().ok_or_else(|| {
            refuse(
                path,
                "QEMU cannot be told a name that is no UTF-8".to_owned(),
            )
        })?;
        let meta = std::fs::metadata(path).map_err(Error::file("look at", path))?;
        let device = meta.file_type().is_block_device();
        let driver = if device { "host_device" } else { "file" };
        let mut options = serde_json::json!({
            "driver": info.format,
            "file": { "driver": driver, "filename": name, "locking": "auto" },
        });
        if BACKED.contains(&&info.format[..]) {
            options["backing"] = serde_json::Value::Null;
        }
        let temporary = std::env::temp_dir();
        let directory = tempfile::Builder::new()
            .prefix("twinpage-")
            .tempdir()
            .map_err(Error::file("make a directory in", &temporary))?;
        Ok(Self {
            path,
            bytes: info.virtual_size,
            source: options,
            directory,
        })
    }

    /// Which pieces have data: start and end, in order.
    fn pieces(&self) -> Result<impl Iterator<Item = (u64, u64)>, Error> {
        let source = format!("json:{}", self.source);
        let arguments = [OsString::from("map"), "--output=json".into(), source.into()];
        let said = qemu::run(&arguments, qemu::WORK, self.path)?;
        if said.len() as u64 >= qemu::SAID {
            // Too fragmented to tell: read it all.
            return Ok(cut(vec![(0, self.bytes)]));
        }
        let extents: Vec<Extent> = serde_json::from_slice(&said)
            .map_err(|error| refuse(self.path, format!("qemu-img map: {error}")))?;
        let data = extents.iter().filter(|extent| !extent.zero);
        let ranges = data.map(|extent| (extent.start, extent.start.saturating_add(extent.length)));
        Ok(cut(join(ranges, self.bytes)))
    }

    /// Copies a piece to a file and gives its pages.
    fn piece(&self, start: u64, end: u64, each: Chunks<'_>) -> Result<(), Error> {
        let copy = self.directory.path().join("piece");
        let piece = serde_json::json!({
            "driver": "raw",
            "offset": start,
            "size": end - start,
            "file": self.source,
        });
        let mut arguments = ["convert", "-O", "raw"].map(OsString::from).to_vec();
        arguments.push(format!("json:{piece}").into());
        arguments.push(copy.clone().into());
        qemu::run(&arguments, qemu::WORK, self.path)?;
        let file = raw::open(&copy)?;
        let bytes = raw::size(&file, &copy)?;
        Reader::new(&file, &copy).range(0, bytes, each, &mut |_| Ok(()))
    }
}

/// Ranges with all of the `ranges`, which are in order: what is near is one.
fn join(ranges: impl Iterator<Item = (u64, u64)>, bytes: u64) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        let start = start / BLOCK * BLOCK;
        let end = end.min(bytes);
        match joined.last_mut() {
            Some(last) if start <= last.1.saturating_add(NEAR) => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// The pieces of ranges: what is large is several.
fn cut(ranges: Vec<(u64, u64)>) -> impl Iterator<Item = (u64, u64)> {
    ranges.into_iter().flat_map(|(first, end)| {
        let size = end.saturating_sub(first);
        let starts = (0..size.div_ceil(PIECE)).map(move |n| first + n * PIECE);
        starts.map(move |start| (start, end.min(start.saturating_add(PIECE))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn pieces_hold_all_data() {
        let table = [
            (vec![], vec![]),
            (vec![(5, 6)], vec![(0, 6)]),
            (vec![(M, 2 * M), (3 * M + 1, 4 * M)], vec![(M, 4 * M)]),
            (
                vec![(0, M), (99 * M + 5, 100 * M)],
                vec![(0, M), (99 * M, 100 * M)],
            ),
            (
                vec![(0, 300 * M)],
                vec![(0, 128 * M), (128 * M, 256 * M), (256 * M, 300 * M)],
            ),
            (vec![(400 * M, u64::MAX)], vec![(400 * M, 401 * M)]),
            (vec![(500 * M, 501 * M)], vec![]),
        ];
        for (ranges, expected) in table {
            let pieces: Vec<_> = cut(join(ranges.clone().into_iter(), 401 * M)).collect();
            assert_eq!(pieces, expected, "{ranges:?}");
        }
    }

    #[test]
    fn pieces_are_not_made_before_they_are_needed() {
        let mut pieces = cut(vec![(0, u64::MAX)]);
        assert_eq!(pieces.next(), Some((0, PIECE)));
        assert_eq!(pieces.nth(9), Some((10 * PIECE, 11 * PIECE)));
    }
}
