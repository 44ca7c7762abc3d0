// SPDX-License-Identifier: GPL-2.0

//! Sender and receiver in one process, with streams made up.

mod common;

use common::synth::{
    Dice,
    Synth,
    PAGE, //
};
use common::{
    moves,
    Setup,
    Shelf, //
};

/// A stream of one round over `pages`, some zero pages, and device state.
fn stream(pages: &[Vec<u8>], zeros: u64) -> Vec<u8> {
    let total = (pages.len() as u64 + zeros) * PAGE as u64;
    let mut synth = Synth::begin(Vec::new(), total).unwrap();
    synth.part().unwrap();
    for (n, page) in pages.iter().enumerate() {
        synth.page((n * PAGE) as u64, page).unwrap();
    }
    for n in 0..zeros {
        synth.zero((pages.len() as u64 + n) * PAGE as u64).unwrap();
    }
    synth.close().unwrap();
    synth.last().unwrap();
    synth.page(0, &pages[0]).unwrap();
    synth.close().unwrap();
    let mut state = vec![0; 100_000];
    Dice(9).fill(&mut state);
    synth.devices(&state).unwrap()
}

fn pages(count: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut dice = Dice(seed);
    (0..count).map(|_| dice.page()).collect()
}

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
