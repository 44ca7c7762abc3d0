// SPDX-License-Identifier: GPL-2.0

//! Real QEMUs on both sides of the proxies, under software emulation.
//!
//! Wherever a guest is in the end, its whole memory is judged by what it must have written; and
//! where it has moved, and not run since, it is compared on both sides. But for some of chaos the
//! destination is started with `-S`, as management software does: it runs only once the source has
//! given the guest up.

mod common;

#[path = "live/chaos.rs"]
mod chaos;
#[path = "live/kinds.rs"]
mod kinds;
#[path = "live/part.rs"]
mod part;
#[path = "live/world.rs"]
mod world;
