// SPDX-License-Identifier: GPL-2.0

//! What travels between the two ends of a migration: frames under a running hash, blocks of stream
//! operations, the dictionary that both ends keep alike, and the filter of what the receiver has.
//!
//! No input or output happens here, and nothing here starts a thread. The format is described byte
//! by byte in `Documentation/migration.rst`, chapter "Between the proxies". Everything that comes
//! from the peer is bounded by [`limits`] before memory is allocated for it.
//!
//! Sending: [`BlockWriter`] collects [`Op`]s and gives out [`Frame`]s, [`Message`]s become frames
//! too, and a [`Sealer`] turns frames into bytes in the order in which they are written. Receiving:
//! a [`FrameReader`] takes the bytes apart, a [`BlockReader`] decodes blocks, and [`Block::verify`]
//! says whether the bytes of a block may be released.

#![forbid(unsafe_code)]

mod block;
mod chain;
mod compress;
mod cursor;
mod dictionary;
mod digest;
mod error;
mod filter;
mod frame;
mod frames;
mod hello;
mod lent;
pub mod limits;
mod message;
mod op;
mod page;
mod parts;
mod reader;
mod varint;
mod writer;

pub use block::Block;
pub use compress::Compression;
pub use dictionary::{
    DigestRing,
    Keep,
    PageRing,
    SenderDictionary, //
};
pub use digest::{
    Digest,
    DigestError, //
};
pub use error::{
    Error,
    ErrorCode,
    Fault,
    Place, //
};
pub use filter::{
    Filter,
    FilterBuilder, //
};
pub use frame::{
    Direction,
    Frame,
    Kind,
    CHAIN_BYTES,
    HEADER_BYTES, //
};
pub use frames::{
    FrameHeader,
    FrameReader,
    Incoming,
    Sealed,
    Sealer, //
};
pub use hello::{
    Agreed,
    FilterKey,
    Hello,
    Purpose,
    Role,
    SessionId,
    VERSION, //
};
pub use lent::{
    LentPage,
    Memory,
    Spread, //
};
pub use message::{
    Message,
    PeerError, //
};
pub use op::{
    Header,
    Item,
    Op, //
};
pub use page::{
    is_zero,
    page_header,
    write_zeros,
    zero_record,
    Page,
    PAGE_BYTES, //
};
pub use parts::{
    FilterAssembler,
    FilterPart, //
};
pub use reader::BlockReader;
pub use writer::{
    BlockLimits,
    BlockWriter,
    Pushed,
    WriterTotals, //
};
