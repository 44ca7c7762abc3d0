// SPDX-License-Identifier: GPL-2.0

//! A filter in parts, as it travels.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | digests in the filter |
//! | 8..16 | seed |
//! | 16..20 | length of a segment: a power of two |
//! | 20..24 | length of all segments that a digest may begin in: a multiple of it |
//! | 24.. | fingerprints of 2 bytes, as many as both lengths say; none for an empty filter |
//!
//! Every part but the last has exactly [`limits::FILTER_PART`] bytes.

use crate::cursor::Cursor;
use crate::error::{
    Error,
    Fault, //
};
use crate::filter::{
    Filter,
    Shape, //
};
use crate::frame::{
    Frame,
    Kind, //
};
use crate::hello::FilterKey;
use crate::limits;

/// Bytes in front of the fingerprints.
pub(crate) const SHAPE_BYTES: usize = 24;

/// A part of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterPart {
    /// Bytes of the whole filter.
    pub total: u64,
    /// Bytes of it before this part.
    pub offset: u64,
    /// The bytes of this part.
    pub bytes: Vec<u8>,
}

impl FilterPart {
    /// The frame that says it.
    ///
    /// # Errors
    ///
    /// It has more than [`limits::FILTER_PART`] bytes.
    pub(crate) fn frame(&self) -> Result<Frame, Error> {
        let numbers = [self.total.to_le_bytes(), self.offset.to_le_bytes()];
        Frame::new(Kind::Filter, &[numbers.as_flattened(), &self.bytes])
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// The payload is too short.
    pub(crate) fn decode(mut payload: Vec<u8>) -> Result<Self, Fault> {
        let mut from = Cursor::new(&payload);
        let total = from.u64("the length of the filter")?;
        let offset = from.u64("the offset of the part")?;
        let used = from.at();
        payload.drain(..used);
        let bytes = payload;
        Ok(Self {
            total,
            offset,
            bytes,
        })
    }
}

/// A filter of which parts are missing.
#[derive(Debug)]
struct Open {
    /// What the first part said.
    shape: Shape,
    /// The fingerprints that came.
    prints: Vec<u16>,
    /// The bytes that came.
    came: u64,
}

/// Puts the parts of a filter together. When a filter is complete, the next one may begin.
#[derive(Debug)]
pub struct FilterAssembler {
    /// The key of the filter.
    key: FilterKey,
    /// How many bytes a filter may have.
    limit: usize,
    /// A filter of which parts are missing.
    open: Option<Open>,
}

impl FilterAssembler {
    /// Filters with `key`, of at most `limit` bytes.
    pub fn new(key: &FilterKey, limit: usize) -> Self {
        Self {
            key: *key,
            limit,
            open: None,
        }
    }

    /// Takes the next part; gives the filter when this was the last.
    ///
    /// Memory grows with what came, not with what was announced.
    ///
    /// # Errors
    ///
    /// The filter is too large, the part is not the next one, or the filter is not well formed.
    pub fn push(&mut self, part: &FilterPart) -> Result<Option<Filter>, Fault> {
        let (mut open, bytes) = match self.open.take() {
            Some(open) => (open, part.bytes.as_slice()),
            None => self.first(part)?,
        };
        let total = open.shape.total_bytes();
        let size = (total - open.came).min(limits::FILTER_PART as u64);
        expect("Bytes of the filter", part.total, total)?;
        expect("Offset of the part", part.offset, open.came)?;
        expect("Bytes of the part", part.bytes.len() as u64, size)?;
        let pairs = bytes.chunks_exact(2);
        let prints = pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        open.prints.extend(prints);
        open.came += size;
        if open.came < total {
            self.open = Some(open);
            return Ok(None);
        }
        Filter::received(&self.key, open.shape, open.prints).map(Some)
    }

    /// Begins a filter with its first part: the bytes of it that are fingerprints.
    fn first<'a>(&self, part: &'a FilterPart) -> Result<(Open, &'a [u8]), Fault> {
        if part.total > self.limit as u64 {
            return Err(Fault::TooLong {
                what: "Filter",
                size: part.total,
                max: self.limit as u64,
            });
        }
        let mut from = Cursor::new(&part.bytes);
        let open = Open {
            shape: Shape::decode(&mut from)?,
            prints: Vec::new(),
            came: 0,
        };
        Ok((open, from.rest()))
    }
}

/// Fails unless `found` is `expected`.
fn expect(what: &'static str, found: u64, expected: u64) -> Result<(), Fault> {
    if found != expected {
        return Err(Fault::Length {
            what,
            found,
            expected,
        });
    }
    Ok(())
}
