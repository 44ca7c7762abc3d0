// SPDX-License-Identifier: GPL-2.0

//! How much of a virtio-mem device is plugged (`hw/virtio/virtio-mem.c`): `be64 address, be64
//! region size, be64 block size, be32 node, be64 plugged size`, and a bit for each block of the
//! region, in words of 64.

use crate::field::{
    be64,
    Flow,
    Machine,
    Need, //
};
use crate::reason::Reason;

/// Bytes before the bits.
const HEAD_BYTES: usize = 36;
/// Bits in a word.
const WORD_BITS: u64 = 64;
/// Bytes of a word.
const WORD_BYTES: u64 = 8;
/// The smallest block that the device can have.
const LEAST_BLOCK: u64 = 1 << 20;

/// What comes next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Memory {
    /// Sizes.
    Head,
    /// Bytes of the bits.
    Bits(u64),
}

impl Machine for Memory {
    fn need(&self) -> Need {
        match self {
            Self::Head => Need::Field(HEAD_BYTES),
            Self::Bits(bytes) => Need::Skip(*bytes),
        }
    }

    fn take(&mut self, field: &[u8]) -> Result<Flow, Reason> {
        let (region, block) = (be64(field, 8), be64(field, 16));
        if block < LEAST_BLOCK || !block.is_power_of_two() {
            return Err(Reason::BadPayload);
        }
        // OVERFLOW: There are at most 2^44 blocks.
        *self = Self::Bits(region.div_ceil(block).div_ceil(WORD_BITS) * WORD_BYTES);
        Ok(Flow::More)
    }

    fn passed(&mut self) -> Flow {
        Flow::Done
    }
}
