// SPDX-License-Identifier: GPL-2.0

//! A world for unit tests: a few guests with a few pages, and contents that are one number.
//!
//! `tools/engine/tests/host` has a larger one, in which things go wrong.

use core::ops::Range;

use super::{
    crafted,
    guests::block_of,
    index::{
        Index,
        Refused,
        Span,
        Step, //
    },
    key,
    knobs::Knobs,
    scratch::Scratch,
    sight::Sight,
    stats::Gauge,
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
        BLOCK_PAGES,
        DIGEST_BYTES,
        PAGE_BYTES, //
    },
    xxh64::hash_words,
};
use crate::mem::{
    AllocError,
    KVVec,
    GFP_KERNEL, //
};

/// Pages of each guest: a block and a little.
pub const PAGES: usize = BLOCK_PAGES + 64;

const SEED: u64 = 42;

/// Contents from here on are those of pages that were made to have one hash, and one hash of their
/// samples: that of zeroes up to 2^32 further, then others.
pub const CRAFTED: u64 = 1 << 63;

/// What one page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Nothing.
    Absent,
    /// A private page of that content; 0 is all zeroes.
    Own(u64),
    /// The same, in a large folio.
    Huge(u64),
    /// A merged copy.
    Copy(u32),
    /// The shared zero page.
    Zero,
}

/// When a page changes behind the engine's back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// When its sample was hashed.
    Sampled,
    /// When all of it was hashed.
    Hashed,
    /// When a copy of it was made.
    Copied,
}

/// A change behind the engine's back.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// When.
    pub moment: Moment,
    /// Which page of the block.
    pub index: usize,
    /// What it is then.
    pub page: Page,
}

/// A merged copy.
#[derive(Clone, Copy, Debug)]
struct Made {
    content: u64,
    mapped: u32,
    token: Token,
}

/// The engine's reference to a merged copy.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame(pub u32);

/// The world, and the index that works in it.
pub struct Toy {
    /// The index.
    pub index: Index<Frame>,
    /// Room for its steps.
    pub scratch: Scratch,
    /// Settings of its steps.
    pub knobs: Knobs,
    /// What it works on.
    pub world: Guests,
}

/// The guests and the merged copies.
pub struct Guests {
    pages: KVVec<Page>,
    made: KVVec<Made>,
    looked: usize,
    /// Splits that were asked for.
    pub splits: u32,
    /// Pages that were compared with what they should map.
    pub compared: u32,
    /// Pages hashed.
    pub hashed: u32,
    /// Samples hashed.
    pub sampled: u32,
    /// Whether there is memory for frames.
    pub has_memory: bool,
    /// Pages that change behind the engine's back, each once.
    pub writes: KVVec<Write>,
}

impl Toy {
    /// Makes `guests` guests without pages.
    pub fn new(guests: u32) -> Result<Self, Refused> {
        let count = PAGES.wrapping_mul(guests as usize);
        let mut toy = Self {
            index: Index::new(SEED, 1..u64::MAX),
            scratch: Scratch::new()?,
            knobs: Knobs::DEFAULT,
            world: Guests {
                pages: KVVec::from_elem(Page::Absent, count, GFP_KERNEL)?,
                made: KVVec::new(),
                looked: 0,
                splits: 0,
                compared: 0,
                hashed: 0,
                sampled: 0,
                has_memory: true,
                writes: KVVec::new(),
            },
        };
        for guest in 0..guests {
            toy.index.attach(GuestId(guest))?;
            let end = PAGE_BYTES.wrapping_mul(PAGES as u64);
            toy.index
                .set_ranges(GuestId(guest), &[Span { start: 0, end }])?;
        }
        Ok(toy)
    }

    /// Changes pages of a guest.
    pub fn fill(&mut self, guest: u32, pages: Range<usize>, page: impl Fn(u64) -> Page) {
        for index in pages {
            self.world.put(guest, index, page(index as u64));
        }
    }

    /// One step for a guest.
    pub fn step(&mut self, guest: u32) -> Result<Step, Away> {
        self.index.scan(
            &mut self.world,
            &mut self.scratch,
            GuestId(guest),
            &self.knobs,
        )
    }

    /// A pass over all `guests`; says whether the index is sound then.
    pub fn pass(&mut self, guests: u32) -> bool {
        for guest in 0..guests {
            while self.step(guest).is_ok_and(|step| !step.pass_ended) {}
        }
        self.index.check().is_ok()
    }

    /// Returns how many pages of a guest are in a gauge.
    pub fn gauge(&self, guest: u32, gauge: Gauge) -> u64 {
        let stats = self.index.guest(GuestId(guest));
        stats.map_or(0, |stats| stats.gauges.get(gauge))
    }
}

impl Guests {
    fn place(guest: u32, index: usize) -> usize {
        PAGES.wrapping_mul(guest as usize).wrapping_add(index)
    }

    /// Returns a page of a guest.
    pub fn get(&self, guest: u32, index: usize) -> Page {
        let page = self.pages.get(Self::place(guest, index)).copied();
        page.filter(|_| index < PAGES).unwrap_or(Page::Absent)
    }

    /// Changes a page of a guest, and counts mappings.
    pub fn put(&mut self, guest: u32, index: usize, new: Page) {
        let change = |made: &mut KVVec<Made>, page: Page, by: u32| {
            if let Page::Copy(number) = page {
                if let Some(made) = made.get_mut(number as usize) {
                    made.mapped = made.mapped.wrapping_add(by);
                }
            }
        };
        if index >= PAGES {
            return;
        }
        if let Some(page) = self.pages.get_mut(Self::place(guest, index)) {
            change(&mut self.made, new, 1);
            change(&mut self.made, *page, u32::MAX);
            *page = new;
        }
    }

    /// Returns what a page of a guest reads as.
    pub fn content(&self, guest: u32, index: usize) -> u64 {
        match self.get(guest, index) {
            Page::Absent | Page::Zero => 0,
            Page::Own(content) | Page::Huge(content) => content,
            Page::Copy(number) => self
                .made
                .get(number as usize)
                .map_or(0, |made| made.content),
        }
    }

    /// Does what was to happen to a page of the block last looked at.
    fn write_behind(&mut self, moment: Moment, index: usize) {
        for write in self.writes.iter() {
            if write.moment == moment && write.index == index {
                if let Some(page) = self.pages.get_mut(self.looked.wrapping_add(index)) {
                    *page = write.page;
                }
            }
        }
        self.writes
            .retain(|write| write.moment != moment || write.index != index);
    }

    fn looked_at(&self, index: usize) -> u64 {
        let place = self.looked.wrapping_add(index);
        match self.pages.get(place) {
            Some(Page::Own(content) | Page::Huge(content)) => *content,
            _ => u64::MAX,
        }
    }

    fn share_one(&mut self, guest: u32, index: usize, target: &Target<'_, Frame>) -> Shared {
        let Page::Own(content) = self.get(guest, index) else {
            return Shared::Gone;
        };
        let (wanted, page) = match target {
            Target::Zero => (0, Page::Zero),
            Target::Copy(frame) => match self.made.get(frame.0 as usize) {
                Some(made) => (made.content, Page::Copy(frame.0)),
                None => return Shared::Busy,
            },
        };
        self.compared = self.compared.wrapping_add(1);
        if content != wanted {
            return Shared::Differs;
        }
        self.put(guest, index, page);
        Shared::Done
    }

    fn page_at(addr: u64) -> usize {
        (addr / PAGE_BYTES) as usize
    }
}

impl World for Guests {
    type Frame = Frame;

    fn look(
        &mut self,
        guest: GuestId,
        block: u64,
        pages: Range<usize>,
        _wanted: &[u64; BLOCK_PAGES / 64],
        seen: &mut Sight,
    ) -> Result<(), Away> {
        let first = Self::page_at(block);
        self.looked = Self::place(guest.0, first);
        seen.clear();
        for index in pages {
            let found = match self.get(guest.0, first.wrapping_add(index)) {
                Page::Absent => Seen::Absent,
                Page::Zero => Seen::Zero,
                Page::Own(_) => Seen::Anon { node: 0 },
                Page::Huge(_) => Seen::Huge { node: 0 },
                Page::Copy(number) => Seen::Merged {
                    pfn: Pfn(u64::from(number)),
                    token: self
                        .made
                        .get(number as usize)
                        .map_or(Token(0), |made| made.token),
                },
            };
            seen.put(index..index.wrapping_add(1), found);
        }
        Ok(())
    }

    fn hash(&mut self, index: usize, seed: u64) -> u64 {
        self.hashed = self.hashed.wrapping_add(1);
        let hash = hash_of(self.looked_at(index), seed);
        self.write_behind(Moment::Hashed, index);
        hash
    }

    fn sample(&mut self, index: usize, seed: u64) -> u64 {
        self.sampled = self.sampled.wrapping_add(1);
        let sample = sample_of(self.looked_at(index), seed);
        self.write_behind(Moment::Sampled, index);
        sample
    }

    fn is_zero(&mut self, index: usize) -> bool {
        let zero = self.looked_at(index) == 0;
        self.write_behind(Moment::Hashed, index);
        zero
    }

    fn snapshot(&mut self, index: usize) -> Option<Frame> {
        let made = Made {
            content: self.looked_at(index),
            mapped: 0,
            token: Token(u32::MAX),
        };
        if !self.has_memory || self.made.push(made, GFP_KERNEL).is_err() {
            return None;
        }
        self.write_behind(Moment::Copied, index);
        Some(Frame(self.made.len().wrapping_sub(1) as u32))
    }

    fn release(&mut self) {}

    fn share(
        &mut self,
        guest: GuestId,
        addr: u64,
        _batch: u32,
        targets: &[Target<'_, Frame>],
        results: &mut [Shared],
    ) {
        let first = Self::page_at(addr);
        for (offset, (target, result)) in targets.iter().zip(results).enumerate() {
            *result = self.share_one(guest.0, first.wrapping_add(offset), target);
        }
    }

    fn unshare(&mut self, guest: GuestId, addr: u64) -> Unshared {
        let index = Self::page_at(addr);
        if let Page::Copy(_) = self.get(guest.0, index) {
            if !self.has_memory {
                return Unshared::NoMemory;
            }
            let content = self.content(guest.0, index);
            self.put(guest.0, index, Page::Own(content));
        }
        Unshared::Done
    }

    fn split(&mut self, guest: GuestId, addr: u64) -> bool {
        self.splits = self.splits.wrapping_add(1);
        let first = Self::page_at(block_of(addr));
        for index in first..first.wrapping_add(BLOCK_PAGES) {
            match self.get(guest.0, index) {
                Page::Huge(0) => self.put(guest.0, index, Page::Zero),
                Page::Huge(content) => self.put(guest.0, index, Page::Own(content)),
                _ => {}
            }
        }
        true
    }

    fn set_token(&mut self, frame: &Frame, token: Token) {
        if let Some(made) = self.made.get_mut(frame.0 as usize) {
            made.token = token;
        }
    }

    fn pfn(&self, frame: &Frame) -> Pfn {
        Pfn(u64::from(frame.0))
    }

    fn is_broken(&self, _: &Frame) -> bool {
        false
    }

    fn hash_frame(&mut self, frame: &Frame, seed: u64) -> u64 {
        let made = self.made.get(frame.0 as usize);
        hash_of(made.map_or(0, |made| made.content), seed)
    }

    fn sample_frame(&mut self, frame: &Frame, seed: u64) -> u64 {
        let made = self.made.get(frame.0 as usize);
        sample_of(made.map_or(0, |made| made.content), seed)
    }

    fn mappings(&self, frame: &Frame) -> u32 {
        self.made
            .get(frame.0 as usize)
            .map_or(0, |made| made.mapped)
    }

    fn digest(&mut self, frame: &Frame) -> [u8; DIGEST_BYTES] {
        let content = self
            .made
            .get(frame.0 as usize)
            .map_or(0, |made| made.content);
        digest_of(content)
    }
}

/// Returns what reads the words of a crafted page.
fn crafted_words(content: u64) -> impl Fn(usize) -> u64 {
    let words = crafted::words(content & 0xffff_ffff, SEED);
    let class = (content ^ CRAFTED) >> 32;
    move |word| if word == 1 { class } else { words(word) }
}

/// Returns the hash of a page of that content.
fn hash_of(content: u64, seed: u64) -> u64 {
    match content {
        0 => hash_words(key::PAGE_WORDS, |_| 0, seed),
        CRAFTED.. => hash_words(key::PAGE_WORDS, crafted_words(content), seed),
        content => hash_words(1, |_| content, seed),
    }
}

/// Returns the hash of the sample of a page of that content: what is above 2^32 is not in it.
fn sample_of(content: u64, seed: u64) -> u64 {
    if content >= CRAFTED {
        return key::sample(crafted_words(content), seed);
    }
    let low = content & 0xffff_ffff;
    key::sample(|word| if word == 0 { low } else { 0 }, seed)
}

/// Returns the key of a page of that content, where all of it counts.
pub fn key_of(content: u64) -> u64 {
    key::of_whole(
        key::of_sample(sample_of(content, SEED)),
        hash_of(content, SEED),
    )
}

/// What stands for the digest of a page of that content: what is above 2^32 is not in the first
/// eight bytes.
pub fn digest_of(content: u64) -> [u8; DIGEST_BYTES] {
    let mut digest = [0; DIGEST_BYTES];
    let words = [content & 0xffff_ffff, content.wrapping_shr(32)];
    let bytes = words.into_iter().flat_map(u64::to_be_bytes);
    for (slot, byte) in digest.iter_mut().zip(bytes) {
        *slot = byte;
    }
    digest
}

impl From<AllocError> for Untested {
    fn from(_: AllocError) -> Self {
        Self
    }
}

impl From<Refused> for Untested {
    fn from(_: Refused) -> Self {
        Self
    }
}

impl From<Away> for Untested {
    fn from(_: Away) -> Self {
        Self
    }
}

/// A test could not do what it wanted.
#[derive(Debug)]
pub struct Untested;
