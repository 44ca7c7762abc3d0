// SPDX-License-Identifier: GPL-2.0

//! Merged copies: frames that the module made and guests map read-only.

use super::{
    bindings,
    look::{Kept, Words}, //
};
use crate::engine::world::{Pfn, Token, DIGEST_BYTES};
use core::ptr::NonNull;
use kernel::ffi::c_void;

/// A merged copy.
///
/// # Invariants
///
/// `page` is a `struct page` of order 0 made by `twinpage_shim_frame_copy`, and `self` owns one
/// reference to it. Its bytes never change: no page table entry that maps it is writable, and the
/// module does not write to it after it was made.
pub(crate) struct Frame {
    page: NonNull<c_void>,
}

// SAFETY: A reference to a page may be given up on any thread, and the functions that take a frame
// only read it or use atomic operations; its token is read and written as one word.
unsafe impl Send for Frame {}
// SAFETY: As above.
unsafe impl Sync for Frame {}

impl Frame {
    /// A fresh frame on the same NUMA node with the bytes of a kept page, or `None` if there is no
    /// memory to spare.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn copy_of(page: Kept<'_>) -> Option<Self> {
        // SAFETY: `page` is valid and referenced: the borrow in `Kept` outlives this call.
        let copy = unsafe { bindings::twinpage_shim_frame_copy(page.as_ptr()) };
        // INVARIANT: The call hands over one reference of a frame that it made.
        NonNull::new(copy).map(|page| Self { page })
    }

    /// The `struct page`, valid as long as `self` is borrowed.
    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.page.as_ptr()
    }

    /// Keeps `token` with the frame.
    pub(crate) fn set_token(&self, token: Token) {
        // SAFETY: `page` is valid: `self` owns a reference until drop. `page->private` of a frame
        // that is in no cache belongs to its owner; none takes it in while there is that reference.
        unsafe { bindings::twinpage_shim_frame_set_token(self.as_ptr(), token.0) };
    }

    /// Its frame number.
    pub(crate) fn pfn(&self) -> Pfn {
        // SAFETY: `page` is valid: `self` owns a reference until drop.
        Pfn(unsafe { bindings::twinpage_shim_frame_pfn(self.as_ptr()) } as u64)
    }

    /// How many page table entries map it. Zero is final, but for mappings with references of
    /// their own.
    pub(crate) fn mappings(&self) -> u32 {
        // SAFETY: `page` is valid: `self` owns a reference until drop.
        unsafe { bindings::twinpage_shim_frame_mappings(self.as_ptr()) }
    }

    /// Whether it has a hardware memory error: then its bytes must not be read.
    pub(crate) fn is_broken(&self) -> bool {
        // SAFETY: `page` is valid: `self` owns a reference until drop.
        unsafe { bindings::twinpage_shim_frame_is_broken(self.as_ptr()) != 0 }
    }

    /// SHA-256 of its bytes.
    pub(crate) fn sha256(&self) -> [u8; DIGEST_BYTES] {
        let mut digest = [0; DIGEST_BYTES];
        // SAFETY: `page` is valid: `self` owns a reference until drop; `digest` has the 32 bytes
        // that the function writes, until it returns.
        unsafe { bindings::twinpage_shim_frame_sha256(self.as_ptr(), digest.as_mut_ptr()) };
        digest
    }

    /// The frame, mapped to be read.
    pub(crate) fn words(&self) -> Words<'_> {
        // SAFETY: `page` is valid: `self` owns a reference until drop, and is borrowed as long as
        // the result lives.
        unsafe { Words::map(self.as_ptr()) }
    }

    /// Copies its bytes; `false` if it turns out to be broken.
    pub(crate) fn read(&self, bytes: &mut [u8; kernel::page::PAGE_SIZE]) -> bool {
        // SAFETY: `page` is valid: `self` owns a reference until drop; `bytes` has the room of one
        // page until the call returns.
        let failed =
            unsafe { bindings::twinpage_shim_frame_read(self.as_ptr(), bytes.as_mut_ptr().cast()) };
        failed == 0
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // SAFETY: `self` owns this reference and is not used again. Guests that map the frame hold
        // references of their own.
        unsafe { bindings::twinpage_shim_frame_put(self.as_ptr()) };
    }
}
