// SPDX-License-Identifier: GPL-2.0

//! Takes what the receiver says: the return path, acknowledgements, misses and the filter.
//!
//! Whatever QEMU at the source is told here came from QEMU at the destination.

use std::io::Write;

use twinpage_wire::{
    FilterKey,
    Frame,
    Incoming,
    Message, //
};

use crate::proxy::error::Error;
use crate::proxy::filter::Taken;
use crate::proxy::inbox::Inbox;
use crate::proxy::qemu::QemuWriter;
use crate::proxy::send::channel::Flow;
use crate::proxy::session::Event;
use crate::proxy::spy::Spy;
use crate::proxy::window::Amount;

/// The reader of what the receiver says on one channel.
pub struct Back {
    /// What it is about.
    pub flow: Flow,
    /// What comes.
    pub inbox: Inbox,
    /// Key of the filter.
    pub key: FilterKey,
    /// Where the return path goes.
    pub qemu: QemuWriter,
    /// Reads along.
    pub spy: Spy,
    /// The return path has ended.
    pub ended: bool,
    /// QEMU takes no more of it.
    pub deaf: bool,
    /// How much of the stream was acknowledged.
    pub acked: u64,
}

impl Back {
    /// Reads until the receiver closes the link.
    pub fn run(mut self) {
        let ended = self.read_all();
        self.flow.channel.link_ended(ended);
        self.flow.window.close();
    }

    /// Reads until the receiver closes the link.
    fn read_all(&mut self) -> Result<(), Error> {
        let mut before = self.inbox.bytes();
        loop {
            let incoming = self.inbox.next();
            let incoming = incoming.map_err(|broken| broken.into_error(&self.flow.channel))?;
            let progress = &self.flow.channel.session.progress;
            let bytes = self.inbox.bytes() - before;
            before = self.inbox.bytes();
            progress.return_wire_bytes.add(bytes);
            if matches!(incoming, Some(Incoming::Message(Message::Filter(_)))) {
                progress.filter_bytes.add(bytes);
            }
            match incoming {
                None => return Ok(()),
                Some(Incoming::Message(message)) => self.take(message)?,
                Some(Incoming::Block(_)) => {
                    return Err(self.flow.channel.protocol("a block from the receiver"))
                }
            }
            self.judge();
        }
    }

    /// Fails the session if the guest stands still and nothing arrives, as long as it runs on at
    /// the source then. A receiver that says nothing at all is the link's to notice.
    fn judge(&self) {
        let channel = &self.flow.channel;
        let session = &channel.session;
        if self.flow.lanes.stalled() >= session.limits.silence {
            let early = || !session.handed_over();
            session.stop.fail_if(channel.stalled(), early);
        }
    }

    /// Acts on a message.
    fn take(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Ping => Ok(()),
            Message::Return(bytes) => self.pass_back(&bytes),
            Message::ReturnEof => {
                self.ended = true;
                self.qemu.finish();
                self.flow.channel.tell(Event::ReturnEnded);
                Ok(())
            }
            Message::Ack {
                stream_bytes,
                wire_bytes,
            } => self.acknowledge(stream_bytes, wire_bytes),
            Message::Miss { reference } => self.heal(reference),
            Message::Filter(part) => {
                if self.flow.channel.number != 0 {
                    return Err(self
                        .flow
                        .channel
                        .protocol("a filter on another channel than 0"));
                }
                let taken = self.flow.gate.push(&self.key, &part);
                let taken = taken.map_err(|error| self.flow.channel.protocol(error))?;
                if let Taken::Ready(pages) = taken {
                    self.flow.channel.session.progress.filter_pages.set(pages);
                }
                Ok(())
            }
            Message::Error(error) => Err(Error::Peer {
                channel: self.flow.channel.number,
                code: error.code.0,
                text: error.text,
            }),
            Message::Hello(_) | Message::Heal { .. } | Message::Eof { .. } | Message::Handover => {
                Err(self
                    .flow
                    .channel
                    .protocol("a message that a receiver does not send"))
            }
        }
    }

    /// Passes bytes of the return path on to QEMU.
    fn pass_back(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.ended {
            return Err(self
                .flow
                .channel
                .protocol("a return path that goes on after its end"));
        }
        self.spy.feed(bytes);
        // Before QEMU can act on it: it leaves when it has read SHUT.
        let session = &self.flow.channel.session;
        session.note_destination(self.spy.shut(), self.spy.blind());
        if !self.deaf && self.qemu.write_all(bytes).is_err() {
            // QEMU has closed its socket; its stream ends too, which is what counts.
            self.deaf = true;
        }
        if self.deaf && self.spy.shut() == Some(0) {
            // The destination has the guest, and the source does not know.
            return Err(Error::SourceGone {
                channel: self.flow.channel.number,
                offset: self.flow.channel.position(),
            });
        }
        Ok(())
    }

    /// Takes an acknowledgement.
    fn acknowledge(&mut self, stream: u64, wire: u64) -> Result<(), Error> {
        self.flow
            .window
            .acknowledge(Amount { stream, wire })
            .map_err(|_| {
                let what = "an acknowledgement of what was not sent, or less than before";
                self.flow.channel.protocol(what)
            })?;
        self.flow.kept.release(stream);
        let progress = &self.flow.channel.session.progress;
        progress.in_flight_bytes.set(self.flow.window.in_flight());
        progress.acked_bytes.add(stream.saturating_sub(self.acked));
        self.acked = stream;
        Ok(())
    }

    /// Sends the page of a reference that the receiver cannot supply.
    fn heal(&mut self, reference: u64) -> Result<(), Error> {
        let progress = &self.flow.channel.session.progress;
        progress.misses.add(1);
        let Some(page) = self.flow.kept.get(reference) else {
            let what = format!("page {reference} is asked for, which is no open reference");
            return Err(self.flow.channel.protocol(what));
        };
        progress.healed.add(1);
        // If the outbox has ended, the link broke, which it has told.
        let _ = self.flow.outbox.send(Frame::heal(reference, &page));
        Ok(())
    }
}
