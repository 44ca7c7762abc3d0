// SPDX-License-Identifier: GPL-2.0

//! The format as it was written down: `golden/*.hex`, one frame a line.
//!
//! `TWINPAGE_GOLDEN=write` writes the files anew, which is right only together with another version
//! of the protocol.

use std::fs;
use std::path::PathBuf;

use twinpage_wire::{
    BlockWriter,
    Compression,
    Digest,
    Direction,
    ErrorCode,
    FilterAssembler,
    FilterBuilder,
    FilterKey,
    Hello,
    Incoming,
    Message,
    PeerError,
    Role,
    Sealer, //
};

use crate::common::{
    hello,
    page,
    random_steps,
    Receiver,
    Sender,
    Step, //
};
use crate::filters::digest;
use crate::messages::read;

/// Compares `frames` with the file, or writes it.
fn recorded(name: &str, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/wire/golden")
        .join(name);
    if std::env::var_os("TWINPAGE_GOLDEN").is_some_and(|value| value == "write") {
        let lines = frames.iter().map(|frame| {
            let hex = frame.iter().map(|byte| format!("{byte:02x}"));
            hex.collect::<String>() + "\n"
        });
        let text = "# SPDX-License-Identifier: GPL-2.0\n".to_owned() + &lines.collect::<String>();
        fs::write(&path, text).expect("a file to write");
    }
    let text = fs::read_to_string(&path).expect("the recorded frames");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.map(|line| {
        let bytes = (0..line.len()).step_by(2);
        bytes
            .map(|at| u8::from_str_radix(&line[at..at + 2], 16).expect("hex"))
            .collect()
    });
    lines.collect()
}

/// Frames of a sender that does one of everything.
fn sent(compression: Compression) -> Sender {
    let mut sender = Sender::new(BlockWriter::new(compression).expect("a writer"), 8);
    sender.steps(&[
        Step::Literal(b"QEVM".to_vec()),
        Step::Zeros(0, 300),
        Step::Page(Some(300 * 0x1000), 2),
        Step::Reference(Some(301 * 0x1000), 4),
        Step::Page(Some(0x7000), 0),
        Step::Page(None, 2),
        Step::Flush,
        Step::Ping,
        Step::Page(Some(0x8000), 4),
    ]);
    sender.steps(&random_steps(3, 3));
    let page = Box::new(page(4));
    sender.send(&Message::Heal { reference: 0, page });
    sender.send(&Message::Handover);
    let stream_bytes = sender.stream.len() as u64;
    sender.send(&Message::Eof { stream_bytes });
    sender
}

/// The frames of `sender`.
fn frames(sender: &Sender) -> Vec<Vec<u8>> {
    sender
        .frames
        .iter()
        .map(|(bytes, _)| bytes.clone())
        .collect()
}

#[test]
fn stored_blocks_are_as_recorded() {
    let sender = sent(Compression::Off);
    let recorded = recorded("sender.hex", &frames(&sender));
    assert!(recorded == frames(&sender));
    let mut receiver = Receiver::new(8, 40);
    assert_eq!(receiver.receive(&recorded.concat()), Ok(()));
    assert!(receiver.stream == sender.stream);
}

#[test]
fn compressed_blocks_are_read_as_recorded() {
    // Another release of zstd may compress to other bytes.
    let sender = sent(Compression::Level(1));
    let recorded = recorded("compressed.hex", &frames(&sender));
    let mut receiver = Receiver::new(8, 40);
    assert_eq!(receiver.receive(&recorded.concat()), Ok(()));
    assert!(receiver.stream == sender.stream);
    assert!(receiver.meanings == sender.meanings);
}

#[test]
fn frames_of_the_receiver_are_as_recorded() {
    let key = FilterKey([5; 16]);
    let mut builder = FilterBuilder::new(&key);
    (0..20).for_each(|n| builder.add(&digest(n)));
    let part = builder
        .finish()
        .expect("a filter")
        .parts()
        .next()
        .expect("a part");
    let messages = [
        Message::Hello(Hello {
            role: Role::Receiver,
            filter_key: key,
            ..hello()
        }),
        Message::Ping,
        Message::Return(vec![0, 1, 2]),
        Message::Ack {
            stream_bytes: 1 << 33,
            wire_bytes: 7,
        },
        Message::Miss { reference: 9 },
        Message::Filter(part),
        Message::ReturnEof,
        Message::Error(PeerError::new(ErrorCode::LIMIT, "enough")),
    ];
    let mut sealer = Sealer::new(Direction::ToSender, &hello().session, hello().channel);
    let frames = messages
        .iter()
        .map(|message| sealer.seal(message.frame().expect("a frame")));
    let recorded = recorded("receiver.hex", &frames.collect::<Vec<_>>());
    let all = read(Direction::ToSender, &recorded).expect("good frames");
    for (incoming, message) in all.iter().zip(&messages) {
        match incoming {
            // Another release of xorf may build another filter of the same digests.
            Incoming::Message(Message::Filter(part)) => {
                let filter = FilterAssembler::new(&key, 1 << 20).push(part);
                let filter = filter.expect("a good filter").expect("a whole filter");
                assert!((0..20).all(|n| filter.contains(&digest(n))));
            }
            Incoming::Message(other) => assert_eq!(other, message),
            Incoming::Block(block) => panic!("{block:?}"),
        }
    }
    assert_eq!(all.len(), messages.len());
}

#[test]
fn the_first_block_is_the_one_of_the_documentation() {
    let sender = sent(Compression::Off);
    let block = &sender.frames[1].0;
    let mut expected = vec![16, 0, 0, 0];
    let ops = 7 + 4 + 1 + 4096 + 1 + 3 + 2;
    expected.extend((16 + ops + 32_u32).to_le_bytes());
    expected.extend([0, 0, 0, 0]);
    expected.extend(ops.to_le_bytes());
    expected.extend(ops.to_le_bytes());
    expected.extend(1_u32.to_le_bytes());
    expected.extend([0x01, 4, 0]);
    expected.extend(b"QEVM");
    // 300 records from the predicted offset, which is 0.
    expected.extend([0x02, 0, 0xab, 0x02]);
    expected.push(0x14);
    expected.extend(page(2));
    expected.push(0x15);
    // 295 pages back is number 2 * 295 - 1.
    expected.extend([0x23, 0xcd, 0x04]);
    expected.extend([0x06, 1]);
    expected.extend(Digest::of(&page(4)).0);
    assert!(block[..block.len() - 32] == expected);
}
