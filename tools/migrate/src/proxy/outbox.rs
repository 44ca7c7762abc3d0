// SPDX-License-Identifier: GPL-2.0

//! The one thread that writes to a link.
//!
//! Frames of several threads are put into one order here, sealed with the chain, and written. A
//! PING is written when there is nothing else to say for a while.

use std::collections::VecDeque;
use std::io::{
    self,
    Write, //
};
use std::sync::mpsc::{
    sync_channel,
    Receiver,
    RecvTimeoutError,
    SyncSender, //
};
use std::sync::{
    Arc,
    Mutex,
    PoisonError, //
};
use std::time::{
    Duration,
    Instant, //
};

use twinpage_wire::{
    Frame,
    Kind,
    Message,
    Sealer, //
};

use crate::net::LinkWriter;
use crate::proxy::session::{
    Channel,
    Event, //
};

/// Frames that wait to be written.
const QUEUE_FRAMES: usize = 4;

/// Between two tries to put the last frame into a full queue.
const RETRY: Duration = Duration::from_millis(10);

/// Bytes of a block that are written before it is looked whether the session has failed.
const PART_BYTES: usize = 64 << 10;

/// Hands frames to the thread; clones share it.
#[derive(Clone)]
pub struct Outbox {
    /// The queue.
    queue: SyncSender<Order>,
    /// Buffers that were written, for the encoder.
    written: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// What the thread is to do.
enum Order {
    /// Write a frame.
    Frame(Frame),
    /// Write a frame when there is nothing else to write, then tell.
    Idle(Frame, SyncSender<()>),
    /// Write a frame, if there is one, and end the direction.
    Last(Option<Frame>),
}

/// The thread has ended.
#[derive(Debug)]
pub struct Ended;

/// The thread's own things.
struct Writer {
    link: LinkWriter,
    sealer: Sealer,
    channel: Arc<Channel>,
    direction: Sent,
    written: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Which counter the written bytes belong to.
#[derive(Clone, Copy, Debug)]
pub enum Sent {
    /// Sender to receiver.
    Forth,
    /// Receiver to sender.
    Back,
}

impl Outbox {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start(
        link: LinkWriter,
        sealer: Sealer,
        channel: &Arc<Channel>,
        direction: Sent,
    ) -> io::Result<Self> {
        let (queue, orders) = sync_channel(QUEUE_FRAMES);
        let written = Arc::new(Mutex::default());
        let writer = Writer {
            link,
            sealer,
            channel: Arc::clone(channel),
            direction,
            written: Arc::clone(&written),
        };
        let session = &channel.session;
        session.spawn(channel.number, "link-write", move || writer.run(&orders))?;
        Ok(Self { queue, written })
    }

    /// Has `frame` written after those before; waits while the queue is full.
    ///
    /// # Errors
    ///
    /// The thread has ended, which was told to the channel.
    pub fn send(&self, frame: Frame) -> Result<(), Ended> {
        self.queue.send(Order::Frame(frame)).map_err(|_| Ended)
    }

    /// Has `frame` written when nothing else waits, and waits until it is.
    ///
    /// # Errors
    ///
    /// The thread has ended, which was told to the channel.
    pub fn send_idle(&self, frame: Frame) -> Result<(), Ended> {
        let (tell, written) = sync_channel(1);
        let order = Order::Idle(frame, tell);
        self.queue.send(order).map_err(|_| Ended)?;
        written.recv().map_err(|_| Ended)
    }

    /// Has `frame` written as the last one, if the queue takes it within `wait`.
    pub fn finish(&self, frame: Option<Frame>, wait: Duration) {
        let end = Instant::now() + wait;
        let mut order = Order::Last(frame);
        loop {
            match self.queue.try_send(order) {
                Err(std::sync::mpsc::TrySendError::Full(back)) if Instant::now() < end => {
                    order = back;
                }
                _ => return,
            }
            std::thread::sleep(RETRY);
        }
    }

    /// A buffer that was written, to be filled again.
    pub fn written(&self) -> Option<Vec<u8>> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.pop()
    }
}

impl Writer {
    /// Writes until the last frame or an error.
    fn run(mut self, orders: &Receiver<Order>) {
        if let Err(error) = self.write_all(orders) {
            let error = self.channel.link(&error);
            self.channel.tell(Event::LinkBroken(error));
        }
        self.channel.tell(Event::OutboxEnded);
    }

    /// Does what is ordered.
    fn write_all(&mut self, orders: &Receiver<Order>) -> io::Result<()> {
        let ping = self.channel.session.limits.ping;
        let mut idle = VecDeque::new();
        loop {
            let wait = match idle.is_empty() {
                true => ping,
                false => Duration::ZERO,
            };
            match orders.recv_timeout(wait) {
                // What the source gave up must not get through.
                Ok(Order::Frame(frame)) if is_block(&frame) && self.channel.failed() => (),
                Ok(Order::Frame(frame)) => self.write(frame)?,
                Ok(Order::Idle(frame, tell)) => idle.push_back((frame, tell)),
                Ok(Order::Last(frame)) => {
                    frame.map_or(Ok(()), |frame| self.write(frame))?;
                    return self.link.finish();
                }
                Err(RecvTimeoutError::Timeout) => match idle.pop_front() {
                    Some((frame, tell)) => {
                        self.write(frame)?;
                        // It may wait no more.
                        let _ = tell.send(());
                    }
                    None => self.write(ping_frame()?)?,
                },
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Writes one frame.
    fn write(&mut self, frame: Frame) -> io::Result<()> {
        let is_block = is_block(&frame);
        let spread = self.sealer.seal_spread(frame);
        let bytes = spread.wire_bytes() as u64;
        let parts: Vec<_> = spread.parts().collect();
        let progress = &self.channel.session.progress;
        if is_block && progress.was_complete() {
            // It may complete the destination, so it is stopped even in the middle.
            for part in parts.iter().flat_map(|part| part.chunks(PART_BYTES)) {
                if self.channel.failed() {
                    let reason = "The session failed in the middle of a block";
                    return Err(io::Error::other(reason));
                }
                self.link.write_all(part)?;
            }
        } else {
            self.link.write_parts(&parts)?;
        }
        self.link.flush()?;
        match self.direction {
            Sent::Forth => progress.wire_bytes.add(bytes),
            Sent::Back => progress.return_wire_bytes.add(bytes),
        }
        let buffer = spread.into_buffer();
        if is_block {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            if written.len() < QUEUE_FRAMES {
                written.push(buffer);
            }
        }
        Ok(())
    }
}

/// Whether a frame is a block.
fn is_block(frame: &Frame) -> bool {
    frame.kind() == Kind::Block
}

/// A PING.
fn ping_frame() -> io::Result<Frame> {
    Message::Ping
        .frame()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
