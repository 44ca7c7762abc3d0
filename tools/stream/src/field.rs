// SPDX-License-Identifier: GPL-2.0

//! Reading integers and names out of bytes that are there.

use crate::reason::Reason;

/// What a machine wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// So many bytes at once, from 1 to [`FIELD_BYTES`]; given to `take`.
    Field(usize),
    /// So many bytes that are nobody's business; told to `passed` when they are over.
    Skip(u64),
    /// The body of a page; told to `passed`.
    Page,
    /// All that comes, for ever.
    Rest,
}

/// The longest field: a name with its section's instance and version.
pub(crate) const FIELD_BYTES: usize = 255 + 8;

/// A machine that reads something and knows when it is over.
pub(crate) trait Machine {
    /// What it wants next.
    fn need(&self) -> Need;

    /// Takes the field that it wanted.
    ///
    /// # Errors
    ///
    /// The field is not understood.
    fn take(&mut self, field: &[u8]) -> Result<Flow, Reason>;

    /// What it wanted to skip is over.
    fn passed(&mut self) -> Flow;
}

/// Does a machine go on?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// It wants more.
    More,
    /// It wants more, and the field was not what it might have been: it is to be read again.
    Unread,
    /// It is over.
    Done,
}

/// The byte at `place`; 0 if it is not there, which no caller asks for.
pub(crate) fn byte(bytes: &[u8], place: usize) -> u8 {
    bytes.get(place).copied().unwrap_or(0)
}

/// The big-endian integer of 16 bits at `place`; 0 if it is not there.
pub(crate) fn be16(bytes: &[u8], place: usize) -> u16 {
    array(bytes, place).map_or(0, u16::from_be_bytes)
}

/// The big-endian integer of 32 bits at `place`; 0 if it is not there.
pub(crate) fn be32(bytes: &[u8], place: usize) -> u32 {
    array(bytes, place).map_or(0, u32::from_be_bytes)
}

/// The big-endian integer of 64 bits at `place`; 0 if it is not there.
pub(crate) fn be64(bytes: &[u8], place: usize) -> u64 {
    array(bytes, place).map_or(0, u64::from_be_bytes)
}

/// `N` bytes at `place`.
fn array<const N: usize>(bytes: &[u8], place: usize) -> Option<[u8; N]> {
    bytes.get(place..)?.first_chunk().copied()
}

/// The length of a name, from its first byte.
///
/// # Errors
///
/// [`Reason::BadName`] if it is 0.
pub(crate) fn name_length(bytes: &[u8], place: usize) -> Result<usize, Reason> {
    match byte(bytes, place) {
        0 => Err(Reason::BadName),
        length => Ok(length.into()),
    }
}

/// A name, if it can be printed.
///
/// # Errors
///
/// [`Reason::BadName`] otherwise.
pub(crate) fn name(bytes: &[u8]) -> Result<&str, Reason> {
    let printable = bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
    match std::str::from_utf8(bytes) {
        Ok(name) if printable && !name.is_empty() => Ok(name),
        _ => Err(Reason::BadName),
    }
}
