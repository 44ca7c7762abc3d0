// SPDX-License-Identifier: GPL-2.0

//! Which frame is behind an address, and what the kernel says about that frame.
//!
//! Formats: `Documentation/admin-guide/mm/pagemap.rst` of the kernel: one 64-bit word a page in
//! `/proc/PID/pagemap`, one a frame in `/proc/kpageflags` and `/proc/kpagecount`.

use std::fs::{
    File,
    OpenOptions, //
};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;

/// One page of an address space, as its pagemap shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    const FRAME: u64 = (1 << 55) - 1;

    /// The frame, when one is mapped.
    pub fn frame(self) -> Option<Frame> {
        (self.0 >> 63 == 1).then_some(Frame(self.0 & Entry::FRAME))
    }

    /// Whether the page is swapped out.
    pub fn swapped(self) -> bool {
        (self.0 >> 62) & 1 == 1
    }

    /// Whether the page was written since the soft-dirty bits were last cleared.
    pub fn soft_dirty(self) -> bool {
        (self.0 >> 55) & 1 == 1
    }

    /// Whether no other page table entry maps the frame.
    pub fn exclusive(self) -> bool {
        (self.0 >> 56) & 1 == 1
    }

    /// Whether a userfaultfd write-protects the page.
    pub fn write_protected(self) -> bool {
        (self.0 >> 57) & 1 == 1
    }
}

/// What `PAGEMAP_SCAN` says about a page (`include/uapi/linux/fs.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Categories(u64);

impl Categories {
    /// Bits of the categories that are asked for.
    const WRITTEN: u64 = 1 << 1;
    const FILE: u64 = 1 << 2;
    const PRESENT: u64 = 1 << 3;
    const ZERO: u64 = 1 << 5;
    const ALL: u64 =
        Categories::WRITTEN | Categories::FILE | Categories::PRESENT | Categories::ZERO;

    /// Written since it was last protected, in memory that is watched for writes.
    pub fn written(self) -> bool {
        self.0 & Categories::WRITTEN != 0
    }

    /// Not anonymous.
    pub fn file(self) -> bool {
        self.0 & Categories::FILE != 0
    }

    /// The shared page of zeroes.
    pub fn zero(self) -> bool {
        self.0 & Categories::ZERO != 0
    }
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `PAGEMAP_SCAN`, and its flag to protect what is found.
const SCAN: u64 = (3 << 30) | ((size_of::<Scan>() as u64) << 16) | ((b'f' as u64) << 8) | 16;
const PROTECT: u64 = 1;

/// Number of a page frame of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u64);

/// The page tables of one process.
pub struct Pagemap(File);

impl Pagemap {
    /// Opens the page tables of a process.
    ///
    /// # Errors
    ///
    /// The process is gone, or this one has no right to look.
    pub fn of(pid: u32) -> io::Result<Pagemap> {
        File::open(format!("/proc/{pid}/pagemap")).map(Pagemap)
    }

    /// Opens the page tables of this process.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn own() -> io::Result<Pagemap> {
        File::open("/proc/self/pagemap").map(Pagemap)
    }

    /// The pages from `address` on.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn read(&self, address: u64, pages: usize) -> io::Result<Vec<Entry>> {
        let mut bytes = vec![0; pages * 8];
        self.0.read_exact_at(&mut bytes, address / PAGE_BYTES * 8)?;
        Ok(bytes
            .chunks_exact(8)
            .map(|word| Entry(u64::from_le_bytes(word.try_into().unwrap_or_default())))
            .collect())
    }

    /// Scans the pages from `address` on, all of which are there.
    ///
    /// # Errors
    ///
    /// The kernel's; or a page is not there.
    pub fn scan(&self, address: u64, pages: usize) -> io::Result<Vec<Categories>> {
        self.categories(address, pages, 0, Categories::PRESENT)
    }

    /// Protects from writes the pages from `address` on that were written since the last time, in
    /// memory that is watched for writes without being told
    /// ([`crate::uffd::Feature::WriteProtectAsync`]). All of them were written.
    ///
    /// # Errors
    ///
    /// The kernel's; or a page was not written.
    pub fn protect_written(&self, address: u64, pages: usize) -> io::Result<()> {
        self.categories(address, pages, PROTECT, Categories::WRITTEN)
            .map(|_| ())
    }

    fn categories(
        &self,
        address: u64,
        pages: usize,
        flags: u64,
        wanted: u64,
    ) -> io::Result<Vec<Categories>> {
        let mut regions = vec![Region::default(); pages];
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags,
            start: address,
            end: address + pages as u64 * PAGE_BYTES,
            vec: regions.as_mut_ptr() as u64,
            vec_len: pages as u64,
            category_mask: wanted,
            return_mask: Categories::ALL,
            ..Scan::default()
        };
        // SAFETY: the kernel reads and writes one `Scan`, and at most `vec_len` regions, which both
        // outlive the call.
        let found = unsafe { libc::ioctl(self.0.as_raw_fd(), SCAN, &raw mut scan) };
        if found < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut categories = Vec::new();
        for region in &regions[..found as usize] {
            let pages = (region.end - region.start) / PAGE_BYTES;
            categories.resize(
                categories.len() + pages as usize,
                Categories(region.categories),
            );
        }
        match categories.len() == pages {
            true => Ok(categories),
            false => Err(io::Error::other(format!(
                "{} of {pages} pages were found",
                categories.len()
            ))),
        }
    }
}

/// What the kernel says about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u64);

impl Flags {
    /// An anonymous page.
    pub fn anonymous(self) -> bool {
        self.bit(12)
    }

    /// On a list of the page reclaim.
    pub fn lru(self) -> bool {
        self.bit(5)
    }

    /// Merged by ksmd.
    pub fn ksm(self) -> bool {
        self.bit(21)
    }

    /// Part of a transparent huge page.
    pub fn huge(self) -> bool {
        self.bit(22)
    }

    /// A page of the hugetlb pool.
    pub fn hugetlb(self) -> bool {
        self.bit(17)
    }

    /// A memory error was found in it.
    pub fn poisoned(self) -> bool {
        self.bit(19)
    }

    /// The shared page of zeroes.
    pub fn zero(self) -> bool {
        self.bit(24)
    }

    fn bit(self, bit: u32) -> bool {
        (self.0 >> bit) & 1 == 1
    }
}

/// What the kernel knows about all frames.
pub struct Frames {
    flags: File,
    counts: File,
}

impl Frames {
    /// Opens both files.
    ///
    /// # Errors
    ///
    /// Not root, or a kernel without `CONFIG_PROC_PAGE_MONITOR`.
    pub fn open() -> io::Result<Frames> {
        Ok(Frames {
            flags: File::open("/proc/kpageflags")?,
            counts: File::open("/proc/kpagecount")?,
        })
    }

    /// The flags of a frame.
    ///
    /// # Errors
    ///
    /// There is no such frame.
    pub fn flags(&self, frame: Frame) -> io::Result<Flags> {
        word(&self.flags, frame).map(Flags)
    }

    /// How many page table entries map a frame.
    ///
    /// # Errors
    ///
    /// There is no such frame.
    pub fn mappings(&self, frame: Frame) -> io::Result<u64> {
        word(&self.counts, frame)
    }
}

/// Idle page tracking: which frames nobody has accessed since they were marked.
///
/// Format: `Documentation/admin-guide/mm/idle_page_tracking.rst` of the kernel: one bit a frame, in
/// words of 64.
pub struct Idle(File);

impl Idle {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// Not root, or a kernel without `CONFIG_IDLE_PAGE_TRACKING`.
    pub fn open() -> io::Result<Idle> {
        let bitmap = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/sys/kernel/mm/page_idle/bitmap")?;
        Ok(Idle(bitmap))
    }

    /// Marks a frame as idle. The kernel passes over one that it does not track.
    ///
    /// # Errors
    ///
    /// There is no such frame.
    pub fn mark(&self, frame: Frame) -> io::Result<()> {
        let word = 1_u64 << (frame.0 % 64);
        self.0.write_all_at(&word.to_ne_bytes(), frame.0 / 64 * 8)
    }

    /// Whether a frame is marked still.
    ///
    /// # Errors
    ///
    /// There is no such frame.
    pub fn shows(&self, frame: Frame) -> io::Result<bool> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, frame.0 / 64 * 8)?;
        Ok((u64::from_ne_bytes(bytes) >> (frame.0 % 64)) & 1 == 1)
    }
}

fn word(file: &File, frame: Frame) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, frame.0 * 8)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_kernel_puts_them() {
        let entry = Entry((1 << 63) | (1 << 55) | 42);
        assert_eq!(entry.frame(), Some(Frame(42)));
        assert!(entry.soft_dirty() && !entry.swapped() && !entry.write_protected());
        assert_eq!(Entry((1 << 62) | 42).frame(), None);
        assert!(Flags(1 << 24).zero() && !Flags(1 << 24).anonymous());
    }
}
