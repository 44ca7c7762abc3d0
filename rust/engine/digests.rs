// SPDX-License-Identifier: GPL-2.0

//! What pages are, by SHA-256, for those who compare hosts.
//!
//! The digest of a merged copy is computed when somebody asks for it first, and kept: the copy
//! cannot change. A second tree finds copies by the first 8 bytes of the digest.

use core::ops::Range;

use super::{
    catalog::Digest,
    copies::{
        MergedCopy,
        State, //
    },
    guests::{
        block_of,
        indexes, //
    },
    index::{
        Found,
        Index,
        Untold, //
    },
    mask::Mask,
    moves::DigestNodes,
    page::CopyId,
    scratch::Scratch,
    wire::PageState,
    world::{
        Away,
        GuestId,
        Pfn,
        Seen,
        World,
        DIGEST_BYTES, //
    },
};
use crate::mem::AllocError;

/// Copies whose digest is known that cost as much to pass over as one digest costs to compute.
const VISITS_PER_DIGEST: usize = 64;

impl From<Away> for Untold {
    fn from(away: Away) -> Self {
        Self::Away(away)
    }
}

impl From<AllocError> for Untold {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

/// Pages whose states are asked for, all in one block.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The guest.
    pub guest: GuestId,
    /// Address of the first page.
    pub addr: u64,
    /// How many pages.
    pub pages: usize,
    /// How many digests may be computed for them.
    pub digests: usize,
}

/// A search for a merged copy by its SHA-256, which takes some calls of [`Index::find_digest`].
///
/// It ends however many copies come and go: each copy that there is when it begins is looked at
/// once. One that comes later may not be found. Only a copy that is found and turns out to be
/// broken has it begin anew, and no copy does so twice.
#[derive(Debug)]
pub struct Search {
    digest: [u8; DIGEST_BYTES],
    /// The next copy to look at.
    next: CopyId,
    /// Where it ends, once it has begun.
    end: Option<CopyId>,
}

impl Search {
    /// Makes a search that has not begun.
    pub fn new(digest: [u8; DIGEST_BYTES]) -> Self {
        Self {
            digest,
            next: CopyId(0),
            end: None,
        }
    }
}

impl<F> Index<F> {
    /// Tells the states of pages by calling `tell` for each in order. Returns how many it told: all
    /// of them, unless more digests are missing than may be computed.
    ///
    /// # Errors
    ///
    /// [`Untold`]; `tell` may have been called for some pages.
    pub fn page_states<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        scratch: &mut Scratch,
        asked: Asked,
        tell: impl FnMut(PageState),
    ) -> Result<usize, Untold> {
        if self.guests.position(asked.guest).is_none() {
            return Err(Untold::NoGuest);
        }
        let range = indexes(asked.addr, asked.pages);
        let mut wanted = Mask::EMPTY;
        wanted.add_range(range.clone());
        world.look(
            asked.guest,
            block_of(asked.addr),
            range.clone(),
            wanted.words(),
            &mut scratch.seen,
        )?;
        let told = self.tell_states(world, scratch, range, asked.digests, tell);
        world.release();
        told
    }

    /// Tells the states of pages of the block last looked at, until more than `digests` digests
    /// are missing. Returns how many it told.
    #[inline]
    fn tell_states<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        scratch: &Scratch,
        range: Range<usize>,
        mut digests: usize,
        mut tell: impl FnMut(PageState),
    ) -> Result<usize, Untold> {
        let mut told = 0_usize;
        for index in range {
            let seen = scratch.seen(index);
            if let Some(digest) = self.kept_digest(world, seen) {
                tell(PageState::merged(digest));
            } else if let Some(state) = self.page_state(world, seen, index, &mut digests)? {
                tell(state);
            } else {
                break;
            }
            // OVERFLOW: At most `BLOCK_PAGES`.
            told = told.wrapping_add(1);
        }
        Ok(told)
    }

    /// Returns the digest of the merged copy that a page maps, if nothing is left to do for it.
    #[inline]
    fn kept_digest<W: World<Frame = F>>(&self, world: &W, seen: Seen) -> Option<&Digest> {
        let Seen::Merged { pfn, token } = seen else {
            return None;
        };
        let (copy, digest) = self.store.copies.with_digest(CopyId(token.0))?;
        digest.filter(|_| is_it(world, copy, pfn))
    }

    /// Returns the state of a page of the block last looked at; `None` if that takes one more
    /// digest than may be computed.
    #[inline(never)]
    fn page_state<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        seen: Seen,
        index: usize,
        digests: &mut usize,
    ) -> Result<Option<PageState>, Untold> {
        Ok(match seen {
            Seen::Absent => Some(PageState::Absent),
            Seen::Zero => Some(PageState::Zero),
            Seen::Skip(_) => Some(PageState::Skipped),
            Seen::Merged { pfn, token } => {
                let copy = CopyId(token.0);
                let entry = self.store.copies.get(copy);
                if !entry.is_some_and(|entry| is_it(world, entry, pfn)) {
                    Some(PageState::Skipped)
                } else if self.store.copies.digest(copy).is_some() || spend(digests) {
                    let digest = self.digest_of(world, copy)?;
                    Some(digest.map_or(PageState::Skipped, |digest| PageState::merged(&digest)))
                } else {
                    None
                }
            }
            Seen::Anon { .. } | Seen::Huge { .. } => {
                if !spend(digests) {
                    return Ok(None);
                }
                let frame = world.snapshot(index).ok_or(Untold::NoMemory)?;
                Some(PageState::Unmerged {
                    digest: world.digest(&frame),
                })
            }
        })
    }

    /// Goes on with a search, computing at most `budget` missing digests. The copy that it finds
    /// may be read.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory to keep a digest in.
    pub fn find_digest<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        search: &mut Search,
        budget: usize,
    ) -> Result<Found<'_, F>, AllocError> {
        let listed = self.listed_digest(&search.digest);
        let copy = match listed {
            Listed::Found(copy) => copy,
            listed => match self.compute_digests(world, search, listed, budget)? {
                Computed::Found(copy) => copy,
                Computed::None => return Ok(Found::None),
                Computed::More => return Ok(Found::More),
            },
        };
        if !self.may_read(world, copy) {
            // It is retired now. Another of that content may have been passed over.
            search.end = None;
            search.next = CopyId(0);
            return Ok(Found::More);
        }
        Ok(self.frame(copy).map_or(Found::None, Found::Copy))
    }

    /// Looks for the copy of that digest in the tree.
    fn listed_digest(&mut self, digest: &[u8; DIGEST_BYTES]) -> Listed {
        let [a, b, c, d, e, f, g, h, ..] = *digest;
        let key = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let nodes = DigestNodes(&mut self.store.copies);
        let Some(copy) = self.digests.find(&nodes, key).map(CopyId) else {
            return Listed::Nothing;
        };
        let known = self.store.copies.digest(copy);
        match known.is_some_and(|known| known.sha256 == *digest) {
            true => Listed::Found(copy),
            false => Listed::Another,
        }
    }

    /// Computes missing digests until the wanted one is among them.
    fn compute_digests<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        search: &mut Search,
        listed: Listed,
        mut budget: usize,
    ) -> Result<Computed, AllocError> {
        let end = *search.end.get_or_insert(self.store.copies.end());
        // What others have computed meanwhile is in the tree, unless another has its place there.
        let mut next = match listed {
            Listed::Another => search.next,
            _ => search.next.max(self.digested),
        };
        for _ in 0..budget.saturating_mul(VISITS_PER_DIGEST) {
            let Some((copy, entry)) = self.store.copies.next(next).filter(|(copy, _)| *copy < end)
            else {
                return Ok(Computed::None);
            };
            if is_readable(entry) {
                if self.store.copies.digest(copy).is_none() && !spend(&mut budget) {
                    break;
                }
                let digest = self.digest_of(world, copy)?;
                if digest.is_some_and(|digest| digest.sha256 == search.digest) {
                    return Ok(Computed::Found(copy));
                }
            }
            // OVERFLOW: Below 2^30.
            let after = CopyId(copy.0.wrapping_add(1));
            if self.digested == next {
                self.digested = after;
            }
            next = after;
            search.next = next;
        }
        Ok(Computed::More)
    }

    /// Returns the digest of a readable copy, and lists it if it is not; `None` if the copy turns
    /// out to be broken before it is known.
    fn digest_of<W: World<Frame = F>>(
        &mut self,
        world: &mut W,
        copy: CopyId,
    ) -> Result<Option<Digest>, AllocError> {
        if self.store.copies.digest(copy).is_none() {
            if !self.may_read(world, copy) {
                return Ok(None);
            }
            self.store.copies.reserve_digest(copy)?;
            let frame = self.frame(copy).ok_or(AllocError)?;
            let sha256 = world.digest(frame);
            let serial = self.serials.next().ok_or(AllocError)?;
            self.store.copies.set_digest(copy, serial, sha256);
            self.shadowed = self.shadowed.wrapping_add(1);
        }
        if !self.store.copies.is_digest_listed(copy) {
            let mut nodes = DigestNodes(&mut self.store.copies);
            // Another copy of the same content has its place, if any does: that one is found.
            if self.digests.insert(&mut nodes, copy.0).is_ok() {
                self.store.copies.digest_listed(copy);
                // OVERFLOW: It was known but not listed.
                self.shadowed = self.shadowed.wrapping_sub(1);
            }
        }
        Ok(self.store.copies.digest(copy).copied())
    }

    /// Notes that a new copy has no digest yet.
    pub(super) fn digest_missing(&mut self, copy: CopyId) {
        if copy.0 < self.digested.0 {
            self.digested = copy;
        }
    }

    /// Forgets the digest of a copy that is not to be found any more.
    pub(super) fn forget_digest(&mut self, copy: CopyId) {
        if self.store.copies.digest(copy).is_none() {
            return;
        }
        if self.store.copies.is_digest_listed(copy) {
            let mut nodes = DigestNodes(&mut self.store.copies);
            // A tree that is corrupt stays so: nothing better can be done.
            let _ = self.digests.remove(&mut nodes, copy.0);
            if self.shadowed > 0 {
                self.digested = CopyId(0);
            }
        } else {
            // OVERFLOW: It was known but not listed.
            self.shadowed = self.shadowed.wrapping_sub(1);
        }
        self.store.copies.clear_digest(copy);
    }
}

/// Returns whether the content of a copy may be read.
fn is_readable<F>(copy: &MergedCopy<F>) -> bool {
    matches!(copy.state(), State::Listed | State::Full | State::Odd)
}

/// Returns whether what maps the frame `pfn` maps that copy, and may read it.
#[inline]
fn is_it<W: World>(world: &W, copy: &MergedCopy<W::Frame>, pfn: Pfn) -> bool {
    let frame = copy.frame().filter(|_| is_readable(copy));
    frame.is_some_and(|frame| world.pfn(frame) == pfn)
}

impl PageState {
    /// Returns the state of a page that maps the copy of that digest.
    #[inline]
    fn merged(digest: &Digest) -> Self {
        Self::Merged {
            serial: digest.serial,
            digest: digest.sha256,
        }
    }
}

/// Takes one of those that are left, if there is one.
fn spend(left: &mut usize) -> bool {
    let rest = left.checked_sub(1);
    *left = rest.unwrap_or(0);
    rest.is_some()
}

/// Who has the place of a digest in the tree, which goes by its first eight bytes.
enum Listed {
    Found(CopyId),
    Another,
    Nothing,
}

/// What computing digests has led to.
enum Computed {
    Found(CopyId),
    None,
    More,
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_digests))]
mod tests {
    use super::*;
    use crate::engine::toy::{
        digest_of,
        Page,
        Toy,
        Untested, //
    };

    #[test]
    fn states_are_told_in_order() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 1..3, |_| Page::Own(5));
        toy.fill(0, 3..4, |_| Page::Own(6));
        toy.fill(0, 4..5, |_| Page::Own(0));
        assert!(toy.pass(1));
        let digest = digest_of(5);
        let expected = [
            PageState::Absent,
            PageState::Merged { serial: 1, digest },
            PageState::Merged { serial: 1, digest },
            PageState::Unmerged {
                digest: digest_of(6),
            },
            PageState::Zero,
            PageState::Absent,
        ];
        let mut left = expected.iter();
        let mut right = true;
        let asked = Asked {
            guest: GuestId(0),
            addr: 0,
            pages: expected.len(),
            digests: 2,
        };
        let told = toy
            .index
            .page_states(&mut toy.world, &mut toy.scratch, asked, |state| {
                right &= left.next() == Some(&state)
            });
        assert_eq!(told, Ok(expected.len()));
        assert!(right && left.next().is_none());
        Ok(())
    }

    #[test]
    fn copies_are_found_within_the_budget() -> Result<(), Untested> {
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..200, |index| Page::Own(1 + index / 2));
        assert!(toy.pass(1));
        let mut calls = 0_u32;
        let mut search = Search::new(digest_of(100));
        let found = loop {
            calls = calls.wrapping_add(1);
            let found = toy.index.find_digest(&mut toy.world, &mut search, 10)?;
            match found {
                Found::More => {}
                Found::Copy(frame) => break Some(frame.0),
                Found::None => break None,
            }
        };
        assert_eq!(found, Some(99));
        assert_eq!(calls, 10);
        search = Search::new(digest_of(999));
        let none = toy.index.find_digest(&mut toy.world, &mut search, 1)?;
        assert!(matches!(none, Found::None));
        assert_eq!(toy.index.check(), Ok(()));
        Ok(())
    }

    #[test]
    fn copies_whose_digests_begin_alike_are_both_found() -> Result<(), Untested> {
        const OTHER: u64 = 5 | (1 << 40);
        let mut toy = Toy::new(1)?;
        toy.fill(0, 0..2, |_| Page::Own(5));
        assert!(toy.pass(1));
        toy.fill(0, 2..4, |_| Page::Own(OTHER));
        assert!(toy.pass(1) && toy.pass(1));
        assert_eq!(toy.index.copies(), 2);
        // Looking for what is not there computes all that there is.
        for content in [5, 999, OTHER, 5, OTHER] {
            let mut search = Search::new(digest_of(content));
            let found = toy.index.find_digest(&mut toy.world, &mut search, 10)?;
            assert!(matches!(found, Found::Copy(_)) == (content != 999));
        }
        assert_eq!(toy.index.check(), Ok(()));
        Ok(())
    }
}
