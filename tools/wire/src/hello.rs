// SPDX-License-Identifier: GPL-2.0

//! HELLO, the first frame of each side.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `TWPMIG01` |
//! | 8..10 | version of the protocol |
//! | 10 | role: 1 sender, 2 receiver |
//! | 11 | purpose: 1 migrate, 2 plan |
//! | 12..28 | session |
//! | 28..30 | number of the connection in the session |
//! | 30..32 | flags: bit 0, blocks may be compressed |
//! | 32..36 | pages of the dictionary |
//! | 36..52 | key of the filter; zeros from a sender |
//! | 52..60 | bytes of the stream that may be under way without an ACK |
//! | 60..68 | the same of frames, counted as the ACK does |
//! | 68 | bytes of the name of the domain, which follows |
//! | then 1 | bytes of the text that names the software, which follows |

use std::fmt;

use crate::cursor::Cursor;
use crate::error::{
    Error,
    Fault, //
};
use crate::frame::{
    Frame,
    Kind, //
};
use crate::limits;

/// The version of the protocol.
pub const VERSION: u16 = 2;

/// What a HELLO begins with.
const MAGIC: [u8; 8] = *b"TWPMIG01";

/// The flag of compression.
const ZSTD: u16 = 1;

/// Names a migration: 16 random bytes that the sender makes, the same for all of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// The session of an ERROR that comes before any HELLO.
    pub const NONE: Self = Self([0; 16]);
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The key of the filter: 16 random bytes that the receiver makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterKey(pub [u8; 16]);

/// Which end a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The end at the source QEMU.
    Sender,
    /// The end at the destination QEMU.
    Receiver,
}

/// What the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To migrate.
    Migrate,
    /// To learn how much of a VM the receiver has.
    Plan,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
        })
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Migrate => "migrate",
            Self::Plan => "plan",
        })
    }
}

/// Who speaks, and about what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Which end it is.
    pub role: Role,
    /// What the connection is for.
    pub purpose: Purpose,
    /// The session.
    pub session: SessionId,
    /// The number of the connection in the session.
    pub channel: u16,
    /// The domain in which pages are shared; may be empty.
    pub domain: String,
    /// How many pages the dictionary may have; 0 for none.
    pub dictionary_pages: u32,
    /// Whether blocks may be compressed.
    pub zstd: bool,
    /// The key of the filter, from a receiver.
    pub filter_key: FilterKey,
    /// Bytes of the stream that may be under way without an ACK, from [`limits::WINDOW`].
    pub window_stream: u64,
    /// Bytes of frames that may be under way without an ACK, from [`limits::WINDOW`].
    pub window_wire: u64,
    /// The name and version of the software.
    pub software: String,
}

/// What two peers have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Pages of the dictionary.
    pub dictionary_pages: u32,
    /// Whether blocks may be compressed.
    pub zstd: bool,
    /// The key of the filter.
    pub filter_key: FilterKey,
    /// Bytes of the stream that may be under way without an ACK.
    pub window_stream: u64,
    /// Bytes of frames that may be under way without an ACK.
    pub window_wire: u64,
}

impl Hello {
    /// What this side's HELLO and that of the peer come to: the smaller dictionary and windows, and
    /// compression only when both allow it.
    ///
    /// # Errors
    ///
    /// Both have the same role, or session, connection, purpose or domain differ.
    pub fn agree(&self, theirs: &Self) -> Result<Agreed, Error> {
        let (receiver, roles) = match (self.role, theirs.role) {
            (Role::Sender, Role::Receiver) => (theirs, Ok(())),
            (Role::Receiver, Role::Sender) => (self, Ok(())),
            (ours, _) => (self, Err(disagree("role", &ours, &theirs.role))),
        };
        roles?;
        same("session", &self.session, &theirs.session)?;
        same("connection", &self.channel, &theirs.channel)?;
        same("purpose", &self.purpose, &theirs.purpose)?;
        same("domain", &self.domain, &theirs.domain)?;
        Ok(Agreed {
            dictionary_pages: self.dictionary_pages.min(theirs.dictionary_pages),
            zstd: self.zstd && theirs.zstd,
            filter_key: receiver.filter_key,
            window_stream: self.window_stream.min(theirs.window_stream),
            window_wire: self.window_wire.min(theirs.window_wire),
        })
    }

    /// The frame that says it.
    ///
    /// # Errors
    ///
    /// A text or the dictionary is larger than allowed. Windows are cut to what is allowed.
    pub(crate) fn frame(&self) -> Result<Frame, Error> {
        let max = limits::DICTIONARY_PAGES as usize;
        fits("Dictionary", self.dictionary_pages as usize, max)?;
        let role = match self.role {
            Role::Sender => 1,
            Role::Receiver => 2,
        };
        let purpose = match self.purpose {
            Purpose::Migrate => 1,
            Purpose::Plan => 2,
        };
        let (least, most) = (*limits::WINDOW.start(), *limits::WINDOW.end());
        let flags = if self.zstd { ZSTD } else { 0 };
        let parts: [&[u8]; 14] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            &[role, purpose],
            &self.session.0,
            &self.channel.to_le_bytes(),
            &flags.to_le_bytes(),
            &self.dictionary_pages.to_le_bytes(),
            &self.filter_key.0,
            &self.window_stream.clamp(least, most).to_le_bytes(),
            &self.window_wire.clamp(least, most).to_le_bytes(),
            &[length("Name of the domain", &self.domain)?],
            self.domain.as_bytes(),
            &[length("Name of the software", &self.software)?],
            self.software.as_bytes(),
        ];
        Frame::new(Kind::Hello, &parts)
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// It is not of this protocol or version, or a field has no meaning.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, Fault> {
        let mut from = Cursor::new(payload);
        if from.array("the magic")? != MAGIC {
            return Err(Fault::Magic);
        }
        let theirs = from.u16("the version")?;
        if theirs != VERSION {
            let ours = VERSION;
            return Err(Fault::Version { theirs, ours });
        }
        let hello = Self {
            role: match from.u8("the role")? {
                1 => Role::Sender,
                2 => Role::Receiver,
                other => return Err(meaningless("Role", 10, other.into())),
            },
            purpose: match from.u8("the purpose")? {
                1 => Purpose::Migrate,
                2 => Purpose::Plan,
                other => return Err(meaningless("Purpose", 11, other.into())),
            },
            session: SessionId(from.array("the session")?),
            channel: from.u16("the connection")?,
            zstd: match from.u16("the flags")? {
                0 => false,
                ZSTD => true,
                other => return Err(meaningless("Flags", 30, other.into())),
            },
            dictionary_pages: from.u32("the dictionary")?,
            filter_key: FilterKey(from.array("the key of the filter")?),
            window_stream: window(&mut from)?,
            window_wire: window(&mut from)?,
            domain: text(&mut from, "The name of the domain")?,
            software: text(&mut from, "The name of the software")?,
        };
        if hello.dictionary_pages > limits::DICTIONARY_PAGES {
            return Err(Fault::TooLong {
                what: "Dictionary",
                size: hello.dictionary_pages.into(),
                max: limits::DICTIONARY_PAGES.into(),
            });
        }
        from.end()?;
        Ok(hello)
    }
}

/// Fails unless both sides have the same.
fn same<T: PartialEq + fmt::Display>(
    what: &'static str,
    ours: &T,
    theirs: &T,
) -> Result<(), Error> {
    if ours == theirs {
        return Ok(());
    }
    Err(disagree(what, ours, theirs))
}

/// The error of sides that differ.
fn disagree(what: &'static str, ours: &dyn fmt::Display, theirs: &dyn fmt::Display) -> Error {
    Error::Disagree {
        what,
        ours: format!("\"{ours}\""),
        theirs: format!("\"{theirs}\""),
    }
}

/// The length of `text` in its one byte.
fn length(what: &'static str, text: &str) -> Result<u8, Error> {
    fits(what, text.len(), limits::NAME)?;
    // CAST: The limit is 255.
    Ok(text.len() as u8)
}

/// Fails unless `bytes` is at most `max`.
fn fits(what: &'static str, bytes: usize, max: usize) -> Result<(), Error> {
    if bytes > max {
        return Err(Error::TooLong { what, bytes, max });
    }
    Ok(())
}

/// The fault of a field that has a value without meaning.
fn meaningless(what: &'static str, offset: usize, value: u64) -> Fault {
    Fault::Value {
        what,
        offset,
        value,
    }
}

/// Reads the size of a window.
fn window(from: &mut Cursor<'_>) -> Result<u64, Fault> {
    let offset = from.at();
    let bytes = from.u64("a window")?;
    if !limits::WINDOW.contains(&bytes) {
        return Err(meaningless("Window", offset, bytes));
    }
    Ok(bytes)
}

/// Reads a text with its length.
fn text(from: &mut Cursor<'_>, what: &'static str) -> Result<String, Fault> {
    let len = from.u8(what)?;
    let bytes = from.take(len.into(), what)?;
    let text = std::str::from_utf8(bytes).map_err(|_| Fault::Text { what })?;
    if text.chars().any(char::is_control) {
        return Err(Fault::Text { what });
    }
    Ok(text.to_owned())
}
