// SPDX-License-Identifier: GPL-2.0

//! What kind of memory a process has where: `/proc/PID/smaps`.
//!
//! Only what decides whether pages can be merged is kept: whether a mapping is shared, and the
//! two-letter words of its `VmFlags` line (`fs/proc/task_mmu.c`, `show_smap_vma_flags`).

use std::ops::Range;
use std::path::Path;

use crate::parse::{
    hexadecimal,
    ParseError, //
};

/// Longest file that is read, in bytes: 65,530 mappings have room.
pub const FILE_BYTES: usize = 256 << 20;

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it is.
    pub addresses: Range<u64>,
    /// Writes go to a file or to other processes.
    pub shared: bool,
    /// It is hugetlbfs memory (`ht`).
    pub hugetlb: bool,
    /// It is mlocked (`lo`).
    pub locked: bool,
    /// `ksmd` may merge it (`mg`).
    pub mergeable: bool,
}

impl Mapping {
    /// Reads `start-end permissions ...`.
    fn parse(range: &str, permissions: &str) -> Result<Self, String> {
        let (start, end) = range.split_once('-').ok_or("the range has no end")?;
        let addresses = hexadecimal(start)?..hexadecimal(end)?;
        Ok(Self {
            addresses,
            shared: permissions.ends_with('s'),
            hugetlb: false,
            locked: false,
            mergeable: false,
        })
    }

    /// Keeps one word of the `VmFlags` line.
    fn set(&mut self, flag: &str) {
        match flag {
            "ht" => self.hugetlb = true,
            "lo" => self.locked = true,
            "mg" => self.mergeable = true,
            _ => (),
        }
    }
}

/// Reads the text of the file `path`.
///
/// # Errors
///
/// A mapping's first line is not one, or a property comes before the first mapping.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Mapping>, ParseError> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let error = |problem: String| ParseError::line(path, index + 1, problem);
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or("");
        if !first.ends_with(':') {
            let permissions = words.next().unwrap_or("");
            mappings.push(Mapping::parse(first, permissions).map_err(error)?);
        } else if first == "VmFlags:" {
            let mapping = mappings.last_mut();
            let mapping = mapping.ok_or_else(|| error("there is no mapping yet".to_owned()))?;
            words.for_each(|flag| mapping.set(flag));
        }
    }
    Ok(mappings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_memory_are_told_apart() -> Result<(), ParseError> {
        let text = "\
            10000-20000 rw-p 00000000 00:00 0\n\
            Size:                 64 kB\n\
            VmFlags: rd wr mr mw me ac mg\n\
            7f0000000000-7f0000001000 rw-s 00000000 00:01 9   /memfd:a b (deleted)\n\
            VmFlags: rd wr lo ht\n";
        let mappings = parse(Path::new("/smaps"), text)?;
        let first = Mapping {
            addresses: 0x10000..0x20000,
            shared: false,
            hugetlb: false,
            locked: false,
            mergeable: true,
        };
        let second = Mapping {
            addresses: 0x7f00_0000_0000..0x7f00_0000_1000,
            shared: true,
            hugetlb: true,
            locked: true,
            mergeable: false,
        };
        assert_eq!(mappings, [first, second]);
        Ok(())
    }

    #[test]
    fn own_mappings_are_read() -> Result<(), ParseError> {
        let path = Path::new("/proc/self/smaps");
        let text = std::fs::read_to_string(path).unwrap();
        let mappings = parse(path, &text)?;
        assert!(mappings.iter().any(|mapping| !mapping.shared));
        Ok(())
    }

    #[test]
    fn broken_lines_are_refused() {
        let table = [
            ("10000 rw-p\n", "/s:1 is malformed: the range has no end"),
            (
                "VmFlags: rd\n",
                "/s:1 is malformed: there is no mapping yet",
            ),
            ("\n", "/s:1 is malformed: the range has no end"),
        ];
        for (text, message) in table {
            assert_eq!(
                parse(Path::new("/s"), text).unwrap_err().to_string(),
                message
            );
        }
        assert!(parse(Path::new("/s"), "x-10 rw-p\n").is_err());
    }
}
