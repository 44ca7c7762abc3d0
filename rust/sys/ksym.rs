// SPDX-License-Identifier: GPL-2.0

//! Kernel functions that are not exported: found and bound once, at load.

use super::bindings;
use kernel::{
    error::to_result,
    prelude::*, //
};

/// Proof that the unexported functions are bound, and which of the optional ones exist.
///
/// # Invariants
///
/// `twinpage_shim_bind` has succeeded.
#[derive(Clone, Copy)]
pub(crate) struct Symbols {
    features: u32,
}

impl Symbols {
    /// Finds and binds them.
    ///
    /// # Errors
    ///
    /// `ENOENT` if one is missing without which nothing works; the kernel log names it.
    ///
    /// # Context
    ///
    /// Process context, may sleep. Once, before anything else of `sys` is used.
    pub(crate) fn bind() -> Result<Self> {
        let mut features = 0;
        // SAFETY: `features` is valid for one write until the call returns. Module init calls
        // this before any static call could be in use; where tests call it again, the addresses
        // are those that are there.
        to_result(unsafe { bindings::twinpage_shim_bind(&mut features) })?;
        // INVARIANT: The call above succeeded.
        Ok(Self { features })
    }

    /// Can huge pages be split?
    pub(crate) fn has_split(self) -> bool {
        self.features & bindings::TWINPAGE_SHIM_HAS_SPLIT != 0
    }

    /// Can the swap slot of a merged page be freed at once?
    pub(crate) fn has_free_swap(self) -> bool {
        self.features & bindings::TWINPAGE_SHIM_HAS_FREE_SWAP != 0
    }

    /// Can the per-CPU LRU batches be drained?
    pub(crate) fn has_lru_drain(self) -> bool {
        self.features & bindings::TWINPAGE_SHIM_HAS_LRU_DRAIN != 0
    }

    /// Drains the per-CPU LRU batches, whose references keep fresh pages from merging.
    ///
    /// # Context
    ///
    /// Process context, may sleep: waits for a work item on every CPU.
    pub(crate) fn lru_drain(self) {
        // SAFETY: The functions are bound, by the invariant of `self`.
        unsafe { bindings::twinpage_shim_lru_drain() };
    }
}
