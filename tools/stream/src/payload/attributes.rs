// SPDX-License-Identifier: GPL-2.0

//! Attributes of pages of an s390 machine (`hw/s390x/s390-stattrib.c`): words of 64 bits with flags
//! in the low 12 bits; values are `be64 n` and n bytes.

use crate::field::{
    be64,
    Flow,
    Machine,
    Need, //
};
use crate::reason::Reason;

/// The bits of a word that are flags.
const FLAGS: u64 = 0xfff;
/// The section ends.
const END: u64 = 1;
/// Values follow.
const MORE: u64 = 2;
/// All values have been sent.
const COMPLETE: u64 = 8;

/// What comes next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attributes {
    /// A word.
    Word,
    /// How many values.
    Count,
    /// Values, of a byte each.
    Values(u64),
}

impl Machine for Attributes {
    fn need(&self) -> Need {
        match self {
            Self::Word | Self::Count => Need::Field(8),
            Self::Values(count) => Need::Skip(*count),
        }
    }

    fn take(&mut self, field: &[u8]) -> Result<Flow, Reason> {
        let word = be64(field, 0);
        *self = match (*self, word & FLAGS) {
            (Self::Count, _) => Self::Values(word),
            (_, END) => return Ok(Flow::Done),
            (_, MORE) => Self::Count,
            (_, COMPLETE) => Self::Word,
            _ => return Err(Reason::BadPayload),
        };
        Ok(Flow::More)
    }

    fn passed(&mut self) -> Flow {
        *self = Self::Word;
        Flow::More
    }
}
