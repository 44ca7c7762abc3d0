// SPDX-License-Identifier: GPL-2.0

//! A host made up for tests: guests with page tables, frames that are counted, and things that
//! happen at any moment.
//!
//! A page's content is one number; 0 is a page of zeroes. The host keeps what each guest wrote last
//! apart from the page tables and frames, so [`Host::verify`] knows what a guest must read.

// Each test crate uses another part of it.
#![allow(dead_code)]

pub mod driver;

use std::{
    cell::RefCell,
    collections::{
        BTreeMap,
        HashMap, //
    },
    ops::Range,
    rc::Rc,
};

use rand::{
    rngs::SmallRng,
    Rng,
    SeedableRng, //
};
use twinpage_engine::engine::{
    index::Span,
    key,
    sight::Sight,
    world::{
        Away,
        GuestId,
        Pfn,
        Seen,
        Shared,
        Skip,
        Target,
        Token,
        Unshared,
        World,
        BLOCK_BYTES,
        BLOCK_PAGES,
        DIGEST_BYTES,
        PAGE_BYTES,
        RUN_PAGES, //
    },
    xxh64::hash_words,
};

pub const NODES: u8 = 2;

/// What a frame is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Private,
    /// A merged copy, made by the index of that number.
    Copy(u32),
}

#[derive(Debug)]
pub struct Info {
    pub usage: Use,
    pub content: u64,
    pub node: u8,
    pub mapped: u32,
    /// References of the engine, and of looks.
    pub held: u32,
    pub token: Option<Token>,
    pub pinned: bool,
    pub poisoned: bool,
}

/// All frames in use, by number. Numbers are used again at once, so that stale ones are noticed.
#[derive(Debug, Default)]
pub struct Frames {
    pub used: BTreeMap<u64, Info>,
    free: Vec<u64>,
    next: u64,
    /// Most frames in use at a time.
    pub peak: usize,
}

impl Frames {
    fn add(&mut self, usage: Use, content: u64, node: u8) -> u64 {
        let pfn = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        let info = Info {
            usage,
            content,
            node,
            mapped: 0,
            held: 0,
            token: None,
            pinned: false,
            poisoned: false,
        };
        assert!(self.used.insert(pfn, info).is_none());
        self.peak = self.peak.max(self.used.len());
        pfn
    }

    pub fn get(&self, pfn: u64) -> &Info {
        self.used.get(&pfn).expect("frame in use")
    }

    pub fn get_mut(&mut self, pfn: u64) -> &mut Info {
        self.used.get_mut(&pfn).expect("frame in use")
    }

    /// What is in a frame, which must not be broken.
    pub fn read(&self, pfn: u64) -> u64 {
        let info = self.get(pfn);
        assert!(!info.poisoned, "a broken frame was read");
        info.content
    }

    fn map(&mut self, pfn: u64) {
        self.get_mut(pfn).mapped += 1;
    }

    fn unmap(&mut self, pfn: u64) {
        let info = self.get_mut(pfn);
        info.mapped -= 1;
        self.reap(pfn);
    }

    fn hold(&mut self, pfn: u64) {
        self.get_mut(pfn).held += 1;
    }

    fn put(&mut self, pfn: u64) {
        let info = self.get_mut(pfn);
        info.held -= 1;
        self.reap(pfn);
    }

    fn reap(&mut self, pfn: u64) {
        let info = self.get(pfn);
        if info.mapped == 0 && info.held == 0 {
            self.used.remove(&pfn);
            self.free.push(pfn);
        }
    }
}

/// The engine's reference to a frame. A second drop or a leak is found.
#[derive(Debug)]
pub struct Frame {
    pub pfn: u64,
    frames: Rc<RefCell<Frames>>,
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.frames.borrow_mut().put(self.pfn);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pte {
    Absent,
    Zero,
    Frame(u64),
}

/// An address space.
#[derive(Debug, Default)]
pub struct Mm {
    pub ptes: BTreeMap<u64, Pte>,
    /// Folio that a page is in, if that is large.
    pub folios: HashMap<u64, u32>,
    /// What the guest must read; nothing: zeroes.
    pub truth: HashMap<u64, u64>,
    /// Pages that cannot be merged.
    pub special: HashMap<u64, Skip>,
    pub gone: bool,
    /// The index whose guest it is.
    pub index: Option<u32>,
    /// Whether it has been another index's: it may map copies of that until they are found.
    pub moved: bool,
}

/// How likely things are, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chaos {
    /// Something happens to a guest between two steps of the engine.
    pub happens: u32,
    /// A call cannot be served now.
    pub busy: u32,
    /// There is no memory for a frame.
    pub no_memory: u32,
    /// A large folio cannot be split.
    pub no_split: u32,
}

/// What hashes are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashes {
    Good,
    /// Only so many different ones.
    Few(u64),
    /// Contents from this one on have the same.
    CraftedFrom(u64),
}

pub struct Host {
    pub frames: Rc<RefCell<Frames>>,
    pub mms: BTreeMap<u32, Mm>,
    pub chaos: Chaos,
    pub hashes: Hashes,
    /// So many contents in a row have one sample.
    pub alike: u64,
    pub rng: SmallRng,
    /// Index that the engine is working on.
    pub current: u32,
    /// Contents that guests write, below this.
    pub contents: u64,
    looked: Option<(u32, u64)>,
    kept: HashMap<usize, u64>,
    next_folio: u32,
    next_child: u32,
    pub merges: u64,
    pub splits: u64,
    pub split_calls: u64,
    pub hashed: u64,
    pub share_calls: u64,
    pub longest_run: usize,
    /// Pages that were to map a broken frame.
    pub broken_shares: u64,
    /// A merged copy breaks right after an attempt to share it that ended so.
    pub breaks_after: Option<Shared>,
}

impl Host {
    pub fn new(seed: u64) -> Self {
        Self {
            frames: Rc::default(),
            mms: BTreeMap::new(),
            chaos: Chaos::default(),
            hashes: Hashes::Good,
            alike: 1,
            rng: SmallRng::seed_from_u64(seed),
            current: 0,
            contents: 50,
            looked: None,
            kept: HashMap::new(),
            next_folio: 0,
            next_child: 1 << 20,
            merges: 0,
            splits: 0,
            split_calls: 0,
            hashed: 0,
            share_calls: 0,
            longest_run: 0,
            broken_shares: 0,
            breaks_after: None,
        }
    }

    fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.rng.random_range(0..1000) < permille
    }

    pub fn add_guest(&mut self, guest: u32, index: u32) {
        let mm = Mm {
            index: Some(index),
            ..Mm::default()
        };
        assert!(self.mms.insert(guest, mm).is_none());
    }

    pub fn mm(&mut self, guest: u32) -> &mut Mm {
        self.mms.get_mut(&guest).expect("a guest")
    }

    pub fn pte(&self, guest: u32, page: u64) -> Pte {
        let mm = self.mms.get(&guest).expect("a guest");
        mm.ptes.get(&page).copied().unwrap_or(Pte::Absent)
    }

    /// Replaces a page table entry and keeps the count of mappings.
    fn set_pte(&mut self, guest: u32, page: u64, new: Pte) {
        let old = self.pte(guest, page);
        if let Pte::Frame(pfn) = new {
            self.frames.borrow_mut().map(pfn);
        }
        if let Pte::Frame(pfn) = old {
            self.frames.borrow_mut().unmap(pfn);
        }
        let mm = self.mm(guest);
        mm.folios.remove(&page);
        match new {
            Pte::Absent => mm.ptes.remove(&page),
            _ => mm.ptes.insert(page, new),
        };
    }

    /// The guest writes a whole page.
    pub fn write(&mut self, guest: u32, page: u64, content: u64) {
        self.mm(guest).truth.insert(page, content);
        if let Pte::Frame(pfn) = self.pte(guest, page) {
            let mut frames = self.frames.borrow_mut();
            let info = frames.get_mut(pfn);
            if info.usage == Use::Private && info.mapped == 1 {
                info.content = content;
                return;
            }
        }
        let node = (page % 7 % u64::from(NODES)) as u8;
        let pfn = self.frames.borrow_mut().add(Use::Private, content, node);
        self.set_pte(guest, page, Pte::Frame(pfn));
    }

    /// The guest gives a page back.
    pub fn discard(&mut self, guest: u32, page: u64) {
        self.mm(guest).truth.remove(&page);
        self.set_pte(guest, page, Pte::Absent);
    }

    /// The guest reads a page that it never wrote to.
    pub fn read_fault(&mut self, guest: u32, page: u64) {
        if self.pte(guest, page) == Pte::Absent {
            self.set_pte(guest, page, Pte::Zero);
        }
    }

    /// What is mapped at two places changes places (mremap).
    pub fn exchange(&mut self, guest: u32, a: u64, b: u64) {
        let mm = self.mm(guest);
        let (pa, pb) = (mm.ptes.remove(&a), mm.ptes.remove(&b));
        mm.ptes.extend(pa.map(|pte| (b, pte)));
        mm.ptes.extend(pb.map(|pte| (a, pte)));
        let (ta, tb) = (mm.truth.remove(&a), mm.truth.remove(&b));
        mm.truth.extend(ta.map(|content| (b, content)));
        mm.truth.extend(tb.map(|content| (a, content)));
        mm.folios.remove(&a);
        mm.folios.remove(&b);
    }

    /// The VMM forks. Nobody attaches the child.
    pub fn fork(&mut self, guest: u32) -> u32 {
        let child = self.next_child;
        self.next_child += 1;
        let mm = self.mm(guest);
        let copy = Mm {
            ptes: mm.ptes.clone(),
            truth: mm.truth.clone(),
            ..Mm::default()
        };
        for pte in copy.ptes.values() {
            if let Pte::Frame(pfn) = pte {
                self.frames.borrow_mut().map(*pfn);
            }
        }
        self.mms.insert(child, copy);
        child
    }

    /// The address space ends.
    pub fn exit(&mut self, guest: u32) {
        let pages: Vec<u64> = self.mm(guest).ptes.keys().copied().collect();
        for page in pages {
            self.discard(guest, page);
        }
        self.mm(guest).gone = true;
    }

    /// Makes one large folio of aligned pages, as khugepaged does. Merged pages get new frames.
    pub fn collapse(&mut self, guest: u32, first: u64, pages: u64) {
        self.next_folio += 1;
        let folio = self.next_folio;
        for page in first..first + pages {
            let content = self.mm(guest).truth.get(&page).copied().unwrap_or(0);
            let node = (first % 7 % u64::from(NODES)) as u8;
            let pfn = self.frames.borrow_mut().add(Use::Private, content, node);
            self.set_pte(guest, page, Pte::Frame(pfn));
            self.mm(guest).folios.insert(page, folio);
        }
    }

    fn split_folio(&mut self, guest: u32, folio: u32) {
        let pages: Vec<u64> = self.mms[&guest]
            .folios
            .iter()
            .filter(|(_, in_folio)| **in_folio == folio)
            .map(|(page, _)| *page)
            .collect();
        for page in pages {
            self.mm(guest).folios.remove(&page);
            if let Pte::Frame(pfn) = self.pte(guest, page) {
                let zero = {
                    let frames = self.frames.borrow();
                    let info = frames.get(pfn);
                    info.content == 0 && !info.pinned
                };
                if zero {
                    self.set_pte(guest, page, Pte::Zero);
                }
            }
        }
    }

    /// What a page reads as.
    pub fn content(&self, guest: u32, page: u64) -> u64 {
        match self.pte(guest, page) {
            Pte::Absent | Pte::Zero => 0,
            Pte::Frame(pfn) => self.frames.borrow().get(pfn).content,
        }
    }

    /// Every guest reads what it wrote, no index's copy is another index's guest's.
    pub fn verify(&self) {
        for (guest, mm) in &self.mms {
            for (page, content) in &mm.truth {
                assert_eq!(
                    self.content(*guest, *page),
                    *content,
                    "guest {guest}, page {page}"
                );
            }
            for (page, pte) in &mm.ptes {
                let content = mm.truth.get(page).copied().unwrap_or(0);
                assert_eq!(
                    self.content(*guest, *page),
                    content,
                    "guest {guest}, page {page}"
                );
                let (Pte::Frame(pfn), Some(index)) = (pte, mm.index) else {
                    continue;
                };
                if let Use::Copy(maker) = self.frames.borrow().get(*pfn).usage {
                    assert!(
                        maker == index || mm.moved,
                        "guest {guest} maps another domain's copy"
                    );
                }
            }
        }
    }

    /// Page table entries of a guest that map a merged copy.
    pub fn count_merged(&self, guest: u32) -> u64 {
        let frames = self.frames.borrow();
        let merged = self.mms[&guest].ptes.values().filter(|pte| match pte {
            Pte::Frame(pfn) => frames.get(*pfn).usage != Use::Private,
            _ => false,
        });
        merged.count() as u64
    }

    /// The indexes that made the merged copies which a guest maps in `ranges`, one for each page.
    pub fn merged_by(&self, guest: u32, ranges: &[Span]) -> Vec<u32> {
        let frames = self.frames.borrow();
        let mut makers = Vec::new();
        for range in ranges {
            let pages = range.start / PAGE_BYTES..range.end / PAGE_BYTES;
            for (_, pte) in self.mms[&guest].ptes.range(pages) {
                let Pte::Frame(pfn) = pte else { continue };
                if let Use::Copy(maker) = frames.get(*pfn).usage {
                    makers.push(maker);
                }
            }
        }
        makers
    }

    /// Of the pages of the guests of an index that have a twin, those that should be merged and are
    /// not, and all. `ranges` is where guests have memory.
    pub fn duplicates(
        &self,
        index: u32,
        max_sharing: u32,
        ranges: &BTreeMap<u32, Vec<Span>>,
    ) -> (usize, usize) {
        let frames = self.frames.borrow();
        let mut private: HashMap<u64, usize> = HashMap::new();
        let mut merged = 0;
        for (guest, spans) in ranges {
            let mm = &self.mms[guest];
            let pages = spans.iter().flat_map(|span| {
                mm.ptes
                    .range(span.start / PAGE_BYTES..span.end / PAGE_BYTES)
            });
            for (page, pte) in pages.filter(|_| mm.index == Some(index)) {
                let Pte::Frame(pfn) = pte else { continue };
                let info = frames.get(*pfn);
                if info.usage != Use::Private {
                    merged += 1;
                } else if !mm.folios.contains_key(page) {
                    *private.entry(info.content).or_default() += 1;
                }
            }
        }
        let mut missed = 0;
        for (content, count) in private {
            // A copy that is more than half full may have been replaced by a candidate.
            let has_room = frames.used.values().any(|info| {
                info.usage == Use::Copy(index)
                    && info.content == content
                    && info.held > 0
                    && (2..=max_sharing / 2).contains(&info.mapped)
            });
            missed += if has_room { count } else { count - 1 };
        }
        (missed, merged + missed)
    }

    /// Something happens to somebody, perhaps.
    fn happen(&mut self) {
        if !self.chance(self.chaos.happens) {
            return;
        }
        let guests: Vec<u32> = self
            .mms
            .iter()
            .filter(|(_, mm)| !mm.ptes.is_empty() && !mm.gone)
            .map(|(guest, _)| *guest)
            .collect();
        if guests.is_empty() {
            return;
        }
        let guest = guests[self.rng.random_range(0..guests.len())];
        let page = self.any_page(guest);
        let content = self.rng.random_range(0..self.contents);
        match self.rng.random_range(0..100) {
            0..60 => self.write(guest, page, content),
            60..65 => self.discard(guest, page),
            65..68 => self.read_fault(guest, page),
            68..76 => {
                let other = self.any_page(guest);
                self.exchange(guest, page, other);
            }
            76..79 => {
                let child = self.fork(guest);
                if self.mms.len() > 8 {
                    self.exit(child);
                    self.mms.remove(&child);
                }
            }
            79..82 => {
                let child = self.mms.keys().copied().find(|guest| *guest >= 1 << 20);
                if let Some(child) = child {
                    self.exit(child);
                    self.mms.remove(&child);
                }
            }
            82..86 => {
                let size = [16, 64, BLOCK_PAGES as u64][self.rng.random_range(0..3)];
                let first = page / size * size;
                let full =
                    (first..first + size).all(|page| self.mms[&guest].ptes.contains_key(&page));
                if full {
                    self.collapse(guest, first, size);
                }
            }
            86..90 => {
                if let Some(folio) = self.mms[&guest].folios.get(&page).copied() {
                    self.split_folio(guest, folio);
                }
            }
            90..96 => {
                if let Pte::Frame(pfn) = self.pte(guest, page) {
                    let mut frames = self.frames.borrow_mut();
                    let info = frames.get_mut(pfn);
                    if info.usage == Use::Private {
                        info.pinned ^= true;
                    }
                }
            }
            _ => {
                let mm = self.mm(guest);
                if mm.special.remove(&page).is_none() {
                    mm.special.insert(page, Skip::Locked);
                }
            }
        }
    }

    fn any_page(&mut self, guest: u32) -> u64 {
        let mm = self.mms.get(&guest).expect("a guest");
        let at = self.rng.random_range(0..mm.ptes.len().max(1));
        mm.ptes.keys().nth(at).copied().unwrap_or(0)
    }

    /// Makes everything mergeable again and stops the chaos.
    pub fn calm(&mut self) {
        self.chaos = Chaos::default();
        for mm in self.mms.values_mut() {
            mm.special.clear();
        }
        for info in self.frames.borrow_mut().used.values_mut() {
            info.pinned = false;
        }
    }

    fn see(&self, guest: u32, page: u64) -> Seen {
        let mm = &self.mms[&guest];
        if let Some(reason) = mm.special.get(&page) {
            return Seen::Skip(*reason);
        }
        match self.pte(guest, page) {
            Pte::Absent => Seen::Absent,
            Pte::Zero => Seen::Zero,
            Pte::Frame(pfn) => {
                let frames = self.frames.borrow();
                let info = frames.get(pfn);
                if info.poisoned {
                    return Seen::Skip(Skip::Poison);
                }
                let node = info.node;
                match info.usage {
                    Use::Copy(_) => Seen::Merged {
                        pfn: Pfn(pfn),
                        token: info.token.unwrap_or(Token(u32::MAX)),
                    },
                    Use::Private if mm.folios.contains_key(&page) => Seen::Huge { node },
                    Use::Private => Seen::Anon { node },
                }
            }
        }
    }

    /// What a hash sees of a content.
    fn hashed_part(&self, content: u64) -> u64 {
        match self.hashes {
            Hashes::Good => content,
            Hashes::Few(few) => content % few,
            Hashes::CraftedFrom(first) => content.min(first),
        }
    }

    fn hash_of(&self, content: u64, seed: u64) -> u64 {
        if content == 0 {
            return hash_words(BLOCK_PAGES, |_| 0, seed);
        }
        hash_words(1, |_| self.hashed_part(content), seed)
    }

    fn sample_of(&self, content: u64, seed: u64) -> u64 {
        let part = self.hashed_part(content) / self.alike;
        key::sample(|word| if word == 0 { part } else { 0 }, seed)
    }

    fn share_page(&mut self, guest: u32, page: u64, target: &Target<'_, Frame>) -> Shared {
        if self.chance(self.chaos.busy) {
            return Shared::Busy;
        }
        if let Some(reason) = self.mms[&guest].special.get(&page) {
            return Shared::Skip(*reason);
        }
        let Pte::Frame(pfn) = self.pte(guest, page) else {
            return Shared::Gone;
        };
        let (usage, content, pinned) = {
            let frames = self.frames.borrow();
            let info = frames.get(pfn);
            (info.usage, info.content, info.pinned)
        };
        if usage != Use::Private || self.mms[&guest].folios.contains_key(&page) {
            return Shared::Gone;
        }
        if pinned {
            return Shared::Skip(Skip::Pinned);
        }
        let (wanted, pte) = match target {
            Target::Zero => (0, Pte::Zero),
            Target::Copy(frame) => {
                let frames = self.frames.borrow();
                let info = frames.get(frame.pfn);
                assert_eq!(info.usage, Use::Copy(self.current), "another domain's copy");
                if info.poisoned {
                    self.broken_shares += 1;
                    return Shared::Skip(Skip::Poison);
                }
                (info.content, Pte::Frame(frame.pfn))
            }
        };
        if content != wanted {
            return Shared::Differs;
        }
        self.set_pte(guest, page, pte);
        self.merges += 1;
        Shared::Done
    }
}

impl World for Host {
    type Frame = Frame;

    fn look(
        &mut self,
        guest: GuestId,
        block: u64,
        pages: Range<usize>,
        wanted: &[u64; BLOCK_PAGES / 64],
        seen: &mut Sight,
    ) -> Result<(), Away> {
        self.happen();
        assert_eq!(block % BLOCK_BYTES, 0);
        assert!(pages.start < pages.end && pages.end <= BLOCK_PAGES);
        assert!(
            self.kept.is_empty(),
            "pages of the last look are still kept"
        );
        if self.mms.get(&guest.0).is_none_or(|mm| mm.gone) {
            return Err(Away::Gone);
        }
        if self.chance(self.chaos.busy) {
            return Err(Away::Busy);
        }
        seen.clear();
        for index in 0..BLOCK_PAGES {
            if !pages.contains(&index) {
                // What is not asked for means nothing.
                seen.put(index..index + 1, Seen::Skip(Skip::Special));
                continue;
            }
            let page = block / PAGE_BYTES + index as u64;
            let found = self.see(guest.0, page);
            seen.put(index..index + 1, found);
            let private = matches!(found, Seen::Anon { .. } | Seen::Huge { .. });
            if private && (wanted[index / 64] >> (index % 64)) & 1 != 0 {
                if let Pte::Frame(pfn) = self.pte(guest.0, page) {
                    self.frames.borrow_mut().hold(pfn);
                    self.kept.insert(index, pfn);
                }
            }
        }
        self.looked = Some((guest.0, block));
        self.happen();
        Ok(())
    }

    fn hash(&mut self, index: usize, seed: u64) -> u64 {
        let pfn = self
            .kept
            .get(&index)
            .copied()
            .expect("a page that was kept");
        let content = self.frames.borrow().get(pfn).content;
        self.hashed += 1;
        let hash = self.hash_of(content, seed);
        self.happen();
        hash
    }

    fn sample(&mut self, index: usize, seed: u64) -> u64 {
        let pfn = self.kept[&index];
        let content = self.frames.borrow().get(pfn).content;
        let sample = self.sample_of(content, seed);
        self.happen();
        sample
    }

    fn is_zero(&mut self, index: usize) -> bool {
        let pfn = self.kept[&index];
        let zero = self.frames.borrow().get(pfn).content == 0;
        self.happen();
        zero
    }

    fn snapshot(&mut self, index: usize) -> Option<Frame> {
        self.happen();
        if self.chance(self.chaos.no_memory) {
            return None;
        }
        let pfn = self
            .kept
            .get(&index)
            .copied()
            .expect("a page that was kept");
        let mut frames = self.frames.borrow_mut();
        let (content, node) = {
            let info = frames.get(pfn);
            (info.content, info.node)
        };
        let pfn = frames.add(Use::Copy(self.current), content, node);
        frames.hold(pfn);
        drop(frames);
        self.happen();
        Some(Frame {
            pfn,
            frames: self.frames.clone(),
        })
    }

    fn release(&mut self) {
        for (_, pfn) in self.kept.drain() {
            self.frames.borrow_mut().put(pfn);
        }
        self.happen();
    }

    fn share(
        &mut self,
        guest: GuestId,
        addr: u64,
        batch: u32,
        targets: &[Target<'_, Frame>],
        results: &mut [Shared],
    ) {
        assert!(self.kept.is_empty(), "pages are kept while sharing");
        assert!(!targets.is_empty() && targets.len() == results.len());
        let first = addr / PAGE_BYTES;
        let last = first + targets.len() as u64 - 1;
        assert_eq!(first / BLOCK_PAGES as u64, last / BLOCK_PAGES as u64);
        assert!(targets.len() <= RUN_PAGES);
        let batch = batch as usize;
        self.share_calls += targets.len().div_ceil(batch) as u64;
        self.longest_run = self.longest_run.max(targets.len().min(batch));
        let gone = self.mms.get(&guest.0).is_none_or(|mm| mm.gone);
        for ((target, result), page) in targets.iter().zip(results).zip(first..) {
            self.happen();
            *result = if gone || self.mms[&guest.0].gone {
                Shared::Gone
            } else {
                self.share_page(guest.0, page, target)
            };
            if let (Target::Copy(frame), true) = (target, self.breaks_after == Some(*result)) {
                self.frames.borrow_mut().get_mut(frame.pfn).poisoned = true;
            }
        }
        self.happen();
    }

    fn unshare(&mut self, guest: GuestId, addr: u64) -> Unshared {
        self.happen();
        if self.mms.get(&guest.0).is_none_or(|mm| mm.gone) || self.chance(self.chaos.busy) {
            return Unshared::Busy;
        }
        let page = addr / PAGE_BYTES;
        let Pte::Frame(pfn) = self.pte(guest.0, page) else {
            return Unshared::Done;
        };
        if self.frames.borrow().get(pfn).usage == Use::Private {
            return Unshared::Done;
        }
        if self.chance(self.chaos.no_memory) {
            return Unshared::NoMemory;
        }
        let content = self.content(guest.0, page);
        let new = self.frames.borrow_mut().add(Use::Private, content, 0);
        self.set_pte(guest.0, page, Pte::Frame(new));
        Unshared::Done
    }

    fn split(&mut self, guest: GuestId, addr: u64) -> bool {
        self.happen();
        assert!(self.kept.is_empty(), "pages are kept while splitting");
        self.split_calls += 1;
        if self.mms.get(&guest.0).is_none_or(|mm| mm.gone) || self.chance(self.chaos.no_split) {
            return false;
        }
        let page = addr / PAGE_BYTES;
        if let Some(folio) = self.mms[&guest.0].folios.get(&page).copied() {
            self.splits += 1;
            self.split_folio(guest.0, folio);
        }
        self.happen();
        true
    }

    fn set_token(&mut self, frame: &Frame, token: Token) {
        self.frames.borrow_mut().get_mut(frame.pfn).token = Some(token);
    }

    fn pfn(&self, frame: &Frame) -> Pfn {
        Pfn(frame.pfn)
    }

    fn mappings(&self, frame: &Frame) -> u32 {
        self.frames.borrow().get(frame.pfn).mapped
    }

    fn is_broken(&self, frame: &Frame) -> bool {
        self.frames.borrow().get(frame.pfn).poisoned
    }

    fn hash_frame(&mut self, frame: &Frame, seed: u64) -> u64 {
        let content = self.frames.borrow().read(frame.pfn);
        self.hash_of(content, seed)
    }

    fn sample_frame(&mut self, frame: &Frame, seed: u64) -> u64 {
        let content = self.frames.borrow().read(frame.pfn);
        self.sample_of(content, seed)
    }

    fn digest(&mut self, frame: &Frame) -> [u8; DIGEST_BYTES] {
        digest_of(self.frames.borrow().read(frame.pfn))
    }
}

/// The digest of a page of that content.
pub fn digest_of(content: u64) -> [u8; DIGEST_BYTES] {
    use sha2::{
        Digest,
        Sha256, //
    };
    if content == 0 {
        return twinpage_engine::engine::wire::ZERO_DIGEST;
    }
    Sha256::digest(content.to_le_bytes()).into()
}
