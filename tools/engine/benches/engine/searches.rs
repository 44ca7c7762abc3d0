// SPDX-License-Identifier: GPL-2.0

//! The tree of hashes at several sizes, and what others use in its place: a red-black tree of nodes
//! with pointers, a hash table, and pages that are compared themselves.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::{
    BuildHasherDefault,
    Hasher, //
};

use intrusive_collections::{
    intrusive_adapter,
    KeyAdapter,
    RBTree,
    RBTreeLink, //
};
use rand::{
    rngs::SmallRng,
    seq::SliceRandom,
    Rng,
    SeedableRng, //
};
use twinpage_engine::engine::{
    node::{
        Node,
        Nodes, //
    },
    tree::Tree,
};

use crate::report::{
    timed,
    Report, //
};

/// Prints what they cost.
pub fn searches(report: &Report) {
    for bits in [14, 17, 20] {
        let mut rng = SmallRng::seed_from_u64(1);
        let keys: Vec<u64> = (0..1 << bits).map(|_| rng.random()).collect();
        let mut order = keys.clone();
        order.shuffle(&mut rng);
        let name = |what: &str| format!("2^{bits} {what}");
        tree(report, &name("in the tree"), &keys, &order);
        pointers(report, &name("in a tree of pointers"), &keys, &order);
        table(report, &name("in a hash table"), &keys, &order);
    }
    pages(report);
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

/// The module's own.
fn tree(report: &Report, name: &str, keys: &[u64], order: &[u64]) {
    let count = keys.len();
    let mut arena = Arena(Vec::new());
    let mut tree = Tree::new();
    report.each(&format!("{name}: insert"), count, || {
        arena = Arena(keys.iter().copied().map(Node::new).collect());
        tree = Tree::new();
        timed(|| {
            for id in 0..count as u32 {
                let _ = tree.insert(&mut arena, id);
            }
        })
    });
    report.each(&format!("{name}: find"), count, || {
        timed(|| {
            order
                .iter()
                .filter_map(|key| tree.find(&arena, *key))
                .count()
        })
    });
    report.each(&format!("{name}: miss"), count, || {
        timed(|| {
            order
                .iter()
                .filter_map(|key| tree.find(&arena, !key))
                .count()
        })
    });
    report.each(&format!("{name}: remove and insert"), count, || {
        timed(|| {
            for id in 0..count as u32 {
                let _ = tree.remove(&mut arena, id);
                let _ = tree.insert(&mut arena, id);
            }
        })
    });
    let bytes = size_of::<Node>();
    report.line(&format!("{name}: a node"), bytes as f64, "bytes");
}

/// A node as of `kernel::rbtree`, allocated for itself.
struct Pointers {
    link: RBTreeLink,
    key: u64,
    page: u32,
}

intrusive_adapter!(ByKey = Box<Pointers>: Pointers { link: RBTreeLink });

impl<'a> KeyAdapter<'a> for ByKey {
    type Key = u64;

    fn get_key(&self, node: &'a Pointers) -> u64 {
        node.key
    }
}

fn pointers(report: &Report, name: &str, keys: &[u64], order: &[u64]) {
    let count = keys.len();
    let node = |(page, &key): (usize, &u64)| {
        Box::new(Pointers {
            link: RBTreeLink::new(),
            key,
            page: page as u32,
        })
    };
    let mut tree = RBTree::new(ByKey::new());
    report.each(&format!("{name}: insert"), count, || {
        tree = RBTree::new(ByKey::new());
        let nodes: Vec<_> = keys.iter().enumerate().map(node).collect();
        timed(|| {
            for node in nodes {
                tree.insert(node);
            }
        })
    });
    let find = |key: &u64| tree.find(key).get().map(|node| node.page);
    report.each(&format!("{name}: find"), count, || {
        timed(|| order.iter().filter_map(find).count())
    });
    report.each(&format!("{name}: miss"), count, || {
        timed(|| order.iter().filter_map(|key| find(&!key)).count())
    });
    let bytes = size_of::<Pointers>();
    report.line(&format!("{name}: a node"), bytes as f64, "bytes");
}

/// What is looked for is a hash already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn table(report: &Report, name: &str, keys: &[u64], order: &[u64]) {
    let count = keys.len();
    let mut table = HashMap::<u64, u32, BuildHasherDefault<Same>>::default();
    report.each(&format!("{name}: insert"), count, || {
        table.clear();
        table.shrink_to_fit();
        timed(|| {
            for (page, &key) in keys.iter().enumerate() {
                table.insert(key, page as u32);
            }
        })
    });
    report.each(&format!("{name}: find"), count, || {
        timed(|| order.iter().filter_map(|key| table.get(key)).count())
    });
    report.each(&format!("{name}: miss"), count, || {
        timed(|| order.iter().filter_map(|key| table.get(&!key)).count())
    });
}

/// Pages sorted by what they hold, which is as good as a tree of them can be balanced.
fn pages(report: &Report) {
    const BITS: usize = 14;
    const WORDS: usize = 512;
    for (what, early) in [
        ("differ at once", true),
        ("differ in the last 64 bytes", false),
    ] {
        let mut rng = SmallRng::seed_from_u64(1);
        let page = |_| {
            let mut page = vec![0_u64; WORDS];
            page[if early { 0 } else { WORDS - 8 }] = rng.random();
            page
        };
        let mut pages: Vec<_> = (0..1 << BITS).map(page).collect();
        let compare = |a: &Vec<u64>, b: &Vec<u64>| -> Ordering { a.iter().cmp(b) };
        pages.sort_by(compare);
        let mut order = pages.clone();
        order.shuffle(&mut rng);
        let name = format!("2^{BITS} pages that {what}: find");
        report.each(&name, 1 << BITS, || {
            timed(|| {
                let find =
                    |page: &Vec<u64>| pages.binary_search_by(|other| compare(other, page)).ok();
                order.iter().filter_map(find).count()
            })
        });
    }
}
