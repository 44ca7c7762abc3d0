// SPDX-License-Identifier: GPL-2.0

//! What goes in comes out, whatever it is.

use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use twinpage_migrate::net::{
    Psk,
    Security, //
};
use twinpage_migrate::proxy::{
    Error,
    Limits, //
};

use crate::common::synth::{
    Dice,
    Synth,
    PAGE, //
};
use crate::common::{
    finish,
    moves,
    source,
    until,
    Destination,
    Setup,
    Shelf, //
};
use crate::{
    pages,
    stream, //
};

#[test]
fn a_stream_arrives_as_it_was() {
    let pages = pages(2000, 1);
    let (sent, received) = moves(Setup::default(), &stream(&pages, 5000));
    assert_eq!(sent.totals.pages_sent, 2000);
    assert_eq!(sent.totals.pages_back, 1);
    assert_eq!(sent.totals.pages_zero, 5000);
    assert_eq!(received.totals.pages_zero, 5000);
    assert_eq!(received.totals.stream_bytes, sent.totals.stream_bytes);
    assert_eq!(sent.totals.acked_bytes, sent.totals.stream_bytes);
    assert!(sent.completed && received.completed);
    assert!(sent.opaque.is_empty(), "{:?}", sent.opaque);
}

#[test]
fn pages_that_the_receiver_has_travel_as_digests() {
    let pages = pages(2000, 2);
    let shelf = Shelf::of(pages.iter().map(Vec::as_slice));
    let (sent, received) = moves(Setup::default().holding(shelf), &stream(&pages, 10));
    assert_eq!(sent.totals.pages_referenced, 2000);
    assert_eq!(sent.totals.pages_sent, 0);
    assert_eq!(received.sources[0].hits, 2000);
    assert!(
        sent.totals.wire_bytes < sent.totals.stream_bytes / 20,
        "{sent:?}"
    );
}

#[test]
fn a_source_that_lost_its_pages_is_healed() {
    let pages = pages(3000, 3);
    let shelf = Shelf {
        missing: Shelf::of(pages.iter().map(Vec::as_slice))
            .pages
            .into_keys()
            .collect(),
        ..Shelf::default()
    };
    let (sent, received) = moves(Setup::default().holding(shelf), &stream(&pages, 10));
    assert_eq!(sent.totals.pages_referenced, 3000);
    assert_eq!((sent.totals.misses, sent.totals.healed), (3000, 3000));
    assert_eq!(
        (received.totals.misses, received.totals.healed),
        (3000, 3000)
    );
}

#[test]
fn a_source_that_lies_is_found_out_and_healed() {
    let pages = pages(300, 4);
    let mut shelf = Shelf::of(pages.iter().map(Vec::as_slice));
    for (n, page) in shelf.pages.values_mut().enumerate() {
        if n % 7 == 0 {
            page[n % PAGE] ^= 1;
        }
    }
    let (sent, received) = moves(Setup::default().holding(shelf), &stream(&pages, 10));
    let source = &received.sources[0];
    assert!(source.wrong >= 1, "{source:?}");
    assert_eq!(source.hits + received.totals.healed, 300);
    assert_eq!(sent.totals.healed, received.totals.healed);
}

#[test]
fn every_combination_of_compression_and_dictionary_is_lossless() {
    let mut dice = Dice(5);
    let few: Vec<_> = (0..40).map(|_| dice.page()).collect();
    let mut synth = Synth::begin(Vec::new(), 4 << 20).unwrap();
    synth.part().unwrap();
    for n in 0..1000u64 {
        let page = &few[dice.below(40) as usize];
        // Offsets that go on, that jump, and pages of zeroes as bodies.
        let offset = if dice.below(5) == 0 {
            dice.below(1000) * 4096
        } else {
            n * 4096
        };
        match dice.below(20) {
            0 => synth.page(offset, &[0; PAGE]).unwrap(),
            1 => synth.zero(offset).unwrap(),
            _ => synth.page(offset, page).unwrap(),
        }
    }
    synth.close().unwrap();
    synth.last().unwrap();
    synth.close().unwrap();
    let stream = synth.devices(b"state").unwrap();
    for dictionary_pages in [0, 1, 2, 16, 39, 40, 65536] {
        for compression in [None, Some(1), Some(9)] {
            let mut setup = Setup {
                compression,
                ..Setup::default()
            };
            setup.send.dictionary_pages = dictionary_pages;
            let (sent, _) = moves(setup, &stream);
            let back = sent.totals.pages_back;
            assert_eq!(
                back > 0,
                dictionary_pages > 0,
                "{dictionary_pages}: {sent:?}"
            );
            assert_eq!(
                back > 500,
                dictionary_pages >= 39,
                "{dictionary_pages}: {sent:?}"
            );
        }
    }
}

#[test]
fn both_kinds_of_link_are_lossless() {
    let key = Psk::generate().unwrap();
    let pages = pages(1000, 6);
    let setup = Setup {
        security: (Security::Psk(key.clone()), Security::Psk(key)),
        ..Setup::default()
    };
    moves(setup, &stream(&pages, 10));
}

/// Moves bytes that need not be a migration; the source leaves in the end, without an answer. All
/// arrive but those of a page that is not whole.
fn moves_raw(setup: Setup, stream: &[u8], step: usize) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let destination = Destination::start(dir.path(), 1, usize::MAX);
    let pair = setup.start(dir.path(), &destination.path);
    let mut source = UnixStream::connect(&pair.path).unwrap();
    for part in stream.chunks(step.max(1)) {
        source.write_all(part).unwrap();
    }
    until(|| destination.so_far(0).len() + PAGE + 8 > stream.len());
    drop(source);
    let [sent, received] = [pair.sender, pair.receiver].map(|proxy| match finish(proxy) {
        Err(Error::Unsure { cause }) => *cause,
        ended => ended.unwrap_err(),
    });
    prop_assert!(matches!(sent, Error::SourceGone { .. }), "{}", sent);
    prop_assert!(matches!(received, Error::Peer { .. }), "{}", received);
    let came = &destination.wait()[0];
    prop_assert!(stream.starts_with(came), "other bytes arrived");
    Ok(())
}

/// A migration whose pages are partly held by the receiver, and the shelf of those.
fn migration(seed: u64, count: usize) -> (Vec<u8>, Shelf) {
    let mut dice = Dice(seed);
    let mut all: Vec<Vec<u8>> = (0..count.max(1)).map(|_| dice.page()).collect();
    for n in 1..all.len() {
        if dice.below(3) == 0 {
            all[n] = all[dice.below(n as u64) as usize].clone();
        }
    }
    let mut shelf = Shelf::of(all.iter().step_by(2).map(Vec::as_slice));
    let lost: Vec<_> = shelf
        .pages
        .keys()
        .copied()
        .filter(|_| dice.below(8) == 0)
        .collect();
    for digest in lost {
        shelf.pages.remove(&digest);
        shelf.missing.push(digest);
    }
    (stream(&all, dice.below(50)), shelf)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_arrive(bytes in prop::collection::vec(any::<u8>(), 0..20_000), step in 1usize..9000) {
        // The first 25 bytes end with the request for a return path, without which what is not
        // understood is refused.
        let mut stream = Synth::begin(Vec::new(), 1 << 20).unwrap().cut();
        stream.truncate(25);
        stream.extend(bytes);
        moves_raw(Setup::default(), &stream, step)?;
    }

    #[test]
    fn a_migration_cut_anywhere_or_with_a_byte_changed_arrives(
        seed in any::<u64>(),
        count in 1usize..200,
        cut in any::<prop::sample::Index>(),
        flip in any::<Option<(prop::sample::Index, u8)>>(),
        step in 1usize..300_000,
    ) {
        let (mut stream, shelf) = migration(seed, count);
        // The first 40 bytes hold the request for a return path, without which it is refused.
        stream.truncate(40 + cut.index(stream.len() - 40));
        if let Some((at, mask)) = flip {
            let at = 40.min(stream.len() - 1) + at.index(stream.len()) % (stream.len() - 39);
            if let Some(byte) = stream.get_mut(at) {
                *byte ^= mask;
            }
        }
        moves_raw(Setup::default().holding(shelf), &stream, step)?;
    }
}

#[test]
fn small_windows_and_single_bytes_are_lossless() {
    let (stream, shelf) = migration(7, 3000);
    let mut setup = Setup::default().holding(shelf);
    setup.send.stream_window = 4 << 20;
    setup.receive.wire_window = 4 << 20;
    setup.send.threads = 1;
    moves(setup, &stream);
    let (stream, shelf) = migration(8, 3);
    moves_raw(Setup::default().holding(shelf), &stream, 1).unwrap();
}

#[test]
fn several_connections_keep_to_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let (main, _) = migration(10, 500);
    let others: Vec<Vec<u8>> = (0..3)
        .map(|n| [&[0x11, 0x22, 0x33, 0x44][..], &pages(100, 20 + n).concat()].concat())
        .collect();
    let destination = Destination::start(dir.path(), 4, main.len());
    let pair = Setup::default().start(dir.path(), &destination.path);
    let mut first = UnixStream::connect(&pair.path).unwrap();
    first.write_all(&main[..100]).unwrap();
    // The destination must take connections in the order in which QEMU made them.
    for other in &others {
        source(&pair.path, other, 10_000, false);
    }
    first.write_all(&main[100..]).unwrap();
    let mut heard = [0; 8];
    std::io::Read::read_exact(&mut first, &mut heard).unwrap();
    drop(first);
    finish(pair.sender).unwrap();
    finish(pair.receiver).unwrap();
    let came = destination.wait();
    assert!(came[0] == main);
    assert!(came[1..] == others);
}

#[test]
fn the_windows_of_a_session_are_checked() {
    let wrong = Limits {
        stream_window: 1,
        ..Limits::default()
    };
    assert!(matches!(wrong.check(), Err(Error::Limit { .. })));
}
