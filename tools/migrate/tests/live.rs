// SPDX-License-Identifier: GPL-2.0

//! Real QEMUs on both sides of the proxies, under software emulation.
//!
//! Every test compares the whole memory of the guest on both sides, and judges it by what the guest
//! must have written. The destination is started with `-S`, as management software does: it runs
//! only once the source has given the guest up.

mod common;

#[path = "live/chaos.rs"]
mod chaos;
#[path = "live/kinds.rs"]
mod kinds;
#[path = "live/world.rs"]
mod world;
