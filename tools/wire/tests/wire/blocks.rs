// SPDX-License-Identifier: GPL-2.0

//! Whatever is sent in blocks arrives.

use proptest::prelude::*;
use rand::{
    rngs::SmallRng,
    RngCore,
    SeedableRng, //
};
use twinpage_wire::{
    limits,
    BlockLimits,
    BlockWriter,
    Compression,
    Digest,
    Error,
    Op,
    Page,
    PAGE_BYTES, //
};

use crate::common::{
    compressions,
    steps,
    Receiver,
    Sender,
    Step, //
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn every_sequence_arrives(
        steps in prop::collection::vec(steps(50), 0..120),
        compression in compressions(),
        raw in prop_oneof![1..20_000_usize, Just(limits::BLOCK_RAW)],
        stream in prop_oneof![1..40_000_usize, Just(limits::BLOCK_STREAM)],
        ops in prop_oneof![1..40_usize, Just(limits::BLOCK_OPS)],
        pages in prop_oneof![0..30_u32, Just(1000)],
    ) {
        let writer = BlockWriter::new(compression).expect("a writer");
        let mut sender = Sender::new(writer.with_limits(BlockLimits { raw, stream, ops }), pages);
        sender.steps(&steps);
        let mut receiver = Receiver::new(pages, 50);
        prop_assert_eq!(receiver.receive(&sender.bytes()), Ok(()));
        prop_assert!(receiver.stream == sender.stream);
        prop_assert!(receiver.meanings == sender.meanings);
        let totals = sender.writer.totals();
        prop_assert_eq!(totals.stream_bytes, sender.stream.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn pages_that_lie_elsewhere_become_the_same_bytes(
        steps in prop::collection::vec(steps(500), 0..300),
        compression in compressions(),
        raw in prop_oneof![1..100_000_usize, Just(limits::BLOCK_RAW)],
    ) {
        let [copied, lent] = [false, true].map(|lends| {
            let writer = BlockWriter::new(compression).expect("a writer");
            let limits = BlockLimits { raw, ..BlockLimits::default() };
            let mut sender = Sender::new(writer.with_limits(limits), 30);
            sender.lends = lends;
            sender.steps(&steps);
            (sender.bytes(), sender.writer.totals())
        });
        prop_assert!(copied.0 == lent.0);
        prop_assert_eq!(copied.1, lent.1);
    }
}

/// A sender of full blocks.
fn sender(compression: Compression) -> Sender {
    Sender::new(BlockWriter::new(compression).expect("a writer"), 0)
}

/// Pushes `count` pages that a generator makes.
fn push_pages(sender: &mut Sender, count: usize, mut fill: impl FnMut(&mut Page)) {
    let mut page = [0; PAGE_BYTES];
    for _ in 0..count {
        fill(&mut page);
        let op = Op::Page {
            header: None,
            digest: &Digest::of(&page),
            page: &page,
        };
        if sender.writer.push(op).full {
            sender.finish();
        }
    }
}

#[test]
fn random_memory_is_stored() {
    let mut random = SmallRng::seed_from_u64(1);
    let mut sender = sender(Compression::Level(1));
    push_pages(&mut sender, 64 * 256, |page| random.fill_bytes(page));
    let totals = sender.writer.totals();
    assert_eq!(totals.blocks, 64);
    assert_eq!(totals.stored, 63);
    assert!(totals.wire_bytes < totals.raw_bytes + 200 * totals.blocks);
}

#[test]
fn compression_comes_back_with_memory_that_compresses() {
    let mut random = SmallRng::seed_from_u64(1);
    let mut sender = sender(Compression::Level(1));
    push_pages(&mut sender, 64 * 256, |page| random.fill_bytes(page));
    let before = sender.writer.totals();
    push_pages(&mut sender, 64 * 256, |page| {
        page[0] = page[0].wrapping_add(1)
    });
    let after = sender.writer.totals();
    let stored = after.stored - before.stored;
    assert!(stored <= 8, "{stored} blocks were stored");
    let wire = after.wire_bytes - before.wire_bytes;
    assert!(wire < (stored + 1) * (1 << 20) + (1 << 20), "{wire} bytes");
}

#[test]
fn mixed_memory_is_compressed() {
    let mut random = SmallRng::seed_from_u64(1);
    let mut sender = sender(Compression::Level(1));
    push_pages(&mut sender, 16 * 256, |page| {
        random.fill_bytes(&mut page[..2048])
    });
    assert_eq!(sender.writer.totals().stored, 0);
}

#[test]
fn headers_cost_nothing_in_a_row() {
    let mut sender = sender(Compression::Off);
    let row = (0..200_u16).map(|n| Step::Page(Some(u64::from(n) * 0x1000), 2 * n + 1));
    sender.steps(&row.collect::<Vec<_>>());
    // Two frames with a header and a running hash, one with the header of a block.
    let hello = sender.frames[0].0.len();
    let block = sender.bytes().len() - hello;
    assert_eq!(block, 8 + 16 + 200 * (1 + PAGE_BYTES) + 32);
}

#[test]
fn zeros_and_literals_that_follow_one_another_are_one() {
    let mut sender = sender(Compression::Off);
    let mut steps = Vec::new();
    steps.extend((0..1000).map(|n| Step::Zeros(n * 0x1000, 1)));
    steps.extend((0..1000).map(|_| Step::Literal(vec![7])));
    sender.steps(&steps);
    let hello = sender.frames[0].0.len();
    let ops = (1 + 1 + 2) + (1 + 2 + 1000);
    assert_eq!(sender.bytes().len() - hello, 8 + 16 + ops + 32);
}

#[test]
fn literals_in_two_parts_are_not_refused() {
    let full = limits::LITERAL;
    for cut in [1, 100, full - 1, full, full + 1] {
        let mut sender = sender(Compression::Off);
        for step in [Step::Zeros(0, 1), Step::Page(None, 2), Step::Flush] {
            let literal = vec![7; 3 * full];
            sender.step(&Step::Literal(literal[..cut].to_vec()));
            sender.step(&Step::Literal(literal[cut..].to_vec()));
            sender.step(&step);
        }
        sender.finish();
        let mut receiver = Receiver::new(0, 0);
        assert_eq!(receiver.receive(&sender.bytes()), Ok(()));
        assert!(receiver.stream == sender.stream);
    }
}

#[test]
fn only_levels_that_exist_are_taken() {
    for level in [0, 20, 255] {
        let result = BlockWriter::new(Compression::Level(level)).map(|_| ());
        assert_eq!(result, Err(Error::Level(level)));
    }
    for level in [1, 9, 19] {
        let mut sender = sender(Compression::Level(level));
        sender.steps(&[Step::Page(None, 2), Step::Flush, Step::Page(None, 4)]);
        let mut receiver = Receiver::new(0, 0);
        assert_eq!(receiver.receive(&sender.bytes()), Ok(()));
        assert!(receiver.stream == sender.stream);
    }
}
