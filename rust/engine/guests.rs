// SPDX-License-Identifier: GPL-2.0

//! The attached guests: where their memory is, and where the scanner is in it.

/// A range of host virtual addresses, page aligned, `start < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}
