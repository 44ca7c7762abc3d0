// SPDX-License-Identifier: GPL-2.0

//! What the engine costs: hashing, the tree at several sizes, and steps over a world that costs
//! next to nothing.
//!
//! `cargo bench -p twinpage-engine [NAME...]` runs the groups whose name contains one of `NAME`.
//! Each number is the best of several runs.

use std::{
    hint::black_box,
    ops::Range,
    time::Instant, //
};

use rand::{
    rngs::SmallRng,
    seq::SliceRandom,
    Rng,
    SeedableRng, //
};
use twinpage_engine::engine::{
    index::{
        Index,
        Span, //
    },
    knobs::Knobs,
    node::{
        Node,
        Nodes, //
    },
    scratch::Scratch,
    tree::Tree,
    world::{
        Away,
        GuestId,
        Pfn,
        Seen,
        Shared,
        Target,
        Token,
        Unshared,
        World,
        BLOCK_BYTES,
        BLOCK_PAGES,
        DIGEST_BYTES,
        PAGE_BYTES, //
    },
    xxh64::{
        hash_bytes,
        hash_words, //
    },
};

const RUNS: u32 = 5;

/// Prints the best time of a run, for each of `count` things in it. `run` returns how long it took.
fn report(name: &str, count: usize, mut run: impl FnMut() -> u128) {
    let best = (0..RUNS).map(|_| run()).min().unwrap_or(0);
    println!("{name:<44} {:>10.1} ns", best as f64 / count as f64);
}

fn timed<T>(act: impl FnOnce() -> T) -> u128 {
    let start = Instant::now();
    black_box(act());
    start.elapsed().as_nanos()
}

fn hashing() {
    const PAGES: usize = 256;
    let mut rng = SmallRng::seed_from_u64(1);
    let words: Vec<u64> = (0..512 * PAGES).map(|_| rng.random()).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    report("xxh64 of a page, word by word", PAGES, || {
        timed(|| {
            let pages = words.chunks_exact(512);
            pages.fold(0, |sum, page| sum ^ hash_words(512, |at| page[at], 1))
        })
    });
    report("xxh64 of a page, as a slice", PAGES, || {
        timed(|| {
            let pages = bytes.chunks_exact(4096);
            pages.fold(0, |sum, page| sum ^ hash_bytes(page, 1))
        })
    });
}

struct Arena(Vec<Node>);

impl Nodes for Arena {
    fn node(&self, id: u32) -> Option<&Node> {
        self.0.get(id as usize)
    }

    fn node_mut(&mut self, id: u32) -> Option<&mut Node> {
        self.0.get_mut(id as usize)
    }
}

fn tree() {
    for bits in [14, 16, 18, 20] {
        let count = 1 << bits;
        let mut rng = SmallRng::seed_from_u64(1);
        let keys: Vec<u64> = (0..count).map(|_| rng.random()).collect();
        let mut order = keys.clone();
        order.shuffle(&mut rng);
        let mut arena = Arena(Vec::new());
        let mut tree = Tree::new();
        report(&format!("tree of 2^{bits}: insert"), count, || {
            arena = Arena(keys.iter().copied().map(Node::new).collect());
            tree = Tree::new();
            timed(|| {
                for id in 0..count as u32 {
                    let _ = tree.insert(&mut arena, id);
                }
            })
        });
        report(&format!("tree of 2^{bits}: find"), count, || {
            timed(|| {
                order
                    .iter()
                    .filter_map(|key| tree.find(&arena, *key))
                    .count()
            })
        });
        report(&format!("tree of 2^{bits}: miss"), count, || {
            timed(|| {
                order
                    .iter()
                    .filter_map(|key| tree.find(&arena, !key))
                    .count()
            })
        });
        report(
            &format!("tree of 2^{bits}: remove and insert"),
            count,
            || {
                timed(|| {
                    for id in 0..count as u32 {
                        let _ = tree.remove(&mut arena, id);
                        let _ = tree.insert(&mut arena, id);
                    }
                })
            },
        );
    }
}

/// Guests of the same pages, as numbers.
struct Plain {
    pages: Vec<Vec<u64>>,
    frames: Vec<u64>,
    looked: (usize, usize),
}

/// In the upper half of the numbers: a merged copy.
const MERGED: u64 = 1 << 63;

impl World for Plain {
    type Frame = u32;

    fn look(
        &mut self,
        guest: GuestId,
        block: u64,
        pages: Range<usize>,
        _wanted: &[u64; BLOCK_PAGES / 64],
        seen: &mut [Seen],
    ) -> Result<(), Away> {
        let first = (block / PAGE_BYTES) as usize;
        self.looked = (guest.0 as usize, first);
        let found = &self.pages[self.looked.0][first..];
        for (slot, page) in seen[pages.clone()].iter_mut().zip(&found[pages]) {
            *slot = if page & MERGED == 0 {
                Seen::Anon { node: 0 }
            } else {
                let number = (page & !MERGED) as u32;
                Seen::Merged {
                    pfn: Pfn(number.into()),
                    token: Token(number),
                }
            };
        }
        Ok(())
    }

    fn hash(&mut self, index: usize, seed: u64) -> u64 {
        let content = self.pages[self.looked.0][self.looked.1 + index];
        (content ^ seed).wrapping_mul(0x9e37_79b1_85eb_ca87)
    }

    fn snapshot(&mut self, index: usize) -> Option<u32> {
        self.frames
            .push(self.pages[self.looked.0][self.looked.1 + index]);
        Some(self.frames.len() as u32 - 1)
    }

    fn release(&mut self) {}

    fn share(
        &mut self,
        guest: GuestId,
        addr: u64,
        targets: &[Target<'_, u32>],
        results: &mut [Shared],
    ) {
        let first = (addr / PAGE_BYTES) as usize;
        let pages = self.pages[guest.0 as usize][first..].iter_mut();
        for ((target, result), page) in targets.iter().zip(results).zip(pages) {
            if let Target::Copy(frame) = target {
                *page = u64::from(**frame) | MERGED;
            }
            *result = Shared::Done;
        }
    }

    fn unshare(&mut self, _: GuestId, _: u64) -> Unshared {
        Unshared::Done
    }

    fn split(&mut self, _: GuestId, _: u64) -> bool {
        false
    }

    fn set_token(&mut self, _: &u32, _: Token) {}

    fn pfn(&self, frame: &u32) -> Pfn {
        Pfn((*frame).into())
    }

    fn hash_frame(&mut self, frame: &u32, seed: u64) -> u64 {
        (self.frames[*frame as usize] ^ seed).wrapping_mul(0x9e37_79b1_85eb_ca87)
    }

    fn mappings(&self, _: &u32) -> u32 {
        2
    }

    fn digest(&mut self, _: &u32) -> [u8; DIGEST_BYTES] {
        [0; DIGEST_BYTES]
    }
}

/// An index over `guests` equal guests of so many pages.
fn guests(guests: u32, pages: usize) -> (Index<u32>, Plain) {
    let mut rng = SmallRng::seed_from_u64(1);
    let contents: Vec<u64> = (0..pages).map(|_| rng.random::<u64>() & !MERGED).collect();
    let world = Plain {
        pages: vec![contents; guests as usize],
        frames: Vec::new(),
        looked: (0, 0),
    };
    let mut index = Index::new(1, 1..u64::MAX);
    for guest in 0..guests {
        let _ = index.attach(GuestId(guest));
        let end = pages as u64 / BLOCK_PAGES as u64 * BLOCK_BYTES;
        let _ = index.set_ranges(GuestId(guest), &[Span { start: 0, end }]);
    }
    (index, world)
}

fn pass(
    index: &mut Index<u32>,
    world: &mut Plain,
    scratch: &mut Scratch,
    knobs: &Knobs,
    guest: u32,
) -> u128 {
    timed(|| loop {
        match index.scan(world, scratch, GuestId(guest), knobs) {
            Ok(step) if !step.pass_ended => {}
            _ => break,
        }
    })
}

fn scan() {
    let mut scratch = Scratch::new().expect("memory");
    let knobs = Knobs {
        smart_scan: false,
        use_zero_pages: false,
        ..Knobs::DEFAULT
    };
    for bits in [14, 17, 20] {
        let count = 1 << bits;
        let name = |what: &str| format!("2^{bits} pages, {what}");
        report(&name("first look at a page"), count, || {
            let (mut index, mut world) = guests(1, count);
            pass(&mut index, &mut world, &mut scratch, &knobs, 0)
        });
        let (mut index, mut world) = guests(1, count);
        pass(&mut index, &mut world, &mut scratch, &knobs, 0);
        report(&name("look at a page that did not change"), count, || {
            pass(&mut index, &mut world, &mut scratch, &knobs, 0)
        });
        report(&name("look at a page that changed"), count, || {
            for page in &mut world.pages[0] {
                *page += 1;
            }
            pass(&mut index, &mut world, &mut scratch, &knobs, 0)
        });
        report(&name("merge a pair of pages"), count, || {
            let (mut index, mut world) = guests(2, count);
            pass(&mut index, &mut world, &mut scratch, &knobs, 0);
            pass(&mut index, &mut world, &mut scratch, &knobs, 1)
        });
        let (mut index, mut world) = guests(2, count);
        for guest in [0, 1, 0, 1] {
            pass(&mut index, &mut world, &mut scratch, &knobs, guest);
        }
        report(&name("look at a merged page"), count, || {
            pass(&mut index, &mut world, &mut scratch, &knobs, 0)
        });
        let bytes = index.totals().metadata_bytes as f64;
        let copies = index.copies();
        let pages = 2 * count;
        println!(
            "{:<44} {:>10.2} bytes a page",
            name("all merged"),
            bytes / pages as f64
        );
        assert_eq!(copies, count);
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let groups: [(&str, fn()); 3] = [("hashing", hashing), ("tree", tree), ("scan", scan)];
    for (name, group) in groups {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
            group();
        }
    }
}
