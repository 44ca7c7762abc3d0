// SPDX-License-Identifier: GPL-2.0

//! What can be wrong, and where.

use std::fmt;

use crate::frame::Kind;

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer sent something wrong.
    #[error("{place}: {fault}")]
    Peer {
        /// Where it is.
        place: Place,
        /// What it is.
        fault: Fault,
    },
    /// Something is wrong that has no place in the frames that were read.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The compression failed.
    #[error("The compression failed: {0}")]
    Compress(String),
    /// Something is too long to be sent.
    #[error("{what} of {bytes} bytes is too long to be sent, the limit is {max}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// A compression level outside of the range.
    #[error("Compression level {0} is not between 1 and 19")]
    Level(u8),
    /// The filter could not be built.
    #[error("The filter of {keys} digests could not be built")]
    Filter {
        /// How many digests it was to hold.
        keys: usize,
    },
    /// The two ends do not belong together.
    #[error("The peers do not agree: the {what} here is {ours}, there {theirs}")]
    Disagree {
        /// What differs.
        what: &'static str,
        /// What it is on this side.
        ours: String,
        /// What it is on the other.
        theirs: String,
    },
}

/// Where a frame is in what was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Number of the frame, counted from 0.
    pub frame: u64,
    /// Bytes that were received before it.
    pub at: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame {} at byte {}", self.frame, self.at)
    }
}

impl Place {
    /// A function that says of a fault that it is here.
    pub(crate) fn of(self) -> impl Fn(Fault) -> Error {
        move |fault| Error::Peer { place: self, fault }
    }
}

/// What is wrong with something that was received. Offsets count from the beginning of the payload
/// of a frame; those of operations, from the beginning of the operations of a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The kind of the frame is unknown.
    #[error("Unknown kind of frame {0:#04x}")]
    UnknownKind(u8),
    /// The frame is one that only the other side may send.
    #[error("{0} frame in the wrong direction")]
    Direction(Kind),
    /// The frame is not the expected one.
    #[error("{0} frame where a HELLO is expected")]
    NoHello(Kind),
    /// There was a HELLO already.
    #[error("A second HELLO")]
    SecondHello,
    /// Bits that must be 0 are not.
    #[error("{what} at offset {offset} is {value:#x}, which has no meaning")]
    Value {
        /// What is not as it should be.
        what: &'static str,
        /// Where it is.
        offset: usize,
        /// What it is.
        value: u64,
    },
    /// Something announced is longer than allowed.
    #[error("{what} of {size}, the limit is {max}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// How long it claims to be.
        size: u64,
        /// How long it may be.
        max: u64,
    },
    /// Something ends too early.
    #[error("The end comes inside of {what} at offset {offset}")]
    Short {
        /// What is cut off.
        what: &'static str,
        /// Where it begins.
        offset: usize,
    },
    /// There is more than there should be.
    #[error("{bytes} unexpected bytes at offset {offset}")]
    Trailing {
        /// Where they begin.
        offset: usize,
        /// How many they are.
        bytes: usize,
    },
    /// The running hash differs.
    #[error("The running hash does not match: something before or in this frame was altered")]
    Chain,
    /// The peer speaks another protocol.
    #[error("Not a twinpage peer")]
    Magic,
    /// The peer speaks another version.
    #[error("The peer speaks version {theirs} of the protocol, this is version {ours}")]
    Version {
        /// The version of the peer.
        theirs: u16,
        /// The version of this side.
        ours: u16,
    },
    /// A text is not printable.
    #[error("{what} is not printable text")]
    Text {
        /// Which text it is.
        what: &'static str,
    },
    /// The code of an operation is unknown.
    #[error("Unknown operation {code:#04x} at offset {offset}")]
    Op {
        /// The code.
        code: u8,
        /// Where it is.
        offset: usize,
    },
    /// A number is longer than it need be, or too big.
    #[error("Malformed number at offset {offset}")]
    Number {
        /// Where it begins.
        offset: usize,
    },
    /// A literal has room for what the one behind it says.
    #[error("A literal at offset {offset} that belongs to the one before it")]
    Split {
        /// Where it is.
        offset: usize,
    },
    /// The compressed bytes cannot be decompressed.
    #[error("The block cannot be decompressed: {0}")]
    Zstd(String),
    /// Something has a length other than announced.
    #[error("{what}: {found} announced or found, {expected} expected")]
    Length {
        /// What it is.
        what: &'static str,
        /// What there is.
        found: u64,
        /// What there should be.
        expected: u64,
    },
    /// An operation refers to a page that the dictionary does not hold.
    #[error("A reference to the page {distance} pages back, where {known} are known")]
    Distance {
        /// How far back it points.
        distance: u32,
        /// How far back it may point.
        known: u64,
    },
}

/// What went wrong, as it is told to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u16);

impl ErrorCode {
    /// None of the others.
    pub const INTERNAL: Self = Self(0);
    /// The peer sent something that the protocol does not allow.
    pub const PROTOCOL: Self = Self(1);
    /// The peers do not agree, for example on the domain.
    pub const DISAGREE: Self = Self(2);
    /// The source QEMU failed or closed the connection.
    pub const SOURCE_QEMU: Self = Self(3);
    /// The destination QEMU failed or closed the connection.
    pub const DESTINATION_QEMU: Self = Self(4);
    /// The migration stream has no return path.
    pub const NO_RETURN_PATH: Self = Self(5);
    /// A limit was reached.
    pub const LIMIT: Self = Self(6);
    /// Somebody asked for the end.
    pub const CANCELLED: Self = Self(7);
    /// The peer was silent for too long.
    pub const SILENCE: Self = Self(8);
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::INTERNAL => "internal error",
            Self::PROTOCOL => "protocol error",
            Self::DISAGREE => "no agreement",
            Self::SOURCE_QEMU => "source QEMU",
            Self::DESTINATION_QEMU => "destination QEMU",
            Self::NO_RETURN_PATH => "no return path",
            Self::LIMIT => "limit reached",
            Self::CANCELLED => "cancelled",
            Self::SILENCE => "silence",
            Self(other) => return write!(f, "error {other}"),
        };
        f.write_str(name)
    }
}

impl Error {
    /// What to tell the peer.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Peer { .. } | Self::Fault(_) => ErrorCode::PROTOCOL,
            Self::Disagree { .. } => ErrorCode::DISAGREE,
            Self::TooLong { .. } => ErrorCode::LIMIT,
            Self::Compress(_) | Self::Level(_) | Self::Filter { .. } => ErrorCode::INTERNAL,
        }
    }
}
