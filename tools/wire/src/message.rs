// SPDX-License-Identifier: GPL-2.0

//! All frames but blocks.
//!
//! | frame | payload |
//! |---|---|
//! | HELLO | see the module `hello` |
//! | ERROR | u16 code, text |
//! | PING, RETURN_EOF | nothing |
//! | HEAL | u64 number of the reference, 4096 bytes of its page |
//! | EOF | u64 bytes of the stream |
//! | FILTER | u64 bytes of the filter, u64 offset of this part, bytes |
//! | RETURN | bytes |
//! | ACK | u64 bytes of the stream, u64 bytes of frames |
//! | MISS | u64 number of the reference |

use std::fmt;

use crate::cursor::Cursor;
use crate::error::{
    Error,
    ErrorCode,
    Fault, //
};
use crate::frame::{
    Frame,
    Kind, //
};
use crate::hello::Hello;
use crate::page::Page;
use crate::parts::FilterPart;

/// A frame that is not a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who speaks, and about what.
    Hello(Hello),
    /// Why the connection ends.
    Error(PeerError),
    /// A sign of life.
    Ping,
    /// The page of a reference that the receiver could not supply.
    Heal {
        /// Number of the reference.
        reference: u64,
        /// The page.
        page: Box<Page>,
    },
    /// The stream has ended.
    Eof {
        /// How long it was.
        stream_bytes: u64,
    },
    /// With what follows the destination may have all that it needs to run the guest.
    Handover,
    /// A part of the filter.
    Filter(FilterPart),
    /// Bytes of the return path.
    Return(Vec<u8>),
    /// The return path has ended.
    ReturnEof,
    /// How much the receiver has passed on to the destination.
    Ack {
        /// Bytes of the stream.
        stream_bytes: u64,
        /// Bytes of the frames that they came in, counted from the beginning of the connection.
        wire_bytes: u64,
    },
    /// The receiver cannot supply the page of a reference.
    Miss {
        /// Number of the reference.
        reference: u64,
    },
}

/// Why the peer ends the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerError {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// What the peer says about it.
    pub text: String,
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

impl PeerError {
    /// An error with `text`, cut to what may be sent.
    pub fn new(code: ErrorCode, text: &str) -> Self {
        let mut end = text.len().min(crate::limits::ERROR_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = text[..end].to_owned();
        Self { code, text }
    }
}

impl Message {
    /// The frame that says it.
    ///
    /// # Errors
    ///
    /// It is longer than its kind may be.
    pub fn frame(&self) -> Result<Frame, Error> {
        match self {
            Self::Hello(hello) => hello.frame(),
            Self::Error(PeerError { code, text }) => {
                Frame::new(Kind::Error, &[&code.0.to_le_bytes(), text.as_bytes()])
            }
            Self::Ping => Frame::new(Kind::Ping, &[]),
            Self::Heal { reference, page } => Ok(Frame::heal(*reference, page)),
            Self::Eof { stream_bytes } => Frame::new(Kind::Eof, &[&stream_bytes.to_le_bytes()]),
            Self::Handover => Frame::new(Kind::Handover, &[]),
            Self::Filter(part) => part.frame(),
            Self::Return(bytes) => Frame::return_bytes(bytes),
            Self::ReturnEof => Frame::new(Kind::ReturnEof, &[]),
            Self::Ack {
                stream_bytes,
                wire_bytes,
            } => {
                let parts = [stream_bytes.to_le_bytes(), wire_bytes.to_le_bytes()];
                Frame::new(Kind::Ack, &[parts.as_flattened()])
            }
            Self::Miss { reference } => Frame::new(Kind::Miss, &[&reference.to_le_bytes()]),
        }
    }

    /// Reads one of `kind`, which is not a block.
    ///
    /// # Errors
    ///
    /// The payload is not one of that kind.
    pub(crate) fn decode(kind: Kind, payload: Vec<u8>) -> Result<Self, Fault> {
        let mut from = Cursor::new(&payload);
        let message = match kind {
            Kind::Hello => return Hello::decode(&payload).map(Self::Hello),
            Kind::Return => return Ok(Self::Return(payload)),
            Kind::Filter => return FilterPart::decode(payload).map(Self::Filter),
            Kind::Block => return Err(Fault::UnknownKind(kind.code())),
            Kind::Error => Self::Error(PeerError {
                code: ErrorCode(from.u16("the code")?),
                text: printable(from.rest()),
            }),
            Kind::Ping => Self::Ping,
            Kind::Heal => Self::Heal {
                reference: from.u64("the number of the reference")?,
                page: Box::new(from.array("the page")?),
            },
            Kind::Eof => Self::Eof {
                stream_bytes: from.u64("the length of the stream")?,
            },
            Kind::Handover => Self::Handover,
            Kind::ReturnEof => Self::ReturnEof,
            Kind::Ack => Self::Ack {
                stream_bytes: from.u64("the bytes of the stream")?,
                wire_bytes: from.u64("the bytes of frames")?,
            },
            Kind::Miss => Self::Miss {
                reference: from.u64("the number of the reference")?,
            },
        };
        from.end()?;
        Ok(message)
    }
}

/// `bytes` as a text of one line that does nothing to a terminal.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
