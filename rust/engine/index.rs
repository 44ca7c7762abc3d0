// SPDX-License-Identifier: GPL-2.0

//! The whole state of one sharing domain, and what can be asked of it.
//!
//! A guest that shares with nobody has an index of its own. The caller holds one mutex over all of
//! them: nothing here locks.

use core::{
    marker::PhantomData,
    ops::Range, //
};

pub use super::guests::Span;
use super::{
    knobs::Knobs,
    scratch::Scratch,
    stats::{
        GuestStats,
        Totals, //
    },
    wire::PageState,
    world::{
        Away,
        GuestId,
        Token,
        World,
        DIGEST_BYTES, //
    },
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
#[derive(Debug)]
pub struct Index<F> {
    frames: PhantomData<F>,
}

impl<F> Index<F> {
    /// Makes an empty index without allocating.
    ///
    /// `seed` is random and secret: who knows it can make pages of equal hash. `serials` are the
    /// serial numbers that its merged copies get; no two indexes have one in common. When they are
    /// used up, no further copies are made.
    pub fn new(seed: u64, serials: Range<u64>) -> Self {
        let _ = (seed, serials);
        Self {
            frames: PhantomData,
        }
    }

    /// Adds a guest without memory.
    ///
    /// # Errors
    ///
    /// [`Refused::Exists`], [`Refused::NoMemory`], [`Refused::NoRoom`].
    pub fn attach(&mut self, id: GuestId) -> Result<(), Refused> {
        let _ = id;
        Ok(())
    }

    /// Says what memory the guest has now: page aligned, sorted, disjoint. To be called before each
    /// pass.
    ///
    /// What stays is kept, what is gone is forgotten.
    ///
    /// # Errors
    ///
    /// [`Refused`], all but `Exists`. Then nothing changed.
    pub fn set_ranges(&mut self, id: GuestId, ranges: &[Span]) -> Result<(), Refused> {
        let _ = (id, ranges);
        Ok(())
    }

    /// Forgets a guest and all that it has, at most `blocks` blocks a call. From the first call on
    /// the guest is not scanned and its number may not be attached until it is [`Progress::Done`].
    pub fn detach(&mut self, id: GuestId, blocks: usize) -> Progress {
        let _ = (id, blocks);
        Progress::Done
    }

    /// Looks at the next block of a guest, and merges what can be merged. After the last block the
    /// cursor is at the first again.
    ///
    /// # Errors
    ///
    /// [`Away::Gone`]: detach it. [`Away::Busy`]: locks are contended or there is no memory; the
    /// same block is tried again a few times, then passed over.
    pub fn scan<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        scratch: &mut Scratch,
        id: GuestId,
        knobs: &Knobs,
    ) -> Result<Step, Away> {
        let _ = (world, scratch, id, knobs);
        Err(Away::Gone)
    }

    /// Frees merged copies that nobody maps: looks at up to `budget` copies. To be called when a
    /// pass ends or a guest goes, and by the shrinker.
    pub fn sweep<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        knobs: &Knobs,
        budget: usize,
    ) -> Swept {
        let _ = (world, knobs, budget);
        Swept {
            freed: 0,
            done: true,
        }
    }

    /// Never hands out the copy of that number again (hardware error).
    pub fn retire(&mut self, token: Token) {
        let _ = token;
    }

    /// Gives the merged pages of the guest's next block their own copies back. `cursor` is 0 at
    /// first and the caller's to keep. Nothing may be scanned in between, or pages merge again.
    ///
    /// # Errors
    ///
    /// [`Away::Gone`]: there is no such guest or address space. [`Away::Busy`]: call again.
    pub fn unmerge<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        scratch: &mut Scratch,
        id: GuestId,
        cursor: &mut u64,
    ) -> Result<Unmerged, Away> {
        let _ = (world, scratch, id, cursor);
        Err(Away::Gone)
    }

    /// Returns how many pages of the guest map a merged copy, as last looked at.
    pub fn merged(&self, id: GuestId) -> u64 {
        let _ = id;
        0
    }

    /// Tells the states of `pages` pages from address `addr` on, all in one block, by calling
    /// `tell` for each in order.
    ///
    /// # Errors
    ///
    /// [`Untold`]; `tell` may have been called for some pages.
    pub fn page_states<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        scratch: &mut Scratch,
        id: GuestId,
        addr: u64,
        pages: usize,
        tell: impl FnMut(PageState),
    ) -> Result<(), Untold> {
        let _ = (world, scratch, id, addr, pages, tell);
        Err(Untold::NoGuest)
    }

    /// Finds a merged copy by SHA-256, computing at most `budget` missing digests.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory to keep a digest in.
    pub fn find_digest<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        digest: &[u8; DIGEST_BYTES],
        budget: usize,
    ) -> Result<Found<'_, F>, AllocError> {
        let _ = (world, digest, budget);
        Ok(Found::None)
    }

    /// Adds CPU time to the guest's account.
    pub fn charge(&mut self, id: GuestId, cpu_ns: u64) {
        let _ = (id, cpu_ns);
    }

    /// Returns gauges and counters of a guest.
    pub fn guest(&self, id: GuestId) -> Option<&GuestStats> {
        let _ = id;
        None
    }

    /// Returns whether no guest is attached.
    pub fn is_empty(&self) -> bool {
        true
    }

    /// Returns gauges and counters of all guests.
    pub fn totals(&self) -> Totals {
        Totals::default()
    }

    /// Returns the number of merged copies that are kept.
    pub fn copies(&self) -> usize {
        0
    }
}
