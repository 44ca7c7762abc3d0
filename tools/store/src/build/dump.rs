// SPDX-License-Identifier: GPL-2.0

//! Memory dumps: raw files of `pmemsave`, and ELF cores of `dump-guest-memory` and `gcore`.
//!
//! In an ELF core, each `PT_LOAD` program header says which bytes of the file are memory, and at
//! which address. Pages begin where addresses are multiples of 4096, wherever that is in the file.

use std::fs::File;
use std::path::Path;

use object::elf;
use object::read::elf::{
    FileHeader,
    ProgramHeader, //
};
use object::{
    Endianness,
    ReadCache, //
};
use twinpage_wire::PAGE_BYTES;

use super::raw::{
    self,
    Reader, //
};
use super::{
    Chunks,
    Step, //
};
use crate::error::Error;

/// More program headers than a dump has. QEMU writes one for each piece of memory.
const HEADERS: usize = 1 << 16;

/// The first bytes of formats that are not read, and what they are.
const OTHER_FORMATS: [(&[u8], &str); 4] = [
    (b"KDUMP   ", "a kdump; dump without -z, -l and -s"),
    (
        b"makedumpfile",
        "a flattened kdump; dump without -z, -l and -s",
    ),
    (b"PAGEDU64", "a Windows dump; dump without -w"),
    (b"PAGEDUMP", "a Windows dump; dump without -w"),
];

/// Bytes of a file that are whole pages of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    start: u64,
    end: u64,
}

/// Reads the dump at `path`.
pub(super) fn read(path: &Path, each: Chunks<'_>, step: Step<'_>) -> Result<(String, u64), Error> {
    let file = raw::open(path)?;
    let bytes = raw::size(&file, path)?;
    let mut start = Vec::new();
    read_start(&file, &mut start).map_err(Error::file("read", path))?;
    if let Some((_, what)) = OTHER_FORMATS
        .iter()
        .find(|(magic, _)| start.starts_with(magic))
    {
        return Err(wrong(path, 0, &format!("it is {what}")));
    }
    if !start.starts_with(&elf::ELFMAG) {
        return raw::read(path, each, step);
    }
    let ranges = ranges(&file, bytes, path)?;
    let total = ranges.iter().map(|range| range.end - range.start).sum();
    let mut reader = Reader::new(&file, path);
    let mut before = 0;
    for range in ranges {
        reader.range(range.start, range.end, each, &mut |at| {
            step(before + (at - range.start), total)
        })?;
        before += range.end - range.start;
    }
    Ok(("elf".to_owned(), total))
}

/// The first bytes of `file`, as many as a magic number has.
fn read_start(mut file: &File, start: &mut Vec<u8>) -> std::io::Result<()> {
    use std::io::{
        Read,
        Seek, //
    };
    file.rewind()?;
    file.take(16).read_to_end(start)?;
    Ok(())
}

/// The error of a dump that is not as it should be.
fn wrong(path: &Path, offset: u64, what: &str) -> Error {
    Error::Input {
        path: path.to_owned(),
        offset,
        what: what.to_owned(),
    }
}

/// The ranges of memory in the ELF core `file` of so many `bytes`.
fn ranges(file: &File, bytes: u64, path: &Path) -> Result<Vec<Range>, Error> {
    let own = file.try_clone().map_err(Error::file("open", path))?;
    let cache = ReadCache::new(own);
    let bad = |offset, error: object::Error| wrong(path, offset, &error.to_string());
    let data = &cache;
    let header = elf::FileHeader64::<Endianness>::parse(data).map_err(|error| bad(0, error))?;
    let endian = header.endian().map_err(|error| bad(5, error))?;
    if header.e_type(endian) != elf::ET_CORE {
        return Err(wrong(path, 16, "it is an ELF file, but no core"));
    }
    let table = header.e_phoff(endian);
    let count = header.phnum(endian, data).map_err(|error| bad(56, error))? as usize;
    if count > HEADERS {
        let what = format!("it has {count} program headers; {HEADERS} are the most");
        return Err(wrong(path, table, &what));
    }
    let headers = header
        .program_headers(endian, data)
        .map_err(|error| bad(table, error))?;
    let mut ranges = Vec::new();
    for (number, header) in headers.iter().enumerate() {
        if header.p_type(endian) != elf::PT_LOAD {
            continue;
        }
        let (offset, size) = header.file_range(endian);
        if offset.checked_add(size).is_none_or(|end| end > bytes) {
            let what =
                format!("program header {number} has {size} bytes beyond the end of the file");
            return Err(wrong(path, offset, &what));
        }
        ranges.extend(range(offset, size, header.p_paddr(endian)));
    }
    Ok(once(ranges))
}

/// The whole pages among `size` bytes at `offset`, which are at `address` in memory.
fn range(offset: u64, size: u64, address: u64) -> Option<Range> {
    let page = PAGE_BYTES as u64;
    let start = offset.checked_add(address.wrapping_neg() % page)?;
    let end = offset.checked_add(size)?;
    let whole = end.checked_sub(start)? / page * page;
    (whole > 0).then_some(Range {
        start,
        end: start + whole,
    })
}

/// The same bytes without repetition: with paging, a dump has one header for each mapping. What
/// overlaps an earlier range begins with the first whole page behind it.
fn once(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut done = 0;
    let mut left = Vec::new();
    for mut range in ranges {
        let covered: u64 = done;
        let over = covered.saturating_sub(range.start);
        range.start = range
            .start
            .saturating_add(over.next_multiple_of(PAGE_BYTES as u64));
        if range.start < range.end {
            done = range.end;
            left.push(range);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn pages_begin_at_addresses() {
        let table = [
            ((100, 8192, 0), Some(r(100, 8292))),
            ((100, 8192, 0x1000), Some(r(100, 8292))),
            ((100, 8192, 0xfff), Some(r(101, 4197))),
            ((0, 4096, 1), None),
            ((0, 4095, 0), None),
            ((u64::MAX, 4096, 1), None),
            ((0, u64::MAX, u64::MAX), Some(r(1, u64::MAX - 4094))),
        ];
        for ((offset, size, address), expected) in table {
            assert_eq!(
                range(offset, size, address),
                expected,
                "{offset} {size} {address}"
            );
        }
    }

    #[test]
    fn bytes_are_read_once() {
        let table = [
            (vec![r(0, 8192), r(0, 8192)], vec![r(0, 8192)]),
            (
                vec![r(4096, 8192), r(0, 4096)],
                vec![r(0, 4096), r(4096, 8192)],
            ),
            (
                vec![r(0, 8192), r(4096, 12288)],
                vec![r(0, 8192), r(8192, 12288)],
            ),
            (
                vec![r(0, 4096), r(100, 8292)],
                vec![r(0, 4096), r(4196, 8292)],
            ),
            (vec![r(0, 16384), r(4096, 8192)], vec![r(0, 16384)]),
        ];
        for (from, expected) in table {
            assert_eq!(once(from.clone()), expected, "{from:?}");
        }
    }
}
