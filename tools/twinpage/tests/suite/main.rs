// SPDX-License-Identifier: GPL-2.0

//! Tests of whole commands on a machine made of fixtures.
//!
//! Golden files hold what users and programs see. To accept a change in them, run the tests with
//! `TWINPAGE_BLESS=1` and read the difference before committing it.

mod attach;
mod detach;
mod digests;
mod fakes;
mod golden;
mod hostile;
mod layout;
mod live;
mod machine;
mod migrate;
mod module_pages;
mod plan;
mod program;
mod progress;
mod qemu;
mod set;
mod shared;
mod sources;
mod status;
mod store;

#[path = "../../../migrate/tests/common/synth.rs"]
mod synth;
