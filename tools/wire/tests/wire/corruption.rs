// SPDX-License-Identifier: GPL-2.0

//! Whatever is altered on the way is found out before a byte of it is released.

use proptest::prelude::*;
use twinpage_wire::{
    BlockWriter,
    Compression,
    Message, //
};

use crate::common::{
    page,
    Receiver,
    Sender,
    Step,
    Stop, //
};

const PAGES: u32 = 16;

/// A recording with all frames that a sender sends, the blocks of both sorts.
fn recording(compression: Compression) -> Sender {
    let mut sender = Sender::new(BlockWriter::new(compression).expect("a writer"), PAGES);
    sender.steps(&[
        Step::Literal(b"QEVM".to_vec()),
        Step::Zeros(0, 300),
        Step::Page(Some(300 * 0x1000), 2),
        Step::Reference(Some(301 * 0x1000), 4),
        Step::Page(Some(0x7000), 0),
        Step::Flush,
        Step::Page(None, 2),
        Step::Ping,
        Step::Page(Some(0x8000), 1),
    ]);
    let page = Box::new(page(7));
    sender.send(&Message::Heal { reference: 0, page });
    sender.send(&Message::Ping);
    sender.steps(&[Step::Reference(None, 3), Step::Page(Some(0x9000), 4)]);
    let stream_bytes = sender.stream.len() as u64;
    sender.send(&Message::Eof { stream_bytes });
    sender
}

/// The number of the frame that byte `at` is in.
fn frame_of(sender: &Sender, at: usize) -> usize {
    let mut end = 0;
    let ends = sender.frames.iter().map(|(bytes, _)| {
        end += bytes.len();
        end
    });
    ends.take_while(|&end| end <= at).count()
}

/// Feeds `bytes`, which differ from the recording at byte `at`, and fails unless that is found out
/// in time.
fn is_found_out(sender: &Sender, bytes: &[u8], at: usize) {
    let frame = frame_of(sender, at);
    let safe = sender.frames[frame].1;
    let mut receiver = Receiver::new(PAGES, 40);
    let result = receiver.receive(bytes);
    assert!(result.is_err(), "byte {at} of frame {frame}");
    assert!(
        receiver.stream.len() <= safe,
        "byte {at} of frame {frame}: {result:?}"
    );
    assert!(sender.stream.starts_with(&receiver.stream), "byte {at}");
}

#[test]
fn every_flipped_byte_is_found_out() {
    for compression in [Compression::Off, Compression::Level(1)] {
        let sender = recording(compression);
        let good = sender.bytes();
        let mut receiver = Receiver::new(PAGES, 40);
        assert_eq!(receiver.receive(&good), Ok(()));
        assert!(receiver.stream == sender.stream);
        let mut bad = good.clone();
        for at in 0..good.len() {
            for flip in [1 << (at % 8), 0xff] {
                bad[at] = good[at] ^ flip;
                is_found_out(&sender, &bad, at);
            }
            bad[at] = good[at];
        }
    }
}

#[test]
fn every_truncation_is_found_out() {
    let sender = recording(Compression::Level(1));
    let good = sender.bytes();
    let mut end = 0;
    let ends = sender.frames.iter().map(|(bytes, _)| {
        end += bytes.len();
        end
    });
    let ends = ends.collect::<Vec<_>>();
    for len in (1..good.len()).step_by(7).filter(|len| !ends.contains(len)) {
        let mut receiver = Receiver::new(PAGES, 40);
        assert_eq!(
            receiver.receive(&good[..len]),
            Err(Stop::Cut),
            "{len} bytes"
        );
        assert!(sender.stream.starts_with(&receiver.stream));
    }
}

#[test]
fn frames_cannot_be_left_out_doubled_or_swapped() {
    let sender = recording(Compression::Off);
    let frames = sender.frames.iter().map(|(bytes, _)| bytes.clone());
    let frames = frames.collect::<Vec<_>>();
    for n in 0..frames.len() - 1 {
        let at = frames[..n].iter().map(Vec::len).sum();
        let mut other = frames.clone();
        other.remove(n);
        is_found_out(&sender, &other.concat(), at);
        let mut other = frames.clone();
        other.swap(n, n + 1);
        is_found_out(&sender, &other.concat(), at);
        let mut other = frames.clone();
        other.insert(n, frames[n].clone());
        is_found_out(&sender, &other.concat(), at + frames[n].len());
    }
}

#[test]
fn frames_of_the_other_direction_are_refused() {
    use twinpage_wire::{
        Direction,
        Sealer, //
    };
    let hello = crate::common::hello();
    let mut sealer = Sealer::new(Direction::ToSender, &hello.session, hello.channel);
    let reflected = sealer.seal(Message::Hello(hello).frame().expect("a frame"));
    assert!(Receiver::new(0, 0).receive(&reflected).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damage_of_many_bytes_is_found_out(
        at in 0..20_000_usize,
        junk in prop::collection::vec(any::<u8>(), 1..64),
        cut in 0..64_usize,
    ) {
        let sender = recording(Compression::Level(1));
        let good = sender.bytes();
        let at = at % good.len();
        let end = good.len().min(at + cut);
        let bad = [&good[..at], &junk, &good[end..]].concat();
        let differs = good.iter().zip(&bad).position(|(good, bad)| good != bad);
        if let Some(differs) = differs {
            is_found_out(&sender, &bad, differs);
        }
    }
}
