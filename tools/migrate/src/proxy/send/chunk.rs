// SPDX-License-Identifier: GPL-2.0

//! Pieces of QEMU's stream as they were read, with what is in them.

use std::fmt;
use std::sync::Arc;

use twinpage_stream::{
    Piece,
    PAGE_BYTES, //
};
use twinpage_wire::Digest;

use crate::proxy::shelf::{
    Shelf,
    CHUNK_BYTES, //
};

/// Bytes that QEMU sent, and what the parser found in them.
pub struct Chunk {
    /// The bytes; as long as a chunk can be.
    buffer: Vec<u8>,
    /// What lies in them, from the front, without gaps.
    pub pieces: Vec<Piece>,
    /// How many bytes the pieces cover.
    pub filled: usize,
    /// Where the buffer goes in the end.
    shelf: Arc<Shelf>,
}

/// What the pool found out about a page body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// All bytes are zero.
    Zero,
    /// Its digest.
    Hashed(Digest),
}

impl Chunk {
    /// A chunk of the first `filled` bytes of `buffer`, in which `pieces` lie.
    pub fn new(buffer: Vec<u8>, pieces: Vec<Piece>, filled: usize, shelf: &Arc<Shelf>) -> Self {
        Self {
            buffer,
            pieces,
            filled,
            shelf: Arc::clone(shelf),
        }
    }

    /// `length` bytes from `at`; empty if the chunk has not so many.
    pub fn bytes(&self, at: usize, length: usize) -> &[u8] {
        let end = at.saturating_add(length).min(self.filled);
        self.buffer.get(at..end).unwrap_or_default()
    }

    /// The page body at `at`.
    pub fn page(&self, at: usize) -> Option<&[u8; PAGE_BYTES]> {
        self.bytes(at, PAGE_BYTES).try_into().ok()
    }

    /// Whether the chunk may be kept for the sake of a few pages in it: it is mostly full, and its
    /// pieces, which are many where pages are zero, take little memory.
    pub fn is_worth_keeping(&self) -> bool {
        let pieces = self.pieces.capacity() * size_of::<Piece>();
        self.filled >= CHUNK_BYTES / 2 && pieces <= CHUNK_BYTES / 4
    }

    /// Whether any piece is a page.
    pub fn has_pages(&self) -> bool {
        self.pieces
            .iter()
            .any(|piece| matches!(piece, Piece::Page { .. }))
    }

    /// Hashes the page bodies, in order.
    pub fn hash(&self) -> Vec<Body> {
        let mut at = 0;
        let pages = self.pieces.iter().filter_map(|piece| {
            at += piece_bytes(piece);
            match piece {
                Piece::Page { .. } => self.page(at - PAGE_BYTES),
                _ => None,
            }
        });
        let digests = Digest::of_memory(pages).into_iter();
        digests.map(Body::of).collect()
    }
}

impl Body {
    /// What there is to know about a page with that digest.
    fn of(digest: Digest) -> Self {
        match digest {
            Digest::ZERO_PAGE => Self::Zero,
            digest => Self::Hashed(digest),
        }
    }
}

/// How many bytes of the stream a piece covers.
pub fn piece_bytes(piece: &Piece) -> usize {
    match piece {
        Piece::Literal(length) => *length,
        Piece::Zero { .. } => 9,
        Piece::Page { offset: None } => PAGE_BYTES,
        Piece::Page { offset: Some(_) } => 8 + PAGE_BYTES,
        Piece::Mark(_) => 0,
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self.bytes(0, self.filled)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.shelf.put(std::mem::take(&mut self.buffer));
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk")
            .field("filled", &self.filled)
            .field("pieces", &self.pieces.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_hashed_in_order_wherever_they_lie() {
        let shelf = Arc::new(Shelf::default());
        let mut buffer = shelf.take();
        buffer[3 + 8..3 + 8 + PAGE_BYTES].fill(7);
        let pieces = vec![
            Piece::Literal(3),
            Piece::Page { offset: Some(0) },
            Piece::Zero { offset: 4096 },
            Piece::Page { offset: None },
        ];
        let filled = pieces.iter().map(piece_bytes).sum();
        let chunk = Chunk::new(buffer, pieces, filled, &shelf);
        let seven = Body::Hashed(Digest::of(&[7; PAGE_BYTES]));
        assert_eq!(chunk.hash(), [seven, Body::Zero]);
    }

    #[test]
    fn a_chunk_of_many_pieces_is_not_worth_its_memory() {
        let shelf = Arc::new(Shelf::default());
        let chunk = |pieces| Chunk::new(shelf.take(), pieces, CHUNK_BYTES, &shelf);
        let page = Piece::Page { offset: None };
        assert!(chunk(vec![page; CHUNK_BYTES / PAGE_BYTES]).is_worth_keeping());
        let zero = Piece::Zero { offset: 0 };
        assert!(!chunk(vec![zero; CHUNK_BYTES / 9]).is_worth_keeping());
    }

    #[test]
    fn bytes_beyond_the_end_are_not_there() {
        let shelf = Arc::new(Shelf::default());
        let chunk = Chunk::new(shelf.take(), Vec::new(), 10, &shelf);
        assert_eq!(chunk.bytes(8, 100).len(), 2);
        assert!(chunk.bytes(11, 1).is_empty());
        assert!(chunk.bytes(usize::MAX, 2).is_empty());
        assert!(chunk.page(0).is_none());
    }
}
