// SPDX-License-Identifier: GPL-2.0

//! Indexes that work on a made-up host, checked after each step.

use std::collections::BTreeMap;

use twinpage_engine::engine::{
    index::{
        Index,
        Progress,
        Span,
        Step,
        UnmergeState, //
    },
    knobs::Knobs,
    restraint::Restraint,
    scratch::Scratch,
    stats::{
        Gauge,
        GuestStats, //
    },
    world::{
        Away,
        GuestId,
        BLOCK_PAGES,
        PAGE_BYTES, //
    },
};

use super::{
    Frame,
    Host, //
};

/// Pages of a block, as guests count them.
pub const BLOCK: u64 = BLOCK_PAGES as u64;

/// The hash seed of all indexes.
pub const SEED: u64 = 0x0123_4567_89ab_cdef;

pub struct Driver {
    pub host: Host,
    pub indexes: BTreeMap<u32, Index<Frame>>,
    pub knobs: Knobs,
    pub scratch: Scratch,
    pub ranges: BTreeMap<u32, Vec<Span>>,
    /// Check everything after each step.
    pub strict: bool,
    /// The time, nanoseconds.
    pub now_ns: u64,
    /// How long each step takes, nanoseconds.
    pub step_ns: u64,
    made: u32,
}

/// A span of pages.
pub fn span(pages: std::ops::Range<u64>) -> Span {
    Span {
        start: pages.start * PAGE_BYTES,
        end: pages.end * PAGE_BYTES,
    }
}

impl Driver {
    pub fn new(seed: u64) -> Self {
        Self {
            host: Host::new(seed),
            indexes: BTreeMap::new(),
            knobs: Knobs::DEFAULT,
            scratch: Scratch::new().expect("memory"),
            ranges: BTreeMap::new(),
            strict: true,
            now_ns: 0,
            step_ns: 0,
            made: 0,
        }
    }

    pub fn add_index(&mut self, index: u32) {
        let first = u64::from(self.made) << 32;
        self.made += 1;
        let new = Index::new(SEED, first + 1..first + (1 << 32));
        assert!(self.indexes.insert(index, new).is_none());
    }

    /// Adds a guest with the pages `0..pages` to an index, which is made if it does not exist.
    pub fn add_guest(&mut self, guest: u32, index: u32, pages: u64) {
        if !self.indexes.contains_key(&index) {
            self.add_index(index);
        }
        self.host.add_guest(guest, index);
        self.attach(guest, index, vec![span(0..pages)]);
    }

    pub fn attach(&mut self, guest: u32, index: u32, ranges: Vec<Span>) {
        self.host.mm(guest).index = Some(index);
        self.ranges.insert(guest, ranges);
        let attached = self.index(index).attach(GuestId(guest));
        assert_eq!(attached, Ok(()));
        self.refresh(guest);
    }

    pub fn index(&mut self, index: u32) -> &mut Index<Frame> {
        self.indexes.get_mut(&index).expect("an index")
    }

    pub fn index_of(&self, guest: u32) -> u32 {
        self.host.mms[&guest].index.expect("an attached guest")
    }

    /// Tells the index what memory the guest has.
    pub fn refresh(&mut self, guest: u32) {
        let index = self.index_of(guest);
        let ranges = self.ranges[&guest].clone();
        assert_eq!(
            self.index(index).set_ranges(GuestId(guest), &ranges),
            Ok(())
        );
        self.check(index);
    }

    /// Has the index forget what it knows of blocks that the guest has no memory in any more.
    pub fn forget_outside(&mut self, guest: u32, blocks: usize) -> Progress {
        let index = self.index_of(guest);
        let ranges = self.ranges[&guest].clone();
        let progress = self
            .index(index)
            .forget_outside(GuestId(guest), &ranges, blocks);
        self.check(index);
        progress
    }

    pub fn check(&mut self, index: u32) {
        assert_eq!(self.index(index).check(), Ok(()));
    }

    pub fn scan(&mut self, guest: u32) -> Result<Step, Away> {
        let number = self.index_of(guest);
        self.host.current = number;
        let resting = self.resting(number);
        let hashed = self.host.hashed;
        let index = self.indexes.get_mut(&number).expect("an index");
        let step = index.scan(
            &mut self.host,
            &mut self.scratch,
            GuestId(guest),
            &self.knobs,
        );
        if resting.contains_key(&guest) {
            assert_eq!(self.host.hashed, hashed, "a guest backed off was hashed");
        }
        assert_eq!(self.resting(number), resting, "a guest backed off merges");
        self.now_ns += self.step_ns;
        if step.is_ok_and(|step| step.pass_ended) {
            let index = self.indexes.get_mut(&number).expect("an index");
            index.pass_ended(GuestId(guest), &self.knobs, self.now_ns);
        }
        if self.strict {
            self.check(number);
            self.host.verify();
        }
        step
    }

    /// The guests of an index that are backed off, and how often pages of each have merged.
    fn resting(&self, number: u32) -> BTreeMap<u32, u64> {
        let guests = self.host.mms.iter();
        guests
            .filter(|(_, mm)| mm.index == Some(number))
            .filter(|(guest, _)| self.restraint(**guest).is_backed_off())
            .map(|(guest, _)| (*guest, self.stats(*guest).counters.merges))
            .collect()
    }

    pub fn restraint(&self, guest: u32) -> &Restraint {
        self.indexes[&self.index_of(guest)]
            .restraint(GuestId(guest))
            .expect("an attached guest")
    }

    /// Scans until a pass over the guest is complete; `false` if it is gone.
    pub fn pass(&mut self, guest: u32) -> bool {
        self.refresh(guest);
        loop {
            match self.scan(guest) {
                Ok(step) if step.pass_ended => return true,
                Ok(_) | Err(Away::Busy) => {}
                Err(Away::Gone) => return false,
            }
        }
    }

    /// One pass over each guest, and a sweep. Guests that are gone are detached.
    pub fn round(&mut self) {
        let guests: Vec<u32> = self.attached();
        for guest in guests {
            if !self.pass(guest) {
                self.detach(guest);
            }
        }
        self.sweep();
    }

    pub fn attached(&self) -> Vec<u32> {
        let attached = self.host.mms.iter().filter(|(_, mm)| mm.index.is_some());
        attached.map(|(guest, _)| *guest).collect()
    }

    pub fn sweep(&mut self) {
        for (number, index) in &mut self.indexes {
            self.host.current = *number;
            while !index.sweep(&mut self.host, &self.knobs, &mut 7).done {}
            assert_eq!(index.check(), Ok(()));
        }
    }

    pub fn detach(&mut self, guest: u32) {
        let number = self.index_of(guest);
        while self.index(number).detach(GuestId(guest), 2) == Progress::More {
            self.check(number);
        }
        self.check(number);
        self.ranges.remove(&guest);
        self.host.mm(guest).index = None;
    }

    /// Gives the guest its own pages back; `false` if memory ran out.
    pub fn unmerge(&mut self, guest: u32) -> bool {
        let number = self.index_of(guest);
        let mut cursor = 0;
        loop {
            self.host.current = number;
            let index = self.indexes.get_mut(&number).expect("an index");
            let unmerged = index.unmerge(
                &mut self.host,
                &mut self.scratch,
                GuestId(guest),
                &mut cursor,
            );
            self.check(number);
            self.host.verify();
            match unmerged.map(|unmerged| unmerged.state) {
                Ok(UnmergeState::More) | Err(Away::Busy) => {}
                Ok(UnmergeState::Done) => return true,
                Ok(UnmergeState::NoMemory) | Err(Away::Gone) => return false,
            }
        }
    }

    pub fn stats(&self, guest: u32) -> &GuestStats {
        self.indexes[&self.index_of(guest)]
            .guest(GuestId(guest))
            .expect("an attached guest")
    }

    pub fn gauge(&self, guest: u32, gauge: Gauge) -> u64 {
        self.stats(guest).gauges.get(gauge)
    }

    /// Everything goes, and no frame is left.
    pub fn finish(mut self) {
        for guest in self.attached() {
            self.detach(guest);
        }
        self.sweep();
        self.indexes.clear();
        self.host.verify();
        let guests: Vec<u32> = self.host.mms.keys().copied().collect();
        for guest in guests {
            self.host.exit(guest);
        }
        let frames = self.host.frames.borrow();
        assert!(frames.used.is_empty(), "frames leaked: {:?}", frames.used);
    }
}
