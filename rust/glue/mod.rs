// SPDX-License-Identifier: GPL-2.0

//! Between the engine and the kernel: safe code only, and the only code that knows both.
//!
//! * [`shared`] is what everything hangs on: one mutex over [`state`], and the alarm clock.
//! * [`state`] has the sharing domains and the attached [`guests`].
//! * [`world`] lets the engine see them, with [`headroom`] asked before memory is given back.
//! * [`scanner`] is the thread that does the work.
//! * [`device`], [`control`] and [`export`] are what userspace talks to: ioctls, sysfs, debugfs.
//! * [`reclaim`] gives memory back when it is short.
//!
//! `Documentation/locking.rst` has the order of all locks.

pub(crate) mod control;
pub(crate) mod device;
pub(crate) mod export;
pub(crate) mod scanner;
pub(crate) mod shared;

mod error;
mod guests;
mod headroom;
mod reclaim;
mod state;
mod world;
