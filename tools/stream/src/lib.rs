// SPDX-License-Identifier: GPL-2.0

//! Finds the pages in QEMU's migration stream.
//!
//! A [`Parser`] is fed the bytes that a source QEMU sends, in chunks as they arrive, and says of
//! each what it is: the body of a page, the record of a zero page, or a literal byte. Nothing is
//! changed and next to nothing is held back, so a stream that is misread costs compression and never
//! correctness: its pages travel as literals, or some literals as pages.
//!
//! It reads the three kinds of connection that QEMU makes ([`Channel`]), with target pages of 4096
//! bytes. The format is that of `migration/savevm.c`, `migration/ram.c` and
//! `migration/multifd-nocomp.c` of QEMU, after the sources of 7.2 to 10.2; tried with 7.2 and 10.0.
//! `Documentation/migration.rst`, chapter "The stream", has it with byte offsets, and what this
//! crate makes of each part.
//!
//! # Examples
//!
//! ```
//! use twinpage_stream::{Parser, Piece};
//!
//! let mut parser = Parser::new();
//! let mut pieces = Vec::new();
//! assert_eq!(parser.feed(b"QEVM", &mut pieces), 4);
//! assert_eq!(pieces, [Piece::Literal(4)]);
//! ```

#![forbid(unsafe_code)]

mod blocks;
mod command;
mod config;
mod field;
mod multifd;
mod output;
mod parser;
mod payload;
mod piece;
mod ram;
mod reason;
mod sections;
mod stream;

pub use parser::Parser;
pub use piece::{
    Channel,
    Mark,
    Opaque,
    Piece,
    PAGE_BYTES, //
};
pub use reason::Reason;
