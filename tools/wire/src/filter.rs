// SPDX-License-Identifier: GPL-2.0

//! What the receiver holds, in 18 bits a page: a binary fuse filter of keyed 64-bit truncations.
//!
//! A digest that is in the set is always found; one that is not is found in one of 65,536 cases.
//! The truncation is SipHash-1-3 of the digest under a key that the receiver makes for the session,
//! so that nobody can prepare pages which the filter takes for others. The filter is a hint: a
//! receiver that does not have a page after all asks for it.

use siphasher::sip::SipHasher13;
use xorf::{
    BinaryFuse16,
    Filter as _, //
};

use crate::cursor::Cursor;
use crate::digest::Digest;
use crate::error::{
    Error,
    Fault, //
};
use crate::hello::FilterKey;
use crate::limits;
use crate::parts::{
    FilterPart,
    SHAPE_BYTES, //
};

/// The longest segment that is accepted. Builders use at most this.
const SEGMENT_MAX: u32 = 1 << 18;

/// Collects digests for a filter.
#[derive(Debug)]
pub struct FilterBuilder {
    /// What makes truncations.
    truncate: SipHasher13,
    /// The key of it.
    key: FilterKey,
    /// Truncations.
    keys: Vec<u64>,
    /// Digests that did not fit in.
    left_out: u64,
}

impl FilterBuilder {
    /// An empty set under `key`.
    pub fn new(key: &FilterKey) -> Self {
        Self {
            truncate: SipHasher13::new_with_key(&key.0),
            key: *key,
            keys: Vec::new(),
            left_out: 0,
        }
    }

    /// Adds `digest`, unless there are [`limits::FILTER_KEYS`] already.
    pub fn add(&mut self, digest: &Digest) {
        if self.keys.len() < limits::FILTER_KEYS {
            self.keys.push(self.truncate.hash(&digest.0));
        } else {
            self.left_out += 1;
        }
    }

    /// How many digests were added, equal ones counted each time.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none was added.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many digests did not fit in.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The filter. It needs some 30 bytes a digest for a moment.
    ///
    /// # Errors
    ///
    /// The filter could not be built, which does not happen but by a chance of less than one in
    /// 2^100.
    pub fn finish(mut self) -> Result<Filter, Error> {
        self.keys.sort_unstable();
        self.keys.dedup();
        let keys = self.keys.len();
        let fuse = if keys == 0 {
            None
        } else {
            let fuse = BinaryFuse16::try_from(&self.keys);
            Some(fuse.map_err(|_| Error::Filter { keys })?)
        };
        Ok(Filter {
            key: self.key,
            truncate: self.truncate,
            keys: keys as u64,
            fuse,
        })
    }
}

/// A set of digests that may also say yes of others.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The key of the truncation.
    key: FilterKey,
    /// What makes truncations.
    truncate: SipHasher13,
    /// Digests in it.
    keys: u64,
    /// The set; nothing when it is empty.
    ///
    /// # Invariants
    ///
    /// The lengths in it are those of a [`Shape`] that was checked, or it was built here: no lookup
    /// leaves the fingerprints.
    fuse: Option<BinaryFuse16>,
}

impl Filter {
    /// Whether `digest` may be in the set.
    pub fn contains(&self, digest: &Digest) -> bool {
        let key = self.truncate.hash(&digest.0);
        self.fuse.as_ref().is_some_and(|fuse| fuse.contains(&key))
    }

    /// How many digests are in the set, as far as the one who built it says.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// The key of the truncation.
    pub fn key(&self) -> FilterKey {
        self.key
    }

    /// Bytes of the filter when it travels.
    pub fn wire_bytes(&self) -> u64 {
        self.shape().total_bytes()
    }

    /// The filter in parts, in the order in which they have to be sent.
    pub fn parts(&self) -> impl Iterator<Item = FilterPart> + '_ {
        let shape = self.shape();
        let total = shape.total_bytes();
        let prints = self
            .fuse
            .as_ref()
            .map_or(&[][..], |fuse| &fuse.fingerprints);
        // One part may hold so many fingerprints; the first also holds the shape.
        let room = limits::FILTER_PART / 2;
        let first = prints.len().min(room - SHAPE_BYTES / 2);
        let (first, rest) = prints.split_at(first);
        let mut head = shape.encode().to_vec();
        head.extend(first.iter().flat_map(|print| print.to_le_bytes()));
        let head = FilterPart {
            total,
            offset: 0,
            bytes: head,
        };
        let rest = rest.chunks(room).enumerate();
        let rest = rest.map(move |(n, prints)| FilterPart {
            total,
            offset: ((n + 1) * limits::FILTER_PART) as u64,
            bytes: prints
                .iter()
                .flat_map(|print| print.to_le_bytes())
                .collect(),
        });
        std::iter::once(head).chain(rest)
    }

    /// A filter from the peer.
    ///
    /// # Errors
    ///
    /// `prints` are not as many as `shape` says.
    pub(crate) fn received(key: &FilterKey, shape: Shape, prints: Vec<u16>) -> Result<Self, Fault> {
        let (found, expected) = (prints.len() as u64, shape.prints());
        if found != expected {
            let what = "Fingerprints of the filter";
            return Err(Fault::Length {
                what,
                found,
                expected,
            });
        }
        Ok(Self {
            key: *key,
            truncate: SipHasher13::new_with_key(&key.0),
            keys: shape.keys,
            fuse: (shape.keys > 0).then(|| shape.fuse(prints)).flatten(),
        })
    }

    /// The numbers in front of the fingerprints.
    fn shape(&self) -> Shape {
        let empty = Shape::default();
        self.fuse.as_ref().map_or(empty, |fuse| Shape {
            keys: self.keys,
            seed: fuse.descriptor.seed,
            segment: fuse.descriptor.segment_length,
            segments: fuse.descriptor.segment_count_length,
        })
    }
}

/// The numbers in front of the fingerprints.
///
/// # Invariants
///
/// Either all are 0, or `segment` is a power of two of at most [`SEGMENT_MAX`] and `segments` is a
/// multiple of it. A lookup reads fingerprint `h < segments`, and one of each of the two segments
/// after that of `h`, so that [`Shape::prints`] fingerprints are enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Digests.
    keys: u64,
    /// Seed of the hash.
    seed: u64,
    /// Length of a segment.
    segment: u32,
    /// Length of all segments but the last two.
    segments: u32,
}

impl Shape {
    /// Reads and checks one.
    ///
    /// # Errors
    ///
    /// It is not one that a filter can have.
    pub(crate) fn decode(from: &mut Cursor<'_>) -> Result<Self, Fault> {
        let shape = Self {
            keys: from.u64("the number of digests")?,
            seed: from.u64("the seed")?,
            segment: from.u32("the length of a segment")?,
            segments: from.u32("the length of all segments")?,
        };
        if shape == Self::default() {
            return Ok(shape);
        }
        let wrong = |what, offset, value| {
            Err(Fault::Value {
                what,
                offset,
                value,
            })
        };
        if shape.keys == 0 || shape.keys > limits::FILTER_KEYS as u64 {
            return wrong("Number of digests", 0, shape.keys);
        }
        if !shape.segment.is_power_of_two() || shape.segment > SEGMENT_MAX {
            return wrong("Length of a segment", 16, shape.segment.into());
        }
        // The sum with two more segments must stay a u32, too: that is how lookups count.
        let end = shape.segments.checked_add(2 * shape.segment);
        if shape.segments == 0 || shape.segments % shape.segment != 0 || end.is_none() {
            return wrong("Length of all segments", 20, shape.segments.into());
        }
        Ok(shape)
    }

    /// Writes it.
    fn encode(&self) -> [u8; SHAPE_BYTES] {
        let mut bytes = [0; SHAPE_BYTES];
        bytes[..8].copy_from_slice(&self.keys.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seed.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.segment.to_le_bytes());
        bytes[20..].copy_from_slice(&self.segments.to_le_bytes());
        bytes
    }

    /// A set of this shape. Its type can only be made by building one, so one is.
    fn fuse(&self, prints: Vec<u16>) -> Option<BinaryFuse16> {
        let mut fuse = BinaryFuse16::try_from(&[0][..]).ok()?;
        fuse.descriptor.seed = self.seed;
        fuse.descriptor.segment_length = self.segment;
        fuse.descriptor.segment_length_mask = self.segment - 1;
        fuse.descriptor.segment_count_length = self.segments;
        fuse.fingerprints = prints.into_boxed_slice();
        Some(fuse)
    }

    /// How many fingerprints there are.
    fn prints(&self) -> u64 {
        u64::from(self.segments) + 2 * u64::from(self.segment)
    }

    /// Bytes of the whole filter.
    pub(crate) fn total_bytes(&self) -> u64 {
        SHAPE_BYTES as u64 + 2 * self.prints()
    }
}
