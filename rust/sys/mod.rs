// SPDX-License-Identifier: GPL-2.0

//! The kernel, wrapped: the only code of the module that may be unsafe.
//!
//! Each file wraps one C concept and gives out types that carry their proof: a [`Space`](mm::Space)
//! keeps an address space's structure alive, a [`User`](mm::User) its page tables, a
//! [`Locked`](mm::Locked) holds its mmap lock, a [`Frame`](frame::Frame) owns a merged copy. What
//! a function needs, its arguments prove.
//!
//! The C half is in `shim/`; `shim/shim.h` is turned into `bindings` by bindgen at build time, so
//! each declaration exists once. `Documentation/unsafe.rst` lists the contract of every function.

#![allow(unsafe_code)]

pub(crate) mod debugfs;
pub(crate) mod frame;
pub(crate) mod ksym;
pub(crate) mod look;
pub(crate) mod misc;
pub(crate) mod mm;
pub(crate) mod random;
pub(crate) mod shrinker;
pub(crate) mod sysfs;
pub(crate) mod thread;
pub(crate) mod uapi;
pub(crate) mod vm;

/// Declarations of `shim/shim.h`.
#[allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::all
)]
mod bindings {
    include!(concat!(env!("TWINPAGE_GEN"), "/shim_gen.rs"));
}
