// SPDX-License-Identifier: GPL-2.0

//! A VM whose every byte is known.

use std::os::fd::{
    AsRawFd,
    RawFd, //
};

use tinyvm::{
    Backing,
    Memory,
    Slot,
    Vm, //
};
use twinpage_lab::content;
use twinpage_lab::random::Random;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

/// The domains that VMs are attached to, and more often than to any other.
const DOMAINS: [u64; 4] = [0, 1, 2, u64::MAX];

/// Contents that several pages have.
const COMMON: usize = 24;

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Zeroes.
    Zero,
    /// What follows from a key.
    Key(u64),
}

/// A VM and what its memory holds.
pub struct Guest {
    vm: Vm,
    memory: Memory,
    contents: Vec<Content>,
    domain: u64,
    /// Number of the attachment.
    pub id: Option<u32>,
    /// Whether others may detach it at any moment.
    pub offered: bool,
}

/// A content that only VMs of one domain ever have.
pub fn own_content(domain: u64, number: usize) -> Content {
    Content::Key(domain.rotate_left(32) ^ (1 << 20) ^ number as u64)
}

impl Guest {
    /// A VM with pages that occur elsewhere, pages of its own, and zeroes.
    pub fn new(random: &mut Random) -> Result<Guest, Failure> {
        let backing = match random.below(8) {
            0 => Backing::Huge,
            1 => Backing::Shared,
            _ => Backing::Small,
        };
        let pages = match backing {
            Backing::Huge => 512 + random.below(512),
            _ => 1 + random.below(600),
        };
        let memory = Memory::new(pages, backing)?;
        let vm = Vm::over(&memory)?;
        let domain = match random.below(8) {
            0 => random.number(),
            _ => random.pick(&DOMAINS),
        };
        let mut guest = Guest {
            vm,
            memory,
            contents: vec![Content::Zero; pages],
            domain,
            id: None,
            offered: false,
        };
        for page in 0..pages {
            guest.rewrite(random, page);
        }
        Ok(guest)
    }

    /// The domain it is always attached to.
    pub fn domain(&self) -> u64 {
        self.domain
    }

    /// What a page holds.
    pub fn content(&self, page: usize) -> Content {
        self.contents[page]
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.contents.len()
    }

    /// The memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether it is attached, and only its worker may change that.
    pub fn is_attached(&self) -> bool {
        self.id.is_some() && !self.offered
    }

    /// The file of the VM.
    pub fn file(&self) -> RawFd {
        self.vm.as_raw_fd()
    }

    /// Gives a page another content.
    pub fn rewrite(&mut self, random: &mut Random, page: usize) {
        let content = match random.below(8) {
            0 => Content::Zero,
            1 => Content::Key(random.word() | (1 << 63)),
            2 | 3 => own_content(self.domain, random.below(COMMON)),
            _ => Content::Key(1 + random.below(COMMON) as u64),
        };
        match content {
            Content::Zero => self.memory.write_page(page, &[0; tinyvm::WORDS]),
            Content::Key(key) => content::fill(&self.memory, page, key),
        }
        self.contents[page] = content;
    }

    /// Drops the content of some pages, as a balloon does.
    pub fn discard(&mut self, page: usize, pages: usize) -> Outcome {
        // Pages of a memfd come back as they were.
        if self.memory.file().is_none() {
            self.memory.advise(page, pages, libc::MADV_DONTNEED)?;
            self.contents[page..page + pages].fill(Content::Zero);
        }
        Ok(())
    }

    /// Shows the memory a second time elsewhere, or no longer.
    pub fn alias(&mut self, there: bool, flags: u32) -> Outcome {
        let slot = Slot {
            number: 7,
            guest: 0x4000_0000,
            host: self.memory.address(),
            pages: if there { self.pages() } else { 0 },
            flags,
            ..Slot::default()
        };
        // A slot that is not there cannot be taken away.
        let set = self.vm.set_slot(slot);
        match there {
            true => Ok(set?),
            false => Ok(()),
        }
    }

    /// Compares one page with what it should hold.
    pub fn check_page(&self, page: usize) -> Outcome {
        match self.contents[page] {
            Content::Key(key) => content::check(&self.memory, page, key),
            Content::Zero if self.memory.read_page(page) == [0; tinyvm::WORDS] => Ok(()),
            Content::Zero => Err(Failure::Failed(format!("page {page} is not zero"))),
        }
    }

    /// Compares all pages with what they should hold.
    pub fn check(&self) -> Outcome {
        (0..self.pages()).try_for_each(|page| self.check_page(page))
    }
}
