// SPDX-License-Identifier: GPL-2.0

//! The merging algorithm, without the machine.
//!
//! Decides which pages of which guests should be one, and keeps account of what became of each
//! page. Knows nothing of the kernel: it sees guests through [`world::World`], gets its memory from
//! `crate::mem` and its time, seeds and settings as arguments. So the very same files run in the
//! module, in cargo tests and in a simulation.
//!
//! * [`index::Index`] is the whole state of one sharing domain.
//! * [`scan`] is one step: look at a block of pages, hash, find twins, share.
//! * [`tree`] is the red-black tree that finds a page by a hash of its content, its [`key`].
//! * [`blocks`], [`copies`] and [`guests`] are what the tree's nodes live in.

#![cfg_attr(not(TWINPAGE_KUNIT), forbid(unsafe_code))]
// Unreachable outside this crate in the module, public to tests, benches and tools.
#![allow(unreachable_pub)]
// The module has no use for what only tools and tests call.
#![allow(dead_code)]
// The tests, which the KUnit module has too, may panic.
#![cfg_attr(
    not(TWINPAGE_KUNIT),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod attach;
pub mod blocks;
pub mod catalog;
pub mod check;
pub mod copies;
pub mod crafted;
pub mod digests;
pub mod guests;
pub mod huge;
pub mod index;
pub mod key;
pub mod kinds;
pub mod knobs;
pub mod layout;
pub mod mask;
pub mod merge;
pub mod moves;
pub mod node;
pub mod orphans;
pub mod page;
pub mod plan;
pub mod policy;
pub mod reconcile;
pub mod restraint;
pub mod run;
pub mod scan;
pub mod scratch;
pub mod settle;
pub mod sight;
pub mod sort;
pub mod stats;
pub mod sweep;
#[cfg(any(test, TWINPAGE_KUNIT))]
pub mod toy;
pub mod tree;
pub mod unmerge;
pub mod wire;
pub mod world;
pub mod xxh64;
