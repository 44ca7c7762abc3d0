// SPDX-License-Identifier: GPL-2.0

//! Takes QEMU's stream as it comes, finds the page bodies in it and has them hashed.

use std::io::{
    self,
    Read, //
};
use std::sync::mpsc::SyncSender;
use std::sync::Arc;

use twinpage_stream::{
    Mark,
    Opaque,
    Parser,
    Piece, //
};

use crate::proxy::pool::Ticket;
use crate::proxy::send::chunk::{
    Body,
    Chunk, //
};
use crate::proxy::session::Session;
use crate::proxy::shelf::Shelf;

/// Chunks between the reader and the encoder.
pub const QUEUE_CHUNKS: usize = 8;

/// What the encoder gets from the reader.
pub enum Parcel {
    /// Bytes and what lies in them, and the bodies, in order, that the pool hashes meanwhile.
    Chunk(Arc<Chunk>, Option<Ticket<Vec<Body>>>),
    /// The stream has ended.
    End,
}

/// Reads one connection.
pub struct Reader<R> {
    /// QEMU.
    pub source: R,
    /// Whether it is the connection that asks for a return path.
    pub main: bool,
    /// Whether QEMU is known to ask for a return path, also where that is not seen.
    pub return_path_is_on: bool,
    /// Its session.
    pub session: Arc<Session>,
    /// Buffers.
    pub shelf: Arc<Shelf>,
    /// Where chunks go.
    pub queue: SyncSender<Parcel>,
}

/// How reading ended.
#[derive(Debug)]
pub enum End {
    /// QEMU closed its end; everything went to the encoder.
    Eof,
    /// QEMU closed its end, at this offset, before it could know that the destination has
    /// everything.
    GivenUp(u64),
    /// QEMU announces RAM and did not ask for a return path.
    NoReturnPath,
    /// The stream is not understood, and did not ask for a return path before, as far as is known.
    Unguarded(Opaque),
    /// The encoder has gone, which has said why.
    Stopped,
    /// Reading failed at this offset.
    Failed(u64, io::Error),
}

impl<R: Read> Reader<R> {
    /// Reads until the stream ends.
    pub fn run(mut self) -> End {
        let mut parser = Parser::new();
        let mut rest = Vec::new();
        let mut return_path = false;
        loop {
            let mut buffer = self.shelf.take();
            let held = rest.len();
            buffer[..held].copy_from_slice(&rest);
            let got = match self.source.read(&mut buffer[held..]) {
                Ok(got) => got,
                Err(error) => return End::Failed(parser.position(), error),
            };
            if got == 0 && self.main && !self.session.may_leave() {
                return End::GivenUp(parser.position());
            }
            let total = held + got;
            let mut pieces = Vec::new();
            let mut used = parser.feed(&buffer[..total], &mut pieces);
            if got == 0 {
                // The body of a page that never came to its end.
                pieces.push(Piece::Literal(total - used));
                used = total;
            }
            rest.clear();
            rest.extend_from_slice(&buffer[used..total]);
            if has(&pieces, |mark| matches!(mark, Mark::Switchover)) {
                // Now: the encoder may have seconds of work before it comes to that.
                self.session.progress.stopped();
            }
            return_path |= has(&pieces, |mark| matches!(mark, Mark::ReturnPath));
            if !return_path && has(&pieces, |mark| matches!(mark, Mark::RamStart { .. })) {
                return End::NoReturnPath;
            }
            let guarded = !self.main || return_path || self.return_path_is_on;
            if let (false, Some(opaque)) = (guarded, opaque(&pieces)) {
                return End::Unguarded(opaque);
            }
            if self
                .pass_on(Chunk::new(buffer, pieces, used, &self.shelf))
                .is_err()
            {
                return End::Stopped;
            }
            if got == 0 {
                return match self.queue.send(Parcel::End) {
                    Ok(()) => End::Eof,
                    Err(_) => End::Stopped,
                };
            }
        }
    }

    /// Hands a chunk to the encoder, and its pages to the pool.
    fn pass_on(&self, chunk: Chunk) -> Result<(), ()> {
        if chunk.pieces.is_empty() {
            return Ok(());
        }
        let chunk = Arc::new(chunk);
        let bodies = chunk.has_pages().then(|| {
            let chunk = Arc::clone(&chunk);
            self.session.pool.submit(move || chunk.hash())
        });
        self.queue
            .send(Parcel::Chunk(chunk, bodies))
            .map_err(|_| ())
    }
}

/// Whether a mark that `is` wanted is among `pieces`.
fn has(pieces: &[Piece], is: impl Fn(&Mark) -> bool) -> bool {
    pieces
        .iter()
        .any(|piece| matches!(piece, Piece::Mark(mark) if is(mark)))
}

/// From where on the stream is not understood, if that is among `pieces`.
fn opaque(pieces: &[Piece]) -> Option<Opaque> {
    pieces.iter().find_map(|piece| match piece {
        Piece::Mark(Mark::Opaque(opaque)) => Some(*opaque),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::limits::Limits;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn the_stop_is_known_before_the_encoder_comes_to_it() {
        // A configuration, and the commands that open the return path and begin the switchover.
        let stream = b"QEVM\0\0\0\x03\x07\0\0\0\x07pc-10.0\x08\0\x01\0\0\x08\0\x0b\0\0";
        let session = Session::new(Limits::default()).unwrap();
        let (queue, _parcels) = sync_channel(QUEUE_CHUNKS);
        let reader = Reader {
            source: &stream[..],
            main: true,
            return_path_is_on: false,
            session: Arc::clone(&session),
            shelf: Arc::default(),
            queue,
        };
        assert!(matches!(reader.run(), End::GivenUp(_)));
        session.progress.arrived();
        assert!(session.progress.snapshot().switchover_ms > 0);
    }
}
