// SPDX-License-Identifier: GPL-2.0

//! The tests of twinpage.ko that run in a kernel: those of the engine, from the very same files
//! that cargo tests, and those of `sys` on a live address space.
//!
//! Loading the module runs them (`CONFIG_KUNIT=y`).

// What only the real module calls is not called here.
#![allow(dead_code)]

#[path = "../rust/engine/mod.rs"]
mod engine;
#[path = "../rust/mem.rs"]
mod mem;
mod memory;
mod mm;
#[path = "../rust/sys/mod.rs"]
mod sys;

use kernel::prelude::*;

module! {
    type: Tests,
    name: "twinpage_kunit",
    authors: ["The Twinpage developers"],
    description: "KUnit tests of twinpage",
    license: "GPL",
}

struct Tests {
    _symbols: sys::ksym::Symbols,
}

impl kernel::Module for Tests {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // Before the suites run, which is when the module is live.
        Ok(Self {
            _symbols: sys::ksym::Symbols::bind()?,
        })
    }
}
