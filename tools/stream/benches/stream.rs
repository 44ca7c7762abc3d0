// SPDX-License-Identifier: GPL-2.0

//! What parsing costs.

fn main() {}
