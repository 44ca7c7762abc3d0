// SPDX-License-Identifier: GPL-2.0

//! Room for one step, allocated once by the scanner.

use super::{
    page::{
        CopyId,
        PageId, //
    },
    sight::Sight,
    world::{
        Seen,
        Shared,
        BLOCK_PAGES, //
    },
};
use crate::mem::{
    AllocError,
    KVVec,
    GFP_KERNEL, //
};

/// What one page of the block is going to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// What it maps now.
    Nothing,
    /// The shared zero page.
    Zero,
    /// A merged copy.
    Copy(CopyId),
}

/// A merged copy made in this step, of a page of the block, since another has the same hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fresh {
    /// The copy.
    pub(super) copy: CopyId,
    /// Index of the page that it was made of.
    pub(super) index: usize,
    /// The page of the same hash.
    pub(super) twin: PageId,
}

/// Room for one step of any index. What it holds between steps means nothing.
#[derive(Debug)]
pub struct Scratch {
    /// What a look found.
    pub(super) seen: Sight,
    /// What each page is going to map.
    pub(super) plan: KVVec<Plan>,
    /// Whether that is something else for any of them.
    pub(super) planned: bool,
    /// What became of it.
    pub(super) results: KVVec<Shared>,
    /// Copies made in this step; there is room for one a page.
    pub(super) fresh: KVVec<Fresh>,
    /// The block of twins that could not be split last.
    pub(super) stuck: Option<u32>,
    /// The block of twins that was split last.
    pub(super) parted: Option<u32>,
}

impl Scratch {
    /// Allocates the room, about 30 KiB.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory.
    pub fn new() -> Result<Self, AllocError> {
        Ok(Self {
            seen: Sight::new()?,
            plan: KVVec::from_elem(Plan::Nothing, BLOCK_PAGES, GFP_KERNEL)?,
            planned: false,
            results: KVVec::from_elem(Shared::Busy, BLOCK_PAGES, GFP_KERNEL)?,
            fresh: KVVec::with_capacity(BLOCK_PAGES, GFP_KERNEL)?,
            stuck: None,
            parted: None,
        })
    }

    /// Forgets the last step.
    pub(super) fn reset(&mut self) {
        if self.planned {
            self.plan.fill(Plan::Nothing);
            self.planned = false;
        }
        self.fresh.clear();
        self.stuck = None;
        self.parted = None;
    }

    /// Returns what the last look found at `index`.
    pub(super) fn seen(&self, index: usize) -> Seen {
        self.seen.get(index)
    }

    /// Returns what the page at `index` is going to map.
    pub(super) fn plan(&self, index: usize) -> Plan {
        self.plan.get(index).copied().unwrap_or(Plan::Nothing)
    }

    /// Changes what the page at `index` is going to map.
    pub(super) fn set_plan(&mut self, index: usize, plan: Plan) {
        if let Some(slot) = self.plan.get_mut(index) {
            *slot = plan;
            self.planned |= plan != Plan::Nothing;
        }
    }
}
