// SPDX-License-Identifier: GPL-2.0

//! Feeds streams to the parser as a proxy would, and judges what it says by the bytes themselves.

use twinpage_stream::{
    Mark,
    Parser,
    Piece,
    PAGE_BYTES, //
};

/// What the parser made of a stream, independent of how it was cut into chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Where in the stream each page begins.
    pub pages: Vec<u64>,
    /// Each mark, and where in the stream it is.
    pub marks: Vec<(u64, Mark)>,
}

/// More that the parser said, which does depend on the chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// What does not depend on them.
    pub events: Events,
    /// Records of zero pages.
    pub zeros: u64,
    /// Pages whose header was recognised with them.
    pub with_header: u64,
    /// Literal bytes.
    pub literal: u64,
}

impl Replay {
    /// The marks, without their places.
    pub fn marks(&self) -> Vec<Mark> {
        self.events.marks.iter().map(|(_, mark)| *mark).collect()
    }

    /// Where and why the parser gave up, if it did.
    pub fn opaque(&self) -> Option<twinpage_stream::Opaque> {
        self.marks().into_iter().find_map(|mark| match mark {
            Mark::Opaque(opaque) => Some(opaque),
            _ => None,
        })
    }
}

/// Feeds `stream` in chunks of the lengths that `chunk` gives, and checks of every call that its pieces
/// are right and cover what it consumed.
pub fn replay_by(stream: &[u8], mut chunk: impl FnMut() -> usize) -> Replay {
    let mut parser = Parser::new();
    let mut replay = Replay::default();
    let mut pieces = Vec::new();
    let (mut from, mut to) = (0, 0);
    while to < stream.len() {
        to = stream.len().min(to + chunk().max(1));
        pieces.clear();
        let consumed = parser.feed(&stream[from..to], &mut pieces);
        let held = to - from - consumed;
        assert!(held < PAGE_BYTES, "{held} bytes are held back at {to}");
        replay.add(stream, from, consumed, &pieces);
        from += consumed;
        assert_eq!(parser.position(), from as u64);
    }
    replay.literal += (to - from) as u64;
    replay
}

/// Feeds `stream` in chunks of `chunk` bytes.
pub fn replay(stream: &[u8], chunk: usize) -> Replay {
    replay_by(stream, || chunk)
}

/// Feeds `stream` in chunks of many lengths and checks that the events are always the same; gives what
/// came of feeding it at once.
pub fn replay_all(stream: &[u8], chunks: &[usize]) -> Replay {
    let whole = replay(stream, stream.len().max(1));
    for chunk in chunks {
        assert_eq!(
            replay(stream, *chunk).events,
            whole.events,
            "in chunks of {chunk}"
        );
    }
    whole
}

impl Replay {
    /// Adds what was said of `consumed` bytes from `start` on.
    fn add(&mut self, stream: &[u8], start: usize, consumed: usize, pieces: &[Piece]) {
        let mut at = start;
        let mut after_literal = false;
        for piece in pieces {
            let bytes = &stream[at..at + piece.bytes()];
            let is_literal = matches!(piece, Piece::Literal(_));
            assert!(!(is_literal && after_literal), "two literals at {at}");
            after_literal = is_literal;
            match piece {
                Piece::Literal(length) => {
                    assert!(*length > 0);
                    self.literal += *length as u64;
                }
                Piece::Zero { offset } => {
                    assert_eq!(bytes[..8], (offset | 0x22).to_be_bytes());
                    assert_eq!(bytes[8..], [0]);
                    self.zeros += 1;
                }
                Piece::Page { offset: None } => self.events.pages.push(at as u64),
                Piece::Page {
                    offset: Some(offset),
                } => {
                    assert_eq!(bytes[..8], (offset | 0x28).to_be_bytes());
                    self.events.pages.push(at as u64 + 8);
                    self.with_header += 1;
                }
                Piece::Mark(mark) => self.events.marks.push((at as u64, *mark)),
            }
            at += piece.bytes();
        }
        assert_eq!(
            at,
            start + consumed,
            "the pieces do not cover what was consumed"
        );
    }
}
