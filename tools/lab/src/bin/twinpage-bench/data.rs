// SPDX-License-Identifier: GPL-2.0

//! Guests, and what their memory holds.

use std::ops;
use std::os::fd::{
    AsRawFd,
    RawFd, //
};

use tinyvm::{
    Backing,
    Memory,
    Vm,
    WORDS, //
};
use twinpage_lab::content::fill;
use twinpage_lab::oracle::Range;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::merger::Mergeable;

/// Guests that share the pages of a measurement.
pub const GUESTS: usize = 4;

/// Words at the end of a page in which pages of [`Data::Tail`] differ: 64 bytes.
const TAIL: usize = 8;

/// Words in which pages of [`Data::Unsampled`] differ: 64 bytes that Twinpage does not sample.
pub const UNSAMPLED: ops::Range<usize> = 8..16;

/// A VM that never runs, and its memory.
pub struct Guest {
    /// The VM.
    pub vm: Vm,
    /// Its only memslot.
    pub memory: Memory,
}

impl Mergeable for Guest {
    fn vm(&self) -> RawFd {
        self.vm.as_raw_fd()
    }

    fn ram(&self) -> Range {
        Range {
            pid: std::process::id(),
            address: self.memory.address(),
            pages: self.memory.pages(),
        }
    }

    fn advise(&self) -> Outcome {
        Ok(self
            .memory
            .advise(0, self.memory.pages(), libc::MADV_MERGEABLE)?)
    }
}

/// What memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// All pages are the same.
    Equal,
    /// Each guest holds the same pages, all of them random and distinct.
    Copies,
    /// Half of each guest as in [`Data::Copies`], a quarter zeroes, a quarter found nowhere else.
    Mixed,
    /// No page is found twice; random.
    Unique,
    /// No page is found twice, and all differ in their last 64 bytes alone.
    Tail,
    /// The same, in 64 bytes that Twinpage does not sample.
    Unsampled,
    /// Zeroes.
    Zero,
}

impl Data {
    /// Its name in rows.
    pub fn name(self) -> &'static str {
        match self {
            Data::Equal => "D1 equal",
            Data::Copies => "D2 copies",
            Data::Mixed => "D3 mixed",
            Data::Unique => "unique",
            Data::Tail => "D6 tail",
            Data::Unsampled => "D6 unsampled",
            Data::Zero => "zero",
        }
    }

    /// Pages that an oracle would save of `size`. With zero pages merged into the zero page.
    pub fn possible(self, size: usize) -> usize {
        match self {
            Data::Equal => size - 1,
            Data::Copies => size - size / GUESTS,
            Data::Mixed => size / 2 - size / 2 / GUESTS + size / 4,
            Data::Unique | Data::Tail | Data::Unsampled => 0,
            Data::Zero => size,
        }
    }

    fn write(self, guest: usize, memory: &Memory) {
        let pages = memory.pages();
        let own = |page: usize| (((guest + 1) as u64) << 32) + page as u64;
        for page in 0..pages {
            match self {
                Data::Equal => fill(memory, page, 1),
                Data::Copies => fill(memory, page, page as u64),
                Data::Mixed if page < pages / 2 => fill(memory, page, page as u64),
                Data::Mixed if page >= pages - pages / 4 => fill(memory, page, own(page)),
                Data::Unique => fill(memory, page, own(page)),
                Data::Tail => differ(memory, page, WORDS - TAIL..WORDS, own(page)),
                Data::Unsampled => differ(memory, page, UNSAMPLED, own(page)),
                // Written, so that it is a page of its own.
                Data::Zero | Data::Mixed => memory.set_word(page, 0, 0),
            }
        }
    }

    /// Guests with `size` pages of it together.
    pub fn guests(self, size: usize) -> Result<Vec<Guest>, Failure> {
        let new = |number| {
            let memory = Memory::new(size / GUESTS, Backing::Small)?;
            self.write(number, &memory);
            Ok(Guest {
                vm: Vm::over(&memory)?,
                memory,
            })
        };
        (0..GUESTS).map(new).collect()
    }
}

/// Fills a page with what all have, but for some words.
fn differ(memory: &Memory, page: usize, words: ops::Range<usize>, own: u64) {
    fill(memory, page, 1);
    words.for_each(|word| memory.set_word(page, word, own));
}

/// Changes a word of every page.
pub fn rewrite(guests: &[Guest], word: usize) {
    for guest in guests {
        for page in 0..guest.memory.pages() {
            let value = guest.memory.word(page, word);
            guest.memory.set_word(page, word, value.wrapping_add(1));
        }
    }
}

/// Gives one page of `each` a content of its own, another one each time.
pub fn rewrite_some(guests: &[Guest], each: usize, time: u64) {
    for (guest, memory) in guests.iter().map(|guest| &guest.memory).enumerate() {
        for page in (0..memory.pages()).step_by(each) {
            let own = ((guest * memory.pages() + page) as u64) << 32;
            memory.set_word(page, 0, own | time);
        }
    }
}
