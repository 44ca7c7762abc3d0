// SPDX-License-Identifier: GPL-2.0

//! The bytes of `digests`: one header, then one record a page.
//!
//! All fields are little-endian. `rust/uapi/twinpage.h` is the definition; the tool's
//! tests compare its offsets with these.
//!
//! | header bytes | field                          | record bytes | field                     |
//! |--------------|--------------------------------|--------------|---------------------------|
//! | 0..8         | magic                          | 0..8         | guest frame number        |
//! | 8..12        | version, 1                     | 8..12        | state                     |
//! | 12..16       | bytes of the header, 64        | 12..16       | zero                      |
//! | 16..20       | bytes of a record, 64          | 16..24       | serial number of the copy |
//! | 20..24       | attachment                     | 24..56       | SHA-256 of the page       |
//! | 24..32       | domain                         | 56..64       | zero                      |
//! | 32..40       | number of records              |              |                           |
//! | 40..48       | layout                         |              |                           |
//! | 48..64       | zero                           |              |                           |

use super::world::DIGEST_BYTES;

/// What the header starts with: `TWPDGST1`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"TWPDGST1");

/// The version that this file describes.
pub const VERSION: u32 = 1;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 64;

/// SHA-256 of a page of zeroes.
pub const ZERO_DIGEST: [u8; DIGEST_BYTES] = [
    0xad, 0x7f, 0xac, 0xb2, 0x58, 0x6f, 0xc6, 0xe9, 0x66, 0xc0, 0x04, 0xd7, 0xd1, 0xd1, 0x6b, 0x02,
    0x4f, 0x58, 0x05, 0xff, 0x7c, 0xb4, 0x7c, 0x7a, 0x85, 0xda, 0xbd, 0x8b, 0x48, 0x89, 0x2c, 0xa7,
];

/// What the file is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the attachment.
    pub id: u32,
    /// Sharing domain.
    pub domain: u64,
    /// How many records follow.
    pub records: u64,
    /// Changes when a memslot does.
    pub layout: u64,
}

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Guest frame number.
    pub gfn: u64,
    /// What is there.
    pub state: PageState,
}

/// What a page is, and the digest of its content where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Nothing is mapped: reads as zeroes, or is swapped out.
    Absent,
    /// A private page.
    Unmerged {
        /// SHA-256 of the page at some moment.
        digest: [u8; DIGEST_BYTES],
    },
    /// Maps a merged copy, which cannot change.
    Merged {
        /// Serial number of the copy, never reused.
        serial: u64,
        /// SHA-256 of the copy.
        digest: [u8; DIGEST_BYTES],
    },
    /// Maps the shared zero page.
    Zero,
    /// Cannot be read.
    Skipped,
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The file does not start with [`MAGIC`].
    Magic,
    /// Another version.
    Version(u32),
    /// Header or record has another size.
    Size,
    /// An unknown page state.
    State(u32),
}

impl Header {
    /// Returns the bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        put(&mut out, 0, &MAGIC.to_le_bytes());
        put(&mut out, 8, &VERSION.to_le_bytes());
        // CAST: 64 fits.
        put(&mut out, 12, &(HEADER_BYTES as u32).to_le_bytes());
        put(&mut out, 16, &(RECORD_BYTES as u32).to_le_bytes());
        put(&mut out, 20, &self.id.to_le_bytes());
        put(&mut out, 24, &self.domain.to_le_bytes());
        put(&mut out, 32, &self.records.to_le_bytes());
        put(&mut out, 40, &self.layout.to_le_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the bytes are not a header of this version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Malformed> {
        if u64::from_le_bytes(take(bytes, 0)) != MAGIC {
            return Err(Malformed::Magic);
        }
        let version = u32::from_le_bytes(take(bytes, 8));
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        // CAST: 64 fits.
        if u32::from_le_bytes(take(bytes, 12)) != HEADER_BYTES as u32
            || u32::from_le_bytes(take(bytes, 16)) != RECORD_BYTES as u32
        {
            return Err(Malformed::Size);
        }
        Ok(Self {
            id: u32::from_le_bytes(take(bytes, 20)),
            domain: u64::from_le_bytes(take(bytes, 24)),
            records: u64::from_le_bytes(take(bytes, 32)),
            layout: u64::from_le_bytes(take(bytes, 40)),
        })
    }
}

impl Record {
    /// Returns the bytes of the record.
    #[inline]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        const NONE: [u8; DIGEST_BYTES] = [0; DIGEST_BYTES];
        let (state, serial, digest): (u32, u64, _) = match &self.state {
            PageState::Absent => (0, 0, &NONE),
            PageState::Unmerged { digest } => (1, 0, digest),
            PageState::Merged { serial, digest } => (2, *serial, digest),
            PageState::Zero => (3, 0, &ZERO_DIGEST),
            PageState::Skipped => (4, 0, &NONE),
        };
        let mut out = [0; RECORD_BYTES];
        put(&mut out, 0, &self.gfn.to_le_bytes());
        put(&mut out, 8, &state.to_le_bytes());
        put(&mut out, 16, &serial.to_le_bytes());
        put(&mut out, 24, digest);
        out
    }

    /// Reads a record.
    ///
    /// # Errors
    ///
    /// [`Malformed::State`] if the state is unknown.
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Self, Malformed> {
        let digest = take(bytes, 24);
        let state = match u32::from_le_bytes(take(bytes, 8)) {
            0 => PageState::Absent,
            1 => PageState::Unmerged { digest },
            2 => PageState::Merged {
                serial: u64::from_le_bytes(take(bytes, 16)),
                digest,
            },
            3 => PageState::Zero,
            4 => PageState::Skipped,
            state => return Err(Malformed::State(state)),
        };
        Ok(Self {
            gfn: u64::from_le_bytes(take(bytes, 0)),
            state,
        })
    }
}

/// Writes `field` at byte `at`, where there is room for it.
#[inline]
fn put<const N: usize>(out: &mut [u8], at: usize, field: &[u8; N]) {
    let rest = out.get_mut(at..);
    if let Some(slot) = rest.and_then(|rest| rest.first_chunk_mut()) {
        *slot = *field;
    }
}

/// Reads the `N` bytes that are at byte `at`.
#[inline]
fn take<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let rest = from.get(at..);
    rest.and_then(|rest| rest.first_chunk().copied())
        .unwrap_or([0; N])
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_wire))]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        id: 0x0102_0304,
        domain: 0x1112_1314_1516_1718,
        records: 0x2122_2324_2526_2728,
        layout: 0x3132_3334_3536_3738,
    };

    const DIGEST: [u8; DIGEST_BYTES] = [0xd1; DIGEST_BYTES];

    #[test]
    fn header_bytes_are_as_documented() {
        let expected: [u8; HEADER_BYTES] = [
            0x54, 0x57, 0x50, 0x44, 0x47, 0x53, 0x54, 0x31, // "TWPDGST1"
            1, 0, 0, 0, 64, 0, 0, 0, 64, 0, 0, 0, 4, 3, 2, 1, //
            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, //
            0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21, //
            0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31, //
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(HEADER.encode(), expected);
        assert_eq!(Header::decode(&expected), Ok(HEADER));
    }

    #[test]
    fn wrong_headers_are_refused() {
        let cases = [
            (0, Malformed::Magic),
            (7, Malformed::Magic),
            (8, Malformed::Version(VERSION ^ 0x80)),
            (12, Malformed::Size),
            (16, Malformed::Size),
        ];
        for (at, error) in cases {
            let mut bytes = HEADER.encode();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x80;
            }
            assert_eq!(Header::decode(&bytes), Err(error));
        }
    }

    #[test]
    fn records_come_back_as_they_were() {
        let states = [
            PageState::Absent,
            PageState::Unmerged { digest: DIGEST },
            PageState::Merged {
                serial: 0x4142_4344_4546_4748,
                digest: DIGEST,
            },
            PageState::Zero,
            PageState::Skipped,
        ];
        for (number, state) in states.into_iter().enumerate() {
            let record = Record {
                gfn: 0x5152_5354_5556_5758,
                state,
            };
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes), Ok(record));
            assert_eq!(bytes.get(8).copied().map(usize::from), Some(number));
            assert!(bytes.iter().skip(9).take(7).all(|byte| *byte == 0));
            assert!(bytes.iter().skip(56).all(|byte| *byte == 0));
        }
    }

    #[test]
    fn record_bytes_are_as_documented() {
        let record = Record {
            gfn: 0x0102,
            state: PageState::Merged {
                serial: 0x0304,
                digest: DIGEST,
            },
        };
        let bytes = record.encode();
        let mut expected = [0; RECORD_BYTES];
        put(&mut expected, 0, &[2, 1]);
        put(&mut expected, 8, &[2]);
        put(&mut expected, 16, &[4, 3]);
        put(&mut expected, 24, &DIGEST);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn unknown_states_are_refused() {
        let mut bytes = [0; RECORD_BYTES];
        put(&mut bytes, 8, &5_u32.to_le_bytes());
        assert_eq!(Record::decode(&bytes), Err(Malformed::State(5)));
        put(&mut bytes, 8, &0x0100_0000_u32.to_le_bytes());
        assert_eq!(Record::decode(&bytes), Err(Malformed::State(0x0100_0000)));
    }

    #[test]
    fn zero_pages_carry_their_digest() {
        let record = Record {
            gfn: 0,
            state: PageState::Zero,
        };
        let digest: [u8; DIGEST_BYTES] = take(&record.encode(), 24);
        assert_eq!(digest, ZERO_DIGEST);
    }
}
