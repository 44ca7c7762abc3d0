// SPDX-License-Identifier: GPL-2.0

//! One process that does operations, one after the other.

use std::collections::HashMap;
use std::fs::File;
use std::time::Instant;

use sha2::{
    Digest,
    Sha256, //
};
use twinpage_guest::pattern::Stream;
use twinpage_lab::child::{
    in_child,
    Child, //
};
use twinpage_lab::module::Device;
use twinpage_lab::random::Random;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::board::Board;
use crate::code::Code;
use crate::guest::{
    Content,
    Guest, //
};
use crate::operations::operations;
use crate::pointers::Scratch;

/// What a worker has.
pub struct Worker {
    pub number: usize,
    pub board: &'static Board,
    pub random: Random,
    pub device: Device,
    pub scratch: Scratch,
    pub guests: Vec<Guest>,
    pub code: Option<Code>,
    /// Files of debugfs that stay open while their VMs go.
    pub open: Vec<File>,
    /// Numbers of VMs that were detached.
    pub past: Vec<u32>,
    digests: HashMap<Content, [u8; 32]>,
}

/// Starts one in a process of its own.
pub fn start(
    board: &'static Board,
    number: usize,
    seed: u64,
    share: u64,
    end: Option<Instant>,
) -> Result<Child, Failure> {
    in_child(|| {
        crate::call::die_with_parent();
        match Worker::new(board, number, seed).and_then(|worker| worker.work(share, end)) {
            Ok(()) => true,
            Err(failure) => {
                println!("worker {number}: {failure}");
                false
            }
        }
    })
}

impl Worker {
    fn new(board: &'static Board, number: usize, seed: u64) -> Result<Worker, Failure> {
        Ok(Worker {
            number,
            board,
            random: Random::new(seed, number as u64),
            device: Device::open()?,
            scratch: Scratch::new()?,
            guests: Vec::new(),
            code: None,
            open: Vec::new(),
            past: vec![0, u32::MAX],
            digests: HashMap::new(),
        })
    }

    /// Does so many operations, unless the time is up before.
    fn work(mut self, share: u64, end: Option<Instant>) -> Outcome {
        let weights: usize = operations().map(|operation| operation.weight).sum();
        // How many choices an operation makes depends on what it meets; what comes next does not.
        let mut order = Random::new(self.random.word(), 0);
        let mut left = share;
        while left > 0 && !self.board.is_over() && end.is_none_or(|end| Instant::now() < end) {
            let mut ticket = order.below(weights);
            let chosen = operations().enumerate().find(|(_, operation)| {
                let found = ticket < operation.weight;
                ticket = ticket.wrapping_sub(operation.weight);
                found
            });
            let Some((kind, operation)) = chosen else {
                continue;
            };
            self.random = Random::new(order.word(), 0);
            self.board.begin(self.number, kind);
            let start = Instant::now();
            let done = (operation.run)(&mut self)
                .map_err(|failure| Failure::Failed(format!("{}: {failure}", operation.name)))?;
            self.board.done(kind, done, start.elapsed());
            left = left.saturating_sub(done);
        }
        self.guests.iter().try_for_each(Guest::check)
    }

    /// One of the guests for which this holds.
    pub fn choose(&mut self, which: impl Fn(&Guest) -> bool) -> Option<usize> {
        let fit: Vec<_> = (0..self.guests.len())
            .filter(|&at| which(&self.guests[at]))
            .collect();
        (!fit.is_empty()).then(|| self.random.pick(&fit))
    }

    /// SHA-256 of a page with this content.
    pub fn digest(&mut self, content: Content) -> [u8; 32] {
        *self.digests.entry(content).or_insert_with(|| {
            let mut hash = Sha256::new();
            for word in content.words() {
                hash.update(word.to_le_bytes());
            }
            hash.finalize().into()
        })
    }
}

impl Content {
    /// The words of a page.
    pub fn words(self) -> [u64; tinyvm::WORDS] {
        match self {
            Content::Zero => [0; tinyvm::WORDS],
            Content::Key(key) => {
                let mut stream = Stream::new(key);
                std::array::from_fn(|_| stream.next())
            }
        }
    }
}
