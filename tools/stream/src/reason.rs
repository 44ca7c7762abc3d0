// SPDX-License-Identifier: GPL-2.0

//! Why the rest of a stream is not understood.

use std::fmt::{
    self,
    Display,
    Formatter, //
};

/// What is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The first four bytes are those of no channel.
    UnknownChannel(u32),
    /// The version of the stream or of a channel is another one.
    Version(u32),
    /// No configuration follows the header (`send-configuration=off`).
    NoConfiguration(u8),
    /// The configuration has a subsection of unknown name.
    UnknownSubsection,
    /// Target pages have another size; here are its bits.
    PageBits(u32),
    /// Pages are not in the stream but in a file (`mapped-ram`).
    MappedRam,
    /// A name has no bytes, or bytes that cannot be printed.
    BadName,
    /// A length or count is out of its range.
    BadLength(u32),
    /// There is no section of this type.
    SectionType(u8),
    /// A section has the name of another one, or a name too many.
    SectionNumber(u32),
    /// A part belongs to no section that was started.
    NoSuchSection(u32),
    /// A section that may have any length; [`section`](crate::Parser::section) has its name.
    UnknownSection,
    /// A known section has another version.
    SectionVersion(u32),
    /// A section does not end where it should (`send-section-footer=off`, or misread).
    NoFooter,
    /// A command of unknown number.
    UnknownCommand(u16),
    /// A command of unknown length.
    CommandLength(u16),
    /// Continuous replication (COLO).
    Colo,
    /// A record of RAM with flags that make no sense.
    RecordFlags(u16),
    /// A record of RAM names no block, or one that was not listed.
    NoSuchBlock,
    /// A record of RAM is outside its block.
    OutsideBlock,
    /// The list of blocks is too long or does not add up.
    BlockList,
    /// The list of blocks may or may not have page sizes in it.
    AmbiguousBlockList,
    /// A chunk of a known section that is not RAM makes no sense.
    BadPayload,
    /// A packet of a multifd channel makes no sense.
    BadPacket,
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownChannel(magic) => {
                write!(f, "starts with {magic:#010x}, as no channel does")
            }
            Self::Version(version) => write!(f, "is of unknown version {version}"),
            Self::NoConfiguration(byte) => write!(f, "has no configuration but a byte {byte:#04x}"),
            Self::UnknownSubsection => write!(f, "has an unknown subsection of the configuration"),
            Self::PageBits(bits) => write!(f, "has pages of 2^{bits} bytes"),
            Self::MappedRam => write!(f, "is to have its RAM in a file"),
            Self::BadName => write!(f, "has a name that is none"),
            Self::BadLength(length) => write!(f, "has a length {length} out of range"),
            Self::SectionType(byte) => write!(f, "has a section of unknown type {byte:#04x}"),
            Self::SectionNumber(id) => write!(f, "starts a section with number {id} again"),
            Self::NoSuchSection(id) => write!(f, "continues a section {id} that was not started"),
            Self::UnknownSection => write!(f, "has a section of unknown name"),
            Self::SectionVersion(version) => {
                write!(f, "has a section of unknown version {version}")
            }
            Self::NoFooter => write!(f, "has no footer at the end of a section"),
            Self::UnknownCommand(number) => write!(f, "has an unknown command {number}"),
            Self::CommandLength(length) => write!(f, "has a command of unknown length {length}"),
            Self::Colo => write!(f, "is continuous replication"),
            Self::RecordFlags(flags) => write!(f, "has a record of RAM with flags {flags:#05x}"),
            Self::NoSuchBlock => write!(f, "has a page of an unknown block"),
            Self::OutsideBlock => write!(f, "has a page outside its block"),
            Self::BlockList => write!(f, "has a list of blocks that does not add up"),
            Self::AmbiguousBlockList => write!(f, "has a list of blocks of two meanings"),
            Self::BadPayload => write!(f, "has a section whose content makes no sense"),
            Self::BadPacket => write!(f, "has a packet that makes no sense"),
        }
    }
}
