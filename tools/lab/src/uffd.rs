// SPDX-License-Identifier: GPL-2.0

//! Userfaultfd: who is told of the faults in a range, and may move pages.
//!
//! The numbers and structures are those of `include/uapi/linux/userfaultfd.h` of the kernel.

use std::fs::File;
use std::io::{
    self,
    Read, //
};
use std::os::fd::{
    AsRawFd,
    FromRawFd,
    RawFd, //
};
use std::sync::atomic::{
    AtomicBool,
    AtomicUsize,
    Ordering, //
};

use crate::pagemap::PAGE_BYTES;
use crate::tap::Failure;

/// Whether the kernel writes to the argument of a request, or reads it, as the request says.
const WRITES: u64 = 3 << 30;
const READS: u64 = 2 << 30;

/// Requests, each with the number of 64-bit words of its argument.
const API: (u64, usize) = (WRITES | 0x3f, 3);
const REGISTER: (u64, usize) = (WRITES, 4);
const UNREGISTER: (u64, usize) = (READS | 0x01, 2);
const COPY: (u64, usize) = (WRITES | 0x03, 5);
const ZEROPAGE: (u64, usize) = (WRITES | 0x04, 4);
const MOVE: (u64, usize) = (WRITES | 0x05, 5);
const WRITE_PROTECT: (u64, usize) = (WRITES | 0x06, 3);
const READ_WRITE_PROTECT: (u64, usize) = (WRITES | 0x09, 3);

/// What a userfaultfd can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// To be told of writes.
    WriteProtect,
    /// That writes go on, and only [`crate::pagemap::Pagemap::scan`] tells of them.
    WriteProtectAsync,
    /// To move pages.
    Move,
    /// To be told of reads and writes.
    ReadWriteProtect,
    /// That reads and writes go on; nobody is told.
    ReadWriteProtectAsync,
}

impl Feature {
    fn bits(self) -> u64 {
        match self {
            Feature::WriteProtect => 1,
            Feature::WriteProtectAsync => 1 << 15,
            Feature::Move => 1 << 16,
            Feature::ReadWriteProtect => 1 << 17,
            Feature::ReadWriteProtectAsync => 1 << 18,
        }
    }
}

/// Which faults in a range are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// Accesses to pages that are not there.
    Missing,
    /// Writes to pages that were protected.
    Writes,
    /// Reads and writes of pages that were hidden.
    Accesses,
}

/// Moves may find nothing at some addresses.
const ALLOW_HOLES: u64 = 1 << 1;

/// What a message says: the kind of event, the flags of a fault.
const EVENT_FAULT: u8 = 0x12;
const FAULT_FLAG_WRITE_PROTECT: u64 = 2;
const FAULT_FLAG_READ_WRITE_PROTECT: u64 = 8;

/// A fault that somebody waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Address of the page.
    pub page: u64,
    /// What was missing: the page, or the right to write, or to read.
    pub faults: Faults,
}

/// A userfaultfd.
pub struct Watcher(File);

impl Watcher {
    /// Opens one with these features.
    ///
    /// # Errors
    ///
    /// [`Failure::Skipped`] where the kernel has no such thing.
    pub fn new(features: &[Feature]) -> Result<Watcher, Failure> {
        // SAFETY: the call takes flags only.
        let file =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if file < 0 {
            let error = io::Error::last_os_error();
            return Err(Failure::Skipped(format!("no userfaultfd: {error}")));
        }
        // SAFETY: the file was just opened and nobody else owns it.
        let watcher = Watcher(unsafe { File::from_raw_fd(file as libc::c_int) });
        let features = features.iter().map(|feature| feature.bits()).sum();
        match watcher.request(API, &mut [0xaa, features, 0, 0, 0]) {
            Ok(()) => Ok(watcher),
            Err(error) => Err(Failure::Skipped(format!("no such userfaultfd: {error}"))),
        }
    }

    fn request(&self, (number, words): (u64, usize), argument: &mut [u64; 5]) -> io::Result<()> {
        let request = number | ((words as u64 * 8) << 16) | (0xaa << 8);
        // SAFETY: the kernel reads and writes `words` 64-bit words, and there are five.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Watches a range from now on.
    ///
    /// # Errors
    ///
    /// The kernel's, for example when somebody else watches it.
    pub fn register(&self, address: u64, pages: usize, faults: Faults) -> io::Result<()> {
        let mode = match faults {
            Faults::Missing => 1,
            Faults::Writes => 2,
            Faults::Accesses => 8,
        };
        let bytes = pages as u64 * PAGE_BYTES;
        self.request(REGISTER, &mut [address, bytes, mode, 0, 0])
    }

    /// No longer watches a range; whoever waits there goes on.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn unregister(&self, address: u64, pages: usize) -> io::Result<()> {
        let bytes = pages as u64 * PAGE_BYTES;
        self.request(UNREGISTER, &mut [address, bytes, 0, 0, 0])
    }

    /// Protects pages from writes, or lets writers go on.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn protect(&self, address: u64, pages: usize, protect: bool) -> io::Result<()> {
        let bytes = pages as u64 * PAGE_BYTES;
        self.request(
            WRITE_PROTECT,
            &mut [address, bytes, u64::from(protect), 0, 0],
        )
    }

    /// Lets nobody read or write pages, or lets those go on who want to.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn hide(&self, address: u64, pages: usize, hide: bool) -> io::Result<()> {
        let bytes = pages as u64 * PAGE_BYTES;
        self.request(
            READ_WRITE_PROTECT,
            &mut [address, bytes, u64::from(hide), 0, 0],
        )
    }

    /// Puts a copy of a page of this process where one is missing.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn copy_page(&self, to: u64, from: u64) -> io::Result<()> {
        self.request(COPY, &mut [to, from, PAGE_BYTES, 0, 0])
    }

    /// Moves pages to where nothing is mapped yet, in a range that is watched for missing pages.
    ///
    /// # Errors
    ///
    /// The kernel's: a page is shared, or held.
    pub fn move_pages(&self, to: u64, from: u64, pages: usize) -> io::Result<()> {
        let bytes = pages as u64 * PAGE_BYTES;
        self.request(MOVE, &mut [to, from, bytes, ALLOW_HOLES, 0])
    }

    /// The fault that somebody waits in, if anybody does.
    ///
    /// # Errors
    ///
    /// The kernel's, or a message that is no fault.
    pub fn fault(&self) -> io::Result<Option<Fault>> {
        let mut message = [0_u8; 32];
        match (&self.0).read(&mut message) {
            Ok(32) if message[0] == EVENT_FAULT => {
                let word = |at: usize| {
                    let bytes = message[at..at + 8].try_into();
                    u64::from_le_bytes(bytes.unwrap_or_default())
                };
                Ok(Some(Fault {
                    page: word(16) / PAGE_BYTES * PAGE_BYTES,
                    faults: match word(8) {
                        flags if flags & FAULT_FLAG_WRITE_PROTECT != 0 => Faults::Writes,
                        flags if flags & FAULT_FLAG_READ_WRITE_PROTECT != 0 => Faults::Accesses,
                        _ => Faults::Missing,
                    },
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Ok(_) => Err(io::Error::other("a message that is no fault")),
            Err(error) => Err(error),
        }
    }

    /// Answers every fault until `done`: a read or a write goes on, a missing page is one of zeroes;
    /// how many there were.
    ///
    /// # Errors
    ///
    /// The kernel's, or a message that is no fault.
    pub fn answer(&self, done: &AtomicBool) -> io::Result<usize> {
        let faults = AtomicUsize::new(0);
        self.answer_counting(done, &faults)?;
        Ok(faults.into_inner())
    }

    /// The same, and others can see meanwhile how many there were.
    ///
    /// # Errors
    ///
    /// As [`Watcher::answer`].
    pub fn answer_counting(&self, done: &AtomicBool, faults: &AtomicUsize) -> io::Result<()> {
        loop {
            match self.fault()? {
                Some(fault) => {
                    faults.fetch_add(1, Ordering::AcqRel);
                    match fault.faults {
                        Faults::Missing => {
                            self.request(ZEROPAGE, &mut [fault.page, PAGE_BYTES, 0, 0, 0])?;
                        }
                        Faults::Writes => self.protect(fault.page, 1, false)?,
                        Faults::Accesses => self.hide(fault.page, 1, false)?,
                    }
                }
                None if done.load(Ordering::Acquire) => return Ok(()),
                None => std::thread::yield_now(),
            }
        }
    }
}

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
