// SPDX-License-Identifier: GPL-2.0

//! Where pieces go.

use crate::piece::{
    Mark,
    Piece, //
};

/// Collects pieces; adjacent literals become one.
pub(crate) struct Output<'a> {
    /// The pieces.
    pieces: &'a mut Vec<Piece>,
    /// Literal bytes after them.
    literal: usize,
}

impl<'a> Output<'a> {
    /// Appends to `pieces`.
    pub(crate) fn new(pieces: &'a mut Vec<Piece>) -> Self {
        Self { pieces, literal: 0 }
    }

    /// Adds literal bytes.
    pub(crate) fn literal(&mut self, bytes: usize) {
        // OVERFLOW: The bytes of a call are in one slice.
        self.literal += bytes;
    }

    /// Adds a piece that is no literal.
    #[inline]
    pub(crate) fn push(&mut self, piece: Piece) {
        if self.literal > 0 {
            self.flush();
        }
        self.pieces.push(piece);
    }

    /// Adds a mark.
    pub(crate) fn mark(&mut self, mark: Mark) {
        self.push(Piece::Mark(mark));
    }

    /// Says what literal bytes there are.
    pub(crate) fn flush(&mut self) {
        if self.literal > 0 {
            self.pieces.push(Piece::Literal(self.literal));
            self.literal = 0;
        }
    }
}
