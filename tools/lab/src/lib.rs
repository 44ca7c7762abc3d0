// SPDX-License-Identifier: GPL-2.0

//! Judges merging from outside the module.
//!
//! Whether two pages are one is read from page tables ([`pagemap`]), how many could be is counted
//! from a snapshot of guest memory ([`oracle`]), whether a guest still holds what it wrote is asked
//! of the guest ([`vmm`]), whether the kernel minds is read from its log ([`dmesg`]). The module's
//! own counters ([`module`]) are compared with those, never believed alone.

pub mod agent;
pub mod blocks;
pub mod cable;
pub mod cgroup;
pub mod checks;
pub mod child;
pub mod content;
pub mod damon;
pub mod dmesg;
pub mod error;
pub mod faults;
pub mod files;
pub mod guest;
pub mod initramfs;
pub mod lines;
pub mod listen;
pub mod module;
pub mod oracle;
pub mod pagemap;
pub mod payload;
pub mod place;
pub mod process;
pub mod qmp;
pub mod random;
pub mod spent;
pub mod swap;
pub mod tap;
pub mod told;
pub mod uffd;
pub mod vmm;
pub mod wait;
