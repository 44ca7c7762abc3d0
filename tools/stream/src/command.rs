// SPDX-License-Identifier: GPL-2.0

//! Commands between sections: `be16 number, be16 length`, then so many bytes.

use crate::reason::Reason;

/// Bytes of number and length.
pub(crate) const COMMAND_BYTES: usize = 4;
/// Bytes of a postcopy advice that has sizes in it, and of the command of a package.
pub(crate) const ADVISE_BYTES: usize = 16;
/// Bytes of the length of a package.
pub(crate) const PACKAGED_BYTES: usize = 4;
/// The longest package that QEMU accepts.
pub(crate) const MOST_PACKAGED: u32 = 1 << 24;

/// What a command means for the parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// The destination is to answer.
    ReturnPath,
    /// Postcopy may come; 16 bytes with sizes of pages follow.
    Advise,
    /// The guest stands still.
    Switchover,
    /// Pages are to be forgotten, for postcopy, and the guest stands still; so many bytes follow.
    Discard(u16),
    /// A package follows, whose length does.
    Packaged,
    /// Nothing; so many bytes follow.
    Nothing(u16),
}

impl Command {
    /// The command `number` with `length` bytes.
    ///
    /// # Errors
    ///
    /// It is unknown, has no such length, or cannot be followed.
    pub(crate) fn new(number: u16, length: u16) -> Result<Self, Reason> {
        match (number, length) {
            (1, 0) => Ok(Self::ReturnPath),
            // A ping; advice for bitmaps alone; listen, run and resume; a bitmap's name.
            (2, 4) | (3 | 4 | 5 | 9, 0) | (10, 2..=256) => Ok(Self::Nothing(length)),
            (3, 16) => Ok(Self::Advise),
            (6, _) => Ok(Self::Discard(length)),
            (7, 4) => Ok(Self::Packaged),
            (8, _) => Err(Reason::Colo),
            (11, 0) => Ok(Self::Switchover),
            (1..=11, _) => Err(Reason::CommandLength(length)),
            _ => Err(Reason::UnknownCommand(number)),
        }
    }
}
