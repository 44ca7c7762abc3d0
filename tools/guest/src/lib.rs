// SPDX-License-Identifier: GPL-2.0

//! What a guest of the demo and the tests holds in its memory, and how it is asked about it.
//!
//! The guest is a stock kernel and one static program as its `/init`. That program fills memory
//! with content that both sides can compute ([`pattern`]), as its kernel command line says
//! ([`config`]), keeps part of it changing ([`memory`]), and answers one-line questions on its
//! second serial port ([`protocol`]). The program in the host uses the same modules to ask.

pub mod config;
pub mod memory;
pub mod pattern;
pub mod protocol;
