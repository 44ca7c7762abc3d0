// SPDX-License-Identifier: GPL-2.0

//! Every decoder fed with damaged input, for two seconds or for `TWINPAGE_FUZZ_SECONDS`. The seed
//! is printed, and `TWINPAGE_FUZZ_SEED` takes it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{
    Duration,
    Instant, //
};

use rand::{
    rngs::SmallRng,
    seq::IndexedRandom,
    Rng,
    SeedableRng, //
};
use twinpage_wire::{
    limits,
    BlockReader,
    BlockWriter,
    Compression,
    DigestRing,
    Direction,
    FilterAssembler,
    FilterBuilder,
    FilterKey,
    Incoming,
    Item,
    Message,
    PageRing,
    PeerError,
    Sealer,
    PAGE_BYTES, //
};

use crate::common::{
    chain_start,
    hello,
    random_steps,
    raw_frame,
    Receiver,
    Sender, //
};
use crate::filters::digest;
use crate::hostile::sealed;
use crate::messages::read;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `once` with inputs that differ, until the time is up. Says how many of them were taken.
fn run(name: &str, mut once: impl FnMut(&mut SmallRng) -> bool) {
    let seconds = number("TWINPAGE_FUZZ_SECONDS").unwrap_or(2);
    let end = Instant::now() + Duration::from_secs(seconds);
    let first = number("TWINPAGE_FUZZ_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let mut seed = first;
    let (mut runs, mut taken) = (0_u64, 0_u64);
    while Instant::now() < end || runs < 100 {
        // Printed by the test only if it fails; the last line is the culprit.
        if runs % 64 == 0 {
            println!("{name}: TWINPAGE_FUZZ_SEED={seed}");
        }
        let mut random = SmallRng::seed_from_u64(seed);
        taken += u64::from(once(&mut random));
        seed = seed.wrapping_add(1);
        runs += 1;
    }
    println!("{name}: {runs} runs from seed {first}, {taken} taken");
}

/// Damages `bytes` a little: flips, numbers that are edges, pieces left out, doubled or swapped in.
fn damage(bytes: &mut Vec<u8>, random: &mut SmallRng) {
    for _ in 0..random.random_range(0..4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        let len = random.random_range(1..=(bytes.len() - at).min(64));
        match random.random_range(0..6) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = *[0, 1, 0x7f, 0x80, 0xff].choose(random).unwrap_or(&0),
            2 => drop(bytes.drain(at..at + len)),
            3 => {
                let piece = bytes[at..at + len].to_vec();
                let to = random.random_range(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            4 => bytes.truncate(at),
            _ => bytes[at..at + len]
                .iter_mut()
                .for_each(|byte| *byte = random.random()),
        }
    }
}

/// A recording of what a sender sends: HELLO and blocks.
fn recording(compression: Compression) -> Sender {
    let mut sender = Sender::new(BlockWriter::new(compression).expect("a writer"), 16);
    sender.steps(&random_steps(9, 60));
    sender
}

#[test]
fn frames() {
    let recordings = [Compression::Off, Compression::Level(1)].map(recording);
    let bytes = recordings.each_ref().map(Sender::bytes);
    run("frames", |random| {
        let n = random.random_range(0..2);
        let mut input = bytes[n].clone();
        damage(&mut input, random);
        let mut receiver = Receiver::new(16, 40);
        let result = receiver.receive(&input);
        assert!(recordings[n].stream.starts_with(&receiver.stream));
        result.is_ok()
    });
}

#[test]
fn blocks() {
    let payloads = [Compression::Off, Compression::Level(1)].map(|compression| {
        let frames = recording(compression).frames.into_iter().skip(1);
        let payloads = frames.map(|(bytes, _)| bytes[8..bytes.len() - 32].to_vec());
        payloads.collect::<Vec<_>>()
    });
    let payloads = payloads.concat();
    run("blocks", |random| {
        let mut reader = BlockReader::new(true).expect("a reader");
        let (mut digests, mut pages) = (DigestRing::new(16), PageRing::new(16));
        let mut taken = false;
        for _ in 0..random.random_range(1..4) {
            let mut payload = payloads.choose(random).cloned().unwrap_or_default();
            damage(&mut payload, random);
            if random.random() {
                repair(&mut payload);
            }
            let Ok(block) = sealed(&payload).and_then(|sealed| reader.decode(sealed)) else {
                return taken;
            };
            taken = true;
            assert!(block.verify(&mut digests, &block.hash_bodies()).is_err());
            let sum = block.items().iter().map(Item::stream_bytes).sum::<u64>();
            assert_eq!(sum, block.stream_bytes());
            assert!(sum <= limits::BLOCK_STREAM as u64);
            for item in block.items() {
                match *item {
                    Item::Literal { start, len } => drop(block.literal(start, len).to_vec()),
                    Item::Page { start, .. } => pages.append(Arc::new(*block.page(start))),
                    Item::Reference { index, .. } => {
                        assert!(block.references().get(index as usize).is_some());
                        pages.append(Arc::new([0; PAGE_BYTES]));
                    }
                    Item::Back { distance, .. } => drop(pages.back(distance)),
                    Item::Zeros { .. } | Item::ZeroPage { .. } => {}
                }
            }
        }
        taken
    });
}

/// Makes the lengths in the header of a block agree with one another.
fn repair(payload: &mut [u8]) {
    let Some((header, rest)) = payload.split_first_chunk_mut::<16>() else {
        return;
    };
    let digests = u32::from(header[12]).min(rest.len() as u32 / 32);
    let wire = rest.len() as u32 - 32 * digests;
    header[8..12].copy_from_slice(&wire.to_le_bytes());
    header[12..].copy_from_slice(&digests.to_le_bytes());
    if header[0] == 0 {
        header[4..8].copy_from_slice(&wire.to_le_bytes());
    }
}

#[test]
fn messages() {
    let hello_frame = Message::Hello(hello()).frame().expect("a frame");
    let sealed = Sealer::new(Direction::ToReceiver, &hello().session, 0).seal(hello_frame);
    let payload = &sealed[8..sealed.len() - 32];
    let kinds = [1_u8, 2, 3, 17, 18, 32, 33, 34, 35, 36];
    run("messages", |random| {
        let direction = *[Direction::ToReceiver, Direction::ToSender]
            .choose(random)
            .expect("one");
        let mut first = payload.to_vec();
        if random.random_range(0..4) == 0 {
            damage(&mut first, random);
        }
        let mut chain = chain_start(direction, &hello());
        let mut frames = vec![raw_frame(1, &first, &mut chain)];
        let kind = *kinds.choose(random).unwrap_or(&1);
        let len = *[0, 1, 2, 8, 16, 24, 100, 8 + PAGE_BYTES]
            .choose(random)
            .unwrap_or(&0);
        let content = (0..len).map(|_| random.random()).collect::<Vec<u8>>();
        frames.push(raw_frame(kind, &content, &mut chain));
        let Ok(all) = read(direction, &frames) else {
            return false;
        };
        for incoming in all {
            // What was read can be sent, and is the same then.
            if let Incoming::Message(Message::Error(PeerError { text, .. })) = &incoming {
                assert!(!text.chars().any(char::is_control));
            } else if let Incoming::Message(message) = incoming {
                let frame = message.frame().expect("a frame");
                let kind = frame.kind();
                let sealed = Sealer::new(direction, &hello().session, 0).seal(frame);
                let same =
                    |other: &Vec<u8>| other[..other.len() - 32] == sealed[..sealed.len() - 32];
                assert!(frames.iter().any(same), "{kind}: {message:?}");
            }
        }
        true
    });
}

#[test]
fn filters() {
    let key = FilterKey([3; 16]);
    let mut builder = FilterBuilder::new(&key);
    (0..2000).for_each(|n| builder.add(&digest(n)));
    let good = builder
        .finish()
        .expect("a filter")
        .parts()
        .next()
        .expect("a part");
    run("filters", |random| {
        let mut part = good.clone();
        let mut head = part.bytes[..24].to_vec();
        damage(&mut head, random);
        part.bytes.splice(..24, head);
        damage(&mut part.bytes, random);
        if random.random() {
            part.total = part.bytes.len() as u64;
        }
        let mut assembler = FilterAssembler::new(&key, 1 << 20);
        let Ok(Some(filter)) = assembler.push(&part) else {
            return false;
        };
        (0..50).filter(|&n| filter.contains(&digest(n))).count() <= 50
    });
}
