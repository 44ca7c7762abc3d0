// SPDX-License-Identifier: GPL-2.0

//! The engine's [`World`] on this host: guests by number, their page tables by `sys`.

use super::{
    guests::Guest,
    headroom, //
};
use crate::{
    engine::{
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
            BLOCK_PAGES,
            DIGEST_BYTES,
            PAGE_BYTES, //
        },
        xxh64, //
    },
    sys::{
        frame::Frame,
        look::Look,
        mm::{
            User,
            RUN_MAX, //
        }, //
    },
};
use core::ops::Range;

/// Words of 8 bytes in a page.
const PAGE_WORDS: usize = PAGE_BYTES as usize / 8;

/// Words of 8 bytes in a sample: one cache line of 64 bytes in each 512 bytes.
const SAMPLE_WORDS: usize = PAGE_WORDS / 8;

/// Where word `word` of a sample is in the page: lines are 576 bytes apart, each another distance
/// away from a multiple of 512, so that structures of a common size are not missed in one place.
#[inline(always)]
fn sampled(word: usize) -> usize {
    word + word / 8 * 64
}

/// The attached guests, and room for one look.
pub(crate) struct HostWorld<'a> {
    guests: &'a [Guest],
    look: &'a mut Look,
    /// Private pages are looked at to be merged, not only to be read.
    merging: bool,
    /// Pages that may still be unshared before free memory is asked for again.
    allowance: usize,
}

impl<'a> HostWorld<'a> {
    /// A world of `guests`, which are sorted by number.
    pub(crate) fn new(guests: &'a [Guest], look: &'a mut Look) -> Self {
        Self {
            guests,
            look,
            merging: true,
            allowance: 0,
        }
    }

    /// The same world for a reader, who may see private pages that must not merge now.
    pub(crate) fn for_reading(self) -> Self {
        Self {
            merging: false,
            ..self
        }
    }

    fn guest(&self, id: GuestId) -> Option<&'a Guest> {
        let at = self.guests.binary_search_by_key(&id, Guest::id).ok()?;
        self.guests.get(at)
    }

    fn user(&self, id: GuestId) -> Result<(&'a Guest, User), Away> {
        let guest = self.guest(id).ok_or(Away::Gone)?;
        let user = guest.space().user().ok_or(Away::Gone)?;
        Ok((guest, user))
    }
}

/// Refuses private pages of a guest that is not to merge now, if `paused`, and those that only the
/// guest sees.
fn refuse(guest: &Guest, paused: bool, block: u64, pages: Range<usize>, seen: &mut [Seen]) {
    let gmem = guest.layout().has_gmem();
    if !paused && !gmem {
        return;
    }
    for (index, seen) in seen
        .iter_mut()
        .enumerate()
        .take(pages.end)
        .skip(pages.start)
    {
        if gmem && guest.layout().is_gmem(block + index as u64 * PAGE_BYTES) {
            *seen = Seen::Skip(Skip::Gmem);
        } else if paused && matches!(*seen, Seen::Anon { .. } | Seen::Huge { .. }) {
            *seen = Seen::Skip(Skip::Paused);
        }
    }
}

impl World for HostWorld<'_> {
    type Frame = Frame;

    fn look(
        &mut self,
        guest: GuestId,
        block: u64,
        pages: Range<usize>,
        wanted: &[u64; BLOCK_PAGES / 64],
        seen: &mut [Seen],
    ) -> Result<(), Away> {
        let (guest, user) = self.user(guest)?;
        let locked = user.try_lock().ok_or(Away::Busy)?;
        self.look.at(&locked, block, pages.clone(), wanted, seen);
        let paused = self.merging && guest.layout().is_migrating();
        refuse(guest, paused, block, pages, seen);
        if paused {
            self.look.release();
        }
        Ok(())
    }

    fn hash(&mut self, index: usize, seed: u64) -> u64 {
        let Some(page) = self.look.kept(index) else {
            return 0;
        };
        let words = page.words();
        xxh64::hash_words(PAGE_WORDS, |word| words.get(word), seed)
    }

    fn sample(&mut self, index: usize, seed: u64) -> u64 {
        let Some(page) = self.look.kept(index) else {
            return 0;
        };
        let words = page.words();
        xxh64::hash_words(SAMPLE_WORDS, |word| words.get(sampled(word)), seed)
    }

    fn snapshot(&mut self, index: usize) -> Option<Frame> {
        Frame::copy_of(self.look.kept(index)?)
    }

    fn release(&mut self) {
        self.look.release();
    }

    fn share(
        &mut self,
        guest: GuestId,
        addr: u64,
        targets: &[Target<'_, Frame>],
        results: &mut [Shared],
    ) {
        results.fill(Shared::Busy);
        let Ok((guest, user)) = self.user(guest) else {
            return results.fill(Shared::Gone);
        };
        if !guest.is_at_work() {
            return results.fill(Shared::Skip(Skip::Paused));
        }
        let Some(locked) = user.try_lock() else {
            return;
        };
        let mut at = addr as usize;
        for (targets, results) in targets.chunks(RUN_MAX).zip(results.chunks_mut(RUN_MAX)) {
            locked.share(at, targets, results);
            at += targets.len() * kernel::page::PAGE_SIZE;
        }
    }

    fn unshare(&mut self, guest: GuestId, addr: u64) -> Unshared {
        let Ok((guest, user)) = self.user(guest) else {
            return Unshared::Done;
        };
        if self.allowance == 0 {
            self.allowance = headroom::allowance(guest.space());
        }
        let Some(left) = self.allowance.checked_sub(1) else {
            return Unshared::NoMemory;
        };
        self.allowance = left;
        let Some(locked) = user.try_lock() else {
            return Unshared::Busy;
        };
        locked.unshare(addr as usize)
    }

    fn split(&mut self, guest: GuestId, addr: u64) -> bool {
        let Ok((_, user)) = self.user(guest) else {
            return false;
        };
        let Some(locked) = user.try_lock() else {
            return false;
        };
        locked.split(addr as usize)
    }

    fn set_token(&mut self, frame: &Frame, token: Token) {
        frame.set_token(token);
    }

    fn pfn(&self, frame: &Frame) -> Pfn {
        frame.pfn()
    }

    fn hash_frame(&mut self, frame: &Frame, seed: u64) -> u64 {
        let words = frame.words();
        xxh64::hash_words(PAGE_WORDS, |word| words.get(word), seed)
    }

    fn mappings(&self, frame: &Frame) -> u32 {
        frame.mappings()
    }

    fn digest(&mut self, frame: &Frame) -> [u8; DIGEST_BYTES] {
        frame.sha256()
    }
}
