// SPDX-License-Identifier: GPL-2.0

//! What the engine may ask of the world it runs in.
//!
//! The engine decides; a [`World`] looks at page tables, reads page contents and replaces page
//! table entries. The kernel's world is `glue::world`, the simulation's is in
//! `tools/engine/tests/sim.rs`. Whatever a world reports may be out of date by the time the engine
//! acts on it: guests write at any moment. Only [`World::share`] is exact, because it compares
//! bytes while nobody can write.

use super::sight::Sight;

/// Pages in a block: as many as one page table holds.
pub const BLOCK_PAGES: usize = 512;

/// Pages that [`World::share`] is given at most.
pub const RUN_PAGES: usize = 64;

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;

/// Bytes in a block. Blocks start at multiples of this.
pub const BLOCK_BYTES: u64 = PAGE_BYTES * BLOCK_PAGES as u64;

/// Length of a content digest (SHA-256).
pub const DIGEST_BYTES: usize = 32;

/// Number of an attached guest. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(pub u32);

/// Page frame number of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pfn(pub u64);

/// The number that the engine gives a merged copy, and that the world keeps with the frame.
///
/// A hint: it is believed only if the copy of that number has the frame that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u32);

/// Why a page cannot be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Skip {
    /// Shared or file-backed memory.
    Shared,
    /// Hugetlbfs memory.
    Hugetlb,
    /// Beside memory that only the guest may see (guest_memfd).
    Gmem,
    /// The mapping is mlocked.
    Locked,
    /// Watched by userfaultfd write- or read-write-protection, or marked by it.
    Uffd,
    /// Device memory, PFN map, droppable memory, shadow stack, no read or no write permission.
    Special,
    /// Nothing is mapped where the memslot points.
    NoVma,
    /// Somebody holds an extra reference.
    Pinned,
    /// Owned by ksmd.
    Ksm,
    /// Maps the shared zero page by its own doing.
    Zero,
    /// In a huge page of which too few pages would merge.
    Huge,
    /// Hardware memory error.
    Poison,
    /// A merged copy that this index does not know: of another domain or an earlier load.
    Orphan,
    /// Same hash as a merged copy but other content.
    Collision,
    /// The guest is being migrated.
    Paused,
}

impl Skip {
    /// Every reason, in the order of the numbers.
    pub const ALL: [Self; 15] = [
        Self::Shared,
        Self::Hugetlb,
        Self::Gmem,
        Self::Locked,
        Self::Uffd,
        Self::Special,
        Self::NoVma,
        Self::Pinned,
        Self::Ksm,
        Self::Zero,
        Self::Huge,
        Self::Poison,
        Self::Orphan,
        Self::Collision,
        Self::Paused,
    ];

    /// The name that users see, as in `skip_<name>`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Hugetlb => "hugetlb",
            Self::Gmem => "gmem",
            Self::Locked => "locked",
            Self::Uffd => "uffd",
            Self::Special => "special",
            Self::NoVma => "no_vma",
            Self::Pinned => "pinned",
            Self::Ksm => "ksm",
            Self::Zero => "zero",
            Self::Huge => "huge",
            Self::Poison => "poison",
            Self::Orphan => "orphan",
            Self::Collision => "collision",
            Self::Paused => "paused",
        }
    }
}

/// What a look at one page table entry found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing is mapped: never touched, discarded, or swapped out.
    Absent,
    /// A private page. `node` is its NUMA node.
    Anon {
        /// NUMA node of the frame.
        node: u8,
    },
    /// A private page inside a large folio, which must be split before the page can merge.
    Huge {
        /// NUMA node of the frame.
        node: u8,
    },
    /// The shared zero page.
    Zero,
    /// A merged copy, of this index or not.
    Merged {
        /// Frame of the copy.
        pfn: Pfn,
        /// Number that is kept with the frame.
        token: Token,
    },
    /// Cannot be merged.
    Skip(Skip),
}

/// Why a look was not possible now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// The address space is exiting or gone: the guest will not come back.
    Gone,
    /// Locks are contended; try another time.
    Busy,
}

/// What one page shall map instead of its own copy.
#[derive(Debug)]
pub enum Target<'a, F> {
    /// The shared zero page.
    Zero,
    /// A merged copy.
    Copy(&'a F),
}

/// What became of one page given to [`World::share`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// It maps the target now.
    Done,
    /// Its bytes differ from the target's. Nothing was changed.
    Differs,
    /// It is no longer a private page (discarded, swapped out, huge, merged by others).
    Gone,
    /// It cannot be merged now, for this reason. Nothing was changed.
    Skip(Skip),
    /// Locks are contended, or memory is short. Nothing was changed.
    Busy,
}

/// What became of one page given to [`World::unshare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unshared {
    /// It has its own copy (or no longer maps a merged one).
    Done,
    /// Free memory would fall under the floor. Nothing was changed.
    NoMemory,
    /// The address space is exiting or contended, or the page cannot be copied now.
    Busy,
}

/// The world that the engine runs in.
///
/// # Context
///
/// Every method may sleep. The engine calls them with no lock of its own; the kernel's caller holds
/// the mutex over the whole engine.
pub trait World {
    /// An owned merged copy: dropping it gives up the engine's reference. Guests that map the copy
    /// keep it alive.
    type Frame;

    /// Looks at the pages `pages` of the block at address `block` and puts what it found into
    /// `seen`, which it clears before.
    ///
    /// Pages with their bit set in `wanted` (bit `i % 64` of word `i / 64`) that turn out to be
    /// [`Seen::Anon`] or [`Seen::Huge`] are kept for [`hash`](Self::hash) and
    /// [`snapshot`](Self::snapshot) until [`release`](Self::release).
    ///
    /// # Errors
    ///
    /// [`Away`]; then nothing was kept and `seen` means nothing.
    fn look(
        &mut self,
        guest: GuestId,
        block: u64,
        pages: core::ops::Range<usize>,
        wanted: &[u64; BLOCK_PAGES / 64],
        seen: &mut Sight,
    ) -> Result<(), Away>;

    /// XXH64 with `seed` of page `index` of the block last looked at, which must have been kept.
    ///
    /// The guest may write while it is read.
    fn hash(&mut self, index: usize, seed: u64) -> u64;

    /// The same of the page's sample ([`key::sample`](super::key::sample)), in an eighth of the
    /// time.
    fn sample(&mut self, index: usize, seed: u64) -> u64;

    /// Whether page `index` of the block last looked at, which must have been kept, holds zeroes.
    fn is_zero(&mut self, index: usize) -> bool;

    /// Copies page `index` of the block last looked at, which must have been kept, into a fresh
    /// frame on the same NUMA node; `None` if there is no memory.
    fn snapshot(&mut self, index: usize) -> Option<Self::Frame>;

    /// Lets go of the pages that [`look`](Self::look) kept.
    fn release(&mut self);

    /// Replaces a run of neighbouring pages of `guest`, the first at address `addr`, each by its
    /// target if the bytes are equal, and writes what became of page `i` to `results[i]`. At most
    /// `batch` pages are replaced at once, while the guest cannot reach them.
    ///
    /// The run lies within one block; `targets` and `results` have the same length, at least 1 and
    /// at most [`RUN_PAGES`].
    fn share(
        &mut self,
        guest: GuestId,
        addr: u64,
        batch: u32,
        targets: &[Target<'_, Self::Frame>],
        results: &mut [Shared],
    );

    /// Gives the page of `guest` at `addr` its own copy, if it maps a merged one.
    fn unshare(&mut self, guest: GuestId, addr: u64) -> Unshared;

    /// Does the same with `pages` neighbouring pages, the first at `addr`, which lie within one
    /// block. Returns how many are done, perhaps not all of them, and, if it was not possible with
    /// the page after these, why.
    fn unshare_run(&mut self, guest: GuestId, addr: u64, pages: usize) -> (usize, Unshared) {
        for done in 0..pages {
            // CAST: `usize` is 64 bits wide. OVERFLOW: The page exists.
            let ahead = (done as u64).wrapping_mul(PAGE_BYTES);
            match self.unshare(guest, addr.wrapping_add(ahead)) {
                Unshared::Done => {}
                why => return (done, why),
            }
        }
        (pages, Unshared::Done)
    }

    /// Splits the large folio that is mapped at `addr`. `true` if the pages there are small now.
    fn split(&mut self, guest: GuestId, addr: u64) -> bool;

    /// Keeps `token` with the frame, to be reported by [`Seen::Merged`].
    fn set_token(&mut self, frame: &Self::Frame, token: Token);

    /// Frame number of a merged copy.
    fn pfn(&self, frame: &Self::Frame) -> Pfn;

    /// Whether a merged copy has a hardware memory error. Then its bytes must not be read: the host
    /// would not survive it. To be asked before each call that reads them.
    fn is_broken(&self, frame: &Self::Frame) -> bool;

    /// XXH64 with `seed` of a merged copy.
    fn hash_frame(&mut self, frame: &Self::Frame, seed: u64) -> u64;

    /// XXH64 with `seed` of the sample of a merged copy.
    fn sample_frame(&mut self, frame: &Self::Frame, seed: u64) -> u64;

    /// How many page table entries map the copy; 0 is final, as no guest can map it again.
    fn mappings(&self, frame: &Self::Frame) -> u32;

    /// SHA-256 of a merged copy.
    fn digest(&mut self, frame: &Self::Frame) -> [u8; DIGEST_BYTES];
}
