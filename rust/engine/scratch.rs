// SPDX-License-Identifier: GPL-2.0

//! Room for one step, allocated once by the scanner.

use super::world::{
    Seen,
    BLOCK_PAGES, //
};
use crate::mem::{
    AllocError,
    KVVec,
    GFP_KERNEL, //
};

/// Room for one step of any index. What it holds between steps means nothing.
#[derive(Debug)]
pub struct Scratch {
    pub(super) seen: KVVec<Seen>,
}

impl Scratch {
    /// Allocates the room, about 24 KiB.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory.
    pub fn new() -> Result<Self, AllocError> {
        Ok(Self {
            seen: KVVec::from_elem(Seen::Absent, BLOCK_PAGES, GFP_KERNEL)?,
        })
    }
}
