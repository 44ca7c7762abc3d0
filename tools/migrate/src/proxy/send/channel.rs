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
    OnceLock,
    PoisonError, //
};
use std::thread::JoinHandle;
use std::time::{
    Duration,
    Instant, //
};

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
pub struct Lanes {
    /// The channels.
    list: Mutex<Vec<Lane>>,
    /// Since when the guest stands still until RAM is complete.
    stopped: OnceLock<Instant>,
}

/// How far a channel is: what QEMU has written, and what has arrived of it.
type Lane = (Arc<Inflow>, Arc<Window>);

impl Lanes {
    /// Adds a channel.
    fn add(&self, lane: Lane) {
        self.lock().push(lane);
    }

    /// Waits until what QEMU has written so far has arrived on all channels but that of `own`, as
    /// long as some channel moves at least once in `patience`; says whether it has. Of a packet that
    /// QEMU leaves unfinished the start stays here, and never arrives.
    ///
    /// # Errors
    ///
    /// One has failed.
    pub fn arrive(&self, own: &Arc<Window>, patience: Duration) -> Result<bool, Closed> {
        let began = Instant::now();
        let lanes = self.lock().clone();
        let others: Vec<_> = lanes
            .iter()
            .filter(|(_, window)| !Arc::ptr_eq(window, own))
            .map(|(inflow, window)| (inflow.written(), window))
            .collect();
        for (written, window) in others {
            loop {
                let left = patience.saturating_sub(moved(&lanes, began).elapsed());
                if window.reach(written, left)? {
                    break;
                }
                if left.is_zero() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether QEMU has written to another channel than that of `own`.
    pub fn are_shared(&self, own: &Arc<Window>) -> bool {
        let lanes = self.lock();
        let mut others = lanes.iter().filter(|(_, window)| !Arc::ptr_eq(window, own));
        others.any(|(inflow, _)| inflow.written() > 0)
    }

    /// Notes that the guest stands still until RAM is complete.
    pub fn stop(&self) {
        self.stopped.get_or_init(Instant::now);
    }

    /// For how long the guest has stood still and nothing of what is under way was acknowledged, on
    /// any channel.
    pub fn stalled(&self) -> Duration {
        let Some(stopped) = self.stopped.get() else {
            return Duration::ZERO;
        };
        let lanes = self.lock();
        match lanes.iter().all(|(_, window)| window.is_drained()) {
            true => Duration::ZERO,
            false => moved(&lanes, *stopped).elapsed(),
        }
    }

    /// The list, also after a panic elsewhere: it only grows.
    fn lock(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When one of `lanes` moved last, or `since` if that is later.
fn moved(lanes: &[Lane], since: Instant) -> Instant {
    let times = lanes.iter().map(|(_, window)| window.moved());
    times.fold(since, Instant::max)
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
        return_path_is_on: sender.return_path_is_on,
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
        notice: Arc::clone(&sender.notice),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::thread;

    /// A channel to which QEMU has written `bytes`, which are under way, and QEMU's end of it.
    fn lane(bytes: u8) -> (Lane, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&vec![0; bytes.into()]).unwrap();
        let qemu = Qemu::socket(ours).unwrap();
        let inflow = Counted::new(qemu.reader, &qemu.closer).inflow();
        let window = Window::new(amount(100));
        window.reserve(amount(bytes)).unwrap();
        ((inflow, Arc::new(window)), theirs)
    }

    fn amount(bytes: u8) -> Amount {
        Amount {
            stream: bytes.into(),
            wire: bytes.into(),
        }
    }

    /// Channels with so many bytes each.
    fn lanes(bytes: &[u8]) -> (Lanes, Vec<Arc<Window>>, Vec<UnixStream>) {
        let lanes = Lanes::default();
        let (mut windows, mut sockets) = (Vec::new(), Vec::new());
        for &bytes in bytes {
            let (lane, socket) = lane(bytes);
            windows.push(Arc::clone(&lane.1));
            sockets.push(socket);
            lanes.add(lane);
        }
        (lanes, windows, sockets)
    }

    #[test]
    fn channels_that_stand_still_are_waited_for_together() {
        let (lanes, windows, _sockets) = lanes(&[1; 20]);
        let patience = Duration::from_secs(1);
        let began = Instant::now();
        assert!(!lanes.arrive(&windows[0], patience).unwrap());
        // The others got no time of their own, of which that would be half.
        assert!((patience..patience * 10).contains(&began.elapsed()));
        windows[1..].iter().for_each(|window| {
            window.acknowledge(amount(1)).unwrap();
        });
        assert!(lanes.arrive(&windows[0], patience).unwrap());
    }

    #[test]
    fn a_slow_channel_is_waited_for_as_long_as_some_channel_moves() {
        let (lanes, windows, _sockets) = lanes(&[0, 1, 9]);
        // More than a thread of a busy machine runs late.
        let patience = Duration::from_secs(4);
        thread::scope(|scope| {
            scope.spawn(|| {
                for acked in 1..=9 {
                    thread::sleep(patience / 8);
                    windows[2].acknowledge(amount(acked)).unwrap();
                }
                windows[1].acknowledge(amount(1)).unwrap();
            });
            assert!(lanes.arrive(&windows[0], patience).unwrap());
        });
    }

    #[test]
    fn a_packet_that_is_not_finished_does_not_count_as_arrived() {
        let (lanes, windows, mut sockets) = lanes(&[0, 1]);
        windows[1].acknowledge(amount(1)).unwrap();
        // It stays with the reader, and so never is under way.
        sockets[1].write_all(&[0]).unwrap();
        assert!(!lanes
            .arrive(&windows[0], Duration::from_millis(100))
            .unwrap());
    }

    #[test]
    fn only_a_guest_that_stands_still_is_stalled_and_only_if_nothing_moves() {
        let (lanes, windows, _sockets) = lanes(&[2, 2]);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(lanes.stalled(), Duration::ZERO);
        let stopped = Instant::now();
        lanes.stop();
        assert!(lanes.stalled() <= stopped.elapsed());
        thread::sleep(Duration::from_millis(20));
        assert!(lanes.stalled() >= Duration::from_millis(20));
        let moved = Instant::now();
        windows[1].acknowledge(amount(1)).unwrap();
        assert!(lanes.stalled() <= moved.elapsed());
        thread::sleep(Duration::from_millis(20));
        windows[1].acknowledge(amount(1)).unwrap();
        assert!(lanes.stalled() >= Duration::from_millis(20));
        windows.iter().for_each(|window| {
            window.acknowledge(amount(2)).unwrap();
        });
        assert_eq!(lanes.stalled(), Duration::ZERO);
    }

    #[test]
    fn a_channel_that_only_waits_for_postcopy_shares_nothing() {
        let (lanes, windows, _sockets) = lanes(&[1, 0]);
        assert!(!lanes.are_shared(&windows[0]));
        assert!(lanes.are_shared(&windows[1]));
    }
}
