// SPDX-License-Identifier: GPL-2.0

//! Both ends of the wire against one another, and against a peer that means ill.

mod blocks;
mod common;
mod corruption;
mod dictionary;
mod filters;
mod fuzz;
mod golden;
mod hostile;
mod messages;
