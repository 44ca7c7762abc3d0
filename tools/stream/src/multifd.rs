// SPDX-License-Identifier: GPL-2.0

//! A channel for pages (`migration/multifd.h`).
//!
//! It starts with 64 bytes: `be32 magic, be32 version`, a UUID of 16 bytes, `u8` number, 39 bytes
//! reserved. Then come packets:
//!
//! ```text
//! be32 magic, be32 version, be32 flags
//!     flag DEVICE: 256 bytes: name, be32 instance, be32 n, n bytes
//!     otherwise:   be32 offsets, be32 pages, be32 n, be64 number, be32 zero pages, 28 bytes,
//!                  256 bytes: block, 128 x be64 offset (1344 bytes so far), n bytes
//! ```
//!
//! Without compression the n bytes are the pages. A packet without pages has no bytes after its
//! head, whatever n is.

use crate::field::{
    be32,
    Flow,
    Machine,
    Need, //
};
use crate::piece::PAGE_BYTES;
use crate::reason::Reason;

/// The first word of the channel and of each packet.
pub(crate) const MAGIC: u32 = 0x1122_3344;
/// The one version there is.
const VERSION: u32 = 1;
/// Bits of a packet's flags that name a compression.
const COMPRESSION: u32 = 0x3e;
/// A packet of a device's state.
const DEVICE: u32 = 0x40;
/// Offsets in a packet with pages of 4096 bytes.
const OFFSETS: u32 = 128;
/// Bytes of the first message, without its magic.
const HELLO_REST_BYTES: u64 = 64 - 4 - 4;
/// Bytes of a packet before the offsets' block that are looked at: up to the length.
const HEAD_BYTES: usize = 24;
/// Bytes of it that are common to all packets.
const COMMON_BYTES: usize = 12;
/// Bytes of a packet before its pages, from the end of the head.
const HEAD_REST_BYTES: u64 = 1344 - HEAD_BYTES as u64;
/// Bytes of a device's name and instance.
const DEVICE_REST_BYTES: u64 = 256 + 4;

/// What comes next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Multifd {
    /// The version of the first message.
    Version,
    /// The rest of the first message.
    Hello,
    /// Magic, version and flags of a packet.
    Common,
    /// Counts of a packet, and its length.
    Counts {
        /// The packet's flags.
        flags: u32,
    },
    /// The rest of a packet's head.
    HeadRest(Content),
    /// Name and instance of a device.
    DeviceName,
    /// The length of a device's state.
    DeviceLength,
    /// What a packet holds.
    Content(Content),
}

/// What a packet holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// So many pages.
    Pages(u32),
    /// So many bytes of something else.
    Bytes(u32),
}

impl Multifd {
    /// The content of a packet whose counts are in `field`.
    fn content(flags: u32, field: &[u8]) -> Result<Content, Reason> {
        let (offsets, pages, length) = (be32(field, 0), be32(field, 4), be32(field, 8));
        if offsets > OFFSETS || pages > OFFSETS {
            return Err(Reason::BadPacket);
        }
        // OVERFLOW: At most 128 pages.
        let plain = flags & COMPRESSION == 0 && length == pages * PAGE_BYTES as u32;
        Ok(match pages {
            // QEMU 7.2 leaves the length of the packet before in one that only synchronises.
            0 => Content::Bytes(0),
            pages if plain => Content::Pages(pages),
            _ => Content::Bytes(length),
        })
    }

    /// What comes of `content`, if anything does.
    fn enter(content: Content) -> Self {
        match content {
            Content::Pages(0) | Content::Bytes(0) => Self::Common,
            content => Self::Content(content),
        }
    }
}

impl Machine for Multifd {
    fn need(&self) -> Need {
        match self {
            Self::Version | Self::DeviceLength => Need::Field(4),
            Self::Hello => Need::Skip(HELLO_REST_BYTES),
            Self::Common => Need::Field(COMMON_BYTES),
            Self::Counts { .. } => Need::Field(HEAD_BYTES - COMMON_BYTES),
            Self::HeadRest(_) => Need::Skip(HEAD_REST_BYTES),
            Self::DeviceName => Need::Skip(DEVICE_REST_BYTES),
            Self::Content(Content::Pages(_)) => Need::Page,
            Self::Content(Content::Bytes(bytes)) => Need::Skip((*bytes).into()),
        }
    }

    fn take(&mut self, field: &[u8]) -> Result<Flow, Reason> {
        *self = match *self {
            Self::Version => match be32(field, 0) {
                VERSION => Self::Hello,
                version => return Err(Reason::Version(version)),
            },
            Self::Common => match (be32(field, 0), be32(field, 4), be32(field, 8)) {
                (MAGIC, VERSION, flags) if flags & DEVICE != 0 => Self::DeviceName,
                (MAGIC, VERSION, flags) => Self::Counts { flags },
                _ => return Err(Reason::BadPacket),
            },
            Self::Counts { flags } => Self::HeadRest(Self::content(flags, field)?),
            Self::DeviceLength => Self::enter(Content::Bytes(be32(field, 0))),
            other => other,
        };
        Ok(Flow::More)
    }

    fn passed(&mut self) -> Flow {
        *self = match *self {
            Self::Hello => Self::Common,
            Self::HeadRest(content) => Self::enter(content),
            Self::DeviceName => Self::DeviceLength,
            Self::Content(Content::Pages(pages)) => {
                Self::enter(Content::Pages(pages.saturating_sub(1)))
            }
            Self::Content(Content::Bytes(_)) => Self::Common,
            other => other,
        };
        Flow::More
    }
}
