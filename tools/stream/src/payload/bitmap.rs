// SPDX-License-Identifier: GPL-2.0

//! Dirty bitmaps of disks (`migration/block-dirty-bitmap.c`).
//!
//! ```text
//! until a chunk has the flag END:
//!     u8 flags; 1 or 3 bytes more if they have the top bit, which QEMU does not send
//!     [u8 n, n bytes: node]      flag NODE
//!     [u8 n, n bytes: bitmap]    flag NAME
//!     START: be32 granularity, u8     COMPLETE: nothing
//!     BITS: be64 sector, be32 sectors [be64 n, n bytes] without flag ZEROES
//! ```

use crate::field::{
    be64,
    byte,
    name_length,
    Flow,
    Machine,
    Need, //
};
use crate::reason::Reason;

/// The last chunk.
const END: u8 = 0x01;
/// No bits are set.
const ZEROES: u8 = 0x02;
/// The bitmap is named.
const NAME: u8 = 0x04;
/// The node is named.
const NODE: u8 = 0x08;
/// A bitmap begins.
const START: u8 = 0x10;
/// A bitmap is complete.
const COMPLETE: u8 = 0x20;
/// Bits.
const BITS: u8 = 0x40;
/// More bytes of flags follow.
const MORE: u8 = 0x80;

/// Flags of a chunk, of which the names are struck off as they come.
type Flags = u8;

/// What comes next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bitmap {
    /// The flags of a chunk.
    Flags,
    /// A second byte of flags.
    SecondFlags,
    /// The third and fourth byte of flags.
    LastFlags,
    /// The length of a name.
    NameLength(Flags),
    /// A name.
    Name(Flags, usize),
    /// Granularity and flags of a bitmap.
    Start(Flags),
    /// The place of bits.
    Place(Flags),
    /// The length of bits.
    BitsLength(Flags),
    /// Bits.
    Bits(Flags, u64),
}

impl Bitmap {
    /// What follows the flags, or the names that were struck off.
    fn after_names(&mut self, flags: Flags) -> Flow {
        *self = if flags & (NODE | NAME) != 0 {
            Self::NameLength(flags)
        } else if flags & START != 0 {
            Self::Start(flags)
        } else if flags & COMPLETE == 0 && flags & BITS != 0 {
            Self::Place(flags)
        } else {
            return self.chunk_ended(flags);
        };
        Flow::More
    }

    /// A chunk is complete.
    fn chunk_ended(&mut self, flags: Flags) -> Flow {
        *self = Self::Flags;
        match flags & END {
            0 => Flow::More,
            _ => Flow::Done,
        }
    }
}

impl Machine for Bitmap {
    fn need(&self) -> Need {
        match self {
            Self::Flags | Self::SecondFlags | Self::NameLength(_) => Need::Field(1),
            Self::LastFlags => Need::Field(2),
            Self::Name(_, length) => Need::Field(*length),
            Self::Start(_) => Need::Field(5),
            Self::Place(_) => Need::Field(12),
            Self::BitsLength(_) => Need::Field(8),
            Self::Bits(_, length) => Need::Skip(*length),
        }
    }

    fn take(&mut self, field: &[u8]) -> Result<Flow, Reason> {
        match *self {
            Self::Flags if byte(field, 0) & MORE != 0 => *self = Self::SecondFlags,
            Self::SecondFlags if byte(field, 0) & MORE != 0 => *self = Self::LastFlags,
            Self::Flags | Self::SecondFlags => return Ok(self.after_names(byte(field, 0))),
            Self::LastFlags => return Ok(self.after_names(byte(field, 1))),
            Self::NameLength(flags) => *self = Self::Name(flags, name_length(field, 0)?),
            Self::Name(flags, _) => {
                // The node comes first.
                let struck = if flags & NODE != 0 { NODE } else { NAME };
                return Ok(self.after_names(flags & !struck));
            }
            Self::Place(flags) if flags & ZEROES == 0 => *self = Self::BitsLength(flags),
            Self::Start(flags) | Self::Place(flags) => return Ok(self.chunk_ended(flags)),
            Self::BitsLength(flags) => *self = Self::Bits(flags, be64(field, 0)),
            Self::Bits(..) => {}
        }
        Ok(Flow::More)
    }

    fn passed(&mut self) -> Flow {
        match *self {
            Self::Bits(flags, _) => self.chunk_ended(flags),
            _ => Flow::More,
        }
    }
}
