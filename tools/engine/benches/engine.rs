// SPDX-License-Identifier: GPL-2.0

//! Benchmarks of the engine.

fn main() {}
