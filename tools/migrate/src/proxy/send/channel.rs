// SPDX-License-Identifier: GPL-2.0

//! One connection of QEMU at the sender: opens its link and starts its threads.

use std::io;
use std::sync::mpsc::{
    sync_channel,
    Receiver, //
};
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::thread::JoinHandle;
use std::time::Duration;

use twinpage_wire::{
    Agreed,
    BlockLimits,
    BlockWriter,
    Compression,
    Purpose,
    SenderDictionary, //
};

use crate::proxy::error::Error;
use crate::proxy::filter::FilterGate;
use crate::proxy::handshake::{
    self,
    Opened, //
};
use crate::proxy::limits::BLOCK_STREAM_BYTES;
use crate::proxy::outbox::{
    Outbox,
    Sent, //
};
use crate::proxy::oversight::{
    oversee,
    Task, //
};
use crate::proxy::qemu::{
    Counted,
    Inflow,
    Qemu,
    QemuCloser, //
};
use crate::proxy::send::back::Back;
use crate::proxy::send::encoder::{
    Encoder,
    Mode, //
};
use crate::proxy::send::kept::Kept;
use crate::proxy::send::reader::{
    End,
    Parcel,
    Reader,
    QUEUE_CHUNKS, //
};
use crate::proxy::send::Sender;
use crate::proxy::session::{
    no_thread,
    Begun,
    Channel, //
};
use crate::proxy::spy::Spy;
use crate::proxy::window::{
    Amount,
    Closed,
    Window, //
};

/// Opens a channel for `qemu` and leaves it to its own thread.
///
/// # Errors
///
/// There are too many channels, no link to the receiver came about, or it refuses the channel.
pub fn open(sender: &Arc<Sender>, qemu: Qemu) -> Result<(), Error> {
    let session = &sender.session;
    let closer = qemu.closer.clone();
    session.stop.on_failure({
        let closer = closer.clone();
        move || closer.close()
    });
    let Begun {
        channel,
        told,
        running,
    } = session.begin(None)?;
    let opened = greet(sender, &channel).and_then(|opened| {
        let link = opened.handle.clone();
        let (outbox, threads) = start(sender, &channel, qemu, opened)?;
        Ok((link, outbox, threads))
    });
    let (link, outbox, threads) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            session.stop.fail(error);
            return Ok(());
        }
    };
    let task = Task {
        channel,
        running,
        told,
        link,
        outbox,
        threads,
        source: Some(closer),
    };
    let overseer = session.roster.spawn("channel", move || oversee(task));
    overseer.map(drop).map_err(no_thread)
}

/// Connects to the receiver and exchanges HELLO.
fn greet(sender: &Sender, channel: &Channel) -> Result<Opened, Error> {
    let session = &sender.session;
    let hello = handshake::of_sender(
        Purpose::Migrate,
        sender.id,
        channel.number,
        &sender.domain,
        sender.compression.is_some(),
        &session.limits,
    );
    let stop = &session.stop;
    let opened = handshake::open(&sender.to, &sender.security, &hello, &session.limits, stop)?;
    session.note_peer(opened.theirs.software.clone());
    Ok(opened)
}

/// What the threads of a channel share.
#[derive(Clone)]
pub struct Flow {
    /// The channel.
    pub channel: Arc<Channel>,
    /// Where frames go.
    pub outbox: Outbox,
    /// How much may be under way.
    pub window: Arc<Window>,
    /// Pages that the receiver may ask for.
    pub kept: Arc<Kept>,
    /// All channels.
    pub lanes: Arc<Lanes>,
    /// What the receiver holds.
    pub gate: Arc<FilterGate>,
}

/// How far each channel of a session is.
#[derive(Default)]
pub struct Lanes(Mutex<Vec<Lane>>);

/// How far a channel is: what QEMU has written, and what has arrived of it.
type Lane = (Arc<Inflow>, Arc<Window>);

impl Lanes {
    /// Adds a channel.
    fn add(&self, lane: Lane) {
        self.lock().push(lane);
    }

    /// Waits until what QEMU has written so far has arrived, on all channels but that of `own`. Of a
    /// packet that QEMU leaves unfinished the start may stay here: nothing is waited for longer
    /// than `patience`.
    ///
    /// # Errors
    ///
    /// One has failed.
    pub fn arrive(&self, own: &Arc<Window>, patience: Duration) -> Result<(), Closed> {
        let lanes = self.lock().clone();
        let mut others = lanes
            .iter()
            .filter(|(_, window)| !Arc::ptr_eq(window, own))
            .map(|(inflow, window)| (inflow.written(), window));
        others.try_for_each(|(written, window)| window.reach(written, patience))
    }

    /// The list, also after a panic elsewhere: it only grows.
    fn lock(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the threads of a channel.
fn start(
    sender: &Sender,
    channel: &Arc<Channel>,
    qemu: Qemu,
    opened: Opened,
) -> Result<(Outbox, Vec<JoinHandle<()>>), Error> {
    let Opened {
        mut writer, sealer, ..
    } = opened;
    writer.set_limit(sender.rate.clone());
    let outbox = Outbox::start(writer, sealer, channel, Sent::Forth).map_err(no_thread)?;
    let agreed = opened.agreed;
    let window = Arc::new(Window::new(Amount {
        stream: agreed.window_stream,
        wire: agreed.window_wire,
    }));
    channel.session.stop.on_failure({
        let window = Arc::clone(&window);
        move || window.close()
    });
    let source = qemu.closer.clone();
    let reader = Counted::new(qemu.reader, &source);
    sender.lanes.add((reader.inflow(), Arc::clone(&window)));
    let flow = Flow {
        channel: Arc::clone(channel),
        outbox: outbox.clone(),
        window,
        lanes: Arc::clone(&sender.lanes),
        kept: Arc::default(),
        gate: Arc::clone(&sender.gate),
    };
    let (queue, parcels) = sync_channel(QUEUE_CHUNKS);
    let encoder = encoder(sender, &flow, &agreed, parcels, source)?;
    let back = Back {
        inbox: opened.inbox,
        key: agreed.filter_key,
        qemu: qemu.writer,
        spy: Spy::default(),
        ended: false,
        deaf: false,
        acked: 0,
        flow,
    };
    let reader = Reader {
        source: reader,
        main: channel.number == 0,
        shelf: Arc::default(),
        session: Arc::clone(&channel.session),
        queue,
    };
    let (session, number) = (&channel.session, channel.number);
    let owner = Arc::clone(channel);
    let threads = [
        session.spawn(number, "qemu-read", move || read(&owner, reader)),
        session.spawn(number, "encode", move || encoder.run()),
        session.spawn(number, "link-read", move || back.run()),
    ];
    let threads = threads.into_iter().collect::<io::Result<Vec<_>>>();
    Ok((outbox, threads.map_err(no_thread)?))
}

/// The encoder of a channel.
fn encoder(
    sender: &Sender,
    flow: &Flow,
    agreed: &Agreed,
    queue: Receiver<Parcel>,
    source: QemuCloser,
) -> Result<Encoder, Error> {
    let compression = match sender.compression {
        Some(level) if agreed.zstd => Compression::Level(level),
        _ => Compression::Off,
    };
    let writer = BlockWriter::new(compression).map_err(|error| flow.channel.protocol(error))?;
    Ok(Encoder {
        queue,
        source,
        writer: writer.with_limits(BlockLimits {
            stream: BLOCK_STREAM_BYTES,
            ..BlockLimits::default()
        }),
        dictionary: SenderDictionary::new(agreed.dictionary_pages),
        filter_wait: sender.filter_wait,
        mode: Mode::Any,
        filter: None,
        position: 0,
        announced: false,
        flow: flow.clone(),
    })
}

/// Reads QEMU's stream and says how that ended.
fn read(channel: &Channel, reader: Reader<Counted>) {
    let number = channel.number;
    match reader.run() {
        End::Eof | End::Stopped => (),
        End::GivenUp(offset) => channel.fail(Error::SourceGone {
            channel: number,
            offset,
        }),
        End::NoReturnPath => channel.fail(Error::NoReturnPath { channel: number }),
        End::Unguarded(opaque) => channel.fail(Error::Unguarded {
            channel: number,
            offset: opaque.offset,
            reason: opaque.reason.to_string(),
        }),
        End::Failed(offset, source) => channel.fail(Error::Source {
            channel: number,
            offset,
            source,
        }),
    }
}
