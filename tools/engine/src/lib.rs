// SPDX-License-Identifier: GPL-2.0

//! Host build of the engine of `twinpage.ko`: the very same files, other memory.
//!
//! Tools use [`engine::wire`]; tests and benches use all of it.

#![cfg_attr(not(test), no_std)]

#[path = "../../../rust/engine/mod.rs"]
pub mod engine;
pub mod mem;
