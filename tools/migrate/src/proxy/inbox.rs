// SPDX-License-Identifier: GPL-2.0

//! Reads frames off a link.

use std::fmt;
use std::io::{
    self,
    Read, //
};
use std::sync::atomic::{
    AtomicU64,
    Ordering, //
};
use std::sync::Arc;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_wire::{
    Direction,
    FrameReader,
    Incoming, //
};

use crate::net::LinkReader;
use crate::proxy::error::Error;
use crate::proxy::session::{
    chain,
    Channel, //
};

/// The reading end of a link.
pub struct Inbox {
    /// The link.
    link: LinkReader,
    /// What is to be expected of it.
    frames: FrameReader,
    /// Bytes of frames so far.
    bytes: u64,
    /// Bytes of frames that bring something, counted as they come.
    brought: Arc<AtomicU64>,
    /// How long a frame may take from its first byte on, but for what its length allows.
    patience: Duration,
    /// When the next frame must be there.
    deadline: Option<Instant>,
    /// When this one must be.
    due: Option<Instant>,
}

/// Bytes per second that a frame must make: else a length that was tampered with would have its
/// reader take what follows for the frame's rest, for as long as anything follows.
const SLOWEST: u64 = 16 << 10;

/// A frame of so many bytes is worth a buffer that is used again.
const LARGE: usize = 64 << 10;

/// Why there is no next frame.
#[derive(Debug)]
pub enum Broken {
    /// The link.
    Link(io::Error),
    /// A frame did not come to its end in time.
    Slow,
    /// What came over it.
    Frame(twinpage_wire::Error),
}

impl Inbox {
    /// The frames of `direction` that come over `link`.
    pub fn new(link: LinkReader, direction: Direction, patience: Duration) -> Self {
        Self {
            link,
            frames: FrameReader::new(direction),
            bytes: 0,
            brought: Arc::default(),
            patience,
            deadline: None,
            due: None,
        }
    }

    /// The next frame; empty if the other end has closed the link between two frames.
    ///
    /// # Errors
    ///
    /// The link broke, the frame takes too long, or it is not what it must be.
    pub fn next(&mut self) -> Result<Option<Incoming>, Broken> {
        self.next_into(|| None)
    }

    /// The same; `spare` may give a buffer that is used again for a large frame.
    ///
    /// # Errors
    ///
    /// As for [`Inbox::next`].
    pub fn next_into(
        &mut self,
        spare: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Result<Option<Incoming>, Broken> {
        let mut header = [0; twinpage_wire::HEADER_BYTES];
        self.due = self.deadline;
        self.link.set_deadline(self.due);
        let filled = self.fill(&mut header);
        if !filled.map_err(|error| self.broken(error))? {
            return Ok(None);
        }
        let header = self.frames.header(header).map_err(Broken::Frame)?;
        let expected = header.body_bytes();
        self.allow(expected as u64);
        let mut body = match expected < LARGE {
            true => Vec::new(),
            false => spare().unwrap_or_default(),
        };
        // No more than that: what is kept for its pages should be little else.
        body.reserve_exact(expected.saturating_sub(body.len()));
        body.resize(expected, 0);
        // A sign of life has no payload.
        let brings = expected > twinpage_wire::CHAIN_BYTES;
        let filled = self.fill_rest(&mut body, brings);
        filled.map_err(|error| self.broken(error))?;
        self.bytes += (twinpage_wire::HEADER_BYTES + expected) as u64;
        let incoming = self.frames.accept(header, body).map_err(Broken::Frame)?;
        Ok(Some(incoming))
    }

    /// Bytes of the frames so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts the bytes of frames with a payload, also of one that is not complete.
    pub fn brought(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.brought)
    }

    /// When the next frame, and all that follow, must be there; empty: whenever they come.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Allows the time that `bytes` more of a frame may take.
    fn allow(&mut self, bytes: u64) {
        let time = self.patience + Duration::from_millis(bytes * 1000 / SLOWEST);
        let end = Instant::now() + time;
        self.due = Some(self.deadline.map_or(end, |deadline| deadline.min(end)));
        self.link.set_deadline(self.due);
    }

    /// What a failure to read means.
    fn broken(&self, error: io::Error) -> Broken {
        let late = self.due.is_some_and(|due| Instant::now() >= due);
        if late && error.kind() == io::ErrorKind::TimedOut {
            Broken::Slow
        } else {
            Broken::Link(error)
        }
    }

    /// Fills `into`; false if the link was closed before its first byte.
    fn fill(&mut self, into: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < into.len() {
            match self.link.read(&mut into[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                got => {
                    if filled == 0 {
                        self.allow(into.len() as u64);
                    }
                    filled += got;
                }
            }
        }
        Ok(true)
    }

    /// Fills `into`, which is what is left of a frame; counts it if the frame `brings` something.
    fn fill_rest(&mut self, mut into: &mut [u8], brings: bool) -> io::Result<()> {
        while !into.is_empty() {
            match self.link.read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    into = &mut into[got..];
                    if brings {
                        self.brought.fetch_add(got as u64, Ordering::Relaxed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(error) => f.write_str(&chain(error)),
            Self::Slow => f.write_str("A frame did not come to its end in time"),
            Self::Frame(error) => error.fmt(f),
        }
    }
}

impl Broken {
    /// The error of `channel`.
    pub fn into_error(self, channel: &Channel) -> Error {
        match self {
            Self::Link(error) => channel.link(&error),
            Self::Slow => channel.protocol(self),
            Self::Frame(error) => channel.protocol(error),
        }
    }
}
