// SPDX-License-Identifier: GPL-2.0

//! Reads frames off a link.

use std::fmt;
use std::io::{
    self,
    Read, //
};

use twinpage_wire::{
    Direction,
    FrameReader,
    Incoming, //
};

use crate::net::LinkReader;
use crate::proxy::error::Error;
use crate::proxy::session::Channel;

/// The reading end of a link.
pub struct Inbox {
    /// The link.
    link: LinkReader,
    /// What is to be expected of it.
    frames: FrameReader,
    /// Bytes of frames so far.
    bytes: u64,
}

/// Why there is no next frame.
#[derive(Debug)]
pub enum Broken {
    /// The link.
    Link(io::Error),
    /// What came over it.
    Frame(twinpage_wire::Error),
}

impl Inbox {
    /// The frames of `direction` that come over `link`.
    pub fn new(link: LinkReader, direction: Direction) -> Self {
        Self {
            link,
            frames: FrameReader::new(direction),
            bytes: 0,
        }
    }

    /// The next frame; empty if the other end has closed the link between two frames.
    ///
    /// # Errors
    ///
    /// The link broke, or the frame is not what it must be.
    pub fn next(&mut self) -> Result<Option<Incoming>, Broken> {
        let mut header = [0; twinpage_wire::HEADER_BYTES];
        if !self.fill(&mut header).map_err(Broken::Link)? {
            return Ok(None);
        }
        let header = self.frames.header(header).map_err(Broken::Frame)?;
        let expected = header.body_bytes();
        let mut body = Vec::with_capacity(expected);
        let got = (&mut self.link)
            .take(expected as u64)
            .read_to_end(&mut body)
            .map_err(Broken::Link)?;
        if got < expected {
            return Err(Broken::Link(io::ErrorKind::UnexpectedEof.into()));
        }
        self.bytes += (twinpage_wire::HEADER_BYTES + got) as u64;
        let incoming = self.frames.accept(header, body).map_err(Broken::Frame)?;
        Ok(Some(incoming))
    }

    /// Bytes of the frames so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The link, to set a deadline.
    pub fn link(&mut self) -> &mut LinkReader {
        &mut self.link
    }

    /// Fills `into`; false if the link was closed before its first byte.
    fn fill(&mut self, into: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < into.len() {
            match self.link.read(&mut into[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                got => filled += got,
            }
        }
        Ok(true)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(error) => error.fmt(f),
            Self::Frame(error) => error.fmt(f),
        }
    }
}

impl Broken {
    /// The error of `channel`.
    pub fn into_error(self, channel: &Channel) -> Error {
        match self {
            Self::Link(error) => channel.link(&error),
            Self::Frame(error) => channel.protocol(error),
        }
    }
}
