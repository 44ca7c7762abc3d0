// SPDX-License-Identifier: GPL-2.0

//! Takes frames off the link, decodes blocks, and has the pool hash and find their pages.
//!
//! Two threads, so that the link is always read: the sender's answer to a MISS must get through
//! whatever the destination QEMU does. What is read and not yet written is bounded by the window,
//! and a sender that exceeds it is refused; the memory that it takes once it is decoded, by the
//! backlog, for which the decoder waits.

use std::sync::atomic::{
    AtomicU64,
    Ordering, //
};
use std::sync::mpsc::{
    Receiver,
    Sender, //
};
use std::sync::Arc;

use twinpage_wire::{
    Block,
    BlockReader,
    Digest,
    Incoming,
    Message,
    Sealed,
    PAGE_BYTES, //
};

use crate::proxy::error::Error;
use crate::proxy::inbox::Inbox;
use crate::proxy::pool::{
    Pool,
    Ticket, //
};
use crate::proxy::progress::Phase;
use crate::proxy::receive::channel::Flow;
use crate::proxy::receive::heals::Refused;
use crate::proxy::receive::held::Lent;
use crate::proxy::receive::resolve::{
    Resolved,
    Resolver, //
};
use crate::proxy::window::{
    Amount,
    BLOCK_CHARGE, //
};

/// Pages that one job hashes or finds: as many as a buffer of the shelf holds.
pub const GROUP_PAGES: usize = 64;

/// What the writer has acknowledged.
#[derive(Default)]
pub struct Acked {
    /// Bytes of the stream.
    stream: AtomicU64,
    /// Bytes of blocks and their charge.
    wire: AtomicU64,
}

/// What comes out of the link.
pub enum Arrived {
    /// A block and what it counts against the window.
    Block(Sealed, u64),
    /// The end of the stream, after so many bytes.
    End(u64),
}

/// What the writer gets, in order.
pub enum Work {
    /// A block.
    Block(Pending),
    /// The end of the stream, after so many bytes.
    End(u64),
}

/// A block whose pages are being hashed and found.
pub struct Pending {
    /// The block.
    pub block: Arc<Lent>,
    /// The digests of its page bodies, in groups.
    pub bodies: Vec<Ticket<Vec<Digest>>>,
    /// The pages of its references, in groups.
    pub references: Vec<Ticket<Resolved>>,
    /// What it counts against the window of the wire.
    pub charge: u64,
    /// What it counts in the backlog.
    pub memory: u64,
}

/// The thread that reads the link.
pub struct LinkThread {
    /// What it is about.
    pub flow: Flow,
    /// The link.
    pub inbox: Inbox,
    /// The decoder.
    pub queue: Sender<Arrived>,
    /// How much the sender may have under way.
    pub limit: Amount,
}

/// The thread that decodes.
pub struct Decoder {
    /// What it is about.
    pub flow: Flow,
    /// What comes.
    pub arrived: Receiver<Arrived>,
    /// The decoder of the channel.
    pub reader: BlockReader,
    /// Finds pages.
    pub resolver: Arc<Resolver>,
    /// Where work is done.
    pub pool: Arc<Pool>,
    /// The writer.
    pub queue: Sender<Work>,
    /// How much the sender may have under way.
    pub limit: Amount,
}

impl Acked {
    /// Sets what is acknowledged, before the sender can know.
    pub fn set(&self, amount: Amount) {
        self.stream.store(amount.stream, Ordering::SeqCst);
        self.wire.store(amount.wire, Ordering::SeqCst);
    }
}

impl LinkThread {
    /// Reads until the sender closes the link.
    pub fn run(mut self) {
        let ended = self.read_all();
        self.flow.channel.link_ended(ended);
        self.flow.heals.close();
    }

    /// Reads until the sender closes the link.
    fn read_all(&mut self) -> Result<(), Error> {
        let channel = Arc::clone(&self.flow.channel);
        let mut charged = 0;
        let mut ended = false;
        let mut before = self.inbox.bytes();
        loop {
            let incoming = self.inbox.next_into(|| self.flow.spare.buffer());
            let incoming = incoming.map_err(|broken| broken.into_error(&channel))?;
            let bytes = self.inbox.bytes() - before;
            before = self.inbox.bytes();
            channel.session.progress.wire_bytes.add(bytes);
            let arrived = match incoming {
                None if ended => return Ok(()),
                // Nothing of what waits to be written may complete the destination now.
                None => {
                    let reason = "the other end closed it too early";
                    return Err(channel.link(&std::io::Error::other(reason)));
                }
                Some(Incoming::Block(sealed)) => {
                    channel.session.progress.enter(Phase::Ram);
                    let charge = bytes + BLOCK_CHARGE;
                    charged += charge;
                    let acked = self.flow.acked.wire.load(Ordering::SeqCst);
                    if charged - acked > self.limit.wire {
                        let under_way = charged - acked;
                        let limit = self.limit.wire;
                        return Err(channel.protocol(format_args!(
                            "{under_way} bytes of blocks under way, where {limit} are allowed"
                        )));
                    }
                    Arrived::Block(sealed, charge)
                }
                Some(Incoming::Message(message)) => match self.take(message)? {
                    Some(arrived) => arrived,
                    None => continue,
                },
            };
            if ended {
                return Err(channel.protocol("a block after the end of the stream"));
            }
            ended = matches!(arrived, Arrived::End(_));
            if self.queue.send(arrived).is_err() {
                // The decoder has failed and said why.
                return Ok(());
            }
        }
    }

    /// Acts on a message, or passes the end of the stream on.
    fn take(&self, message: Message) -> Result<Option<Arrived>, Error> {
        let channel = &self.flow.channel;
        match message {
            Message::Ping => Ok(None),
            Message::Heal { reference, page } => match self.flow.heals.put(reference, page) {
                Ok(()) => {
                    channel.session.progress.healed.add(1);
                    Ok(None)
                }
                Err(Refused::Unasked) => Err(channel.protocol(format_args!(
                    "the page of reference {reference}, which was not asked for"
                ))),
                Err(Refused::Wrong { asked, came }) => Err(channel.protocol(format_args!(
                    "reference {reference} is to page {asked}, but the page sent is {came}"
                ))),
            },
            Message::Eof { stream_bytes } => Ok(Some(Arrived::End(stream_bytes))),
            Message::Handover if channel.number == 0 => {
                let session = &channel.session;
                // If it has failed, nothing of what follows is delivered.
                let _ = session.stop.unless_failed(|| session.progress.completes());
                Ok(None)
            }
            Message::Error(error) => Err(Error::Peer {
                channel: channel.number,
                code: error.code.0,
                text: error.text,
            }),
            _ => Err(channel.protocol("a message that a sender does not send")),
        }
    }
}

impl Decoder {
    /// Decodes until the stream ends.
    pub fn run(mut self) {
        if let Err(error) = self.decode_all() {
            self.flow.channel.fail(error);
        }
    }

    /// Decodes until the stream ends.
    fn decode_all(&mut self) -> Result<(), Error> {
        while let Ok(arrived) = self.arrived.recv() {
            let work = match arrived {
                Arrived::Block(sealed, charge) => self.decode(sealed, charge)?,
                Arrived::End(bytes) => Work::End(bytes),
            };
            if self.queue.send(work).is_err() {
                // The writer has failed and said why.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Decodes a block and has its pages hashed and found.
    fn decode(&mut self, sealed: Sealed, charge: u64) -> Result<Work, Error> {
        let channel = &self.flow.channel;
        if let Some(block) = self.flow.spare.block() {
            self.reader.recycle(block);
        }
        let block = self.reader.decode(sealed);
        let block = block.map_err(|error| channel.protocol(error))?;
        let end = block.stream_offset().saturating_add(block.stream_bytes());
        let acked = self.flow.acked.stream.load(Ordering::SeqCst);
        let under_way = end.saturating_sub(acked);
        if under_way > self.limit.stream {
            let limit = self.limit.stream;
            return Err(channel.protocol(format_args!(
                "{under_way} bytes of the stream under way, where {limit} are allowed"
            )));
        }
        let memory = memory_of(&block);
        self.flow.backlog.add(memory);
        let block = Arc::new(Lent::new(block, &self.flow.spare));
        Ok(Work::Block(Pending {
            bodies: self.hash(&block),
            references: self.find(&block),
            block,
            charge,
            memory,
        }))
    }

    /// Has the page bodies hashed.
    fn hash(&self, block: &Arc<Lent>) -> Vec<Ticket<Vec<Digest>>> {
        let bodies = block.bodies();
        let groups = (0..bodies).step_by(GROUP_PAGES);
        groups
            .map(|first| {
                let block = Arc::clone(block);
                let end = bodies.min(first + GROUP_PAGES);
                self.pool
                    .submit(move || Digest::of_pages((first..end).map(|n| block.body(n))))
            })
            .collect()
    }

    /// Has the pages of references found.
    fn find(&self, block: &Arc<Lent>) -> Vec<Ticket<Resolved>> {
        let references = block.references().len();
        let groups = (0..references).step_by(GROUP_PAGES);
        groups
            .map(|first| {
                let block = Arc::clone(block);
                let resolver = Arc::clone(&self.resolver);
                let end = references.min(first + GROUP_PAGES);
                self.pool.submit(move || {
                    let number = block.first_reference() + first as u64;
                    resolver.find(number, &block.references()[first..end])
                })
            })
            .collect()
    }
}

/// Bytes of memory that `block` takes until it is written. The page of a reference has room twice:
/// where it would have been found, and where the sender's answer to a MISS comes.
fn memory_of(block: &Block) -> u64 {
    let pages = 2 * PAGE_BYTES * block.references().len();
    (block.memory_bytes() + pages) as u64
}
