// SPDX-License-Identifier: GPL-2.0

//! The only memory that the engine may allocate, kernel side.
//!
//! The engine says `crate::mem::KVVec` and is compiled both here and by cargo, where
//! `tools/engine/src/mem.rs` has the same names over the standard library.

pub(crate) use kernel::alloc::{
    flags::GFP_KERNEL,
    AllocError,
    Flags,
    KVVec, //
};
