// SPDX-License-Identifier: GPL-2.0

//! The `twinpage` command: attaches KVM guests to twinpage.ko and shows what they share.
//!
//! * [`cli`] is the command line, [`commands`] does what it says: one file a subcommand.
//! * [`host`] is the seam to the machine; [`device`] and [`clock`] are its other half. Everything
//!   else is computation on what they give, and is tested on fixtures.
//! * [`ioctl`](device) is the only unsafe code.

#![deny(unsafe_code)]

pub mod cli;
pub mod clock;
pub mod commands;
pub mod console;
pub mod device;
pub mod digest;
pub mod digests;
pub mod domain;
pub mod error;
pub mod guests;
pub mod host;
pub mod knobs;
pub mod module;
pub mod module_pages;
pub mod page_sources;
pub mod parse;
pub mod process;
pub mod slots;
pub mod smaps;
pub mod stats;
pub mod uapi;
pub mod units;
pub mod vm;

mod account;
mod counters;
mod estimate;
mod events;
mod ioctl;
mod leave;
mod memory;
mod notes;
mod notices;
mod progress;
mod remedy;
mod report;
mod security;
mod session;
mod settle;
mod skip;
mod snapshot;
mod status_text;
mod table;
