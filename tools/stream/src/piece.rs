// SPDX-License-Identifier: GPL-2.0

//! What the parser says.

use crate::reason::Reason;

/// Bytes of a target page, and of the body of a page.
pub const PAGE_BYTES: usize = 4096;

/// What some bytes of the stream are. Adjacent pieces cover exactly the bytes that were consumed, in
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes, as they are.
    Literal(usize),
    /// The 9 bytes of the record of a zero page of the block of the record before: the big-endian word
    /// `offset | 0x22` and a byte 0.
    Zero {
        /// Offset of the page in its block.
        offset: u64,
    },
    /// The [`PAGE_BYTES`] bytes of a page.
    Page {
        /// If there is one: before the page are 8 bytes more that belong to this piece, the big-endian
        /// word `offset | 0x28`. Otherwise its header was literal.
        offset: Option<u64>,
    },
    /// No bytes: something is known from here on.
    Mark(Mark),
}

impl Piece {
    /// How many bytes of the stream it is.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Literal(bytes) => *bytes,
            Self::Zero { .. } => ZERO_BYTES,
            Self::Page { offset: None } => PAGE_BYTES,
            Self::Page { offset: Some(_) } => WORD_BYTES + PAGE_BYTES,
            Self::Mark(_) => 0,
        }
    }
}

/// Bytes of the word that starts each record of RAM.
pub(crate) const WORD_BYTES: usize = 8;
/// Bytes of the record of a zero page that names no block.
pub(crate) const ZERO_BYTES: usize = WORD_BYTES + 1;

// A piece is made for each record; it is to stay small.
const _: () = assert!(std::mem::size_of::<Piece>() <= 24);

/// What is known from some byte of the stream on. Each comes after the bytes that say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The destination was asked to answer.
    ReturnPath,
    /// RAM begins.
    RamStart {
        /// Bytes of all blocks of RAM.
        bytes: u64,
    },
    /// A section of RAM is complete.
    RamSection,
    /// The guest was stopped to be handed over: downtime has begun. Once per stream at most, at the
    /// first thing that says so: `SWITCHOVER_START` (machine types from 10.0 on), the last section of
    /// an iterable, or what starts postcopy.
    Switchover,
    /// The last section of RAM is complete.
    RamEnd,
    /// The state of devices comes in a package, and then RAM goes on (postcopy): the guest is about to
    /// run at the destination and waits for pages.
    Packaged,
    /// The rest of the stream is literal because something is not understood.
    Opaque(Opaque),
    /// The rest of the stream is literal because no page follows: after the last section of RAM, after
    /// the end of the state, or when the devices of a background snapshot begin.
    Ended,
}

/// Where and why the parser gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opaque {
    /// Offset in the stream of what is not understood.
    pub offset: u64,
    /// What it is.
    pub reason: Reason,
}

/// A kind of connection between two QEMUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// The connection of the state, which every migration has.
    Main,
    /// One of several connections for pages.
    Multifd,
    /// Something else: postcopy's channel for urgent pages, a migration that is resumed, TLS.
    Raw,
}
