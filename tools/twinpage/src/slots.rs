// SPDX-License-Identifier: GPL-2.0

//! The memslots of a VM: the debugfs file `slots` (`Documentation/export.rst`).

use std::ops::Range;
use std::path::Path;

use crate::parse::{
    decimal,
    hexadecimal,
    ParseError, //
};
use crate::uapi::PAGE_BYTES;

/// Longest file that is read, in bytes: 32,767 slots a address space have room.
pub const FILE_BYTES: usize = 16 << 20;

/// First line of the file.
const HEADER: &str = "as_id slot base_gfn npages userspace_addr flags";

/// `KVM_MEM_GUEST_MEMFD`: the guest's private pages are not in the process.
const GUEST_MEMFD: u64 = 1 << 2;

/// Number of a guest page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gfn(pub u64);

/// An address in the VMM's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub u64);

/// One memslot of address space 0.
///
/// # Invariants
///
/// Neither the range of guest pages nor the range of addresses overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its first guest page.
    base: Gfn,
    /// How many pages it has.
    pages: u64,
    /// Where it is in the VMM.
    address: Address,
    /// `KVM_MEM_*` flags.
    flags: u64,
}

/// The memslots of address space 0, in ascending order, without overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots(Vec<Slot>);

impl Slot {
    /// Where it is in the VMM.
    pub fn addresses(&self) -> Range<u64> {
        // OVERFLOW: The invariant.
        self.address.0..self.address.0 + self.pages * PAGE_BYTES as u64
    }

    /// Whether the guest has memory that is not in the process.
    pub fn is_guest_memfd(&self) -> bool {
        self.flags & GUEST_MEMFD != 0
    }

    /// Reads the words of one line, or says what is wrong. Another address space gives `None`.
    fn parse(line: &str) -> Result<Option<Self>, String> {
        let words: Vec<&str> = line.split(' ').collect();
        let [as_id, _slot, base, pages, address, flags] = words[..] else {
            return Err(format!("it has {} words instead of 6", words.len()));
        };
        let slot = Self {
            base: Gfn(decimal(base)?),
            pages: decimal(pages)?,
            address: Address(prefixed(address)?),
            flags: prefixed(flags)?,
        };
        let bytes = slot.pages.checked_mul(PAGE_BYTES as u64);
        let fits = bytes.is_some_and(|bytes| slot.address.0.checked_add(bytes).is_some())
            && slot.base.0.checked_add(slot.pages).is_some();
        if !fits {
            return Err("the slot is too large".to_owned());
        }
        Ok((decimal::<u32>(as_id)? == 0).then_some(slot))
    }
}

impl Slots {
    /// Reads the text of the file `path`.
    ///
    /// # Errors
    ///
    /// It does not have the promised columns, or slots overlap or are out of order.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ParseError> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(ParseError::line(path, 1, "the header is another one"));
        }
        let mut slots: Vec<Slot> = Vec::new();
        for (index, line) in lines.enumerate() {
            let error = |problem: String| ParseError::line(path, index + 2, problem);
            let Some(slot) = Slot::parse(line).map_err(error)? else {
                continue;
            };
            let end = slots.last().map_or(0, |last| last.base.0 + last.pages);
            if slot.base.0 < end {
                return Err(error("slots overlap or are out of order".to_owned()));
            }
            slots.push(slot);
        }
        Ok(Self(slots))
    }

    /// Where guest page `gfn` is in the VMM.
    pub fn address_of(&self, gfn: Gfn) -> Option<Address> {
        let behind = self.0.partition_point(|slot| slot.base <= gfn);
        let slot = self.0.get(behind.checked_sub(1)?)?;
        let offset = gfn.0 - slot.base.0;
        // OVERFLOW: The invariant of `Slot`, since `offset` is inside.
        (offset < slot.pages).then(|| Address(slot.address.0 + offset * PAGE_BYTES as u64))
    }

    /// The slots.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter()
    }
}

/// `text` as a hexadecimal number with `0x`, or what is wrong with it.
fn prefixed(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x");
    hexadecimal(digits.ok_or_else(|| "a number lacks its 0x".to_owned())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &str) -> Result<Slots, ParseError> {
        Slots::parse(Path::new("/slots"), &format!("{HEADER}\n{lines}"))
    }

    #[test]
    fn guest_pages_have_addresses() -> Result<(), ParseError> {
        let slots = parse("0 0 0 160 0x10000 0x0\n0 1 256 2 0x900000 0x1\n1 0 0 999 0x20 0x0\n")?;
        let table = [
            (0, Some(0x10000)),
            (159, Some(0x10000 + 159 * 4096)),
            (160, None),
            (255, None),
            (256, Some(0x900000)),
            (257, Some(0x901000)),
            (258, None),
            (u64::MAX, None),
        ];
        for (gfn, address) in table {
            assert_eq!(slots.address_of(Gfn(gfn)), address.map(Address), "{gfn}");
        }
        Ok(())
    }

    #[test]
    fn no_slots_are_fine() -> Result<(), ParseError> {
        assert_eq!(parse("")?.address_of(Gfn(0)), None);
        Ok(())
    }

    #[test]
    fn guest_memfd_is_a_flag() -> Result<(), ParseError> {
        let slots = parse("0 0 0 1 0x0 0x4\n0 1 9 1 0x0 0x3\n")?;
        let flags: Vec<bool> = slots.iter().map(Slot::is_guest_memfd).collect();
        assert_eq!(flags, [true, false]);
        Ok(())
    }

    #[test]
    fn broken_lines_are_refused() {
        let table = [
            (
                "0 0 0 1 0x0\n",
                "/slots:2 is malformed: it has 5 words instead of 6",
            ),
            (
                "0 0 0 1 4096 0x0\n",
                "/slots:2 is malformed: a number lacks its 0x",
            ),
            (
                "0 0 18446744073709551615 1 0x0 0x0\n",
                "/slots:2 is malformed: the slot is too large",
            ),
            (
                "0 0 0 1 0xffffffffffffffff 0x0\n",
                "/slots:2 is malformed: the slot is too large",
            ),
            (
                "0 0 0 2 0x0 0x0\n0 1 1 2 0x0 0x0\n",
                "/slots:3 is malformed: slots overlap or are out of order",
            ),
        ];
        for (lines, message) in table {
            assert_eq!(parse(lines).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn another_header_is_refused() {
        let error = Slots::parse(Path::new("/slots"), "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/slots:1 is malformed: the header is another one"
        );
    }
}
