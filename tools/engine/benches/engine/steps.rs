// SPDX-License-Identifier: GPL-2.0

//! Steps of the engine, over a world that costs next to nothing.

use std::ops::Range;

use rand::{
    rngs::SmallRng,
    Rng,
    SeedableRng, //
};
use twinpage_engine::engine::{
    index::{
        Index,
        Span, //
    },
    knobs::Knobs,
    scratch::Scratch,
    sight::Sight,
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
};

use crate::report::{
    timed,
    Report, //
};

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
        seen: &mut Sight,
    ) -> Result<(), Away> {
        let first = (block / PAGE_BYTES) as usize;
        self.looked = (guest.0 as usize, first);
        let found = &self.pages[self.looked.0][first..];
        seen.clear();
        for index in pages {
            let page = found[index];
            let what = if page & MERGED == 0 {
                Seen::Anon { node: 0 }
            } else {
                let number = (page & !MERGED) as u32;
                Seen::Merged {
                    pfn: Pfn(number.into()),
                    token: Token(number),
                }
            };
            seen.put(index..index + 1, what);
        }
        Ok(())
    }

    fn hash(&mut self, index: usize, seed: u64) -> u64 {
        let content = self.pages[self.looked.0][self.looked.1 + index];
        (content ^ seed).wrapping_mul(0x9e37_79b1_85eb_ca87)
    }

    fn sample(&mut self, index: usize, seed: u64) -> u64 {
        self.hash(index, seed)
    }

    fn is_zero(&mut self, _: usize) -> bool {
        false
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
        _batch: u32,
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

    fn is_broken(&self, _: &u32) -> bool {
        false
    }

    fn hash_frame(&mut self, frame: &u32, seed: u64) -> u64 {
        (self.frames[*frame as usize] ^ seed).wrapping_mul(0x9e37_79b1_85eb_ca87)
    }

    fn sample_frame(&mut self, frame: &u32, seed: u64) -> u64 {
        self.hash_frame(frame, seed)
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

/// Prints what steps cost.
pub fn steps(report: &Report) {
    let mut scratch = Scratch::new().expect("memory");
    let knobs = Knobs {
        smart_scan: false,
        use_zero_pages: false,
        ..Knobs::DEFAULT
    };
    for bits in [14, 17, 20] {
        let count = 1 << bits;
        let name = |what: &str| format!("2^{bits} pages, {what}");
        report.each(&name("first look at a page"), count, || {
            let (mut index, mut world) = guests(1, count);
            pass(&mut index, &mut world, &mut scratch, &knobs, 0)
        });
        let (mut index, mut world) = guests(1, count);
        pass(&mut index, &mut world, &mut scratch, &knobs, 0);
        report.each(&name("look at a page that did not change"), count, || {
            pass(&mut index, &mut world, &mut scratch, &knobs, 0)
        });
        report.each(&name("look at a page that changed"), count, || {
            for page in &mut world.pages[0] {
                *page += 1;
            }
            pass(&mut index, &mut world, &mut scratch, &knobs, 0)
        });
        report.each(&name("merge a pair of pages"), count, || {
            let (mut index, mut world) = guests(2, count);
            pass(&mut index, &mut world, &mut scratch, &knobs, 0);
            pass(&mut index, &mut world, &mut scratch, &knobs, 1)
        });
        let (mut index, mut world) = guests(2, count);
        for guest in [0, 1, 0, 1] {
            pass(&mut index, &mut world, &mut scratch, &knobs, guest);
        }
        report.each(&name("look at a merged page"), count, || {
            pass(&mut index, &mut world, &mut scratch, &knobs, 0)
        });
        let bytes = index.totals().metadata_bytes as f64;
        let copies = index.copies();
        let pages = 2 * count;
        report.line(&name("all merged"), bytes / pages as f64, "bytes a page");
        assert_eq!(copies, count);
    }
}
