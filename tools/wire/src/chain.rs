// SPDX-License-Identifier: GPL-2.0

//! The running hash of one direction of a connection.
//!
//! It begins with who speaks to whom, and each frame's value is computed from that of the frame
//! before. For a block, what is hashed is not the payload but a *transcript*: everything that was
//! decoded, with the digest of a page in place of its bytes, so that a page is hashed once on each
//! side. The transcript also has the digest of each page that a block refers to, so that two
//! dictionaries which do not hold the same are found out before a byte is released.

use sha2::{
    Digest as _,
    Sha256, //
};

use crate::digest::Digest;
use crate::frame::{
    Direction,
    CHAIN_BYTES,
    HEADER_BYTES, //
};
use crate::hello::SessionId;
use crate::limits::BLOCK_HEADER;
use crate::page::PAGE_BYTES;

/// What every running hash begins with.
const NAME: &[u8] = b"twinpage-migrate 1";

/// A value of the running hash.
pub(crate) type Value = [u8; CHAIN_BYTES];

/// The value before the first frame.
pub(crate) fn start(direction: Direction, session: &SessionId, channel: u16) -> Value {
    let way = match direction {
        Direction::ToReceiver => 1,
        Direction::ToSender => 2,
    };
    Sha256::new()
        .chain_update(NAME)
        .chain_update([way])
        .chain_update(session.0)
        .chain_update(channel.to_le_bytes())
        .finalize()
        .into()
}

/// The value after a frame: `content` is its payload, or the hash of its transcript for a block.
pub(crate) fn next(previous: &Value, header: &[u8], content: &[u8]) -> Value {
    debug_assert_eq!(header.len(), HEADER_BYTES);
    Sha256::new()
        .chain_update(previous)
        .chain_update(header)
        .chain_update(content)
        .finalize()
        .into()
}

/// What the hash of a transcript is made from.
pub(crate) struct Transcript<'a> {
    /// The header of the block.
    pub(crate) header: &'a [u8; BLOCK_HEADER],
    /// Checksum of the compressed bytes, if the block is compressed.
    pub(crate) checksum: Option<u64>,
    /// The operations.
    pub(crate) raw: &'a [u8],
    /// Where the bytes of pages begin in them, in rising order.
    pub(crate) bodies: &'a [u32],
    /// Digests of those pages, then of references, then of back references.
    pub(crate) digests: [&'a [Digest]; 3],
}

impl Transcript<'_> {
    /// Its hash.
    pub(crate) fn hash(&self) -> Value {
        let mut hash = Sha256::new().chain_update(self.header);
        if let Some(checksum) = self.checksum {
            hash.update(checksum.to_le_bytes());
        }
        let mut from = 0;
        for &start in self.bodies {
            let start = start as usize;
            hash.update(&self.raw[from..start]);
            from = start + PAGE_BYTES;
        }
        hash.update(&self.raw[from..]);
        for digest in self.digests.into_iter().flatten() {
            hash.update(digest.0);
        }
        hash.finalize().into()
    }
}
