// SPDX-License-Identifier: GPL-2.0

//! Streams that nobody sends: whatever comes, the pieces are true and cover it, and it does not
//! depend on the chunks what is found.

use std::env;
use std::time::{
    Duration,
    Instant,
    SystemTime, //
};

use proptest::prelude::{
    any,
    prop,
    prop_assert_eq,
    proptest,
    ProptestConfig, //
};

use crate::build::Build;
use crate::replay::{
    replay,
    replay_by, //
};
use crate::table::{
    iterables,
    misfits,
    multifd,
    postcopy,
    rounds, //
};

/// Streams that are right.
fn goldens() -> [Build; 4] {
    [rounds(), postcopy(), iterables(), multifd()]
}

/// The same must come of `stream` at once and in pieces.
fn check(stream: &[u8], chunk: usize) {
    assert_eq!(
        replay(stream, stream.len().max(1)).events,
        replay(stream, chunk).events
    );
}

#[test]
fn any_flipped_byte_is_harmless() {
    for golden in goldens() {
        let mut stream = golden.bytes;
        for place in 0..stream.len() {
            // What is in pages does not matter; look at some of it nevertheless.
            let in_page = golden
                .pages
                .iter()
                .any(|page| (*page..page + 4096).contains(&(place as u64)));
            if in_page && place % 256 != 0 {
                continue;
            }
            for flip in [0x01, 0x80, 0xff] {
                stream[place] ^= flip;
                check(&stream, 4095);
                stream[place] ^= flip;
            }
        }
    }
}

#[test]
fn any_truncation_is_harmless() {
    for golden in goldens() {
        for length in (0..golden.bytes.len()).filter(|length| length % 64 < 12) {
            check(&golden.bytes[..length], 4096);
        }
    }
}

#[test]
fn extreme_counts_are_harmless() {
    let live = || Build::with_ram(8).part(2, 2);
    let vfio = Build::with_ram(8)
        .head(1, 5, "a/vfio", 1)
        .be64(0xffff_ffff_ef10_0004)
        .be64(u64::MAX);
    let extremes = [
        Build::main()
            .start_ram(!0xfff)
            .block("a", 1)
            .u8(255)
            .raw(&[b'x'; 255])
            .be64(!0),
        Build::main().start_ram(!0xfff).block("a", 1).u8(0),
        live().be64(!0xfff | 8).name("pc.ram"),
        live().be64(0x40).name("pc.ram").u8(1).be16(65535),
        live().be64(0x10).footer(u32::MAX),
        Build::with_ram(8).u8(8).be16(6).be16(65535),
        Build::with_ram(8).command(7, &[0xff; 4]),
        Build::with_ram(8).command(7, &[0, 0xff, 0xff, 0xff]),
        vfio,
        Build::multifd().packet(2, 128, u32::MAX, 0),
        Build::multifd().packet(0, u32::MAX / 4096, u32::MAX, 0),
        Build::main()
            .head(4, 5, "a/virtio-mem-device-early", 1)
            .be64(0)
            .be64(!0)
            .be64(1 << 20)
            .be32(0)
            .be64(0),
    ];
    for extreme in extremes {
        check(&extreme.raw(&[0x5a; 20000]).bytes, 7);
    }
}

#[test]
fn list_of_blocks_is_bounded() {
    let mut build = Build::main().start_ram(!0xfff);
    for number in 0..5000 {
        build = build.block(&format!("block{number}"), 1);
    }
    let opaque = replay(&build.bytes, 65536).opaque().unwrap();
    assert_eq!(opaque.reason, twinpage_stream::Reason::BlockList);
    assert!(replay(&build.bytes, 65536).literal == build.bytes.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_covered(
        stream in prop::collection::vec(any::<u8>(), 0..20000),
        head in 0..6_usize,
        chunk in 1..9000_usize,
    ) {
        let heads = [Build::new(), Build::main(), Build::with_ram(8), Build::multifd(), rounds(), postcopy()];
        let stream = [&heads[head].bytes[..], &stream].concat();
        let (whole, cut) = (replay(&stream, stream.len().max(1)), replay(&stream, chunk));
        prop_assert_eq!(whole.events, cut.events);
    }

    #[test]
    fn any_chunks_give_the_same(which in 0..4_usize, lengths in prop::collection::vec(1..9000_usize, 1..40)) {
        let golden = &goldens()[which];
        let mut next = lengths.iter().cycle();
        let cut = replay_by(&golden.bytes, || *next.next().unwrap_or(&1));
        prop_assert_eq!(&cut.events.pages, &golden.pages);
    }
}

/// Random numbers (xorshift), from a seed that is printed.
struct Random(u64);

impl Random {
    /// The next.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next one below `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Changes a stream: bytes, runs of bytes, words that mean something.
    fn change(&mut self, stream: &mut Vec<u8>, others: &[Vec<u8>]) {
        let place = self.below(stream.len());
        let other = &others[self.below(others.len())];
        let from = self.below(other.len());
        let to = (from + self.below(300)).min(other.len());
        match self.below(7) {
            0 => stream[place] = self.next() as u8,
            1 => stream[place] ^= 1 << self.below(8),
            2 => drop(stream.drain(place..(place + self.below(40)).min(stream.len()))),
            3 => drop(stream.splice(place..place, other[from..to].iter().copied())),
            4 => {
                let words = [
                    0x28_u64,
                    0x22,
                    0x08,
                    0x10,
                    0x200,
                    0x1028,
                    !0,
                    0x7e00_0000_0208,
                ];
                let word = words[self.below(words.len())].to_be_bytes();
                let end = (place + 8).min(stream.len());
                stream[place..end].copy_from_slice(&word[..end - place]);
            }
            5 => stream.truncate(place.max(1)),
            _ => {
                let end = (place + other.len()).min(stream.len());
                stream[place..end].copy_from_slice(&other[..end - place]);
            }
        }
        if stream.is_empty() {
            stream.push(0);
        }
    }
}

/// Mutates streams for a second, or for `TWINPAGE_FUZZ_SECONDS`. `TWINPAGE_FUZZ_SEED` repeats a run.
#[test]
fn fuzzed_streams_are_covered() {
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let limit = Duration::from_secs(number("TWINPAGE_FUZZ_SECONDS").unwrap_or(1));
    let clock = || {
        SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(1, |time| time.as_nanos() as u64)
    };
    let seed = number("TWINPAGE_FUZZ_SEED").unwrap_or_else(clock) | 1;
    println!("TWINPAGE_FUZZ_SEED={seed}");
    let corpus: Vec<Vec<u8>> = goldens()
        .into_iter()
        .chain(misfits().into_iter().map(|(build, _)| build))
        .map(|build| build.bytes)
        .collect();
    let mut random = Random(seed);
    let (start, mut runs) = (Instant::now(), 0_u64);
    while start.elapsed() < limit {
        let mut stream = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(8) {
            random.change(&mut stream, &corpus);
        }
        let whole = replay(&stream, stream.len());
        let cut = replay_by(&stream, || random.below(6000) + 1);
        assert_eq!(
            whole.events, cut.events,
            "TWINPAGE_FUZZ_SEED={seed}, run {runs}"
        );
        runs += 1;
    }
    println!("{runs} streams in {limit:?}");
    assert!(runs > 0);
}
