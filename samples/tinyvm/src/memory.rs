// SPDX-License-Identifier: GPL-2.0

//! Memory that a guest uses while the program that mapped it looks at it too.
//!
//! A guest writes at any moment, so its bytes are never behind a Rust reference: every access here
//! is one volatile word.

use std::ptr::null_mut;

use crate::Error;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;

/// 64-bit words in a page.
pub const WORDS: usize = PAGE_BYTES / 8;

/// Bytes in a huge page.
const HUGE_BYTES: usize = 2 << 20;

/// What one page table of the highest level but one maps, and how many of them a process has.
const APART_BYTES: usize = 1 << 39;
const APART_PLACES: usize = 1 << 8;

/// What lies behind the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory in small pages.
    Small,
    /// Private anonymous memory that asks for transparent huge pages, 2 MiB aligned.
    Huge,
    /// A memfd, mapped shared.
    Shared,
    /// A memfd, mapped private: pages become anonymous when they are written.
    PrivateFile,
    /// Hugetlbfs pages, mapped private.
    Hugetlb,
}

/// A mapping that ends with the value.
pub struct Memory {
    base: *mut u8,
    mapping: *mut u8,
    mapping_bytes: usize,
    pages: usize,
    file: libc::c_int,
}

// SAFETY: the value owns its mapping and all access is through volatile words; which thread holds
// the value makes no difference to either.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`: concurrent volatile word access is what this memory is for, the guest does
// the same from its own processor.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `pages` pages.
    ///
    /// # Errors
    ///
    /// The kernel has no such memory to give.
    pub fn new(pages: usize, backing: Backing) -> Result<Memory, Error> {
        let bytes = pages * PAGE_BYTES;
        let bytes = match backing {
            Backing::Hugetlb => bytes.next_multiple_of(HUGE_BYTES),
            _ => bytes,
        };
        // Room to align to a huge page, so that tests know where huge pages begin.
        let mapping_bytes = bytes + HUGE_BYTES;
        let mapping = map(null_mut(), mapping_bytes, libc::PROT_NONE, ANONYMOUS, -1)?;
        let skip = mapping.align_offset(HUGE_BYTES);
        // SAFETY: `skip` is less than the 2 MiB by which the mapping is longer than `bytes`.
        let base = unsafe { mapping.add(skip) };
        let mut memory = Memory {
            base,
            mapping,
            mapping_bytes,
            pages,
            file: -1,
        };
        memory.back(bytes, backing)?;
        Ok(memory)
    }

    /// Maps `pages` pages of private anonymous memory where nothing else is, nor will be: with
    /// [`Memory::unmap`] the page tables of all levels go.
    ///
    /// # Errors
    ///
    /// The kernel has no such memory to give.
    ///
    /// # Panics
    ///
    /// When the backing is another.
    pub fn apart(pages: usize, backing: Backing) -> Result<Memory, Error> {
        assert!(matches!(backing, Backing::Small | Backing::Huge));
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let bytes = pages * PAGE_BYTES;
        // The kernel fills the address space from above, programs and heaps are elsewhere still.
        let place = (1..APART_PLACES).find_map(|place| {
            let at = null_mut::<u8>().wrapping_add(place * APART_BYTES);
            map(at, bytes, access, flags, -1).ok()
        });
        let base = place.ok_or_else(|| Error::memory("map guest memory apart"))?;
        let memory = Memory {
            base,
            mapping: base,
            mapping_bytes: bytes,
            pages,
            file: -1,
        };
        memory.ask_for(backing)?;
        Ok(memory)
    }

    /// Unmaps some of the pages. They are not accessed, and nobody else maps anything there, until
    /// [`Memory::map_again`] brings them back.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn unmap(&self, page: usize, pages: usize) -> Result<(), Error> {
        assert!(page + pages <= self.pages);
        let at = self.base.wrapping_add(page * PAGE_BYTES).cast();
        // SAFETY: the range is inside the mapping. Who unmaps it does not access it afterwards; an
        // access would be a signal, not undefined behaviour.
        if unsafe { libc::munmap(at, pages * PAGE_BYTES) } != 0 {
            return Err(Error::memory("unmap guest memory"));
        }
        Ok(())
    }

    /// Maps pages again that were unmapped, as zeroes of that backing, which is no file of its own:
    /// shared memory is anonymous.
    ///
    /// # Errors
    ///
    /// The kernel's; somebody else has settled there.
    pub fn map_again(&self, page: usize, pages: usize, backing: Backing) -> Result<(), Error> {
        assert!(page + pages <= self.pages);
        let at = self.base.wrapping_add(page * PAGE_BYTES);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = match backing {
            Backing::Hugetlb => ANONYMOUS | libc::MAP_HUGETLB,
            Backing::Shared => ANONYMOUS ^ libc::MAP_PRIVATE | libc::MAP_SHARED,
            _ => ANONYMOUS,
        };
        let flags = kind | libc::MAP_FIXED_NOREPLACE;
        map(at, pages * PAGE_BYTES, access, flags, -1)?;
        self.ask_for(backing)
    }

    /// Asks for huge pages, or for none.
    fn ask_for(&self, backing: Backing) -> Result<(), Error> {
        match backing {
            Backing::Small => self.advise(0, self.pages, libc::MADV_NOHUGEPAGE),
            Backing::Huge => self.advise(0, self.pages, libc::MADV_HUGEPAGE),
            _ => Ok(()),
        }
    }

    fn back(&mut self, bytes: usize, backing: Backing) -> Result<(), Error> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let fixed = libc::MAP_FIXED;
        let flags = match backing {
            Backing::Small | Backing::Huge => ANONYMOUS | fixed,
            Backing::Hugetlb => ANONYMOUS | fixed | libc::MAP_HUGETLB,
            Backing::Shared => libc::MAP_SHARED | fixed,
            Backing::PrivateFile => libc::MAP_PRIVATE | fixed,
        };
        if matches!(backing, Backing::Shared | Backing::PrivateFile) {
            // SAFETY: the name is a C string and the call takes nothing else.
            self.file = unsafe { libc::memfd_create(c"tinyvm".as_ptr(), libc::MFD_CLOEXEC) };
            if self.file < 0 {
                return Err(Error::memory("create a memfd"));
            }
            // SAFETY: the file is open; the length is that of the mapping to come.
            if unsafe { libc::ftruncate(self.file, bytes as libc::off_t) } != 0 {
                return Err(Error::memory("size a memfd"));
            }
        }
        map(self.base, bytes, access, flags, self.file)?;
        self.ask_for(backing)
    }

    /// The first address.
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    /// The address of a page.
    pub fn page_address(&self, page: usize) -> u64 {
        self.address() + (page * PAGE_BYTES) as u64
    }

    /// The first byte of a page.
    ///
    /// # Panics
    ///
    /// When there is no such page.
    pub fn page(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        self.base.wrapping_add(page * PAGE_BYTES)
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The memfd behind it, if there is one.
    pub fn file(&self) -> Option<libc::c_int> {
        (self.file >= 0).then_some(self.file)
    }

    /// One 64-bit word.
    ///
    /// # Panics
    ///
    /// When there is no such page or word.
    pub fn word(&self, page: usize, word: usize) -> u64 {
        assert!(word < WORDS, "word {word}");
        let at = self.page(page).cast::<u64>().wrapping_add(word);
        // SAFETY: `at` is an aligned word inside the mapping, which lives as long as `self`.
        unsafe { at.read_volatile() }
    }

    /// Writes one 64-bit word.
    ///
    /// # Panics
    ///
    /// When there is no such page or word.
    pub fn set_word(&self, page: usize, word: usize, value: u64) {
        assert!(word < WORDS, "word {word}");
        let at = self.page(page).cast::<u64>().wrapping_add(word);
        // SAFETY: `at` is an aligned word inside the mapping, which lives as long as `self`.
        unsafe { at.write_volatile(value) }
    }

    /// Copies a page out, word by word.
    pub fn read_page(&self, page: usize) -> [u64; WORDS] {
        std::array::from_fn(|word| self.word(page, word))
    }

    /// Writes a page, word by word.
    pub fn write_page(&self, page: usize, content: &[u64; WORDS]) {
        for (word, &value) in content.iter().enumerate() {
            self.set_word(page, word, value);
        }
    }

    /// `madvise` on some of the pages.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn advise(&self, page: usize, pages: usize, advice: libc::c_int) -> Result<(), Error> {
        assert!(page + pages <= self.pages);
        let at = self.base.wrapping_add(page * PAGE_BYTES).cast();
        // SAFETY: the range is inside the mapping; advice that drops content is as good as the
        // writes of a guest, which may happen at any time.
        if unsafe { libc::madvise(at, pages * PAGE_BYTES, advice) } != 0 {
            return Err(Error::memory("advise on guest memory"));
        }
        Ok(())
    }

    /// Locks all pages in memory.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn lock(&self) -> Result<(), Error> {
        // SAFETY: the range is the mapping's own; locking changes no content.
        if unsafe { libc::mlock(self.base.cast(), self.pages * PAGE_BYTES) } != 0 {
            return Err(Error::memory("lock guest memory"));
        }
        Ok(())
    }

    /// Changes what may be done with some of the pages.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn protect(&self, page: usize, pages: usize, access: libc::c_int) -> Result<(), Error> {
        assert!(page + pages <= self.pages);
        let at = self.base.wrapping_add(page * PAGE_BYTES).cast();
        // SAFETY: the range is inside the mapping. Who takes rights away does not access it
        // afterwards; an access would be a signal, not undefined behaviour.
        if unsafe { libc::mprotect(at, pages * PAGE_BYTES, access) } != 0 {
            return Err(Error::memory("protect guest memory"));
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing uses it after `drop`; a VM that still
        // has a memslot there only finds nothing mapped.
        unsafe { libc::munmap(self.mapping.cast(), self.mapping_bytes) };
        if self.file >= 0 {
            // SAFETY: the file was opened here and is closed once.
            unsafe { libc::close(self.file) };
        }
    }
}

const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// `mmap` that reserves fresh addresses, replaces a part of such a reservation, or fails.
fn map(
    at: *mut u8,
    bytes: usize,
    access: libc::c_int,
    flags: libc::c_int,
    file: libc::c_int,
) -> Result<*mut u8, Error> {
    // SAFETY: `at` is null, or (with MAP_FIXED) inside a reservation of the caller's own, or
    // MAP_FIXED_NOREPLACE is set, so no foreign mapping is replaced.
    let base = unsafe { libc::mmap(at.cast(), bytes, access, flags, file, 0) };
    if base == libc::MAP_FAILED {
        return Err(Error::memory("map guest memory"));
    }
    Ok(base.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backing_holds_what_is_written() {
        for backing in [
            Backing::Small,
            Backing::Huge,
            Backing::Shared,
            Backing::PrivateFile,
        ] {
            let memory = Memory::new(5, backing).unwrap();
            memory.set_word(4, 511, 7);
            assert_eq!(memory.word(4, 511), 7);
            assert_eq!(memory.read_page(3), [0; WORDS]);
            assert_eq!(memory.address() % (2 << 20), 0);
        }
    }

    #[test]
    fn memory_apart_goes_and_comes_back() {
        let first = Memory::apart(5, Backing::Small).unwrap();
        let second = Memory::apart(5, Backing::Huge).unwrap();
        assert_ne!(first.address(), second.address());
        assert_eq!(second.address() % APART_BYTES as u64, 0);
        second.set_word(4, 511, 7);
        second.unmap(0, 5).unwrap();
        second.map_again(0, 5, Backing::Huge).unwrap();
        assert!(second.map_again(0, 5, Backing::Huge).is_err());
        assert_eq!(second.word(4, 511), 0);
    }
}
