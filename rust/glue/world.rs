// SPDX-License-Identifier: GPL-2.0

//! The engine's [`World`] on this host: guests by number, their page tables by `sys`.

use super::{
    guests::Guest,
    headroom, //
};
use crate::{
    engine::{
        key::{
            self,
            LINE_WORDS,
            PAGE_WORDS, //
        },
        layout::Layout,
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
            BLOCK_PAGES,
            DIGEST_BYTES,
            PAGE_BYTES,
            RUN_PAGES, //
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
use kernel::page::PAGE_SIZE;

const _: () = assert!(RUN_PAGES <= RUN_MAX);

/// The attached guests, and room for one look.
pub(crate) struct HostWorld<'a> {
    guests: &'a [Guest],
    look: &'a mut Look,
    /// Private pages are looked at to be merged, not only to be read.
    merging: bool,
    /// Pages of the guest that may still be unshared before free memory is asked for again.
    allowance: (GuestId, usize),
}

impl<'a> HostWorld<'a> {
    /// A world of `guests`, which are sorted by number.
    pub(crate) fn new(guests: &'a [Guest], look: &'a mut Look) -> Self {
        Self {
            guests,
            look,
            merging: true,
            allowance: (GuestId(0), 0),
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

    /// Returns how many of `pages` more pages of a guest may be unshared.
    fn allow(&mut self, guest: &Guest, pages: usize) -> usize {
        if self.allowance.0 != guest.id() || self.allowance.1 == 0 {
            self.allowance = (guest.id(), headroom::allowance(guest.space()));
        }
        self.allowance.1.min(pages)
    }

    fn user(&self, id: GuestId) -> Result<(&'a Guest, User), Away> {
        let guest = self.guest(id).ok_or(Away::Gone)?;
        let user = guest.space().user().ok_or(Away::Gone)?;
        Ok((guest, user))
    }
}

/// Why pages of a guest are not to merge now, whatever they hold.
struct Refusal<'a> {
    layout: &'a Layout,
    /// Private ones are not.
    paused: bool,
    /// Those beside memory that only the guest sees are not, and there are some.
    gmem: bool,
}

impl Refusal<'_> {
    /// Puts what was found of `pages` of the block at address `block` into `seen`.
    #[inline]
    fn put(&self, block: u64, pages: Range<usize>, found: Seen, seen: &mut Sight) {
        let found = match found {
            Seen::Anon { .. } | Seen::Huge { .. } if self.paused => Seen::Skip(Skip::Paused),
            _ => found,
        };
        // What was merged before its slot became one of those is still to be known.
        if !self.gmem || matches!(found, Seen::Merged { .. }) {
            return seen.put(pages, found);
        }
        for index in pages {
            let only = self.layout.is_gmem(block + index as u64 * PAGE_BYTES);
            let found = if only { Seen::Skip(Skip::Gmem) } else { found };
            seen.put(index..index + 1, found);
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
        seen: &mut Sight,
    ) -> Result<(), Away> {
        let (guest, user) = self.user(guest)?;
        let locked = user.try_lock().ok_or(Away::Busy)?;
        let layout = guest.layout();
        let refusal = Refusal {
            layout,
            paused: self.merging && layout.is_migrating(),
            gmem: layout.has_gmem(),
        };
        seen.clear();
        self.look.at(&locked, block, pages, wanted, |pages, found| {
            refusal.put(block, pages, found, seen);
        });
        if refusal.paused {
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
        key::sample(|word| words.get(word), seed)
    }

    fn is_zero(&mut self, index: usize) -> bool {
        let Some(page) = self.look.kept(index) else {
            return false;
        };
        let words = page.words();
        let line = |number: usize| {
            let first = number * LINE_WORDS;
            (0..LINE_WORDS).fold(0, |all, at| all | words.get(first + at))
        };
        let four = |number: usize| {
            let at = 4 * number;
            line(at) | line(at + 1) | line(at + 2) | line(at + 3)
        };
        // Of most pages the first line tells.
        line(0) == 0 && (0..PAGE_WORDS / LINE_WORDS / 4).all(|number| four(number) == 0)
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
        batch: u32,
        targets: &[Target<'_, Frame>],
        results: &mut [Shared],
    ) {
        results.fill(Shared::Busy);
        let Ok((guest, user)) = self.user(guest) else {
            return results.fill(Shared::Gone);
        };
        if !guest.may_merge() {
            return results.fill(Shared::Skip(Skip::Paused));
        }
        let Some(locked) = user.try_lock() else {
            return;
        };
        locked.share(addr as usize, batch, targets, results);
    }

    fn unshare(&mut self, guest: GuestId, addr: u64) -> Unshared {
        self.unshare_run(guest, addr, 1).1
    }

    fn unshare_run(&mut self, guest: GuestId, addr: u64, pages: usize) -> (usize, Unshared) {
        let Ok((guest, user)) = self.user(guest) else {
            return (pages, Unshared::Done);
        };
        let Some(locked) = user.try_lock() else {
            return (0, Unshared::Busy);
        };
        let pages = pages.min(RUN_PAGES);
        let mut done = 0;
        while done < pages {
            let part = self.allow(guest, pages - done);
            if part == 0 {
                return (done, Unshared::NoMemory);
            }
            let (unshared, last) = locked.unshare(addr as usize + done * PAGE_SIZE, part);
            self.allowance.1 -= unshared.min(part);
            done += unshared;
            if last != Unshared::Done {
                return (done, last);
            }
        }
        (pages, Unshared::Done)
    }

    fn split(&mut self, guest: GuestId, addr: u64) -> bool {
        let Ok((guest, user)) = self.user(guest) else {
            return false;
        };
        if !guest.may_merge() {
            return false;
        }
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

    fn is_broken(&self, frame: &Frame) -> bool {
        frame.is_broken()
    }

    fn hash_frame(&mut self, frame: &Frame, seed: u64) -> u64 {
        let words = frame.words();
        xxh64::hash_words(PAGE_WORDS, |word| words.get(word), seed)
    }

    fn sample_frame(&mut self, frame: &Frame, seed: u64) -> u64 {
        let words = frame.words();
        key::sample(|word| words.get(word), seed)
    }

    fn mappings(&self, frame: &Frame) -> u32 {
        frame.mappings()
    }

    fn digest(&mut self, frame: &Frame) -> [u8; DIGEST_BYTES] {
        frame.sha256()
    }
}
