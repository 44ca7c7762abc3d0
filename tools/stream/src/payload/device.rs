// SPDX-License-Identifier: GPL-2.0

//! A passed-through device while it runs (`hw/vfio/migration.c`): tags of 64 bits; that of data is
//! followed by `be64 n` and n bytes.

use crate::field::{
    be64,
    Flow,
    Machine,
    Need, //
};
use crate::reason::Reason;

/// The section ends.
const END: u64 = 0xffff_ffff_ef10_0001;
/// Setup.
const SETUP: u64 = 0xffff_ffff_ef10_0003;
/// Data.
const DATA: u64 = 0xffff_ffff_ef10_0004;
/// The initial data has been sent; the section ends.
const INITIAL_SENT: u64 = 0xffff_ffff_ef10_0005;

/// What comes next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Device {
    /// A tag.
    Tag,
    /// The length of data.
    Length,
    /// Data.
    Data(u64),
}

impl Machine for Device {
    fn need(&self) -> Need {
        match self {
            Self::Tag | Self::Length => Need::Field(8),
            Self::Data(length) => Need::Skip(*length),
        }
    }

    fn take(&mut self, field: &[u8]) -> Result<Flow, Reason> {
        *self = match (*self, be64(field, 0)) {
            (Self::Tag, SETUP) => Self::Tag,
            (Self::Tag, DATA) => Self::Length,
            (Self::Tag, END | INITIAL_SENT) => return Ok(Flow::Done),
            (Self::Tag | Self::Data(_), _) => return Err(Reason::BadPayload),
            (Self::Length, length) => Self::Data(length),
        };
        Ok(Flow::More)
    }

    fn passed(&mut self) -> Flow {
        *self = Self::Tag;
        Flow::More
    }
}
