// SPDX-License-Identifier: GPL-2.0

//! Decides how each page travels, and makes blocks of it all.
//!
//! Nothing waits here for more input: when none comes for [`LINGER`], what there is goes out, so
//! that whatever QEMU waits for (an answer to PING, say) can come.

use std::sync::mpsc::{
    Receiver,
    RecvTimeoutError, //
};
use std::sync::Arc;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_stream::{
    Mark,
    Piece, //
};
use twinpage_wire::{
    BlockWriter,
    Digest,
    Filter,
    LentPage,
    Memory,
    Message,
    Op,
    SenderDictionary,
    PAGE_BYTES, //
};

use crate::proxy::error::Error;
use crate::proxy::progress::{
    OpaqueNote,
    Phase, //
};
use crate::proxy::qemu::QemuCloser;
use crate::proxy::send::channel::Flow;
use crate::proxy::send::chunk::{
    piece_bytes,
    Body,
    Chunk, //
};
use crate::proxy::send::reader::Parcel;
use crate::proxy::session::Event;
use crate::proxy::window::{
    Amount,
    BLOCK_CHARGE, //
};

/// How long the encoder waits for more input before it sends what it has.
const LINGER: Duration = Duration::from_micros(500);

/// The encoder of one channel.
pub struct Encoder {
    /// Where blocks go, and what holds them back.
    pub flow: Flow,
    /// Chunks, in order.
    pub queue: Receiver<Parcel>,
    /// QEMU.
    pub source: QemuCloser,
    /// The open block.
    pub writer: BlockWriter,
    /// What was sent before.
    pub dictionary: SenderDictionary,
    /// How long RAM waits for the receiver's filter.
    pub filter_wait: Duration,
    /// Hears where the channel turns opaque.
    pub notice: Arc<dyn Fn(&str) + Send + Sync>,
    /// How pages may travel now.
    pub mode: Mode,
    /// The filter, once it is there.
    pub filter: Option<Arc<Filter>>,
    /// Bytes of the stream so far.
    pub position: u64,
    /// The receiver knows that what comes may complete the destination.
    pub announced: bool,
}

/// How pages may travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In any way.
    Any,
    /// Only so that the receiver has them for certain: the guest stands still.
    Certain,
    /// As bytes, at once: the guest waits for them.
    Urgent,
}

/// Why the encoder ends early.
enum Halt {
    /// Another thread has failed, and has said why.
    Stopped,
    /// This.
    Failed(Error),
}

/// What a chunk added to the counters.
#[derive(Default)]
struct Tally {
    sent: u64,
    back: u64,
    referenced: u64,
    zero_body: u64,
    zero: u64,
    literal: u64,
}

impl Encoder {
    /// Encodes until the stream ends and everything has arrived.
    pub fn run(mut self) {
        match self.encode_all() {
            Ok(()) => self.flow.channel.tell(Event::Delivered),
            Err(Halt::Failed(error)) => self.flow.channel.fail(error),
            Err(Halt::Stopped) => (),
        }
    }

    /// Encodes until the stream ends.
    fn encode_all(&mut self) -> Result<(), Halt> {
        loop {
            let parcel = match self.next_parcel()? {
                Some(parcel) => parcel,
                None => {
                    self.flush()?;
                    continue;
                }
            };
            let Parcel::Chunk(chunk, bodies) = parcel else {
                break;
            };
            let bodies = match bodies {
                Some(ticket) => ticket.wait().map_err(|_| self.bug())?,
                None => Vec::new(),
            };
            self.encode(&chunk, &bodies)?;
            if self.mode == Mode::Urgent {
                self.flush()?;
            }
        }
        self.flush()?;
        let stream_bytes = self.position;
        self.tell(&Message::Eof { stream_bytes })?;
        self.flow.window.drain().map_err(|_| Halt::Stopped)
    }

    /// The next chunk; empty if none comes soon and there is something to send meanwhile.
    fn next_parcel(&mut self) -> Result<Option<Parcel>, Halt> {
        if self.writer.is_empty() {
            return self.queue.recv().map(Some).map_err(|_| Halt::Stopped);
        }
        match self.queue.recv_timeout(LINGER) {
            Ok(parcel) => Ok(Some(parcel)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Halt::Stopped),
        }
    }

    /// Encodes a chunk.
    fn encode(&mut self, chunk: &Arc<Chunk>, bodies: &[Body]) -> Result<(), Halt> {
        let mut tally = Tally::default();
        let mut bodies = bodies.iter();
        let lent = chunk
            .is_worth_keeping()
            .then(|| Arc::clone(chunk) as Memory);
        let mut at = 0;
        for piece in &chunk.pieces {
            let length = piece_bytes(piece);
            if self.mode == Mode::Certain && is_page(piece) {
                // No package of postcopy follows.
                self.flow.lanes.stop();
            }
            match piece {
                Piece::Literal(_) => self.literal(chunk.bytes(at, length), &mut tally)?,
                Piece::Zero { offset } => {
                    tally.zero += 1;
                    self.put(Op::Zeros {
                        first: *offset,
                        count: 1,
                    })?;
                    self.position += length as u64;
                }
                Piece::Page { offset } => {
                    let body = bodies.next().ok_or_else(|| self.bug())?;
                    let place = Place {
                        chunk,
                        lent: lent.as_ref(),
                        at,
                        length,
                        header: *offset,
                    };
                    self.page(&place, body, &mut tally)?;
                }
                Piece::Mark(mark) => self.mark(mark)?,
            }
            at += length;
        }
        self.flow.channel.advance(self.position);
        self.count(&tally, at as u64);
        Ok(())
    }

    /// Encodes bytes that belong to no page.
    fn literal(&mut self, mut bytes: &[u8], tally: &mut Tally) -> Result<(), Halt> {
        tally.literal += bytes.len() as u64;
        self.position += bytes.len() as u64;
        while !bytes.is_empty() {
            let left = self.put(Op::Literal(bytes))?;
            bytes = &bytes[bytes.len() - left..];
        }
        Ok(())
    }

    /// Encodes a page.
    fn page(&mut self, place: &Place, body: &Body, tally: &mut Tally) -> Result<(), Halt> {
        if self.mode == Mode::Urgent {
            return self.literal(place.chunk.bytes(place.at, place.length), tally);
        }
        let Body::Hashed(digest) = body else {
            tally.zero_body += 1;
            self.position += place.length as u64;
            let header = place.header;
            return self.put(Op::ZeroPage { header }).map(|_| ());
        };
        self.await_filter()?;
        self.position += place.length as u64;
        let header = place.header;
        if let Some(distance) = self.dictionary.find(digest) {
            tally.back += 1;
            self.put(Op::Back {
                header,
                distance,
                digest,
            })?;
            let hit = self.dictionary.hit(distance);
            return hit.map_err(|error| self.failed(error));
        }
        if self.receiver_has(digest) && self.keep(place) {
            tally.referenced += 1;
            self.put(Op::Reference { header, digest })?;
        } else {
            tally.sent += 1;
            let op = place.op(digest).ok_or_else(|| self.bug())?;
            self.put(op)?;
        }
        self.dictionary.append(digest);
        Ok(())
    }

    /// Whether the receiver holds the page, as far as its filter tells, and may be asked for it.
    fn receiver_has(&self, digest: &Digest) -> bool {
        !self.flow.gate.is_shut()
            && self
                .filter
                .as_ref()
                .is_some_and(|filter| filter.contains(digest))
    }

    /// Keeps a page that is about to be referenced; its bytes end at the current position.
    fn keep(&self, place: &Place) -> bool {
        let number = self.writer.next_reference();
        let (chunk, at) = (place.chunk, place.body());
        self.flow.kept.push(number, self.position, chunk, at)
    }

    /// Before the first page: waits for the filter, with everything before it sent.
    fn await_filter(&mut self) -> Result<(), Halt> {
        if self.filter.is_some() || self.flow.gate.is_shut() {
            return Ok(());
        }
        if !self.filter_wait.is_zero() && self.flow.gate.is_open() {
            self.flush()?;
            let progress = Arc::clone(&self.flow.channel.session.progress);
            progress.enter(Phase::Filter);
            let began = Instant::now();
            self.flow.gate.wait(self.filter_wait);
            let waited = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            progress.filter_wait_ms.add(waited);
        }
        self.filter_wait = Duration::ZERO;
        self.filter = self.flow.gate.now();
        Ok(())
    }

    /// Acts on what the parser has seen.
    fn mark(&mut self, mark: &Mark) -> Result<(), Halt> {
        let progress = Arc::clone(&self.flow.channel.session.progress);
        match mark {
            Mark::ReturnPath => (),
            Mark::RamStart { bytes } => {
                progress.ram_bytes.set(*bytes);
                progress.enter(Phase::Filter);
            }
            Mark::RamSection => (),
            Mark::Switchover => {
                progress.enter(Phase::Switchover);
                self.restrict(Mode::Certain);
                // RAM goes over several channels, and QEMU may wait for one of them: the one that
                // only postcopy uses is silent until then.
                if self.flow.lanes.are_shared(&self.flow.window) {
                    self.flow.lanes.stop();
                }
            }
            Mark::RamEnd => {
                self.await_ram()?;
                progress.enter(Phase::Device);
                self.restrict(Mode::Certain);
            }
            Mark::Packaged => {
                progress.enter(Phase::Postcopy);
                self.restrict(Mode::Urgent);
            }
            Mark::Opaque(opaque) => {
                let channel = self.flow.channel.number;
                if channel == 0 {
                    progress.lose_sight();
                }
                let (offset, reason) = (opaque.offset, opaque.reason.to_string());
                (self.notice)(&format!(
                    "channel {channel} goes as plain bytes from offset {offset} on: it {reason}"
                ));
                self.flow.channel.session.note_opaque(OpaqueNote {
                    channel,
                    offset,
                    reason,
                });
            }
            Mark::Ended => progress.enter(Phase::Device),
        }
        Ok(())
    }

    /// Before the state of devices: waits until the destination has taken all of RAM, on all
    /// channels. From then on it needs no more than that state, for which no backlog shall be in
    /// the way: a source that gives up later is heard too late only while that is under way, as
    /// without a proxy. No answer to anything that follows is waited for here, and what the
    /// receiver acknowledges it has written, whatever the destination waits for.
    fn await_ram(&mut self) -> Result<(), Halt> {
        // After postcopy the guest runs at the destination already.
        if self.flow.channel.number != 0 || self.mode == Mode::Urgent {
            return Ok(());
        }
        self.flow.lanes.stop();
        self.flush()?;
        self.flow.window.drain().map_err(|_| Halt::Stopped)?;
        // Of what QEMU writes to the other channels, all that is RAM was written before this.
        let patience = self.flow.channel.session.limits.silence;
        let arrived = self.flow.lanes.arrive(&self.flow.window, patience);
        match arrived.map_err(|_| Halt::Stopped)? {
            true => Ok(()),
            false => Err(Halt::Failed(self.flow.channel.stalled())),
        }
    }

    /// Whether the source has given up. It may leave once the destination has answered.
    fn is_given_up(&self) -> bool {
        let channel = &self.flow.channel;
        channel.number == 0 && self.source.hung_up() && !channel.session.may_leave()
    }

    /// Goes on to `mode`; never back. The guest stands still for all channels, and only the main
    /// one is told.
    fn restrict(&mut self, mode: Mode) {
        self.flow.gate.shut();
        if self.mode != Mode::Urgent {
            self.mode = mode;
        }
    }

    /// Puts an op into the open block, and sends the block when it is full. Gives the number of
    /// literal bytes that were not taken.
    fn put(&mut self, op: Op<'_>) -> Result<usize, Halt> {
        let pushed = self.writer.push(op);
        if pushed.full {
            self.flush()?;
        }
        Ok(pushed.left)
    }

    /// Sends the open block, if there is anything in it, as soon as the window lets it.
    fn flush(&mut self) -> Result<(), Halt> {
        let stream = self.writer.stream_bytes();
        let frame = self.writer.finish().map_err(|error| self.failed(error))?;
        let Some(frame) = frame else {
            return Ok(());
        };
        let amount = Amount {
            stream,
            wire: frame.wire_bytes() as u64 + BLOCK_CHARGE,
        };
        self.flow
            .window
            .reserve(amount)
            .map_err(|_| Halt::Stopped)?;
        if self.is_given_up() {
            return Err(Halt::Failed(Error::SourceGone {
                channel: self.flow.channel.number,
                offset: self.position,
            }));
        }
        let session = &self.flow.channel.session;
        let progress = &session.progress;
        if !session.stop.unless_failed(|| progress.sending()) {
            return Err(Halt::Stopped);
        }
        if self.flow.channel.number == 0 && progress.was_complete() && !self.announced {
            self.announced = true;
            self.tell(&Message::Handover)?;
        }
        progress.blocks.add(1);
        progress.in_flight_bytes.set(self.flow.window.in_flight());
        self.flow.outbox.send(frame).map_err(|_| Halt::Stopped)?;
        if let Some(buffer) = self.flow.outbox.written() {
            self.writer.recycle(buffer);
        }
        Ok(())
    }

    /// Tells the receiver.
    fn tell(&self, message: &Message) -> Result<(), Halt> {
        let frame = message.frame().map_err(|error| self.failed(error))?;
        self.flow.outbox.send(frame).map_err(|_| Halt::Stopped)
    }

    /// Adds to the counters of the session.
    fn count(&self, tally: &Tally, bytes: u64) {
        let progress = &self.flow.channel.session.progress;
        if tally.sent + tally.referenced + tally.zero > 0 && self.mode == Mode::Any {
            progress.enter(Phase::Ram);
        }
        progress.stream_bytes.add(bytes);
        progress.pages_sent.add(tally.sent);
        progress.pages_back.add(tally.back);
        progress.pages_referenced.add(tally.referenced);
        progress.pages_zero_body.add(tally.zero_body);
        progress.pages_zero.add(tally.zero);
        progress.literal_bytes.add(tally.literal);
    }

    /// The error for something that cannot be.
    fn bug(&self) -> Halt {
        Halt::Failed(self.flow.channel.bug())
    }

    /// The error for a block that could not be made.
    fn failed(&self, error: impl ToString) -> Halt {
        Halt::Failed(self.flow.channel.protocol(error.to_string()))
    }
}

/// Whether a piece is a page of the guest.
fn is_page(piece: &Piece) -> bool {
    matches!(piece, Piece::Zero { .. } | Piece::Page { .. })
}

/// A page in a chunk.
struct Place<'a> {
    /// The chunk.
    chunk: &'a Arc<Chunk>,
    /// The same, if it may be kept until its pages were written.
    lent: Option<&'a Memory>,
    /// Where its header or, without one, its body begins.
    at: usize,
    /// Bytes of both.
    length: usize,
    /// The offset in its header.
    header: Option<u64>,
}

impl Place<'_> {
    /// Where the body begins.
    fn body(&self) -> usize {
        self.at + self.length - PAGE_BYTES
    }

    /// What sends the page.
    fn op<'b>(&'b self, digest: &'b Digest) -> Option<Op<'b>> {
        let header = self.header;
        Some(match self.lent {
            Some(memory) => Op::LentPage {
                header,
                digest,
                page: LentPage::new(memory, self.body())?,
            },
            None => Op::Page {
                header,
                digest,
                page: self.chunk.page(self.body())?,
            },
        })
    }
}
