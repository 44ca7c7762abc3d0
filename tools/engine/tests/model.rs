// SPDX-License-Identifier: GPL-2.0

//! Parts of the engine against the simplest thing that does the same.
//!
//! Each case has a seed. `TWINPAGE_SEED=n` runs only that one.

mod host;

use std::collections::{
    BTreeMap,
    HashMap, //
};

use host::{
    driver::{
        span,
        Driver,
        BLOCK, //
    },
    Pte,
    Use, //
};
use rand::{
    rngs::SmallRng,
    Rng,
    SeedableRng, //
};
use twinpage_engine::engine::{
    copies::{
        Copies,
        MergedCopy,
        State, //
    },
    node::{
        Node,
        Nodes, //
    },
    page::CopyId,
    stats::Gauge,
    tree::{
        Refused,
        Tree, //
    },
    xxh64::{
        hash_bytes,
        hash_words, //
    },
};

fn seeds(cases: u64) -> Vec<u64> {
    let only = std::env::var("TWINPAGE_SEED").ok();
    match only.and_then(|text| text.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=cases).collect(),
    }
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

/// One random operation on both.
fn operate(rng: &mut SmallRng, arena: &mut Arena, tree: &mut Tree, model: &mut BTreeMap<u64, u32>) {
    let id = rng.random_range(0..arena.0.len() as u32);
    let key = arena.0[id as usize].key();
    let inside = model.get(&key) == Some(&id);
    match rng.random_range(0..10) {
        0..5 if !inside => {
            let key = rng.random_range(0..arena.0.len() as u64 * 2);
            arena.0[id as usize] = Node::new(key);
            let expected = match model.get(&key) {
                Some(other) => Err(Refused::Occupied(*other)),
                None => {
                    model.insert(key, id);
                    Ok(())
                }
            };
            assert_eq!(tree.insert(arena, id), expected);
        }
        5..9 if inside => {
            assert_eq!(tree.remove(arena, id), Ok(()));
            model.remove(&key);
            assert_eq!(arena.0[id as usize].key(), key);
        }
        9 if inside => {
            let new = rng.random_range(0..arena.0.len() as u32);
            if model.get(&arena.0[new as usize].key()) != Some(&new) {
                assert_eq!(tree.replace(arena, id, new), Ok(()));
                model.insert(key, new);
            }
        }
        _ => {
            let key = rng.random_range(0..arena.0.len() as u64 * 2);
            assert_eq!(tree.find(arena, key), model.get(&key).copied());
        }
    }
}

#[test]
fn the_tree_is_a_map() {
    for seed in seeds(40) {
        println!("TWINPAGE_SEED={seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let size = 1 << rng.random_range(1..11);
        let mut arena = Arena(vec![Node::new(0); size]);
        let (mut tree, mut model) = (Tree::new(), BTreeMap::new());
        for step in 0..10_000 {
            operate(&mut rng, &mut arena, &mut tree, &mut model);
            if size < 20 || step % 100 == 0 {
                assert_eq!(tree.check(&arena), Ok(()));
                assert_eq!(tree.len() as usize, model.len());
            }
        }
    }
}

#[test]
fn a_million_keys_in_bad_order() {
    const COUNT: u32 = 1 << 20;
    let orders: [fn(u32) -> u64; 3] = [
        |id| u64::from(id),
        |id| u64::from(COUNT - id),
        |id| u64::from(id.reverse_bits()),
    ];
    for order in orders {
        let mut arena = Arena((0..COUNT).map(|id| Node::new(order(id))).collect());
        let mut tree = Tree::new();
        for id in 0..COUNT {
            assert_eq!(tree.insert(&mut arena, id), Ok(()));
        }
        assert_eq!(tree.check(&arena), Ok(()));
        for id in (0..COUNT).step_by(2) {
            assert_eq!(tree.remove(&mut arena, id), Ok(()));
        }
        assert_eq!(tree.check(&arena), Ok(()));
        for id in (1..COUNT).step_by(2) {
            assert_eq!(tree.find(&arena, order(id)), Some(id));
        }
    }
}

/// Whatever the links are, every operation returns.
#[test]
fn random_links_do_not_trap_anybody() {
    for seed in seeds(200) {
        println!("TWINPAGE_SEED={seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut arena = Arena((0..64).map(Node::new).collect());
        let mut tree = Tree::new();
        for id in 0..64 {
            assert_eq!(tree.insert(&mut arena, id), Ok(()));
        }
        for _ in 0..rng.random_range(1..8) {
            let victim = rng.random_range(0..64);
            // A copy of another node, with its links and its colour.
            arena.0[victim] = arena.0[rng.random_range(0..64)];
        }
        assert!(tree.check(&arena).is_err());
        for _ in 0..200 {
            let id = rng.random_range(0..64);
            let _ = match rng.random_range(0..3) {
                0 => tree.insert(&mut arena, id).is_ok(),
                1 => tree.remove(&mut arena, id).is_ok(),
                _ => tree
                    .replace(&mut arena, id, rng.random_range(0..64))
                    .is_ok(),
            };
        }
    }
}

#[test]
fn xxh64_is_what_others_compute() {
    use std::hash::Hasher;
    let mut rng = SmallRng::seed_from_u64(1);
    let bytes: Vec<u8> = (0..4096).map(|_| rng.random()).collect();
    for len in 0..=4096 {
        for seed in [0, 1, u64::MAX, rng.random()] {
            let bytes = &bytes[..len];
            let mut other = twox_hash::XxHash64::with_seed(seed);
            other.write(bytes);
            assert_eq!(hash_bytes(bytes, seed), other.finish(), "length {len}");
            if len % 8 == 0 {
                let word = |at: usize| {
                    u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("8 bytes"))
                };
                assert_eq!(hash_words(len / 8, word, seed), other.finish());
            }
        }
    }
}

/// What a copy should be like.
#[derive(Default)]
struct Model {
    records: u32,
    dead: bool,
}

#[test]
fn copies_are_a_map() {
    for seed in seeds(20) {
        println!("TWINPAGE_SEED={seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut copies: Copies<Box<u64>> = Copies::new();
        let mut model: HashMap<u32, Model> = HashMap::new();
        let most = 1 << rng.random_range(1..12);
        for _ in 0..20_000 {
            let id = CopyId(rng.random_range(0..most * 2));
            let room = model.len() < most as usize;
            let known = model.get_mut(&id.0);
            match (rng.random_range(0..10), known) {
                (0..3, _) if room => {
                    copies.reserve().expect("memory");
                    let copy = MergedCopy::new(Box::new(7), 1);
                    let CopyId(new) = copies.insert(copy).expect("room");
                    assert!(model.insert(new, Model::default()).is_none());
                }
                (3..5, Some(known)) if !known.dead => {
                    copies.join(id);
                    known.records += 1;
                }
                (5..8, Some(known)) if known.records > 0 => {
                    copies.leave(id);
                    known.records -= 1;
                    if known.dead && known.records == 0 {
                        model.remove(&id.0);
                    }
                }
                (8, Some(known)) if !known.dead => {
                    assert!(copies.kill(id).is_some());
                    known.dead = true;
                    if known.records == 0 {
                        model.remove(&id.0);
                    }
                }
                (9, known) => {
                    let is_dead = copies.get(id).map(|copy| copy.state() == State::Dead);
                    assert_eq!(is_dead, known.map(|known| known.dead));
                }
                _ => {}
            }
            assert_eq!(copies.used() as usize, model.len());
        }
        let shared = model.values().filter(|known| known.records > 0).count();
        assert_eq!(copies.shared() as usize, shared);
        let mut next = CopyId(0);
        let mut found = 0;
        while let Some((id, _)) = copies.next(next) {
            assert!(model.contains_key(&id.0));
            found += 1;
            next = CopyId(id.0 + 1);
        }
        assert_eq!(found, model.len());
    }
}

/// Guests that rest while they are scanned: who merges follows from the contents alone.
#[test]
fn the_index_merges_what_is_equal_and_nothing_else() {
    for seed in seeds(12) {
        println!("TWINPAGE_SEED={seed}");
        let mut driver = Driver::new(seed);
        driver.strict = false;
        driver.knobs.smart_scan = false;
        driver.knobs.max_page_sharing = 65_536;
        driver.host.contents = 1 << driver.host.rng.random_range(2..12);
        for guest in 0..3 {
            driver.add_guest(guest, 0, 2 * BLOCK + 100);
        }
        for _ in 0..5 {
            for _ in 0..500 {
                let guest = driver.host.rng.random_range(0..3);
                let page = driver.host.rng.random_range(0..2 * BLOCK + 100);
                let content = driver.host.rng.random_range(0..driver.host.contents);
                match driver.host.rng.random_range(0..5) {
                    0 => driver.host.discard(guest, page),
                    _ => driver.host.write(guest, page, content),
                }
            }
            for _ in 0..4 {
                driver.round();
            }
            is_merged(&driver);
        }
        driver.finish();
    }
}

/// No two pages of equal content are private, and the gauges are what the page tables say.
fn is_merged(driver: &Driver) {
    driver.host.verify();
    let frames = driver.host.frames.borrow();
    let mut contents: HashMap<u64, u32> = HashMap::new();
    for guest in 0..3 {
        let mut expected = [0_u64; 4];
        for page in 0..2 * BLOCK + 100 {
            let kind = match driver.host.pte(guest, page) {
                Pte::Absent => 0,
                Pte::Zero => 1,
                Pte::Frame(pfn) => {
                    let info = frames.get(pfn);
                    assert!(info.content != 0, "a page of zeroes");
                    let private = info.usage == Use::Private;
                    *contents.entry(info.content).or_default() += u32::from(private);
                    if private {
                        2
                    } else {
                        3
                    }
                }
            };
            expected[kind] += 1;
        }
        let gauges = [Gauge::Absent, Gauge::Zero, Gauge::Unshared, Gauge::Merged];
        assert_eq!(gauges.map(|gauge| driver.gauge(guest, gauge)), expected);
    }
    for info in frames.used.values() {
        let twins = contents.get(&info.content).copied().unwrap_or(0);
        let private = info.usage == Use::Private;
        assert_eq!(twins, u32::from(private), "content {}", info.content);
    }
}

/// Any layout after any other.
#[test]
fn every_page_is_in_one_gauge_whatever_the_layout() {
    for seed in seeds(20) {
        println!("TWINPAGE_SEED={seed}");
        let mut driver = Driver::new(seed);
        driver.add_guest(0, 0, 1);
        for page in 0..6 * BLOCK {
            if driver.host.rng.random_range(0..3) > 0 {
                let content = driver.host.rng.random_range(0..50);
                driver.host.write(0, page, content);
            }
        }
        for _ in 0..20 {
            let mut ranges = Vec::new();
            let mut at = driver.host.rng.random_range(0..BLOCK);
            for _ in 0..driver.host.rng.random_range(0..5) {
                let end = at + driver.host.rng.random_range(1..BLOCK * 2);
                ranges.push(span(at..end));
                at = end + driver.host.rng.random_range(0..BLOCK);
            }
            let pages: u64 = ranges
                .iter()
                .map(|span| (span.end - span.start) / 4096)
                .sum();
            driver.ranges.insert(0, ranges);
            driver.refresh(0);
            assert_eq!(driver.stats(0).gauges.pages(), pages);
            for _ in 0..driver.host.rng.random_range(0..4) {
                let scanned = driver.scan(0);
                assert!(scanned.is_ok());
                assert_eq!(driver.stats(0).gauges.pages(), pages);
            }
        }
        driver.finish();
    }
}
