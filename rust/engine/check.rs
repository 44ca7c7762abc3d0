// SPDX-License-Identifier: GPL-2.0

//! Everything that must hold between the parts of an index. Tests call it after each step.

use super::{
    copies::State,
    guests::{
        cover,
        Guest,
        Kept, //
    },
    index::Index,
    moves::DigestNodes,
    page::{
        CopyId,
        Kind,
        PageId,
        Place, //
    },
    stats::Gauges,
    world::BLOCK_PAGES,
};
use crate::mem::{
    AllocError,
    KVVec,
    GFP_KERNEL, //
};

/// What does not hold, in words.
pub type Flaw = &'static str;

/// What the records add up to.
#[derive(Default)]
struct Sums {
    listed: u32,
    blocks: u32,
    /// Records of each copy, by number.
    records: KVVec<u32>,
}

fn ensure(holds: bool, flaw: Flaw) -> Result<(), Flaw> {
    if holds {
        Ok(())
    } else {
        Err(flaw)
    }
}

impl<F> Index<F> {
    /// Checks all of it. Takes time and memory.
    ///
    /// # Errors
    ///
    /// [`Flaw`] says what does not hold.
    pub fn check(&mut self) -> Result<(), Flaw> {
        self.tree
            .check(&self.store)
            .map_err(|_| "the tree is not sound")?;
        self.digests
            .check(&DigestNodes(&mut self.store.copies))
            .map_err(|_| "the tree of digests is not sound")?;
        let mut sums = Sums {
            records: self.no_records().map_err(|_| "no memory to check")?,
            ..Sums::default()
        };
        for guest in self.guests.iter() {
            self.check_guest(guest, &mut sums)?;
        }
        ensure(
            sums.blocks == self.store.blocks.used(),
            "a block is in no slot, or in two",
        )?;
        self.check_copies(&mut sums)?;
        ensure(
            sums.listed == self.tree.len(),
            "the tree has what is not listed",
        )
    }

    /// Returns a zero for each number of a copy.
    fn no_records(&self) -> Result<KVVec<u32>, AllocError> {
        let mut last = 0;
        let mut next = CopyId(0);
        while let Some((copy, _)) = self.store.copies.next(next) {
            last = copy.0.wrapping_add(1);
            next = CopyId(last);
        }
        KVVec::from_elem(0, last as usize, GFP_KERNEL)
    }

    fn check_guest(&self, guest: &Guest, sums: &mut Sums) -> Result<(), Flaw> {
        let mut gauges = Gauges::new();
        let mut last = None;
        for slot in guest.slots.iter() {
            ensure(last < Some(slot.base()), "slots are not sorted")?;
            last = Some(slot.base());
            let cover = cover(&guest.spans, slot.base());
            ensure(!cover.is_empty(), "a slot has no pages")?;
            match slot.kept() {
                Kept::Uniform(gauge) => gauges.add(gauge, u64::from(cover.count())),
                Kept::Block(number) => {
                    let block = self.store.blocks.get(number).ok_or("a slot has no block")?;
                    let owner = self.guests.at(block.guest()).map(|guest| guest.id);
                    ensure(owner == Some(guest.id), "a block is another guest's")?;
                    ensure(block.base() == slot.base(), "a block is elsewhere")?;
                    sums.blocks = sums.blocks.wrapping_add(1);
                    self.check_block(number, sums)?;
                    for index in 0..BLOCK_PAGES {
                        let record = self.record(PageId::new(number, index));
                        if cover.has(index) {
                            gauges.add(record.gauge(), 1);
                        } else {
                            ensure(record.kind == Kind::Unseen, "a page is not the guest's")?;
                        }
                    }
                }
            }
        }
        ensure(gauges == guest.stats.gauges, "gauges are wrong")
    }

    fn check_block(&self, number: u32, sums: &mut Sums) -> Result<(), Flaw> {
        let (mut waiting, mut votes) = (0_u16, 0_u16);
        for index in 0..BLOCK_PAGES {
            let page = PageId::new(number, index);
            let record = self.record(page);
            waiting = waiting.wrapping_add(u16::from(record.waits_for_split()));
            votes = votes.wrapping_add(u16::from(record.has_vote()));
            match record.kind {
                Kind::Listed => {
                    let found = self.find(record.key);
                    ensure(found == Some(Place::Page(page)), "a candidate is not found")?;
                    sums.listed = sums.listed.wrapping_add(1);
                }
                Kind::Merged => {
                    let records = sums.records.get_mut(record.copy.0 as usize);
                    let records = records.ok_or("a page maps a copy that does not exist")?;
                    *records = records.wrapping_add(1);
                }
                _ => {}
            }
        }
        let block = self.store.blocks.get(number).ok_or("no block")?;
        ensure(
            block.waiting() == waiting && block.votes() == votes,
            "a block counts its huge pages wrong",
        )
    }

    fn check_copies(&mut self, sums: &mut Sums) -> Result<(), Flaw> {
        let (mut used, mut shared, mut digests, mut shadowed) = (0_u32, 0_u32, 0_u32, 0_u32);
        let mut next = CopyId(0);
        while let Some((id, _)) = self.store.copies.next(next) {
            next = CopyId(id.0.wrapping_add(1));
            let copy = self.store.copies.get(id).ok_or("no copy")?;
            let records = sums.records.get(id.0 as usize).copied();
            ensure(
                records == Some(copy.records()),
                "a copy counts its pages wrong",
            )?;
            ensure(copy.planned() == 0, "a plan was left")?;
            used = used.wrapping_add(1);
            shared = shared.wrapping_add(u32::from(copy.records() > 0));
            let dead = copy.state() == State::Dead;
            ensure(dead != copy.frame().is_some(), "a frame is lost or kept")?;
            ensure(!dead || copy.records() > 0, "a dead copy is kept")?;
            if copy.state() == State::Listed {
                let key = self.store.copies.node(id).map(|node| node.key());
                let found = key.and_then(|key| self.find(key));
                ensure(found == Some(Place::Copy(id)), "a copy is not found")?;
                sums.listed = sums.listed.wrapping_add(1);
            }
            if self.store.copies.is_digest_listed(id) {
                digests = digests.wrapping_add(1);
            } else if self.store.copies.digest(id).is_some() {
                shadowed = shadowed.wrapping_add(1);
            }
        }
        ensure(used == self.store.copies.used(), "copies are counted wrong")?;
        ensure(
            shared == self.store.copies.shared(),
            "shared copies are counted wrong",
        )?;
        ensure(
            digests == self.digests.len() && shadowed == self.shadowed,
            "digests are counted wrong",
        )
    }
}
