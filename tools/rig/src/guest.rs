// SPDX-License-Identifier: GPL-2.0

//! A guest whose memory is known at every moment.
//!
//! It fills each [`Region`] from seeds. Then it goes over the range of its [`Writes`] again and again:
//! in pass `n` it puts `n` into the first word of each page, or fills each page anew from a seed of
//! that pass. So at any moment the pages of the range up to some page are of pass `n`, and those
//! after it of pass `n - 1`, where pass 0 is what the regions say.
//!
//! QEMU 7.2 loses dirty pages under emulation: it does not notice writes through translations that
//! were made before it last looked for dirty pages. So the guest drops a page's translation before
//! it writes to the page. That makes losses rare, but does not rule them out: what is compared after
//! several rounds should come from a newer QEMU.

use crate::error::Error;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// Numbers of the first page that may belong to a region: below are firmware, video memory and the
/// guest's own words.
const FIRST_PAGE: u32 = 0x100;
/// What the seed of a written page grows by from pass to pass.
const PASS_STEP: u32 = 0x0100_0193;
/// What a seed is multiplied with before it makes words.
const SPREAD: u32 = 0x9e37_79b1;

/// Pages that the guest fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Number of the first page, at least 0x100 (1 MiB).
    pub first: u32,
    /// How many pages.
    pub pages: u32,
    /// Seed of the first page: two pages are equal if their seeds are, and zero if it is 0.
    pub seed: u32,
    /// What the seed grows by from page to page; with 0 all pages of the region are equal.
    pub step: u32,
}

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The number of the pass goes into the first four bytes.
    FirstWord,
    /// All bytes change.
    WholePage,
}

/// What the guest does for ever, once its memory is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writes {
    /// Number of the first page, at least 0x100 (1 MiB).
    pub first: u32,
    /// How many pages are written in a pass.
    pub pages: u32,
    /// How each is written.
    pub write: Write,
    /// Turns of an empty loop after each page; about a nanosecond each under emulation.
    pub delay: u32,
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// What it fills; later regions win over earlier ones.
    pub regions: Vec<Region>,
    /// What it writes then; without it, it halts.
    pub writes: Option<Writes>,
}

/// How far the guest's writes were when its memory was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The highest pass that is seen; 0 if nothing was written yet.
    pub pass: u32,
    /// How many pages of the range are of that pass.
    pub pages: u32,
}

impl Guest {
    /// A guest that fills a half of its memory with pages that all differ, an eighth with one page,
    /// and halts. The rest stays zero.
    pub fn idle(memory_mib: u32) -> Self {
        let pages = memory_mib * 256;
        let distinct = Region {
            first: FIRST_PAGE,
            pages: pages / 2,
            seed: 1,
            step: 1,
        };
        let equal = Region {
            first: FIRST_PAGE + distinct.pages,
            pages: pages / 8,
            seed: 0x5eed_0000,
            step: 0,
        };
        Self {
            memory_mib,
            regions: vec![distinct, equal],
            writes: None,
        }
    }

    /// Like [`Guest::idle`], but it goes on writing to a quarter of its memory, some thousand pages
    /// a second.
    pub fn writing_slowly(memory_mib: u32) -> Self {
        Self::idle(memory_mib).writing(memory_mib * 64, Write::FirstWord, 100_000)
    }

    /// Like [`Guest::idle`], but it goes on writing to all pages that it filled, as fast as it can.
    pub fn writing_all(memory_mib: u32) -> Self {
        Self::idle(memory_mib).writing(memory_mib * 160, Write::FirstWord, 0)
    }

    /// The same guest, going on to write to its first `pages` pages.
    #[must_use]
    pub fn writing(self, pages: u32, write: Write, delay: u32) -> Self {
        let writes = Writes {
            first: FIRST_PAGE,
            pages,
            write,
            delay,
        };
        Self {
            writes: Some(writes),
            ..self
        }
    }

    /// How many bytes of memory it has.
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }

    /// What page `number` holds once the guest is filled and has not written yet, if it fills it.
    pub fn page(&self, number: u32) -> Option<[u8; PAGE_BYTES]> {
        let holds = |region: &&Region| {
            number >= region.first && number - region.first < region.pages //
        };
        let region = self.regions.iter().rev().find(holds)?;
        let grown = (number - region.first).wrapping_mul(region.step);
        Some(content(region.seed.wrapping_add(grown)))
    }

    /// What page `number` holds after `pass` has written to it.
    fn written(&self, writes: &Writes, number: u32, pass: u32) -> [u8; PAGE_BYTES] {
        if pass > 0 && writes.write == Write::WholePage {
            let seed = pass.wrapping_mul(PASS_STEP).wrapping_add(writes.seed());
            return content(seed.wrapping_add(number - writes.first));
        }
        let mut page = self.page(number).unwrap_or([0; PAGE_BYTES]);
        if pass > 0 {
            page[..4].copy_from_slice(&pass.to_le_bytes());
        }
        page
    }

    /// Judges memory that was taken while the guest stood still (from byte 0, at least 1 MiB).
    ///
    /// # Errors
    ///
    /// [`Error::WrongMemory`] names the first page that the guest cannot have left like that.
    pub fn check(&self, memory: &[u8]) -> Result<Progress, Error> {
        let writes = self.writes.unwrap_or(Writes {
            first: FIRST_PAGE,
            pages: 0,
            write: Write::FirstWord,
            delay: 0,
        });
        let range = writes.first..writes.first + writes.pages;
        for region in &self.regions {
            let filled = region.first..region.first + region.pages;
            for number in filled.filter(|number| !range.contains(number)) {
                if Some(page_at(memory, number)?)
                    != self.page(number).as_ref().map(|page| &page[..])
                {
                    return Err(wrong(number, "is not as it was filled".into()));
                }
            }
        }
        self.check_writes(memory, &writes)
    }

    /// Judges the range of `writes`.
    fn check_writes(&self, memory: &[u8], writes: &Writes) -> Result<Progress, Error> {
        let pass = read_word(memory, STATUS + 4);
        let mut progress = Progress { pass, pages: 0 };
        let mut old = false;
        for number in writes.first..writes.first + writes.pages {
            let page = page_at(memory, number)?;
            if !old && page == self.written(writes, number, pass) {
                progress.pages += 1;
            } else if pass > 0
                && (page == self.written(writes, number, pass - 1)
                    || (!old && self.half(writes, number, pass, page)))
            {
                old = true;
            } else {
                let side = if old { "behind" } else { "before" };
                return Err(wrong(
                    number,
                    format!("is not of pass {pass}, {side} the place of writing"),
                ));
            }
        }
        Ok(progress)
    }

    /// Is `page` in the middle of being written in `pass`?
    fn half(&self, writes: &Writes, number: u32, pass: u32, page: &[u8]) -> bool {
        let (new, old) = (
            self.written(writes, number, pass),
            self.written(writes, number, pass - 1),
        );
        let same = page.iter().zip(&new).take_while(|(a, b)| a == b).count() / 4 * 4;
        page[same..] == old[same..]
    }

    /// The list of regions as the guest reads it: first byte, pages, seed, step.
    pub(crate) fn regions_table(&self) -> impl Iterator<Item = [u32; 4]> + '_ {
        let row = |region: &Region| {
            [
                region.first * PAGE_BYTES as u32,
                region.pages,
                region.seed,
                region.step,
            ]
        };
        self.regions.iter().map(row)
    }

    /// The writes as the guest reads them: first byte, pages, seed, step, whole page?, delay.
    pub(crate) fn writes_table(&self) -> [u32; 6] {
        let Some(writes) = self.writes else {
            return [0; 6];
        };
        let whole = u32::from(writes.write == Write::WholePage);
        let first = writes.first * PAGE_BYTES as u32;
        [first, writes.pages, writes.seed(), 1, whole, writes.delay]
    }
}

impl Writes {
    /// Seed of the first page in pass 0; never that of a region.
    fn seed(&self) -> u32 {
        0x4000_0000
    }
}

/// Where the guest tells its state: a word that says it is ready, and the pass.
pub(crate) const STATUS: usize = 0x5000;
/// The word that says so.
pub(crate) const READY: u32 = 0x5944_4552;

/// The little-endian word of `memory` at `place`.
fn read_word(memory: &[u8], place: usize) -> u32 {
    let bytes = memory
        .get(place..place + 4)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

/// The page that the guest makes from `seed`; all zeros from 0.
fn content(seed: u32) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    let mut word = seed.wrapping_mul(SPREAD);
    for bytes in page.chunks_exact_mut(4) {
        word ^= word << 13;
        word ^= word >> 17;
        word ^= word << 5;
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    page
}

/// Page `number` of `memory`.
fn page_at(memory: &[u8], number: u32) -> Result<&[u8], Error> {
    let page = memory.chunks_exact(PAGE_BYTES).nth(number as usize);
    page.ok_or_else(|| wrong(number, "is not there".into()))
}

/// Page `number` is wrong because of `why`.
fn wrong(number: u32, why: String) -> Error {
    Error::WrongMemory {
        page: number.into(),
        why,
    }
}
