// SPDX-License-Identifier: GPL-2.0

//! Takes what the destination QEMU says back to the sender, as it comes.

use std::io::Read;
use std::sync::Arc;

use twinpage_wire::{
    Frame,
    Message, //
};

use crate::proxy::outbox::Outbox;
use crate::proxy::qemu::QemuReader;
use crate::proxy::session::{
    Channel,
    Event, //
};
use crate::proxy::spy::Spy;

/// Bytes that are taken at once.
const READ_BYTES: usize = 16 << 10;

/// Takes the return path of one connection back until it ends.
pub fn run(channel: &Arc<Channel>, mut qemu: QemuReader, outbox: &Outbox) {
    let mut spy = Spy::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        // A QEMU that is killed resets its connection; either way nothing more comes.
        let got = qemu.read(&mut buffer).unwrap_or(0);
        if got == 0 {
            break;
        }
        let bytes = &buffer[..got];
        spy.feed(bytes);
        channel.session.note_destination(spy.shut(), spy.blind());
        let frame = match Frame::return_bytes(bytes) {
            Ok(frame) => frame,
            Err(error) => return channel.fail(channel.protocol(error)),
        };
        if outbox.send(frame).is_err() {
            return;
        }
    }
    match Message::ReturnEof.frame() {
        Ok(frame) => {
            if outbox.send(frame).is_ok() {
                channel.tell(Event::ReturnEnded);
            }
        }
        Err(error) => channel.fail(channel.protocol(error)),
    }
}
