// SPDX-License-Identifier: GPL-2.0

//! Frames: a header, a payload, and the value of the running hash after them.
//!
//! | bytes | what |
//! |---|---|
//! | 0 | kind |
//! | 1..4 | 0 |
//! | 4..8 | bytes of the payload |
//! | 8.. | payload |
//! | then 32 | running hash |

use std::fmt;

use crate::error::{
    Error,
    Fault, //
};
use crate::lent::LentPages;
use crate::limits;
use crate::page::{
    Page,
    PAGE_BYTES, //
};

/// Bytes of the header of a frame.
pub const HEADER_BYTES: usize = 8;

/// Bytes of the running hash behind a frame.
pub const CHAIN_BYTES: usize = 32;

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the sender, at the source QEMU, to the receiver.
    ToReceiver,
    /// From the receiver, at the destination QEMU, to the sender.
    ToSender,
}

/// What is in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Who speaks, and about what. The first frame of each side.
    Hello,
    /// Why the connection ends. The last frame of its side.
    Error,
    /// A sign of life.
    Ping,
    /// A part of the migration stream.
    Block,
    /// A page that the receiver asked for.
    Heal,
    /// The end of the migration stream.
    Eof,
    /// What follows may complete the destination.
    Handover,
    /// A part of the filter.
    Filter,
    /// Bytes of the return path.
    Return,
    /// The end of the return path.
    ReturnEof,
    /// What the receiver has passed on.
    Ack,
    /// A page that the receiver asks for.
    Miss,
}

/// What is said of a kind.
struct Row {
    /// The kind.
    kind: Kind,
    /// Its code on the wire.
    code: u8,
    /// Its name.
    name: &'static str,
    /// The shortest and the longest payload.
    payload: (usize, usize),
    /// Which way it goes, if only one.
    only: Option<Direction>,
}

/// All kinds, in the order of the variants.
const KINDS: [Row; 12] = {
    use Direction::{
        ToReceiver,
        ToSender, //
    };
    let heal = 8 + PAGE_BYTES;
    let filter = 16 + limits::FILTER_PART;
    [
        row(Kind::Hello, 1, "HELLO", (70, limits::HELLO_BYTES), None),
        row(Kind::Error, 2, "ERROR", (2, 2 + limits::ERROR_TEXT), None),
        row(Kind::Ping, 3, "PING", (0, 0), None),
        row(
            Kind::Block,
            16,
            "BLOCK",
            (17, limits::BLOCK_PAYLOAD),
            Some(ToReceiver),
        ),
        row(Kind::Heal, 17, "HEAL", (heal, heal), Some(ToReceiver)),
        row(Kind::Eof, 18, "EOF", (8, 8), Some(ToReceiver)),
        row(Kind::Handover, 19, "HANDOVER", (0, 0), Some(ToReceiver)),
        row(Kind::Filter, 32, "FILTER", (16, filter), Some(ToSender)),
        row(
            Kind::Return,
            33,
            "RETURN",
            (1, limits::RETURN_BYTES),
            Some(ToSender),
        ),
        row(Kind::ReturnEof, 34, "RETURN_EOF", (0, 0), Some(ToSender)),
        row(Kind::Ack, 35, "ACK", (16, 16), Some(ToSender)),
        row(Kind::Miss, 36, "MISS", (8, 8), Some(ToSender)),
    ]
};

/// A row of the table.
const fn row(
    kind: Kind,
    code: u8,
    name: &'static str,
    payload: (usize, usize),
    only: Option<Direction>,
) -> Row {
    Row {
        kind,
        code,
        name,
        payload,
        only,
    }
}

impl Kind {
    /// All kinds.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|row| row.kind)
    }

    /// The kind of the code `code`.
    pub(crate) fn of_code(code: u8) -> Option<Self> {
        KINDS
            .iter()
            .find(|row| row.code == code)
            .map(|row| row.kind)
    }

    /// Its code on the wire.
    pub fn code(self) -> u8 {
        self.row().code
    }

    /// The shortest payload that it may have.
    pub fn min_payload(self) -> usize {
        self.row().payload.0
    }

    /// The longest payload that it may have.
    pub fn max_payload(self) -> usize {
        self.row().payload.1
    }

    /// Whether it may be sent that way.
    pub fn goes(self, direction: Direction) -> bool {
        self.row().only.is_none_or(|only| only == direction)
    }

    /// Its row in the table.
    fn row(self) -> &'static Row {
        // The table is in the order of the variants, which a test says.
        &KINDS[self as usize]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// A frame that is to be sent: header and payload, and room for the running hash, which a
/// [`Sealer`](crate::Sealer) adds when the frame's turn has come.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What it is.
    kind: Kind,
    /// Header and payload, without the pages that lie elsewhere.
    pub(crate) bytes: Vec<u8>,
    /// Those pages.
    pub(crate) lent: LentPages,
    /// What enters the running hash in place of the payload of a block.
    pub(crate) transcript: Option<[u8; CHAIN_BYTES]>,
}

impl Frame {
    /// A frame of `kind` with the payload `parts`, one after another.
    ///
    /// # Errors
    ///
    /// The payload is longer than its kind may have.
    pub(crate) fn new(kind: Kind, parts: &[&[u8]]) -> Result<Self, Error> {
        let payload = parts.iter().map(|part| part.len()).sum::<usize>();
        let max = kind.max_payload();
        if payload > max {
            let what = kind.row().name;
            let bytes = payload;
            return Err(Error::TooLong { what, bytes, max });
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload + CHAIN_BYTES);
        bytes.extend_from_slice(&header(kind, payload));
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(Self {
            kind,
            bytes,
            lent: LentPages::default(),
            transcript: None,
        })
    }

    /// A block: `bytes` has room for the header in front of the payload, and `lent` are the pages
    /// that belong into it.
    pub(crate) fn block(
        mut bytes: Vec<u8>,
        lent: LentPages,
        transcript: [u8; CHAIN_BYTES],
    ) -> Self {
        let payload = bytes.len() - HEADER_BYTES + lent.bytes();
        bytes[..HEADER_BYTES].copy_from_slice(&header(Kind::Block, payload));
        Self {
            kind: Kind::Block,
            bytes,
            lent,
            transcript: Some(transcript),
        }
    }

    /// The answer to a MISS: the page of reference number `reference`.
    pub fn heal(reference: u64, page: &Page) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 8 + PAGE_BYTES + CHAIN_BYTES);
        bytes.extend_from_slice(&header(Kind::Heal, 8 + PAGE_BYTES));
        bytes.extend_from_slice(&reference.to_le_bytes());
        bytes.extend_from_slice(page);
        Self {
            kind: Kind::Heal,
            bytes,
            lent: LentPages::default(),
            transcript: None,
        }
    }

    /// Bytes of the return path.
    ///
    /// # Errors
    ///
    /// They are more than [`limits::RETURN_BYTES`].
    pub fn return_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Self::new(Kind::Return, &[bytes])
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes that it takes on the wire.
    pub fn wire_bytes(&self) -> usize {
        self.bytes.len() + self.lent.bytes() + CHAIN_BYTES
    }
}

/// The header of a frame.
fn header(kind: Kind, payload: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = kind.code();
    // CAST: No kind may have more than a few MiB.
    header[4..].copy_from_slice(&(payload as u32).to_le_bytes());
    header
}

/// What the header `bytes` says: kind and bytes of the payload.
///
/// # Errors
///
/// The kind is unknown or does not go in `direction`, or the length is not one of its kind.
pub(crate) fn parse_header(
    bytes: [u8; HEADER_BYTES],
    direction: Direction,
) -> Result<(Kind, usize), Fault> {
    let [code, zero @ .., a, b, c, d] = bytes;
    let kind = Kind::of_code(code).ok_or(Fault::UnknownKind(code))?;
    if zero != [0; 3] {
        let [x, y, z] = zero;
        return Err(Fault::Value {
            what: "Reserved part of the header",
            offset: 1,
            value: u64::from(u32::from_le_bytes([x, y, z, 0])),
        });
    }
    if !kind.goes(direction) {
        return Err(Fault::Direction(kind));
    }
    let size = u32::from_le_bytes([a, b, c, d]);
    let max = kind.max_payload();
    let payload = size as usize;
    if payload > max {
        return Err(Fault::TooLong {
            what: kind.row().name,
            size: u64::from(size),
            max: max as u64,
        });
    }
    if payload < kind.min_payload() {
        return Err(Fault::Length {
            what: kind.row().name,
            found: u64::from(size),
            expected: kind.min_payload() as u64,
        });
    }
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_kinds() {
        for (row, kind) in KINDS.iter().zip(Kind::all()) {
            assert_eq!(kind.row().code, row.code);
            assert_eq!(Kind::of_code(kind.code()), Some(kind));
            assert!(kind.min_payload() <= kind.max_payload());
        }
        assert_eq!(Kind::all().count(), KINDS.len());
    }

    #[test]
    fn a_header_is_refused_unless_all_of_it_is_right() {
        let good = header(Kind::Miss, 8);
        assert_eq!(parse_header(good, Direction::ToSender), Ok((Kind::Miss, 8)));
        let wrong_way = parse_header(good, Direction::ToReceiver);
        assert_eq!(wrong_way, Err(Fault::Direction(Kind::Miss)));
        for at in 0..HEADER_BYTES {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert!(parse_header(bad, Direction::ToSender).is_err(), "byte {at}");
        }
    }

    #[test]
    fn no_header_announces_more_than_its_kind_may_have() {
        for kind in Kind::all() {
            let direction = if kind.goes(Direction::ToReceiver) {
                Direction::ToReceiver
            } else {
                Direction::ToSender
            };
            let longest = header(kind, kind.max_payload());
            assert_eq!(
                parse_header(longest, direction),
                Ok((kind, kind.max_payload()))
            );
            for payload in [kind.max_payload() + 1, 1 << 24, u32::MAX as usize] {
                let result = parse_header(header(kind, payload), direction);
                assert!(
                    matches!(result, Err(Fault::TooLong { .. })),
                    "{kind} {payload}"
                );
            }
        }
    }
}
