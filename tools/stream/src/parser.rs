// SPDX-License-Identifier: GPL-2.0

//! The parser: gives the machines the fields that they want, and everything else away as it is.

use crate::field::{
    be32,
    Flow,
    Machine,
    Need,
    FIELD_BYTES, //
};
use crate::multifd::{
    self,
    Multifd, //
};
use crate::output::Output;
use crate::piece::{
    Channel,
    Mark,
    Opaque,
    Piece,
    PAGE_BYTES, //
};
use crate::reason::Reason;
use crate::stream::{
    self,
    Stream, //
};

/// Bytes that tell the kind of a channel.
const MAGIC_BYTES: usize = 4;

/// Finds the pages in what one connection of a source QEMU says.
#[derive(Debug)]
pub struct Parser {
    /// How many bytes of the stream were consumed.
    position: u64,
    /// The first bytes of a field whose rest has not come. They were given out as literals.
    held: [u8; FIELD_BYTES],
    /// How many bytes that are.
    held_bytes: usize,
    /// How much of what is to be skipped was skipped.
    skipped: u64,
    /// What reads the stream.
    reader: Reader,
    /// The kind of the channel, once it is known.
    kind: Option<Channel>,
    /// The name of the last section, when nothing reads the stream any more.
    section: Box<str>,
}

/// What reads the stream.
#[derive(Debug)]
enum Reader {
    /// Its first four bytes have not come.
    Magic,
    /// A main channel.
    Main(Box<Stream>),
    /// A channel for pages.
    Multifd(Multifd),
    /// Nothing.
    Rest,
}

impl Reader {
    /// What it wants next.
    #[inline]
    fn need(&self) -> Need {
        match self {
            Self::Magic => Need::Field(MAGIC_BYTES),
            Self::Main(stream) => stream.need(),
            Self::Multifd(multifd) => multifd.need(),
            Self::Rest => Need::Rest,
        }
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// Before the first byte of a connection.
    pub fn new() -> Self {
        Self {
            position: 0,
            held: [0; FIELD_BYTES],
            held_bytes: 0,
            skipped: 0,
            reader: Reader::Magic,
            kind: None,
            section: Box::default(),
        }
    }

    /// How many bytes of the stream were consumed.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The kind of the connection, once its first four bytes have come.
    pub fn kind(&self) -> Option<Channel> {
        self.kind
    }

    /// The name of the section that was started last: of the unknown one, after
    /// [`Reason::UnknownSection`]. Empty if there was none.
    pub fn section(&self) -> &str {
        match &self.reader {
            Reader::Main(stream) => stream.section(),
            _ => &self.section,
        }
    }

    /// Says what the next bytes of the stream are, by appending to `out`, and how many of them it has
    /// consumed: all but fewer than [`PAGE_BYTES`] at the end that begin a page. Those come first in
    /// the next chunk; when there is none, they are literal.
    ///
    /// It never fails. What is not understood gives a [`Mark::Opaque`] and literals from then on.
    pub fn feed(&mut self, chunk: &[u8], out: &mut Vec<Piece>) -> usize {
        let mut output = Output::new(out);
        let mut at = 0;
        loop {
            if let (Reader::Main(stream), 0) = (&self.reader, self.held_bytes) {
                at += stream.run(rest_of(chunk, at), &mut output);
            }
            let used = match self.reader.need() {
                Need::Field(bytes) => self.field(bytes, rest_of(chunk, at), at, &mut output),
                Need::Skip(bytes) => self.skip(bytes, rest_of(chunk, at), &mut output),
                Need::Page => self.page(rest_of(chunk, at), &mut output),
                Need::Rest => {
                    let bytes = rest_of(chunk, at).len();
                    output.literal(bytes);
                    at += bytes;
                    break;
                }
            };
            match used {
                Progress::Went(bytes) => at += bytes,
                Progress::Waits(bytes) => {
                    at += bytes;
                    break;
                }
            }
        }
        output.flush();
        // OVERFLOW: No stream has 2^64 bytes.
        self.position += at as u64;
        at
    }

    /// Reads a field of `wanted` bytes from what is held and then from `bytes`, which are `at` in the
    /// chunk.
    fn field(
        &mut self,
        wanted: usize,
        bytes: &[u8],
        at: usize,
        output: &mut Output<'_>,
    ) -> Progress {
        // OVERFLOW: A field has at most FIELD_BYTES, and as many are held at most.
        let start = self.position + at as u64 - self.held_bytes as u64;
        if self.held_bytes == 0 {
            if let Some(field) = bytes.get(..wanted) {
                output.literal(wanted);
                if self.take(field, start, output) == Flow::Unread {
                    self.hold(field);
                }
                return Progress::Went(wanted);
            }
        }
        let taken = wanted.saturating_sub(self.held_bytes).min(bytes.len());
        self.hold(bytes.get(..taken).unwrap_or(&[]));
        output.literal(taken);
        if self.held_bytes < wanted {
            return Progress::Waits(taken);
        }
        let held = self.held;
        if self.take(held.get(..wanted).unwrap_or(&[]), start, output) != Flow::Unread {
            self.held.copy_within(wanted..self.held_bytes, 0);
            self.held_bytes -= wanted;
        }
        Progress::Went(taken)
    }

    /// Holds the first bytes of a field.
    fn hold(&mut self, bytes: &[u8]) {
        let end = self.held_bytes + bytes.len();
        if let Some(place) = self.held.get_mut(self.held_bytes..end) {
            place.copy_from_slice(bytes);
            self.held_bytes = end;
        }
    }

    /// Gives a field, which starts at `start` of the stream, to the reader.
    fn take(&mut self, field: &[u8], start: u64, output: &mut Output<'_>) -> Flow {
        let result = match &mut self.reader {
            Reader::Magic => self.open(be32(field, 0)),
            Reader::Main(stream) => stream.take(field, output),
            Reader::Multifd(multifd) => multifd.take(field),
            Reader::Rest => Ok(Flow::More),
        };
        result.unwrap_or_else(|reason| {
            self.section = self.section().into();
            self.reader = Reader::Rest;
            output.mark(Mark::Opaque(Opaque {
                offset: start,
                reason,
            }));
            Flow::Done
        })
    }

    /// The channel starts with `magic`.
    fn open(&mut self, magic: u32) -> Result<Flow, Reason> {
        let (kind, reader) = match magic {
            stream::MAGIC => (Channel::Main, Reader::Main(Box::new(Stream::new()))),
            multifd::MAGIC => (Channel::Multifd, Reader::Multifd(Multifd::Version)),
            _ => {
                self.kind = Some(Channel::Raw);
                return Err(Reason::UnknownChannel(magic));
            }
        };
        self.kind = Some(kind);
        self.reader = reader;
        Ok(Flow::More)
    }

    /// Skips what is there of `wanted` bytes.
    fn skip(&mut self, wanted: u64, bytes: &[u8], output: &mut Output<'_>) -> Progress {
        let left = wanted.saturating_sub(self.skipped);
        // CAST: It is not more than the length of a slice.
        let taken = left.min(bytes.len() as u64) as usize;
        output.literal(taken);
        if (taken as u64) < left {
            // OVERFLOW: It stays below what is wanted.
            self.skipped += taken as u64;
            return Progress::Waits(taken);
        }
        self.skipped = 0;
        self.passed();
        Progress::Went(taken)
    }

    /// Takes a page, if it is all there.
    fn page(&mut self, bytes: &[u8], output: &mut Output<'_>) -> Progress {
        if bytes.len() < PAGE_BYTES {
            return Progress::Waits(0);
        }
        output.push(Piece::Page { offset: None });
        self.passed();
        Progress::Went(PAGE_BYTES)
    }

    /// Tells the reader that what it did not want to see is over.
    fn passed(&mut self) {
        match &mut self.reader {
            Reader::Main(stream) => stream.passed(),
            Reader::Multifd(multifd) => {
                multifd.passed();
            }
            Reader::Magic | Reader::Rest => {}
        }
    }
}

/// How many bytes were used, and whether there may be enough for what comes next.
enum Progress {
    /// There may be.
    Went(usize),
    /// There are not.
    Waits(usize),
}

/// What is left of `chunk` from `at` on.
fn rest_of(chunk: &[u8], at: usize) -> &[u8] {
    chunk.get(at..).unwrap_or(&[])
}
