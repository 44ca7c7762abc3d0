// SPDX-License-Identifier: GPL-2.0

//! The whole state of one sharing domain, and what can be asked of it.
//!
//! A guest that shares with nobody has an index of its own. The caller holds one mutex over all of
//! them: nothing here locks.

use core::ops::Range;

pub use super::guests::Span;
use super::{
    blocks::Blocks,
    copies::Copies,
    guests::Guests,
    key::{
        self,
        PAGE_WORDS, //
    },
    moves::Store,
    page::CopyId,
    stats::{
        Counters,
        Gauge,
        GuestStats,
        Totals, //
    },
    tree::Tree,
    world::{
        Away,
        GuestId, //
    },
    xxh64::hash_words,
};
use crate::mem::AllocError;

/// Why a guest or its ranges are refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no memory.
    NoMemory,
    /// The index has no numbers left for that many pages.
    NoRoom,
    /// The guest is attached already.
    Exists,
    /// There is no such guest, or it is being detached.
    NoGuest,
    /// The ranges are not page aligned, sorted and disjoint.
    Malformed,
}

impl From<AllocError> for Refused {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Pages of the block that something is mapped at.
    pub present: u32,
    /// Pages whose content was hashed.
    pub scanned: u32,
    /// Pages replaced by a merged copy or the zero page.
    pub merged: u32,
    /// Whether that was the last block: the guest's pass is complete.
    pub pass_ended: bool,
}

/// What one call of [`Index::sweep`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Merged copies freed, as nobody mapped them.
    pub freed: u32,
    /// Whether the end was reached; the next call starts over.
    pub done: bool,
}

/// Whether something is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is.
    Done,
    /// Call again.
    More,
}

/// What one call of [`Index::unmerge`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmerged {
    /// Pages that got their own copy back.
    pub unmerged: u32,
    /// Pages that still map a merged copy, as they are busy.
    pub busy: u32,
    /// Where it ended.
    pub state: UnmergeState,
}

/// Where an unmerge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmergeState {
    /// Call again.
    More,
    /// Every page was looked at.
    Done,
    /// Free memory would fall under the floor. Calling again goes on where it ended.
    NoMemory,
}

/// What a search by digest found.
#[derive(Debug)]
pub enum Found<'a, F> {
    /// This merged copy.
    Copy(&'a F),
    /// There is none.
    None,
    /// Unknown yet: digests are missing. Call again.
    More,
}

/// Why the states of pages cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untold {
    /// There is no such guest.
    NoGuest,
    /// Its address space is gone or busy.
    Away(Away),
    /// There is no memory for a snapshot.
    NoMemory,
}

/// All pages, merged copies and guests of one sharing domain.
///
/// Dropping it gives up all merged copies; what maps them goes on mapping them.
///
/// # Invariants
///
/// * The tree has exactly the [`Listed`](super::page::Kind::Listed) pages and the
///   [`Listed`](super::copies::State::Listed) copies, by the [`key`] of their content when last
///   seen.
/// * The gauges of a guest are what its pages' records say, see [`Index::check`].
#[derive(Debug)]
pub struct Index<F> {
    pub(super) seed: u64,
    /// Hash of a page of zeroes.
    pub(super) zero: u64,
    /// Hash of its sample.
    pub(super) zero_sample: u64,
    pub(super) serials: Range<u64>,
    pub(super) guests: Guests,
    pub(super) store: Store<F>,
    pub(super) tree: Tree,
    pub(super) digests: Tree,
    /// The next copy that `sweep` looks at.
    pub(super) swept: CopyId,
    /// Whether `sweep` is to look at all copies soon, see [`is_sweep_due`](Self::is_sweep_due).
    pub(super) sweep_due: bool,
    /// Copies below this one need nothing more to be found by their digest.
    pub(super) digested: CopyId,
    /// Copies whose digest is known, but another has its place in the tree of digests.
    pub(super) shadowed: u32,
    /// Counters of guests that are gone.
    pub(super) past: Counters,
}

impl<F> Index<F> {
    /// Makes an empty index without allocating.
    ///
    /// `seed` is random, so that what is known of one host's hashes is of no use on another.
    /// `serials` are the serial numbers that its merged copies get; no two indexes have one in
    /// common.
    pub fn new(seed: u64, serials: Range<u64>) -> Self {
        Self {
            seed,
            zero: hash_words(PAGE_WORDS, |_| 0, seed),
            zero_sample: key::sample(|_| 0, seed),
            serials,
            guests: Guests::new(),
            store: Store {
                blocks: Blocks::new(),
                copies: Copies::new(),
            },
            tree: Tree::new(),
            digests: Tree::new(),
            swept: CopyId(0),
            sweep_due: false,
            digested: CopyId(0),
            shadowed: 0,
            past: Counters::default(),
        }
    }

    /// Returns the position of a guest that is not being detached.
    pub(super) fn staying(&self, id: GuestId) -> Option<u32> {
        let position = self.guests.position(id)?;
        let leaving = self.guests.at(position)?.leaving;
        (!leaving).then_some(position)
    }

    /// Returns how many pages of the guest map a merged copy, as last looked at.
    pub fn merged(&self, id: GuestId) -> u64 {
        self.guest(id)
            .map_or(0, |stats| stats.gauges.get(Gauge::Merged))
    }

    /// Adds CPU time to the guest's account.
    pub fn charge(&mut self, id: GuestId, cpu_ns: u64) {
        let position = self.guests.position(id);
        if let Some(guest) = position.and_then(|position| self.guests.at_mut(position)) {
            let total = &mut guest.stats.counters.cpu_ns;
            *total = total.saturating_add(cpu_ns);
        }
    }

    /// Returns gauges and counters of a guest.
    pub fn guest(&self, id: GuestId) -> Option<&GuestStats> {
        let position = self.guests.position(id)?;
        Some(&self.guests.at(position)?.stats)
    }

    /// Returns whether no guest is attached.
    pub fn is_empty(&self) -> bool {
        self.guests.iter().next().is_none()
    }

    /// Returns gauges and counters of all guests.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            counters: self.past,
            shared: u64::from(self.store.copies.shared()),
            // CAST: `usize` is 64 bits wide.
            metadata_bytes: self.bytes() as u64,
            ..Totals::default()
        };
        for guest in self.guests.iter() {
            totals.gauges.add_all(&guest.stats.gauges);
            totals.counters.add_all(&guest.stats.counters);
        }
        totals
    }

    /// Returns the bytes that all of it takes.
    fn bytes(&self) -> usize {
        // OVERFLOW: It is in memory.
        size_of::<Self>()
            .wrapping_add(self.store.blocks.bytes())
            .wrapping_add(self.store.copies.bytes())
            .wrapping_add(self.guests.bytes())
    }

    /// Returns the number of merged copies that are kept.
    pub fn copies(&self) -> usize {
        // CAST: `usize` is wider.
        self.store.copies.used() as usize
    }
}
