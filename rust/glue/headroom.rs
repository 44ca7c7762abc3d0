// SPDX-License-Identifier: GPL-2.0

//! How much of merged memory may be given back as private copies.
//!
//! Merged memory is overcommitted memory: taking it apart needs memory that may not be there, and
//! the page fault that makes a copy may end in the OOM killer. So free memory is asked for before,
//! and a floor is left.

use crate::sys::mm::{self, Space};

/// Most pages between two questions for free memory, so that others' use of it is noticed.
const STEP_PAGES: usize = 256;

/// Of the host's memory, one part in this many stays free.
const HOST_FLOOR_DIVISOR: usize = 64;

/// Pages that stay free in a memory cgroup: the kernel charges up to 64 a CPU ahead
/// (`MEMCG_CHARGE_BATCH`), and page tables are charged too.
const CGROUP_FLOOR_PAGES: usize = 256;

/// How many pages of the process of `space` may get their own copy before asking again; 0: none.
pub(crate) fn allowance(space: &Space) -> usize {
    let host = mm::host_pages_available().saturating_sub(mm::host_pages() / HOST_FLOOR_DIVISOR);
    let cgroup = space.cgroup_pages_left().saturating_sub(CGROUP_FLOOR_PAGES);
    host.min(cgroup).min(STEP_PAGES)
}
