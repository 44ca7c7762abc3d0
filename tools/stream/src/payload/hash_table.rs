// SPDX-License-Identifier: GPL-2.0

//! The hash table of a POWER machine (`hw/ppc/spapr.c`): `be32` its size, or that there is none, and
//! nothing else; or a `be32` 0 and then chunks of `be32 index, be16 valid, be16 invalid` with 16
//! bytes for each valid entry, up to a chunk of zeros.

use crate::field::{
    be16,
    be32,
    be64,
    Flow,
    Machine,
    Need, //
};
use crate::reason::Reason;

/// Bytes of an entry.
const ENTRY_BYTES: u64 = 16;

/// What comes next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HashTable {
    /// The size of the table.
    Shift,
    /// The head of a chunk.
    Chunk,
    /// Bytes of valid entries.
    Entries(u64),
}

impl Machine for HashTable {
    fn need(&self) -> Need {
        match self {
            Self::Shift => Need::Field(4),
            Self::Chunk => Need::Field(8),
            Self::Entries(bytes) => Need::Skip(*bytes),
        }
    }

    fn take(&mut self, field: &[u8]) -> Result<Flow, Reason> {
        *self = match self {
            Self::Shift if be32(field, 0) != 0 => return Ok(Flow::Done),
            Self::Shift => Self::Chunk,
            _ if be64(field, 0) == 0 => return Ok(Flow::Done),
            // OVERFLOW: 16 bits times 16.
            _ => Self::Entries(u64::from(be16(field, 4)) * ENTRY_BYTES),
        };
        Ok(Flow::More)
    }

    fn passed(&mut self) -> Flow {
        *self = Self::Chunk;
        Flow::More
    }
}
