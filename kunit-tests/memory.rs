// SPDX-License-Identifier: GPL-2.0

//! Memory of a test's own: mapped like a VMM's, written and read like a guest does.

use crate::sys::mm::Space;
use kernel::{
    current,
    ffi::{c_int, c_ulong},
    mm::Mm,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef,
    uaccess::{UserPtr, UserSlice}, //
};

extern "C" {
    /// See `shim_kunit.h`.
    fn twinpage_kunit_map(addr: c_ulong, bytes: c_ulong, shared: c_int) -> c_ulong;

    /// See `shim_kunit.h`.
    fn twinpage_kunit_entry(addr: c_ulong) -> c_ulong;
}

/// How pages are shared with other processes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not at all.
    Private,
    /// They are shared memory.
    Shared,
}

/// Maps memory at an address, or anywhere if that is 0. Returns where; if that failed 0, or what
/// is an error.
fn map_at(addr: usize, bytes: usize, kind: Kind) -> usize {
    // SAFETY: Runs in a test, which has or gets an address space until it ends. What is mapped in
    // it is never a Rust reference.
    unsafe { twinpage_kunit_map(addr, bytes, (kind == Kind::Shared).into()) }
}

/// Some pages mapped in the address space of the running test.
pub(crate) struct Memory {
    start: usize,
}

impl Memory {
    /// Maps `pages` pages, the first at a multiple of 2 MiB.
    pub(crate) fn map(pages: usize, kind: Kind) -> Result<Self> {
        const BLOCK: usize = crate::engine::world::BLOCK_BYTES as usize;
        let bytes = pages * PAGE_SIZE + BLOCK;
        let addr = map_at(0, bytes, kind);
        if addr == 0 || addr > usize::MAX - bytes {
            return Err(ENOMEM);
        }
        Ok(Self {
            start: addr.next_multiple_of(BLOCK),
        })
    }

    /// Maps private pages anew, which are a mapping of their own then. Nothing is in them.
    pub(crate) fn map_apart(&self, page: usize, pages: usize) -> Result {
        let addr = self.addr(page);
        if map_at(addr, pages * PAGE_SIZE, Kind::Private) != addr {
            return Err(ENOMEM);
        }
        Ok(())
    }

    /// Address of page `page`.
    pub(crate) fn addr(&self, page: usize) -> usize {
        self.start + page * PAGE_SIZE
    }

    /// The address space of the running test.
    pub(crate) fn space(&self) -> Result<Space> {
        let task = current!();
        let mm: &Mm = task.mm().ok_or(ESRCH)?;
        Ok(Space::new(ARef::from(mm)))
    }

    /// The page table entry of a page, with all its bits; 0 if there is none.
    pub(crate) fn entry(&self, page: usize) -> usize {
        // SAFETY: Runs in a test that has an address space: `self` was mapped there.
        unsafe { twinpage_kunit_entry(self.addr(page)) }
    }

    /// Fills a page with `byte`, but for its last byte, which is `last`.
    pub(crate) fn fill(&self, page: usize, byte: u8, last: u8) -> Result {
        let mut bytes = KBox::new([byte; PAGE_SIZE], GFP_KERNEL)?;
        bytes[PAGE_SIZE - 1] = last;
        let user = UserSlice::new(UserPtr::from_addr(self.addr(page)), PAGE_SIZE);
        user.writer().write_slice(&bytes[..])
    }

    /// Is the page as [`fill`](Self::fill) leaves it?
    pub(crate) fn is(&self, page: usize, byte: u8, last: u8) -> Result<bool> {
        let mut bytes = KBox::new([0_u8; PAGE_SIZE], GFP_KERNEL)?;
        let user = UserSlice::new(UserPtr::from_addr(self.addr(page)), PAGE_SIZE);
        user.reader().read_slice(&mut bytes[..])?;
        let (end, rest) = bytes.split_last().ok_or(EINVAL)?;
        Ok(*end == last && rest.iter().all(|value| *value == byte))
    }
}
