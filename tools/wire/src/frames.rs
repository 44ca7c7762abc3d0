// SPDX-License-Identifier: GPL-2.0

//! Both ends of the running hash: frames to bytes, and bytes to frames.

use crate::chain;
use crate::error::{
    Error,
    Fault,
    Place, //
};
use crate::frame::{
    parse_header,
    Direction,
    Frame,
    Kind,
    CHAIN_BYTES,
    HEADER_BYTES, //
};
use crate::hello::{
    Hello,
    SessionId, //
};
use crate::lent::Spread;
use crate::message::Message;

/// The sending end of the running hash of one direction.
#[derive(Debug)]
pub struct Sealer {
    /// The value after the last frame.
    value: chain::Value,
}

impl Sealer {
    /// The beginning of what goes in `direction` on the connection number `channel` of a session.
    pub fn new(direction: Direction, session: &SessionId, channel: u16) -> Self {
        let value = chain::start(direction, session, channel);
        Self { value }
    }

    /// All bytes of `frame`. Frames have to be written in the order in which they are sealed.
    pub fn seal(&mut self, frame: Frame) -> Vec<u8> {
        let spread = self.seal_spread(frame);
        match spread.lent.bytes() {
            0 => spread.bytes,
            _ => spread.parts().collect::<Vec<_>>().concat(),
        }
    }

    /// The same, with the pages left where they lie.
    pub fn seal_spread(&mut self, frame: Frame) -> Spread {
        let mut bytes = frame.bytes;
        let (header, payload) = bytes.split_at(HEADER_BYTES);
        // Only blocks have pages that lie elsewhere, and they have a transcript.
        let content = frame.transcript.as_ref().map_or(payload, |hash| hash);
        self.value = chain::next(&self.value, header, content);
        bytes.extend_from_slice(&self.value);
        Spread {
            bytes,
            lent: frame.lent,
        }
    }
}

/// The receiving end of the running hash of one direction.
///
/// The value that comes with a frame is checked against the value that came with the frame before.
/// All values together are right when each of them is; each can be checked on its own. States:
/// before the HELLO there is no value, and only a HELLO or an ERROR may come; it makes the value
/// from which all others follow.
#[derive(Debug)]
pub struct FrameReader {
    /// Which way the frames go that are read.
    direction: Direction,
    /// The value that came last.
    value: Option<chain::Value>,
    /// Where the next frame is.
    place: Place,
}

/// What the header of a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The header as it came.
    bytes: [u8; HEADER_BYTES],
    /// What the frame is.
    kind: Kind,
    /// Bytes of its payload.
    payload: usize,
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Anything but a block; its running hash was right.
    Message(Message),
    /// A block, of which nothing is known yet.
    Block(Sealed),
}

/// A block that came, with what is needed to check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The header of the frame.
    pub(crate) header: [u8; HEADER_BYTES],
    /// The payload.
    pub(crate) payload: Vec<u8>,
    /// The running hash before the frame.
    pub(crate) previous: chain::Value,
    /// The running hash that came with it.
    pub(crate) value: chain::Value,
    /// Where the frame is.
    pub(crate) place: Place,
}

impl FrameHeader {
    /// What the frame is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many bytes follow the header: the payload and the running hash.
    pub fn body_bytes(&self) -> usize {
        self.payload + CHAIN_BYTES
    }
}

impl Sealed {
    /// Bytes of the whole frame.
    pub(crate) fn wire_bytes(&self) -> u64 {
        (HEADER_BYTES + self.payload.len() + CHAIN_BYTES) as u64
    }

    /// Where the frame is.
    pub fn place(&self) -> Place {
        self.place
    }
}

impl FrameReader {
    /// The beginning of what goes in `direction` on a connection.
    pub fn new(direction: Direction) -> Self {
        Self {
            direction,
            value: None,
            place: Place::default(),
        }
    }

    /// Where the next frame is: how many frames and bytes were accepted.
    pub fn place(&self) -> Place {
        self.place
    }

    /// How many bytes were accepted.
    pub fn position(&self) -> u64 {
        self.place.at
    }

    /// What the header of the next frame says.
    ///
    /// # Errors
    ///
    /// The frame is none that may come here, or it is too long.
    pub fn header(&self, bytes: [u8; HEADER_BYTES]) -> Result<FrameHeader, Error> {
        let wrong = self.place.of();
        let (kind, payload) = parse_header(bytes, self.direction).map_err(&wrong)?;
        match (kind, self.value) {
            (Kind::Hello, Some(_)) => Err(wrong(Fault::SecondHello)),
            (Kind::Hello | Kind::Error, _) | (_, Some(_)) => Ok(FrameHeader {
                bytes,
                kind,
                payload,
            }),
            (other, None) => Err(wrong(Fault::NoHello(other))),
        }
    }

    /// Takes what came after `header`: exactly [`FrameHeader::body_bytes`] bytes.
    ///
    /// # Errors
    ///
    /// They are not as many, the content is malformed, or the running hash is wrong. After an error
    /// the connection is of no use any more.
    pub fn accept(&mut self, header: FrameHeader, mut body: Vec<u8>) -> Result<Incoming, Error> {
        let place = self.place;
        let wrong = place.of();
        let value = split_value(&header, &mut body).map_err(&wrong)?;
        let hello = (header.kind == Kind::Hello).then(|| Hello::decode(&body));
        let hello = hello.transpose().map_err(&wrong)?;
        let previous = match (self.value, &hello) {
            (Some(value), _) => value,
            (None, Some(hello)) => chain::start(self.direction, &hello.session, hello.channel),
            (None, None) => chain::start(self.direction, &SessionId::NONE, 0),
        };
        self.value = Some(value);
        self.place = Place {
            frame: place.frame + 1,
            at: place.at + (HEADER_BYTES + header.body_bytes()) as u64,
        };
        if header.kind == Kind::Block {
            return Ok(Incoming::Block(Sealed {
                header: header.bytes,
                payload: body,
                previous,
                value,
                place,
            }));
        }
        if chain::next(&previous, &header.bytes, &body) != value {
            return Err(wrong(Fault::Chain));
        }
        let message = match hello {
            Some(hello) => Message::Hello(hello),
            None => Message::decode(header.kind, body).map_err(&wrong)?,
        };
        Ok(Incoming::Message(message))
    }
}

/// Takes the running hash off the end of `body`.
fn split_value(header: &FrameHeader, body: &mut Vec<u8>) -> Result<chain::Value, Fault> {
    let (found, expected) = (body.len() as u64, header.body_bytes() as u64);
    if found != expected {
        let what = "Bytes of the frame";
        return Err(Fault::Length {
            what,
            found,
            expected,
        });
    }
    let mut value = [0; CHAIN_BYTES];
    value.copy_from_slice(&body[header.payload..]);
    body.truncate(header.payload);
    Ok(value)
}
