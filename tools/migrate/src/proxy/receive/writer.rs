// SPDX-License-Identifier: GPL-2.0

//! Verifies blocks in order, and only then writes what they stand for to the destination QEMU.

use std::io;
use std::sync::mpsc::{
    Receiver,
    TryRecvError, //
};
use std::sync::Arc;
use std::time::Instant;

use twinpage_wire::{
    page_header,
    Digest,
    DigestRing,
    Header,
    Item,
    Message,
    PageRing,
    PAGE_BYTES, //
};

use crate::proxy::error::Error;
use crate::proxy::pool::Ticket;
use crate::proxy::qemu::QemuWriter;
use crate::proxy::receive::channel::Flow;
use crate::proxy::receive::decoder::{
    Pending,
    Work,
    GROUP_PAGES, //
};
use crate::proxy::receive::gather::Gather;
use crate::proxy::receive::heals::Missing;
use crate::proxy::receive::held::{
    Held,
    Lent, //
};
use crate::proxy::receive::resolve::Resolved;
use crate::proxy::session::Event;
use crate::proxy::window::Amount;

/// Zero records that are made at once.
const ZEROS_AT_ONCE: u32 = 4096;

/// The writer of one channel.
pub struct Writer {
    /// What it is about.
    pub flow: Flow,
    /// Blocks, in order.
    pub queue: Receiver<Work>,
    /// The destination QEMU.
    pub qemu: QemuWriter,
    /// Digests of earlier pages.
    pub digests: DigestRing,
    /// Earlier pages.
    pub pages: PageRing<Held>,
    /// Bytes on their way to QEMU.
    pub stage: Gather,
    /// What is delivered.
    pub done: Amount,
    /// What was acknowledged.
    pub acked: Amount,
    /// After so much more it is acknowledged.
    pub step: Amount,
    /// QEMU has everything and takes no more.
    pub deaf: bool,
}

/// What a block added to the counters.
#[derive(Default)]
struct Tally {
    sent: u64,
    back: u64,
    referenced: u64,
    zero_body: u64,
    zero: u64,
    literal: u64,
}

/// The pages of a block's references.
struct Found(Vec<Arc<Resolved>>);

impl Writer {
    /// Writes until the stream ends.
    pub fn run(mut self) {
        match self.write_all() {
            Ok(true) => self.flow.channel.tell(Event::Delivered),
            Ok(false) => (),
            Err(error) => self.flow.channel.fail(error),
        }
    }

    /// Writes until the stream ends; false if another thread failed.
    fn write_all(&mut self) -> Result<bool, Error> {
        loop {
            let work = match self.queue.try_recv() {
                Ok(work) => work,
                Err(TryRecvError::Disconnected) => return Ok(false),
                Err(TryRecvError::Empty) => {
                    self.acknowledge();
                    match self.queue.recv() {
                        Ok(work) => work,
                        Err(_) => return Ok(false),
                    }
                }
            };
            match work {
                Work::Block(pending) => self.block(pending)?,
                Work::End(bytes) => return self.end(bytes).map(|()| true),
            }
        }
    }

    /// Verifies and writes a block.
    fn block(&mut self, pending: Pending) -> Result<(), Error> {
        let bodies: Vec<Digest> = self
            .results(pending.bodies)?
            .into_iter()
            .flatten()
            .collect();
        let found = self.results(pending.references)?;
        let found = Found(found.into_iter().map(Arc::new).collect());
        let block = &pending.block;
        let verified = block.verify(&mut self.digests, &bodies);
        verified.map_err(|error| self.flow.channel.protocol(error))?;
        let mut tally = Tally::default();
        self.put_items(block, &found, &mut tally)?;
        self.push_out()?;
        self.count(&tally, block.stream_bytes());
        self.done.stream += block.stream_bytes();
        self.done.wire += pending.charge;
        self.flow.backlog.remove(pending.memory);
        self.flow.channel.advance(self.done.stream);
        let due = self.done.stream - self.acked.stream >= self.step.stream
            || self.done.wire - self.acked.wire >= self.step.wire;
        if due {
            self.acknowledge();
        }
        Ok(())
    }

    /// Waits for the results of `tickets`. A source of pages may be a server that hangs, and keep the
    /// threads of the pool.
    fn results<T>(&self, tickets: Vec<Ticket<T>>) -> Result<Vec<T>, Error> {
        let channel = &self.flow.channel;
        let waited = channel.session.limits.silence;
        let end = Instant::now() + waited;
        let results = tickets.into_iter().map(|ticket| {
            let result = ticket.wait_until(end).map_err(|_| channel.bug())?;
            result.ok_or(Error::PagesStuck {
                channel: channel.number,
                offset: self.done.stream,
                waited,
            })
        });
        results.collect()
    }

    /// Puts out what the items of a block stand for.
    fn put_items(
        &mut self,
        block: &Arc<Lent>,
        found: &Found,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        for item in block.items() {
            match *item {
                Item::Literal { start, len } => {
                    tally.literal += u64::from(len);
                    self.stage.literal(block, start, len);
                    self.push_out_if_full()?;
                }
                Item::Zeros { first, count } => {
                    tally.zero += u64::from(count);
                    self.put_zeros(first, count)?;
                }
                Item::ZeroPage { header } => {
                    tally.zero_body += 1;
                    self.put_header(header);
                    self.stage.zero_page();
                    self.push_out_if_full()?;
                }
                Item::Page { header, start } => {
                    tally.sent += 1;
                    self.put_page(header, Held::sent(block, start))?;
                }
                Item::Reference { header, index } => {
                    tally.referenced += 1;
                    let number = block.first_reference() + u64::from(index);
                    self.put_reference(header, index as usize, number, found)?;
                }
                Item::Back { header, distance } => {
                    tally.back += 1;
                    self.put_back(header, distance)?;
                }
            }
        }
        Ok(())
    }

    /// Puts out a page of a source, or the one that the sender sent instead.
    fn put_reference(
        &mut self,
        header: Header,
        index: usize,
        number: u64,
        found: &Found,
    ) -> Result<(), Error> {
        if let Some(page) = found.page(index) {
            return self.put_page(header, page);
        }
        // What came before may be what the sender waits for.
        self.push_out()?;
        let waited = self.flow.channel.session.limits.silence;
        let page = self.flow.heals.take(number, waited).map_err(|missing| {
            let channel = self.flow.channel.number;
            match missing {
                // The session has failed already, or the sender closed the link.
                Missing::Closed => {
                    let reason = io::Error::other("it ended while a page was asked for");
                    self.flow.channel.link(&reason)
                }
                Missing::TimedOut => Error::Unhealed {
                    channel,
                    offset: self.done.stream,
                    reference: number,
                    waited,
                },
            }
        })?;
        self.put_page(header, Held::Own(page.into()))
    }

    /// Puts out a page that was earlier in the stream.
    fn put_back(&mut self, header: Header, distance: u32) -> Result<(), Error> {
        let page = self.pages.back(distance);
        let page = page.map_err(|error| self.flow.channel.protocol(error))?;
        let page = page.clone();
        self.put_header(header);
        self.stage.page(page);
        self.push_out_if_full()
    }

    /// Puts out a page and its header, and remembers it.
    fn put_page(&mut self, header: Header, page: Held) -> Result<(), Error> {
        self.put_header(header);
        self.stage.page(page.clone());
        self.pages.append(page);
        self.push_out_if_full()
    }

    /// Puts out the header of a page, if there is one.
    fn put_header(&mut self, header: Header) {
        if let Some(offset) = header {
            self.stage.copy(&page_header(offset));
        }
    }

    /// Puts out records of zero pages.
    fn put_zeros(&mut self, first: u64, count: u32) -> Result<(), Error> {
        let mut done = 0;
        while done < count {
            let now = (count - done).min(ZEROS_AT_ONCE);
            let offset = first.wrapping_add(u64::from(done) * PAGE_BYTES as u64);
            self.stage.zeros(offset, now);
            done += now;
            self.push_out_if_full()?;
        }
        Ok(())
    }

    /// Writes what was gathered, once it is enough.
    fn push_out_if_full(&mut self) -> Result<(), Error> {
        if self.stage.is_full() {
            self.push_out()?;
        }
        Ok(())
    }

    /// Writes what was gathered.
    fn push_out(&mut self) -> Result<(), Error> {
        let result = if self.deaf {
            Ok(())
        } else {
            self.stage.write_to(&mut self.qemu)
        };
        self.stage.clear();
        let Err(source) = result else {
            return Ok(());
        };
        // A QEMU that has said that it has everything may leave before the last byte.
        if self.flow.channel.session.destination().0 == Some(0) {
            self.deaf = true;
            return Ok(());
        }
        Err(Error::DestinationGone {
            channel: self.flow.channel.number,
            offset: self.done.stream,
            source,
        })
    }

    /// Tells the sender how far the stream is, if that is new.
    fn acknowledge(&mut self) {
        if self.done == self.acked {
            return;
        }
        self.acked = self.done;
        self.flow.acked.set(self.acked);
        let message = Message::Ack {
            stream_bytes: self.acked.stream,
            wire_bytes: self.acked.wire,
        };
        if let Ok(frame) = message.frame() {
            // If the outbox has ended, the link broke, which it has told.
            let _ = self.flow.outbox.send(frame);
        }
        let progress = &self.flow.channel.session.progress;
        progress.acked_bytes.set(self.acked.stream);
    }

    /// Ends the stream to QEMU.
    fn end(&mut self, bytes: u64) -> Result<(), Error> {
        if bytes != self.done.stream {
            let done = self.done.stream;
            return Err(self.flow.channel.protocol(format_args!(
                "the stream ends after {bytes} bytes, but {done} have come"
            )));
        }
        self.acknowledge();
        self.qemu.finish();
        Ok(())
    }

    /// Adds to the counters of the session.
    fn count(&self, tally: &Tally, bytes: u64) {
        let progress = &self.flow.channel.session.progress;
        progress.blocks.add(1);
        progress.stream_bytes.add(bytes);
        progress.pages_sent.add(tally.sent);
        progress.pages_back.add(tally.back);
        progress.pages_referenced.add(tally.referenced);
        progress.pages_zero_body.add(tally.zero_body);
        progress.pages_zero.add(tally.zero);
        progress.literal_bytes.add(tally.literal);
    }
}

impl Found {
    /// The page of the block's reference `index`; empty if no source has it.
    fn page(&self, index: usize) -> Option<Held> {
        let group = self.0.get(index / GROUP_PAGES)?;
        Resolved::page(group, index % GROUP_PAGES)
    }
}
