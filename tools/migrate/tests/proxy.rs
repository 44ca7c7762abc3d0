// SPDX-License-Identifier: GPL-2.0

//! Sender and receiver in one process, with streams made up.

mod common;

#[path = "proxy/damage.rs"]
mod damage;
#[path = "proxy/flow.rs"]
mod flow;
#[path = "proxy/hostile.rs"]
mod hostile;
#[path = "proxy/lossless.rs"]
mod lossless;
#[path = "proxy/patience.rs"]
mod patience;
#[path = "proxy/plan.rs"]
mod plan;

use common::synth::{
    Dice,
    Synth,
    PAGE, //
};

/// A stream of one round over `pages`, `zeros` zero pages, one page again, and device state.
pub fn stream(pages: &[Vec<u8>], zeros: u64) -> Vec<u8> {
    let mut state = vec![0; 20_000];
    Dice(9).fill(&mut state);
    stream_with(pages, zeros, &state)
}

/// The same with this device state.
pub fn stream_with(pages: &[Vec<u8>], zeros: u64, state: &[u8]) -> Vec<u8> {
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
    synth.devices(state).unwrap()
}

/// Pages that are like no others.
pub fn pages(count: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut dice = Dice(seed);
    (0..count).map(|_| dice.page()).collect()
}
