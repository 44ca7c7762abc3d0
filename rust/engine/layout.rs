// SPDX-License-Identifier: GPL-2.0

//! Where a guest's memory is: its memslots, and the host addresses that they cover.
//!
//! Slots come from a VMM and may lie in any way: over one another (the SMM address space repeats
//! the normal one), with holes, in any order. Here they become sorted, disjoint address ranges for
//! the scanner, and a numbered list of guest pages for the export.

use super::{
    index::Span,
    sort,
    world::PAGE_BYTES, //
};
use crate::mem::{
    AllocError,
    Flags,
    KVVec, //
};

/// A memslot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Address space: 0, or 1 for system management mode.
    pub as_id: u32,
    /// Number of the slot in it.
    pub id: i32,
    /// `KVM_MEM_*` flags.
    pub flags: u32,
    /// Has memory that only the guest sees.
    pub gmem: bool,
    /// First guest frame number.
    pub base_gfn: u64,
    /// Length in pages.
    pub pages: u64,
    /// Host address of the first page.
    pub addr: u64,
}

impl Slot {
    /// `KVM_MEM_LOG_DIRTY_PAGES` of `linux/kvm.h`: writes to the slot are being noted.
    pub const LOG_DIRTY: u32 = 1 << 0;

    /// The addresses it covers, empty if it wraps around.
    fn range(&self) -> Span {
        let len = self.pages.checked_mul(PAGE_BYTES);
        let end = len.and_then(|len| self.addr.checked_add(len));
        Span {
            start: self.addr,
            end: end.unwrap_or(self.addr),
        }
    }
}

/// The memslots of a guest and what follows from them.
#[derive(Default)]
pub struct Layout {
    /// Sorted by address space and guest frame number.
    slots: KVVec<Slot>,
    /// Sorted, disjoint, not adjacent.
    ranges: KVVec<Span>,
    /// Pages in the numbered list.
    pages: u64,
    /// Addresses in slots with memory that only the guest sees, as in `ranges`.
    gmem: KVVec<Span>,
    migrating: bool,
    version: u64,
}

/// A guest page of the numbered list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPage {
    /// Guest frame number.
    pub gfn: u64,
    /// Host address.
    pub addr: u64,
}

impl Layout {
    /// What follows this one when a guest has those slots; `None` if they are the same.
    ///
    /// # Errors
    ///
    /// [`AllocError`].
    pub fn next(&self, mut slots: KVVec<Slot>, flags: Flags) -> Result<Option<Self>, AllocError> {
        sort::by_key(&mut slots, |slot| (slot.as_id, slot.base_gfn, slot.id));
        if self.version > 0 && *slots == *self.slots {
            return Ok(None);
        }
        let pages = count(&slots, |_| true);
        let noted = count(&slots, |slot| slot.flags & Slot::LOG_DIRTY != 0);
        Ok(Some(Self {
            ranges: union(slots.iter(), flags)?,
            pages,
            gmem: union(slots.iter().filter(|slot| slot.gmem), flags)?,
            migrating: noted > pages / 2,
            slots,
            // OVERFLOW: One step for each change of memslots never gets there.
            version: self.version.wrapping_add(1),
        }))
    }

    /// The slots, sorted by address space and guest frame number.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Host addresses of the guest's memory: sorted and disjoint.
    pub fn ranges(&self) -> &[Span] {
        &self.ranges
    }

    /// Has it an address in common with another?
    pub fn overlaps(&self, other: &Self) -> bool {
        let mut theirs = other.ranges.iter().peekable();
        self.ranges.iter().any(|range| {
            while theirs.next_if(|other| other.end <= range.start).is_some() {}
            theirs.peek().is_some_and(|other| other.start < range.end)
        })
    }

    /// Grows with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Pages in the numbered list: those of address space 0.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Page `number` of the list, which is in order of guest frame numbers.
    pub fn page(&self, number: u64) -> Option<GuestPage> {
        let mut left = number;
        for slot in self.normal() {
            match left.checked_sub(slot.pages) {
                Some(beyond) => left = beyond,
                None => {
                    return Some(GuestPage {
                        gfn: slot.base_gfn.checked_add(left)?,
                        addr: slot.addr.checked_add(left.checked_mul(PAGE_BYTES)?)?,
                    })
                }
            }
        }
        None
    }

    /// How many pages from page `number` on lie next to one another in the host's memory.
    pub fn run(&self, number: u64) -> u64 {
        let mut left = number;
        for slot in self.normal() {
            match left.checked_sub(slot.pages) {
                Some(beyond) => left = beyond,
                None => return slot.pages.saturating_sub(left),
            }
        }
        0
    }

    /// Is the page at `addr` in a slot with memory that only the guest sees?
    pub fn is_gmem(&self, addr: u64) -> bool {
        let at = sort::first_not(&self.gmem, |span| span.end <= addr);
        self.gmem.get(at).is_some_and(|span| span.start <= addr)
    }

    /// Does any slot have memory that only the guest sees?
    pub fn has_gmem(&self) -> bool {
        !self.gmem.is_empty()
    }

    /// Is the guest being migrated? Then writes to most of its memory are noted; a display alone
    /// has them noted in its frame buffer.
    pub fn is_migrating(&self) -> bool {
        self.migrating
    }

    fn normal(&self) -> impl Iterator<Item = &Slot> {
        normal(&self.slots)
    }
}

/// Those of address space 0.
fn normal(slots: &[Slot]) -> impl Iterator<Item = &Slot> {
    slots.iter().filter(|slot| slot.as_id == 0)
}

/// Pages of those slots of address space 0 for which this holds.
fn count(slots: &[Slot], which: impl Fn(&Slot) -> bool) -> u64 {
    let slots = normal(slots).filter(|slot| which(slot));
    slots.fold(0, |sum, slot| sum.saturating_add(slot.pages))
}

/// The addresses covered by any of `slots`, as sorted ranges with gaps between them.
fn union<'a>(
    slots: impl Iterator<Item = &'a Slot>,
    flags: Flags,
) -> Result<KVVec<Span>, AllocError> {
    let mut all = KVVec::new();
    for range in slots.map(Slot::range) {
        if range.start < range.end {
            all.push(range, flags)?;
        }
    }
    sort::by_key(&mut all, |range| range.start);
    let mut union: KVVec<Span> = KVVec::with_capacity(all.len(), flags)?;
    for range in all.iter() {
        match union.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => union.push(*range, flags)?,
        }
    }
    Ok(union)
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_layout))]
mod tests {
    use super::*;
    use crate::mem::GFP_KERNEL;

    fn slot(as_id: u32, base_gfn: u64, pages: u64, addr: u64) -> Slot {
        Slot {
            as_id,
            base_gfn,
            pages,
            addr,
            ..Slot::default()
        }
    }

    fn layout(slots: &[Slot]) -> Result<Layout, AllocError> {
        let mut list = KVVec::new();
        list.extend_from_slice(slots, GFP_KERNEL)?;
        let layout = Layout::default().next(list, GFP_KERNEL)?;
        Ok(layout.unwrap_or_default())
    }

    #[test]
    fn slots_over_one_address_are_one_range() -> Result<(), AllocError> {
        let layout = layout(&[
            slot(1, 0, 16, 0x10000),
            slot(0, 0, 16, 0x10000),
            slot(0, 64, 4, 0x20000),
            slot(0, 32, 2, 0x80000),
        ])?;
        assert_eq!(layout.ranges().len(), 2);
        assert_eq!(
            layout.ranges().first().map(|r| (r.start, r.end)),
            Some((0x10000, 0x24000))
        );
        assert_eq!(
            layout.ranges().last().map(|r| (r.start, r.end)),
            Some((0x80000, 0x82000))
        );
        Ok(())
    }

    #[test]
    fn pages_are_numbered_by_guest_frame() -> Result<(), AllocError> {
        let layout = layout(&[
            slot(0, 64, 4, 0x20000),
            slot(0, 32, 2, 0x80000),
            slot(1, 0, 9, 0),
        ])?;
        assert_eq!(layout.pages(), 6);
        let places = [(32, 0x80000), (33, 0x81000), (64, 0x20000), (65, 0x21000)];
        for (number, place) in places.iter().enumerate() {
            let page = layout.page(number as u64);
            assert_eq!(page.map(|page| (page.gfn, page.addr)), Some(*place));
        }
        assert_eq!(layout.page(6), None);
        Ok(())
    }

    #[test]
    fn runs_end_with_their_slot() -> Result<(), AllocError> {
        // Next to one another for the guest only.
        let layout = layout(&[slot(0, 0, 4, 0x20000), slot(0, 4, 2, 0x80000)])?;
        assert!((0..8)
            .map(|number| layout.run(number))
            .eq([4, 3, 2, 1, 2, 1, 0, 0]));
        Ok(())
    }

    #[test]
    fn memory_that_only_the_guest_sees_is_known_by_its_slot() -> Result<(), AllocError> {
        let hidden = Slot {
            gmem: true,
            ..slot(0, 0, 4, 0x20000)
        };
        let layout = layout(&[hidden, slot(0, 4, 4, 0x80000)])?;
        assert!(layout.has_gmem());
        let addresses = [0x1f000, 0x20000, 0x23fff, 0x24000, 0x80000];
        assert!(addresses
            .into_iter()
            .map(|addr| layout.is_gmem(addr))
            .eq([false, true, true, false, false]));
        assert!(!Layout::default().has_gmem());
        Ok(())
    }

    #[test]
    fn absurd_slots_do_no_harm() -> Result<(), AllocError> {
        let layout = layout(&[
            slot(0, u64::MAX, u64::MAX, u64::MAX),
            slot(0, 1, u64::MAX, 4096),
        ])?;
        assert!(layout.ranges().is_empty());
        assert_eq!(layout.pages(), u64::MAX);
        // Its address would wrap around.
        assert_eq!(layout.page(u64::MAX - 1), None);
        Ok(())
    }

    #[test]
    fn noted_writes_mean_migration_but_for_a_display() -> Result<(), AllocError> {
        let noted = |slot: Slot| Slot {
            flags: Slot::LOG_DIRTY,
            ..slot
        };
        let (ram, display) = (slot(0, 0, 4096, 0x100000), slot(0, 8192, 1024, 0x8000000));
        assert!(!layout(&[ram, display])?.is_migrating());
        assert!(!layout(&[ram, noted(display)])?.is_migrating());
        assert!(layout(&[noted(ram), noted(display)])?.is_migrating());
        assert!(!layout(&[])?.is_migrating());
        Ok(())
    }

    #[test]
    fn only_a_change_makes_a_new_version() -> Result<(), AllocError> {
        let layout = layout(&[slot(0, 0, 1, 4096)])?;
        let mut same = KVVec::new();
        same.push(slot(0, 0, 1, 4096), GFP_KERNEL)?;
        assert!(layout.next(same, GFP_KERNEL)?.is_none());
        let changed = layout.next(KVVec::new(), GFP_KERNEL)?;
        assert!(changed.is_some_and(|changed| changed.version() > layout.version()));
        Ok(())
    }

    #[test]
    fn one_common_page_is_an_overlap() -> Result<(), AllocError> {
        let two = layout(&[slot(0, 0, 2, 0x10000), slot(0, 2, 2, 0x40000)])?;
        let overlaps = |addr, pages| -> Result<bool, AllocError> {
            let other = layout(&[slot(0, 0, 1, 0x1000), slot(0, 1, pages, addr)])?;
            let both = (two.overlaps(&other), other.overlaps(&two));
            assert_eq!(both.0, both.1);
            Ok(both.0)
        };
        // Before, between and after both ranges; then one page of either, then everything.
        assert!(!overlaps(0x8000, 8)?);
        assert!(!overlaps(0x12000, 0x2e)?);
        assert!(!overlaps(0x42000, 8)?);
        assert!(overlaps(0x8000, 9)?);
        assert!(overlaps(0x11000, 1)?);
        assert!(overlaps(0x12000, 0x2f)?);
        assert!(overlaps(0x41000, 8)?);
        assert!(overlaps(0x8000, 0x100)?);
        assert!(!two.overlaps(&Layout::default()));
        Ok(())
    }
}
