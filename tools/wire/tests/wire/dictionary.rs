// SPDX-License-Identifier: GPL-2.0

//! Both ends of the dictionary against a model that keeps everything.

use std::sync::Arc;

use proptest::prelude::*;
use twinpage_wire::{
    BlockWriter,
    Compression,
    Digest,
    Error,
    Fault,
    PageRing,
    SenderDictionary, //
};

use crate::common::{
    page,
    Receiver,
    Sender,
    Step,
    Stop, //
};

/// The rule, said in the simplest way: all pages by number.
struct Model {
    capacity: usize,
    all: Vec<u16>,
}

impl Model {
    fn find(&self, n: u16) -> Option<u32> {
        let oldest = self.all.len().saturating_sub(self.capacity);
        let last = self.all[oldest..].iter().rposition(|&other| other == n)?;
        Some((self.all.len() - oldest - last) as u32)
    }

    fn back(&mut self, distance: u32) -> u16 {
        let n = self.all[self.all.len() - distance as usize];
        if distance as usize > self.capacity / 2 {
            self.all.push(n);
        }
        n
    }
}

#[test]
fn dictionaries_that_differ_are_found_out() {
    let mut sender = Sender::new(BlockWriter::new(Compression::Off).expect("a writer"), 16);
    sender.steps(&[1, 3, 5, 7, 9, 11, 1].map(|n| Step::Page(None, n)));
    let safe = sender.stream.len();
    sender.steps(&[Step::Page(None, 3)]);
    let mut receiver = Receiver::new(16, 0);
    assert_eq!(receiver.receive(&sender.bytes()), Ok(()));
    // A smaller one has given page 1 another number, so page 5 is where page 3 should be.
    let mut receiver = Receiver::new(8, 0);
    let Err(Stop::Wrong(Error::Peer { place, fault })) = receiver.receive(&sender.bytes()) else {
        panic!("not found out");
    };
    assert_eq!((place.frame, fault), (2, Fault::Chain));
    assert_eq!(receiver.stream.len(), safe);
}

proptest! {
    #[test]
    fn both_ends_stay_alike(
        capacity in 0..40_u32,
        pages in prop::collection::vec((1..60_u16, any::<bool>()), 0..400),
    ) {
        let mut model = Model { capacity: capacity as usize, all: Vec::new() };
        let mut sender = SenderDictionary::new(capacity);
        let mut receiver = PageRing::new(capacity);
        for (n, again) in pages {
            let digest = Digest::of(&page(n));
            let found = sender.find(&digest);
            prop_assert_eq!(found, model.find(n));
            match found {
                // A sender may send a page again that it could refer to.
                Some(distance) if !again => {
                    prop_assert_eq!(sender.hit(distance), Ok(()));
                    prop_assert_eq!(model.back(distance), n);
                    let back = receiver.back(distance).map(|page: &Arc<_>| Digest::of(page));
                    prop_assert_eq!(back, Ok(digest));
                }
                _ => {
                    sender.append(&digest);
                    model.all.push(n);
                    receiver.append(Arc::new(page(n)));
                }
            }
        }
    }

    #[test]
    fn any_distance_is_the_right_page_or_refused(
        capacity in 0..40_u32,
        moves in prop::collection::vec(0..60_u32, 0..200),
    ) {
        let mut model = Model { capacity: capacity as usize, all: Vec::new() };
        let mut receiver = PageRing::new(capacity);
        let mut sender = SenderDictionary::new(capacity);
        for (step, distance) in moves.into_iter().enumerate() {
            let known = model.all.len().min(model.capacity) as u32;
            if step % 3 == 0 {
                let n = (step % 90 + 1) as u16;
                model.all.push(n);
                receiver.append(Arc::new(page(n)));
                sender.append(&Digest::of(&page(n)));
            } else if (1..=known).contains(&distance) {
                let n = model.back(distance);
                prop_assert!(receiver.back(distance) == Ok(&Arc::new(page(n))));
                prop_assert_eq!(sender.hit(distance), Ok(()));
            } else {
                prop_assert!(receiver.back(distance).is_err());
                prop_assert!(sender.hit(distance).is_err());
            }
        }
    }
}
