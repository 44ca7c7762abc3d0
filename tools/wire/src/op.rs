// SPDX-License-Identifier: GPL-2.0

//! Operations: what a block is made of.
//!
//! | code | operation | what follows |
//! |---|---|---|
//! | 1 | literal | u16 length, at least 1; bytes |
//! | 2 | zeros | difference of the first offset, number of records less 1 |
//! | 3 | zero page | nothing |
//! | 4 | page | 4096 bytes |
//! | 5 | reference | nothing: its digest is behind the operations |
//! | 6 | back reference | pages back, less 1 |
//!
//! Operations 3 to 6 may stand for the header in front of the page as well. The code then has 0x10
//! added if the header has the predicted offset, and 0x20 if a difference follows the code.
//! In a block, a literal follows another only if that one is as long as literals can be.
//! Predicted is the page after that of the last record with an offset, and 0 at the beginning.

use crate::digest::Digest;
use crate::lent::LentPage;
use crate::page::{
    Page,
    PAGE_BYTES,
    PAGE_HEADER_BYTES,
    ZERO_RECORD_BYTES, //
};

/// Whether the eight bytes [`page_header`](crate::page_header) are in front of a page, and the
/// offset in them.
pub type Header = Option<u64>;

/// Codes of operations.
pub(crate) mod code {
    /// Bytes.
    pub(crate) const LITERAL: u8 = 1;
    /// Records of zero pages.
    pub(crate) const ZEROS: u8 = 2;
    /// A page of zeros.
    pub(crate) const ZERO_PAGE: u8 = 3;
    /// A page.
    pub(crate) const PAGE: u8 = 4;
    /// A page that the receiver may have.
    pub(crate) const REFERENCE: u8 = 5;
    /// A page that came before.
    pub(crate) const BACK: u8 = 6;
    /// Added to a code: the header has the predicted offset.
    pub(crate) const PREDICTED: u8 = 0x10;
    /// Added to a code: the header has another offset.
    pub(crate) const EXPLICIT: u8 = 0x20;
}

/// What the sender puts into a block.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// Bytes as they are.
    Literal(&'a [u8]),
    /// Records of zero pages at offsets that rise by one page.
    Zeros {
        /// The first offset.
        first: u64,
        /// How many.
        count: u32,
    },
    /// A page that is all zeros.
    ZeroPage {
        /// The header in front of it.
        header: Header,
    },
    /// A page.
    Page {
        /// The header in front of it.
        header: Header,
        /// The digest of the page.
        digest: &'a Digest,
        /// Its bytes.
        page: &'a Page,
    },
    /// A page that is left where it lies until it is written. It becomes the same as [`Op::Page`].
    LentPage {
        /// The header in front of it.
        header: Header,
        /// The digest of the page.
        digest: &'a Digest,
        /// The page.
        page: LentPage<'a>,
    },
    /// A page that the receiver probably has.
    Reference {
        /// The header in front of it.
        header: Header,
        /// The digest of the page.
        digest: &'a Digest,
    },
    /// A page that came before.
    Back {
        /// The header in front of it.
        header: Header,
        /// How many entries of the dictionary it is back.
        distance: u32,
        /// The digest of the page.
        digest: &'a Digest,
    },
}

/// What the receiver finds in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Bytes as they are.
    Literal {
        /// Where they are in [`Block::bytes`](crate::Block::bytes).
        start: u32,
        /// How many.
        len: u32,
    },
    /// Records of zero pages at offsets that rise by one page.
    Zeros {
        /// The first offset.
        first: u64,
        /// How many.
        count: u32,
    },
    /// A page that is all zeros.
    ZeroPage {
        /// The header in front of it.
        header: Header,
    },
    /// A page.
    Page {
        /// The header in front of it.
        header: Header,
        /// Where it is in [`Block::bytes`](crate::Block::bytes).
        start: u32,
    },
    /// A page that the receiver may have.
    Reference {
        /// The header in front of it.
        header: Header,
        /// Where its digest is in [`Block::references`](crate::Block::references).
        index: u32,
    },
    /// A page that came before.
    Back {
        /// The header in front of it.
        header: Header,
        /// How many entries of the dictionary it is back.
        distance: u32,
    },
}

impl Item {
    /// How many bytes of the stream it stands for.
    pub fn stream_bytes(&self) -> u64 {
        match *self {
            Self::Literal { len, .. } => len.into(),
            Self::Zeros { count, .. } => u64::from(count) * ZERO_RECORD_BYTES as u64,
            Self::ZeroPage { header }
            | Self::Page { header, .. }
            | Self::Reference { header, .. }
            | Self::Back { header, .. } => page_bytes(header),
        }
    }
}

/// How many bytes of the stream a page stands for.
pub(crate) fn page_bytes(header: Header) -> u64 {
    let header = header.map_or(0, |_| PAGE_HEADER_BYTES);
    (header + PAGE_BYTES) as u64
}

/// The offset of the record after the one at `offset`.
pub(crate) fn after(offset: u64) -> u64 {
    offset.wrapping_add(PAGE_BYTES as u64)
}
