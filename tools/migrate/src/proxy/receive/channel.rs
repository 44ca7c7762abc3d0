// SPDX-License-Identifier: GPL-2.0

//! One connection at the receiver: connects to QEMU in turn and starts the threads.

use std::io;
use std::sync::mpsc;
use std::sync::Arc;
use std::thread::JoinHandle;

use twinpage_store::Sources;
use twinpage_wire::{
    Agreed,
    BlockReader,
    DigestRing,
    FilterKey,
    Message,
    PageRing, //
};

use crate::net::LinkHandle;
use crate::proxy::error::Error;
use crate::proxy::inbox::Inbox;
use crate::proxy::outbox::Outbox;
use crate::proxy::oversight::{
    oversee,
    Task, //
};
use crate::proxy::qemu::{
    Qemu,
    QemuWriter, //
};
use crate::proxy::receive::backlog::Backlog;
use crate::proxy::receive::decoder::{
    Acked,
    Decoder,
    LinkThread,
    Work, //
};
use crate::proxy::receive::gather::Gather;
use crate::proxy::receive::heals::Heals;
use crate::proxy::receive::held::Spare;
use crate::proxy::receive::offer;
use crate::proxy::receive::resolve::Resolver;
use crate::proxy::receive::returns;
use crate::proxy::receive::writer::Writer;
use crate::proxy::session::{
    no_thread,
    Begun,
    Channel, //
};
use crate::proxy::window::Amount;

/// What the threads of a channel share.
#[derive(Clone)]
pub struct Flow {
    /// The channel.
    pub channel: Arc<Channel>,
    /// Where frames go.
    pub outbox: Outbox,
    /// Pages that are asked for.
    pub heals: Arc<Heals>,
    /// What the writer has acknowledged.
    pub acked: Arc<Acked>,
    /// Memory of blocks to fill again.
    pub spare: Arc<Spare>,
    /// Memory of blocks that the writer has to write.
    pub backlog: Arc<Backlog>,
}

/// A connection with all that it needs.
pub struct Connection {
    /// The channel.
    pub begun: Begun,
    /// The destination QEMU.
    pub qemu: Qemu,
    /// Breaks the link.
    pub link: LinkHandle,
    /// What comes over it.
    pub inbox: Inbox,
    /// What goes.
    pub outbox: Outbox,
    /// What both ends agree on.
    pub agreed: Agreed,
    /// Where pages are.
    pub sources: Arc<Sources>,
}

impl Connection {
    /// Starts the threads of the channel, and one that oversees them.
    ///
    /// # Errors
    ///
    /// The system lacks something.
    pub fn start(self) -> Result<(), Error> {
        let Begun {
            channel,
            told,
            running,
        } = self.begun;
        let flow = Flow {
            channel: Arc::clone(&channel),
            outbox: self.outbox.clone(),
            heals: Arc::new(Heals::behind(self.inbox.brought())),
            acked: Arc::default(),
            spare: Arc::default(),
            backlog: Arc::new(Backlog::new(2 * self.agreed.window_stream)),
        };
        channel.session.stop.on_failure({
            let (heals, backlog) = (Arc::clone(&flow.heals), Arc::clone(&flow.backlog));
            move || {
                heals.close();
                backlog.close();
            }
        });
        if channel.number == 0 {
            offer_pages(
                &channel,
                &self.outbox,
                &self.sources,
                self.agreed.filter_key,
            )?;
        }
        let threads = threads(&flow, self.qemu, self.inbox, &self.agreed, self.sources)?;
        let task = Task {
            channel: Arc::clone(&channel),
            running,
            told,
            link: self.link,
            outbox: self.outbox,
            threads,
            source: None,
        };
        let overseer = channel
            .session
            .roster
            .spawn("channel", move || oversee(task));
        overseer.map(drop).map_err(no_thread)
    }
}

/// Starts the threads of a channel.
fn threads(
    flow: &Flow,
    qemu: Qemu,
    inbox: Inbox,
    agreed: &Agreed,
    sources: Arc<Sources>,
) -> Result<Vec<JoinHandle<()>>, Error> {
    let channel = &flow.channel;
    let session = &channel.session;
    let limit = Amount {
        stream: agreed.window_stream,
        wire: agreed.window_wire,
    };
    let (to_decoder, arrived) = mpsc::channel();
    let (to_writer, work) = mpsc::channel();
    let link_thread = LinkThread {
        flow: flow.clone(),
        inbox,
        queue: to_decoder,
        limit,
    };
    let reader = BlockReader::new(agreed.zstd).map_err(|error| channel.protocol(error))?;
    let decoder = Decoder {
        flow: flow.clone(),
        arrived,
        reader,
        resolver: Arc::new(Resolver {
            sources,
            heals: Arc::clone(&flow.heals),
            outbox: flow.outbox.clone(),
            shelf: Arc::default(),
            progress: Arc::clone(&session.progress),
        }),
        pool: Arc::clone(&session.pool),
        queue: to_writer,
        limit,
    };
    let writer = writer(flow, qemu.writer, agreed, limit, work);
    let (owner, outbox, back) = (Arc::clone(channel), flow.outbox.clone(), qemu.reader);
    let number = channel.number;
    let threads = [
        session.spawn(number, "link-read", move || link_thread.run()),
        session.spawn(number, "decode", move || decoder.run()),
        session.spawn(number, "qemu-write", move || writer.run()),
        session.spawn(number, "qemu-read", move || {
            returns::run(&owner, back, &outbox);
        }),
    ];
    let threads = threads.into_iter().collect::<io::Result<_>>();
    threads.map_err(no_thread)
}

/// The writer of a channel.
fn writer(
    flow: &Flow,
    qemu: QemuWriter,
    agreed: &Agreed,
    limit: Amount,
    queue: mpsc::Receiver<Work>,
) -> Writer {
    Writer {
        flow: flow.clone(),
        queue,
        qemu,
        digests: DigestRing::new(agreed.dictionary_pages),
        pages: PageRing::new(agreed.dictionary_pages),
        stage: Gather::default(),
        done: Amount::default(),
        acked: Amount::default(),
        step: Amount {
            // Often, so that the sender can use its buffers again while they are in the cache.
            stream: (limit.stream / 8).min(1 << 20),
            wire: limit.wire / 8,
        },
        deaf: false,
    }
}

/// Sends the filter of what this host holds, from a thread of its own. On a slow link a part takes
/// long, and the return path does not wait for more than one.
fn offer_pages(
    channel: &Arc<Channel>,
    outbox: &Outbox,
    sources: &Arc<Sources>,
    key: FilterKey,
) -> Result<(), Error> {
    let owner = Arc::clone(channel);
    let (outbox, sources) = (outbox.clone(), Arc::clone(sources));
    let work = move || {
        let filter = match offer::filter(&sources, &key) {
            Ok(filter) => filter,
            Err(error) => return owner.fail(owner.protocol(error)),
        };
        let progress = &owner.session.progress;
        progress.filter_pages.set(filter.keys());
        for part in filter.parts() {
            let frame = match Message::Filter(part).frame() {
                Ok(frame) => frame,
                Err(error) => return owner.fail(owner.protocol(error)),
            };
            progress.filter_bytes.add(frame.wire_bytes() as u64);
            if outbox.send_idle(frame).is_err() {
                // If the outbox has ended, the link broke, which it has told.
                return;
            }
        }
    };
    let thread = channel.session.spawn(channel.number, "filter", work);
    thread.map(drop).map_err(no_thread)
}
