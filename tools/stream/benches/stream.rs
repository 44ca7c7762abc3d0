// SPDX-License-Identifier: GPL-2.0

//! What parsing costs, by the kind of record and the length of chunks.
//!
//! `cargo bench -p twinpage-stream`. Each number is the best of several runs, in bytes of the stream
//! per second on one thread.

use std::hint::black_box;
use std::time::Instant;

use twinpage_stream::{
    Parser,
    Piece, //
};

const RUNS: u32 = 7;
const PAGES: u64 = 32 << 10;

/// A main channel up to the first record of its first part.
fn head() -> Vec<u8> {
    let bytes = PAGES * 4096;
    [
        &b"QEVM\0\0\0\x03\x07\0\0\0\x02pc"[..],
        b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04",
        &(bytes | 4).to_be_bytes(),
        b"\x06pc.ram",
        &bytes.to_be_bytes(),
        b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01\x02\0\0\0\x01",
        // A zero page that names its block.
        b"\0\0\0\0\0\0\0\x02\x06pc.ram\0",
    ]
    .concat()
}

/// A stream of records: each is `zeros` zero pages, then `pages` pages.
fn stream(zeros: u64, pages: u64) -> Vec<u8> {
    let mut bytes = head();
    let mut offset = 0;
    while offset + (zeros + pages) * 4096 <= PAGES * 4096 {
        for _ in 0..zeros {
            bytes.extend((offset | 0x22_u64).to_be_bytes());
            bytes.push(0);
            offset += 4096;
        }
        for _ in 0..pages {
            bytes.extend((offset | 0x28_u64).to_be_bytes());
            bytes.extend([0x5a; 4096]);
            offset += 4096;
        }
    }
    bytes
}

/// Feeds `stream` in chunks and gives the number of pieces.
fn parse(stream: &[u8], chunk: usize, pieces: &mut Vec<Piece>) -> usize {
    let mut parser = Parser::new();
    let (mut from, mut count) = (0, 0);
    while from < stream.len() {
        let to = stream.len().min(from + chunk);
        pieces.clear();
        let consumed = parser.feed(&stream[from..to], pieces);
        count += black_box(&*pieces).len();
        if consumed == 0 {
            break;
        }
        from += consumed;
    }
    count
}

fn report(name: &str, stream: &[u8]) {
    for chunk in [64 << 10, 256 << 10, 1 << 20] {
        let mut pieces = Vec::new();
        let count = parse(stream, chunk, &mut pieces);
        let run = |_| {
            let start = Instant::now();
            black_box(parse(stream, chunk, &mut pieces));
            start.elapsed().as_secs_f64()
        };
        let best = (0..RUNS).map(run).fold(f64::INFINITY, f64::min);
        println!(
            "{name:<32} in chunks of {:>4} KiB: {:>7.2} GB/s, {:>6.1} ns a piece",
            chunk >> 10,
            stream.len() as f64 / best / 1e9,
            best * 1e9 / count as f64
        );
    }
}

fn main() {
    report("pages", &stream(0, 1));
    report("zero pages", &stream(1, 0));
    report("three zero pages, then a page", &stream(3, 1));
}
