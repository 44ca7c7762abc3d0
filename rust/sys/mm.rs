// SPDX-License-Identifier: GPL-2.0

//! Address spaces, and what may be done with their page tables.
//!
//! Three types, each the proof of more: [`Space`] keeps the structure alive, [`User`] its page
//! tables, [`Locked`] holds the mmap lock for reading. None of them sleeps to get there: whoever
//! holds up a VM's mmap lock must not hold up the module.

use super::{bindings, frame::Frame};
use crate::engine::world::{Shared, Skip, Target, Unshared};
use core::{marker::PhantomData, ops::Deref, ptr};
use kernel::{
    ffi::c_void,
    mm::{
        Mm,
        MmWithUser,
        MmWithUserAsync,
        MmapReadGuard, //
    },
    sync::aref::ARef, //
};

/// Pages that one [`Locked::share`] can take.
pub(crate) const RUN_MAX: usize = bindings::TWINPAGE_SHIM_RUN_MAX as usize;

/// An address space: its structure is there, its memory may be gone.
pub(crate) struct Space(ARef<Mm>);

/// An address space whose memory is there until this is dropped.
///
/// The last user's exit then happens in a work item: this may be dropped anywhere.
pub(crate) struct User(ARef<MmWithUserAsync>);

/// An address space with its mmap lock held for reading.
pub(crate) struct Locked<'a> {
    _guard: MmapReadGuard<'a>,
    mm: *mut c_void,
    _user: PhantomData<&'a User>,
}

impl Space {
    /// Wraps a reference to a structure.
    pub(crate) fn new(mm: ARef<Mm>) -> Self {
        Self(mm)
    }

    /// Are these the same address space?
    pub(crate) fn is(&self, other: &Space) -> bool {
        ptr::eq(self.0.as_raw(), other.0.as_raw())
    }

    /// Takes hold of its memory; `None` if it is exiting or gone.
    pub(crate) fn user(&self) -> Option<User> {
        self.0
            .mmget_not_zero()
            .map(MmWithUser::into_mmput_async)
            .map(User)
    }

    /// Pages that the memory cgroups of its process still allow it, all levels considered.
    ///
    /// # Context
    ///
    /// Does not sleep.
    pub(crate) fn cgroup_pages_left(&self) -> usize {
        // SAFETY: The `mm_struct` is valid: `self` owns a reference until drop.
        unsafe { bindings::twinpage_shim_cgroup_pages_left(self.0.as_raw().cast()) }
    }
}

/// Pages of memory that the host has.
pub(crate) fn host_pages() -> usize {
    // SAFETY: Reads a global counter; there is nothing to guarantee.
    unsafe { bindings::twinpage_shim_pages_total() }
}

/// Pages of memory that the host could hand out without swapping.
pub(crate) fn host_pages_available() -> usize {
    // SAFETY: Reads global counters; there is nothing to guarantee.
    unsafe { bindings::twinpage_shim_pages_available() }
}

impl User {
    /// Takes the mmap lock for reading, unless that would have to wait.
    pub(crate) fn try_lock(&self) -> Option<Locked<'_>> {
        let user = self.0.deref();
        Some(Locked {
            _guard: user.mmap_read_trylock()?,
            mm: user.as_raw().cast(),
            _user: PhantomData,
        })
    }
}

impl Locked<'_> {
    /// The `mm_struct`; valid and locked as long as `self` is borrowed.
    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.mm
    }

    /// Makes a run of pages from `addr` on map their targets where the bytes are equal.
    ///
    /// Takes at most [`RUN_MAX`] pages of one page table, and replaces at most `batch` at once.
    ///
    /// # Context
    ///
    /// Sleeps: MMU notifiers.
    pub(crate) fn share(
        &self,
        addr: usize,
        batch: u32,
        targets: &[Target<'_, Frame>],
        out: &mut [Shared],
    ) {
        let n = targets.len().min(out.len()).min(RUN_MAX);
        let mut pages = [ptr::null_mut(); RUN_MAX];
        let mut results = [0u8; RUN_MAX];
        for (page, target) in pages.iter_mut().zip(targets) {
            if let Target::Copy(frame) = target {
                *page = frame.as_ptr();
            }
        }
        // SAFETY: `mm` is valid and its mmap lock held, as `self` has the guard. `n` is at most
        // `RUN_MAX`, the length of both arrays, which live until the call returns. The frames in
        // `pages` are valid: `targets` borrows them. `batch` is at least 1 by the maximum taken.
        unsafe {
            bindings::twinpage_shim_share(
                self.mm,
                addr,
                n as u32,
                batch.max(1),
                pages.as_ptr(),
                results.as_mut_ptr(),
            )
        };
        for (to, result) in out.iter_mut().zip(&results[..n]) {
            *to = decode(u32::from(*result));
        }
    }

    /// Gives those of `pages` pages from `addr` on that map merged copies their own. Returns how
    /// many are done, and what kept the next one from it; if nothing did, at least one is done.
    ///
    /// Takes at most [`RUN_MAX`] pages at once, and none of the next page table.
    ///
    /// The caller has made sure that there is memory (`glue::headroom`).
    ///
    /// # Context
    ///
    /// Sleeps: takes page faults.
    pub(crate) fn unshare(&self, addr: usize, pages: usize) -> (usize, Unshared) {
        let (pages, mut done) = (pages.min(RUN_MAX) as u32, 0);
        // SAFETY: `mm` is valid and its mmap lock held, as `self` has the guard. `done` lives until
        // the call returns.
        let result = unsafe { bindings::twinpage_shim_unshare(self.mm, addr, pages, &mut done) };
        let last = match result as u32 {
            bindings::TWINPAGE_SHIM_DONE => Unshared::Done,
            bindings::TWINPAGE_SHIM_NO_MEMORY => Unshared::NoMemory,
            _ => Unshared::Busy,
        };
        (done as usize, last)
    }

    /// Splits the large folio that is mapped at `addr`. `true` if the page is small now.
    ///
    /// # Context
    ///
    /// Sleeps.
    pub(crate) fn split(&self, addr: usize) -> bool {
        // SAFETY: `mm` is valid and its mmap lock held, as `self` has the guard.
        unsafe { bindings::twinpage_shim_split(self.mm, addr) == 0 }
    }
}

fn decode(result: u32) -> Shared {
    use bindings::*;
    match result {
        TWINPAGE_SHIM_DONE => Shared::Done,
        TWINPAGE_SHIM_DIFFERS => Shared::Differs,
        TWINPAGE_SHIM_GONE => Shared::Gone,
        TWINPAGE_SHIM_PINNED => Shared::Skip(Skip::Pinned),
        TWINPAGE_SHIM_POISONED => Shared::Skip(Skip::Poison),
        TWINPAGE_SHIM_REFUSED => Shared::Skip(Skip::Special),
        _ => Shared::Busy,
    }
}
