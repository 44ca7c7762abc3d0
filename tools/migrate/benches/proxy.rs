// SPDX-License-Identifier: GPL-2.0

//! Throughput of the two proxies.

fn main() {}
