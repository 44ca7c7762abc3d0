// SPDX-License-Identifier: GPL-2.0

//! The attached guests: where their memory is, and where the scanner is in it.

use core::ops::Range;

use super::{
    mask::Mask,
    page::MAX_BLOCKS,
    restraint::Restraint,
    sort::first_not,
    stats::{
        Gauge,
        GuestStats, //
    },
    world::{
        GuestId,
        BLOCK_BYTES,
        BLOCK_PAGES,
        PAGE_BYTES, //
    },
};
use crate::mem::{
    AllocError,
    KVVec,
    GFP_KERNEL, //
};

/// A range of host virtual addresses, page aligned, `start < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

/// Numbers from here on stand for blocks without records, all of whose pages are in one gauge.
const UNIFORM: u32 = u32::MAX - 255;

/// What is kept of the pages of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Records, in the block of that number.
    Block(u32),
    /// Nothing: they are all in this gauge.
    Uniform(Gauge),
}

/// Visits in a row that found nothing new after which a block is visited half as often, and as many
/// again until it is a quarter.
const CALM_HALVES: u64 = 4;

/// The longest stride, as a power of two.
const MOST_HALVINGS: u64 = 2;

/// A block of host addresses that a guest has memory in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Address of the first page. In its low bits, as blocks are aligned: how many visits in a row
    /// found nothing new, as far as that matters.
    base: u64,
    kept: u32,
}

impl Slot {
    /// A block whose pages were not looked at.
    pub fn unseen(base: u64) -> Self {
        let mut slot = Self { base, kept: 0 };
        slot.set(Kept::Uniform(Gauge::Unseen));
        slot
    }

    /// Returns the address of the first page.
    pub fn base(&self) -> u64 {
        block_of(self.base)
    }

    /// Says whether a visit found anything new.
    pub fn visited(&mut self, news: bool) {
        const CALMEST: u64 = CALM_HALVES * MOST_HALVINGS;
        let calm = self.calm().saturating_add(1).min(CALMEST);
        self.base = self.base() | if news { 0 } else { calm };
    }

    /// Returns in how many passes it is to be visited once: 1, 2 or 4.
    pub fn stride(&self) -> u64 {
        // CAST: At most 2.
        1_u64.wrapping_shl((self.calm() / CALM_HALVES) as u32)
    }

    /// Returns whether the block is to be visited in that pass; `number` spreads the blocks.
    pub fn is_due(&self, pass: u64, number: usize) -> bool {
        // CAST: `usize` is 64 bits wide. OVERFLOW: Only low bits count, and a stride is not 0.
        pass.wrapping_add(number as u64) & self.stride().wrapping_sub(1) == 0
    }

    fn calm(&self) -> u64 {
        self.base % BLOCK_BYTES
    }

    /// Returns what is kept of its pages.
    pub fn kept(&self) -> Kept {
        match self.kept.checked_sub(UNIFORM) {
            None => Kept::Block(self.kept),
            // CAST: Below 256.
            Some(number) => {
                Kept::Uniform(Gauge::from_number(number as usize).unwrap_or(Gauge::Unseen))
            }
        }
    }

    /// Changes what is kept of its pages.
    pub fn set(&mut self, kept: Kept) {
        self.kept = match kept {
            Kept::Block(number) => number,
            // CAST, OVERFLOW: There are fewer than 256 gauges.
            Kept::Uniform(gauge) => UNIFORM.wrapping_add(gauge.number() as u32),
        };
    }
}

/// How often a guest may be busy in a pass before its blocks are passed over at once. Who scans
/// rests each time.
const PATIENCE: u16 = 256;

/// An attached guest.
#[derive(Debug)]
pub struct Guest {
    /// Its number.
    pub id: GuestId,
    /// Where its memory is: sorted and disjoint.
    pub spans: KVVec<Span>,
    /// Blocks of it, sorted.
    pub slots: KVVec<Slot>,
    /// Position of the next slot to look at.
    pub cursor: usize,
    /// How often it may still be busy in this pass.
    patience: u16,
    /// Whether it is being detached.
    pub leaving: bool,
    /// How fast its merged pages break, and what follows from it.
    pub restraint: Restraint,
    /// Gauges and counters.
    pub stats: GuestStats,
}

impl Guest {
    fn new(id: GuestId) -> Self {
        Self {
            id,
            spans: KVVec::new(),
            slots: KVVec::new(),
            cursor: 0,
            patience: PATIENCE,
            leaving: false,
            restraint: Restraint::default(),
            stats: GuestStats::default(),
        }
    }

    /// Returns the position of the slot at that address.
    pub fn slot_at(&self, base: u64) -> Option<usize> {
        slot_at(&self.slots, base)
    }

    /// Returns whether it is the turn of the slot that comes next.
    pub fn is_slot_due(&self) -> bool {
        let slot = self.slots.get(self.cursor);
        slot.is_none_or(|slot| slot.is_due(self.stats.counters.passes, self.cursor))
    }

    /// It was busy. Returns whether to try the same slot again.
    pub fn waits(&mut self) -> bool {
        let left = self.patience.checked_sub(1);
        self.patience = left.unwrap_or_default();
        left.is_some()
    }

    /// It was not busy: what is so now and then only uses up no patience.
    pub fn goes_on(&mut self) {
        self.patience = self.patience.saturating_add(1).min(PATIENCE);
    }

    /// Goes on to the next slot. Returns whether that was the last one: a pass is complete.
    pub fn advance(&mut self) -> bool {
        // OVERFLOW: At most the number of slots.
        self.cursor = self.cursor.wrapping_add(1);
        if self.cursor < self.slots.len() {
            return false;
        }
        self.cursor = 0;
        self.patience = PATIENCE;
        let passes = &mut self.stats.counters.passes;
        *passes = passes.wrapping_add(1);
        true
    }
}

/// All attached guests, by position. Positions do not change.
#[derive(Debug)]
pub struct Guests(KVVec<Option<Guest>>);

impl Guests {
    /// Makes none, without allocating.
    pub const fn new() -> Self {
        Self(KVVec::new())
    }

    /// Adds a guest.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory; nothing changed.
    pub fn add(&mut self, id: GuestId) -> Result<(), AllocError> {
        let guest = Some(Guest::new(id));
        match self.0.iter_mut().find(|place| place.is_none()) {
            Some(place) => {
                *place = guest;
                Ok(())
            }
            None => self.0.push(guest, GFP_KERNEL),
        }
    }

    /// Removes the guest at a position.
    pub fn remove(&mut self, position: u32) -> Option<Guest> {
        self.0.get_mut(position as usize)?.take()
    }

    /// Returns the position of a guest.
    pub fn position(&self, id: GuestId) -> Option<u32> {
        let position = self
            .0
            .iter()
            .position(|guest| guest.as_ref().is_some_and(|guest| guest.id == id))?;
        u32::try_from(position).ok()
    }

    /// Returns the guest at a position.
    pub fn at(&self, position: u32) -> Option<&Guest> {
        self.0.get(position as usize)?.as_ref()
    }

    /// Returns the guest at a position.
    pub fn at_mut(&mut self, position: u32) -> Option<&mut Guest> {
        self.0.get_mut(position as usize)?.as_mut()
    }

    /// Returns all guests.
    pub fn iter(&self) -> impl Iterator<Item = &Guest> {
        self.0.iter().flatten()
    }

    /// Returns the bytes that all of it takes.
    pub fn bytes(&self) -> usize {
        let list = size_of::<Option<Guest>>().wrapping_mul(self.0.capacity());
        // OVERFLOW: It is in memory.
        self.iter().fold(list, |sum, guest| {
            let spans = size_of::<Span>().wrapping_mul(guest.spans.capacity());
            let slots = size_of::<Slot>().wrapping_mul(guest.slots.capacity());
            sum.wrapping_add(spans).wrapping_add(slots)
        })
    }
}

impl Default for Guests {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the position of the slot at that address.
pub fn slot_at(slots: &[Slot], base: u64) -> Option<usize> {
    let at = first_not(slots, |slot| slot.base() < base);
    (slots.get(at)?.base() == base).then_some(at)
}

/// Returns the address of the block that `addr` is in.
pub const fn block_of(addr: u64) -> u64 {
    addr & !(BLOCK_BYTES - 1)
}

/// Returns whether `spans` are what [`Span`] promises, sorted and disjoint.
pub fn are_well_formed(spans: &[Span]) -> bool {
    let mut last = 0;
    spans.iter().all(|span| {
        let fits = last <= span.start
            && span.start < span.end
            && span.start % PAGE_BYTES == 0
            && span.end % PAGE_BYTES == 0;
        last = span.end;
        fits
    })
}

/// Returns the addresses of the blocks that `spans` touch, in order.
pub fn bases(spans: &[Span]) -> impl Iterator<Item = u64> + '_ {
    let mut last = None;
    spans
        .iter()
        .flat_map(|span| {
            // OVERFLOW: `start < end`, so the last byte exists.
            let first = span.start / BLOCK_BYTES;
            let end = span.end.wrapping_sub(1) / BLOCK_BYTES;
            first..=end
        })
        .filter(move |block| last.replace(*block) != Some(*block))
        .map(|block| block.wrapping_mul(BLOCK_BYTES))
}

/// Returns how many blocks `spans` touch, or `None` if that is more than an index has numbers for.
pub fn count_bases(spans: &[Span]) -> Option<usize> {
    let mut last = None;
    let mut count: u64 = 0;
    for span in spans {
        let first = span.start / BLOCK_BYTES;
        // OVERFLOW: `start < end`, so the last byte exists.
        let end = span.end.wrapping_sub(1) / BLOCK_BYTES;
        let again = u64::from(last == Some(first));
        let blocks = end.checked_sub(first)?.checked_add(1)?;
        count = count.checked_add(blocks)?.checked_sub(again)?;
        if count > u64::from(MAX_BLOCKS) {
            return None;
        }
        last = Some(end);
    }
    usize::try_from(count).ok()
}

/// Returns which pages of the block at `base` are in `spans`.
pub fn cover(spans: &[Span], base: u64) -> Mask {
    let mut mask = Mask::EMPTY;
    let end = base.saturating_add(BLOCK_BYTES);
    let first = first_not(spans, |span| span.end <= base);
    for span in spans.get(first..).unwrap_or(&[]) {
        if span.start >= end {
            break;
        }
        mask.add_range(index_of(base, span.start)..index_of(base, span.end));
    }
    mask
}

/// Returns the index of the page at `addr` in the block at `base`, at most [`BLOCK_PAGES`].
fn index_of(base: u64, addr: u64) -> usize {
    let pages = addr.saturating_sub(base) / PAGE_BYTES;
    usize::try_from(pages).map_or(BLOCK_PAGES, |pages| pages.min(BLOCK_PAGES))
}

/// Returns the pages of the block at `base` that are in `addr..addr + pages` pages.
pub fn indexes(addr: u64, pages: usize) -> Range<usize> {
    let first = index_of(block_of(addr), addr);
    first..first.saturating_add(pages).min(BLOCK_PAGES)
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_guests))]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_BYTES;
    const PAGE: u64 = PAGE_BYTES;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    #[test]
    fn a_calm_block_is_visited_once_in_a_stride() {
        let mut slot = Slot::unseen(BLOCK);
        for visits in 0..20_u64 {
            let stride = 1 << (visits / 4).min(2);
            assert_eq!(slot.stride(), stride);
            assert_eq!(slot.base(), BLOCK);
            for number in 0..5 {
                let due = (100..100 + stride).filter(|pass| slot.is_due(*pass, number));
                assert_eq!(due.count(), 1);
            }
            slot.visited(false);
        }
        slot.visited(true);
        assert_eq!((slot.stride(), slot.base()), (1, BLOCK));
    }

    #[test]
    fn slots_tell_blocks_from_gauges() {
        let mut slot = Slot::unseen(BLOCK);
        assert_eq!(slot.kept(), Kept::Uniform(Gauge::Unseen));
        for number in 0..Gauge::COUNT {
            if let Some(gauge) = Gauge::from_number(number) {
                slot.set(Kept::Uniform(gauge));
                assert_eq!(slot.kept(), Kept::Uniform(gauge));
            }
        }
        for number in [0, 1, MAX_BLOCKS - 1] {
            slot.set(Kept::Block(number));
            assert_eq!(slot.kept(), Kept::Block(number));
        }
        assert_eq!(slot.base(), BLOCK);
        assert_eq!(size_of::<Slot>(), 16);
    }

    #[test]
    fn malformed_spans_are_known() {
        assert!(are_well_formed(&[]));
        assert!(are_well_formed(&[span(0, PAGE), span(PAGE, BLOCK)]));
        let bad: [&[Span]; 5] = [
            &[span(PAGE, PAGE)],
            &[span(1, PAGE)],
            &[span(0, PAGE + 1)],
            &[span(0, 2 * PAGE), span(PAGE, BLOCK)],
            &[span(BLOCK, 2 * BLOCK), span(0, PAGE)],
        ];
        for spans in bad {
            assert!(!are_well_formed(spans));
        }
    }

    #[test]
    fn blocks_are_named_once() {
        let spans = [
            span(PAGE, 2 * PAGE),
            span(3 * PAGE, BLOCK + PAGE),
            span(3 * BLOCK, 4 * BLOCK),
            span(4 * BLOCK, 4 * BLOCK + PAGE),
        ];
        assert!(bases(&spans).eq([0, BLOCK, 3 * BLOCK, 4 * BLOCK]));
        assert_eq!(count_bases(&spans), Some(4));
        assert_eq!(count_bases(&[]), Some(0));
        let all = span(0, u64::MAX - PAGE + 1);
        assert_eq!(count_bases(&[all]), None);
        let most = span(0, BLOCK * u64::from(MAX_BLOCKS));
        assert_eq!(count_bases(&[most]), Some(MAX_BLOCKS as usize));
    }

    #[test]
    fn cover_is_what_the_spans_have() {
        let spans = [
            span(PAGE, 2 * PAGE),
            span(3 * PAGE, BLOCK + PAGE),
            span(2 * BLOCK, 3 * BLOCK),
        ];
        let first = cover(&spans, 0);
        assert!(first.has(1) && !first.has(0) && !first.has(2) && first.has(3));
        assert_eq!(first.count(), 510);
        assert!(cover(&spans, BLOCK).iter().eq([0]));
        assert_eq!(cover(&spans, 2 * BLOCK).count(), 512);
        assert!(cover(&spans, 3 * BLOCK).is_empty());
        let top = [span(u64::MAX - 2 * PAGE + 1, u64::MAX - PAGE + 1)];
        assert!(cover(&top, block_of(u64::MAX)).iter().eq([510]));
    }

    #[test]
    fn indexes_stay_in_the_block() {
        assert_eq!(indexes(BLOCK + 3 * PAGE, 2), 3..5);
        assert_eq!(indexes(BLOCK + 511 * PAGE, 2), 511..512);
        assert_eq!(indexes(BLOCK, usize::MAX), 0..512);
    }

    #[test]
    fn positions_stay_and_are_used_again() -> Result<(), AllocError> {
        let mut guests = Guests::new();
        for id in 0..3 {
            guests.add(GuestId(id))?;
        }
        assert!(guests.remove(1).is_some());
        assert!(guests.remove(1).is_none());
        assert_eq!(guests.position(GuestId(2)), Some(2));
        assert_eq!(guests.position(GuestId(1)), None);
        guests.add(GuestId(9))?;
        assert_eq!(guests.position(GuestId(9)), Some(1));
        assert_eq!(guests.iter().count(), 3);
        Ok(())
    }

    #[test]
    fn a_pass_ends_after_the_last_slot() -> Result<(), AllocError> {
        let mut guest = Guest::new(GuestId(1));
        assert!(guest.advance());
        for base in 0..3 {
            guest.slots.push(Slot::unseen(base), GFP_KERNEL)?;
        }
        assert!(!guest.advance());
        assert!(!guest.advance());
        assert!(guest.advance());
        assert_eq!((guest.cursor, guest.stats.counters.passes), (0, 2));
        Ok(())
    }
}
