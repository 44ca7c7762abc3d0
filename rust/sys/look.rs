// SPDX-License-Identifier: GPL-2.0

//! What the pages of a block are, and reading those that were kept.
//!
//! A live guest page is never a Rust reference: a guest writes to it while it is read. Its words
//! are read by volatile loads, one at a time, and whatever is computed from them is a hint.

use super::{bindings, mm::Locked};
use crate::engine::world::{Pfn, Seen, Skip, Token, BLOCK_PAGES};
use core::{marker::PhantomData, mem, ops::Range, ptr};
use kernel::{
    alloc::KVVec,
    ffi::c_void,
    prelude::*, //
};

/// Room for one look at a block, and the pages that it kept.
///
/// # Invariants
///
/// Both vectors have `BLOCK_PAGES` elements. An element of `kept` is null, or a `struct page` of
/// which `self` owns a reference; unless `keeping`, all are null.
pub(crate) struct Look {
    seen: KVVec<bindings::twinpage_shim_seen>,
    kept: KVVec<*mut c_void>,
    keeping: bool,
}

// SAFETY: The pointers in `kept` are references to pages, which may be used and given up on any
// thread.
unsafe impl Send for Look {}

/// A page that a look kept.
///
/// # Invariants
///
/// `page` is a `struct page` that stays referenced for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Kept<'a> {
    page: *mut c_void,
    _look: PhantomData<&'a Look>,
}

impl Look {
    /// Allocates the room.
    pub(crate) fn new() -> Result<Self> {
        let mut seen = KVVec::new();
        let mut kept = KVVec::new();
        seen.resize(BLOCK_PAGES, Default::default(), GFP_KERNEL)?;
        kept.resize(BLOCK_PAGES, ptr::null_mut(), GFP_KERNEL)?;
        // INVARIANT: Both have `BLOCK_PAGES` elements, and nothing is kept.
        Ok(Self {
            seen,
            kept,
            keeping: false,
        })
    }

    /// Looks at the pages `pages` of the block at address `block` and tells `see` of runs of pages
    /// that are alike. Lets go of what was kept before, and keeps those pages of `wanted` that can
    /// be hashed.
    ///
    /// # Context
    ///
    /// Takes the page table lock for some entries at a time. Does not sleep.
    pub(crate) fn at(
        &mut self,
        mm: &Locked<'_>,
        block: u64,
        pages: Range<usize>,
        wanted: &[u64; BLOCK_PAGES / 64],
        mut see: impl FnMut(Range<usize>, Seen),
    ) {
        self.release();
        self.keeping = wanted.iter().any(|word| *word != 0);
        let end = pages.end.min(BLOCK_PAGES);
        let first = pages.start.min(end);
        // SAFETY: `mm` is valid and its mmap lock is held: `mm` borrows the guard. `first..end`
        // lies within the `BLOCK_PAGES` elements that `wanted` (as bits), `self.seen` and
        // `self.kept` have by the invariant of `self`, so there is room for a run for each page,
        // and they live until the call returns.
        // INVARIANT: What the call writes to `kept` are pages with a reference, and wanted ones.
        let runs = unsafe {
            bindings::twinpage_shim_look(
                mm.as_ptr(),
                block as usize,
                first as u32,
                end as u32,
                wanted.as_ptr(),
                self.seen.as_mut_ptr(),
                self.kept.as_mut_ptr(),
            )
        };
        let mut from = first;
        for run in self.seen.get(..runs as usize).unwrap_or(&[]) {
            let end = usize::from(run.end);
            see(from..end, decode(run));
            from = end;
        }
    }

    /// Page `index`, if the last look kept it.
    pub(crate) fn kept(&self, index: usize) -> Option<Kept<'_>> {
        let page = *self.kept.get(index)?;
        // INVARIANT: `self` owns a reference, and is borrowed for as long as the result lives.
        (!page.is_null()).then_some(Kept {
            page,
            _look: PhantomData,
        })
    }

    /// Lets go of what is kept.
    pub(crate) fn release(&mut self) {
        if !mem::take(&mut self.keeping) {
            return;
        }
        for page in self.kept.iter_mut().filter(|page| !page.is_null()) {
            // SAFETY: `self` owns a reference to the page, and forgets it in the next line.
            unsafe { bindings::twinpage_shim_page_put(*page) };
            *page = ptr::null_mut();
        }
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.release();
    }
}

impl Kept<'_> {
    /// The `struct page`, valid as long as the look is borrowed.
    pub(super) fn as_ptr(self) -> *mut c_void {
        self.page
    }

    /// The page, mapped to be read.
    pub(crate) fn words(&self) -> Words<'_> {
        // SAFETY: `page` is valid: `self` borrows the look that owns a reference, and is borrowed
        // as long as the result lives.
        unsafe { Words::map(self.page) }
    }
}

/// The words of a page, read one at a time.
///
/// # Invariants
///
/// `first` is where the `WORDS` words of a page are mapped.
pub(crate) struct Words<'a> {
    first: *const u64,
    _page: PhantomData<&'a Look>,
}

impl Words<'_> {
    const WORDS: usize = kernel::page::PAGE_SIZE / size_of::<u64>();

    /// Maps a page.
    ///
    /// # Safety
    ///
    /// `page` is a `struct page` that stays referenced as long as the result lives.
    pub(super) unsafe fn map(page: *mut c_void) -> Self {
        // SAFETY: `page` is valid by the caller's promise.
        let first: *const u64 = unsafe { bindings::twinpage_shim_page_map(page) }.cast();
        // INVARIANT: The page is mapped there until `drop` unmaps it.
        Self {
            first,
            _page: PhantomData,
        }
    }

    /// Word `index` as it is now; 0 outside of the page.
    #[inline(always)]
    pub(crate) fn get(&self, index: usize) -> u64 {
        if index >= Self::WORDS {
            return 0;
        }
        // SAFETY: `index` is within the page, which is mapped at `first` until drop, by the
        // invariant. Guests may write to it meanwhile: the load is volatile and of one aligned
        // word, and no reference to the bytes exists.
        unsafe { self.first.add(index).read_volatile() }
    }
}

impl Drop for Words<'_> {
    fn drop(&mut self) {
        // SAFETY: `first` is what the map returned, and is not used again. Callers drop these in
        // the reverse order, as highmem wants, which x86-64 and arm64 do not have.
        unsafe { bindings::twinpage_shim_page_unmap(self.first.cast_mut().cast()) };
    }
}

fn decode(seen: &bindings::twinpage_shim_seen) -> Seen {
    use bindings::*;
    let class = u32::from(seen.class);
    // Most runs of copies have one page, so these are told apart first.
    if class == TWINPAGE_SHIM_MERGED {
        return Seen::Merged {
            pfn: Pfn(seen.pfn as u64),
            token: Token(seen.arg),
        };
    }
    match class {
        TWINPAGE_SHIM_ABSENT => Seen::Absent,
        TWINPAGE_SHIM_ANON => Seen::Anon {
            node: seen.arg as u8,
        },
        TWINPAGE_SHIM_HUGE => Seen::Huge {
            node: seen.arg as u8,
        },
        TWINPAGE_SHIM_ZERO => Seen::Zero,
        _ => Seen::Skip(decode_skip(seen.arg)),
    }
}

fn decode_skip(skip: u32) -> Skip {
    use bindings::*;
    match skip {
        TWINPAGE_SHIM_SKIP_SHARED => Skip::Shared,
        TWINPAGE_SHIM_SKIP_HUGETLB => Skip::Hugetlb,
        TWINPAGE_SHIM_SKIP_LOCKED => Skip::Locked,
        TWINPAGE_SHIM_SKIP_UFFD => Skip::Uffd,
        TWINPAGE_SHIM_SKIP_NO_VMA => Skip::NoVma,
        TWINPAGE_SHIM_SKIP_KSM => Skip::Ksm,
        TWINPAGE_SHIM_SKIP_POISON => Skip::Poison,
        _ => Skip::Special,
    }
}
