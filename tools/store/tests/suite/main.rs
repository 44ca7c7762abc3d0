// SPDX-License-Identifier: GPL-2.0

//! Tests of where pages come from, by what users of the crate see.

mod admission;
mod build;
mod crash;
mod damage;
mod fleet;
mod garbage;
mod image;
mod pages;
mod readers;
mod servers;
mod sources;
mod store;
