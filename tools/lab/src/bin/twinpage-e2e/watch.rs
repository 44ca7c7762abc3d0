// SPDX-License-Identifier: GPL-2.0

//! Userfaultfd watchers miss no write, and may move pages that others merge.
//!
//! The numbers and structures are those of `include/uapi/linux/userfaultfd.h` of the kernel.

use std::fs::File;
use std::io::Read;
use std::os::fd::{
    AsRawFd,
    FromRawFd, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};

use tinyvm::{
    Backing,
    Memory, //
};
use twinpage_lab::ensure;
use twinpage_lab::module;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::wait;

use crate::host::{
    check,
    common_frames,
    fill,
    skipped,
    Host,
    CONVERGE,
    DOMAIN, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "a_watched_mapping_is_not_merged",
        seconds: 120,
        run: a_watched_mapping_is_not_merged,
    },
    Test {
        name: "watching_merged_pages_misses_no_write",
        seconds: 120,
        run: watching_merged_pages_misses_no_write,
    },
    Test {
        name: "userfaultfd_moves_of_merged_pages_lose_nothing",
        seconds: 180,
        run: userfaultfd_moves_of_merged_pages_lose_nothing,
    },
];

const PAGES: usize = 256;

/// Requests, each with the number of 64-bit words of its argument.
const API: (u64, usize) = (0x3f, 3);
const REGISTER: (u64, usize) = (0x00, 4);
const MOVE: (u64, usize) = (0x05, 5);
const WRITE_PROTECT: (u64, usize) = (0x06, 3);

/// Features, modes and flags.
const FEATURE_WRITE_PROTECT: u64 = 1;
const FEATURE_MOVE: u64 = 1 << 16;
const MODE_MISSING: u64 = 1;
const MODE_WRITE_PROTECT: u64 = 2;
const PROTECT: u64 = 1;
const ALLOW_HOLES: u64 = 1 << 1;

/// A userfaultfd.
struct Watcher(File);

impl Watcher {
    fn new(features: u64) -> Result<Watcher, Failure> {
        // SAFETY: the call takes flags only.
        let file =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if file < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Failure::Skipped(format!("no userfaultfd: {error}")));
        }
        // SAFETY: the file was just opened and nobody else owns it.
        let watcher = Watcher(unsafe { File::from_raw_fd(file as libc::c_int) });
        match watcher.request(API, &mut [0xaa, features, 0, 0, 0]) {
            Ok(()) => Ok(watcher),
            Err(error) => Err(Failure::Skipped(format!("no such userfaultfd: {error}"))),
        }
    }

    fn request(
        &self,
        (number, words): (u64, usize),
        argument: &mut [u64; 5],
    ) -> std::io::Result<()> {
        let request = (3 << 30) | ((words as u64 * 8) << 16) | (0xaa << 8) | number;
        // SAFETY: the kernel reads and writes `words` 64-bit words, and there are five.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument.as_mut_ptr()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }

    fn register(&self, memory: &Memory, mode: u64) -> std::io::Result<()> {
        let bytes = (memory.pages() * 4096) as u64;
        self.request(REGISTER, &mut [memory.address(), bytes, mode, 0, 0])
    }

    fn protect(&self, address: u64, pages: usize, mode: u64) -> std::io::Result<()> {
        self.request(
            WRITE_PROTECT,
            &mut [address, pages as u64 * 4096, mode, 0, 0],
        )
    }

    /// Lets every write through and counts it, until `done`.
    fn count(&self, done: &AtomicBool) -> std::io::Result<usize> {
        let mut faults = 0;
        loop {
            let mut message = [0_u8; 32];
            match (&self.0).read(&mut message) {
                Ok(32) if message[0] == 0x12 => {
                    let mut address = [0; 8];
                    address.copy_from_slice(&message[16..24]);
                    faults += 1;
                    self.protect(u64::from_le_bytes(address) & !4095, 1, 0)?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if done.load(Ordering::Acquire) {
                        return Ok(faults);
                    }
                    std::thread::yield_now();
                }
                Ok(_) => return Err(std::io::Error::other("a message that is no fault")),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Writes to each page while somebody watches; the number of faults he saw.
fn faults(
    watcher: &Watcher,
    memory: &Memory,
    key: impl Fn(usize) -> u64,
) -> Result<usize, Failure> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counter = scope.spawn(|| watcher.count(&done));
        for page in 0..memory.pages() {
            fill(memory, page, key(page));
        }
        done.store(true, Ordering::Release);
        match counter.join() {
            Ok(faults) => Ok(faults?),
            Err(_) => Err(Failure::Failed("the watcher panicked".into())),
        }
    })
}

fn a_watched_mapping_is_not_merged() -> Outcome {
    let host = Host::new()?;
    module::set("run", 0)?;
    let watcher = Watcher::new(FEATURE_WRITE_PROTECT)?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    a.fill_with(|page| page as u64 / 2);
    b.fill_with(|page| page as u64 / 2);
    watcher.register(b.memory(), MODE_WRITE_PROTECT)?;
    watcher.protect(b.memory().address(), PAGES, PROTECT)?;
    module::set("run", 1)?;
    host.until_saved(&[&a], PAGES / 2)?;
    host.passes(2)?;
    ensure!(skipped(&b, "uffd")? == PAGES as u64, "{}", b.told());
    ensure!(common_frames(&a, &b)? == 0, "watched pages were merged");
    for (page, entry) in b.entries()?.into_iter().enumerate() {
        ensure!(entry.write_protected(), "page {page} is no longer watched");
    }
    let seen = faults(&watcher, b.memory(), |page| page as u64 + 9)?;
    ensure!(seen == PAGES, "{seen} of {PAGES} writes were seen");
    b.check_with(|page| page as u64 + 9)?;
    drop(watcher);
    b.fill_with(|page| page as u64 / 2);
    host.until_saved(&[&b], PAGES / 2)
}

fn watching_merged_pages_misses_no_write() -> Outcome {
    let host = Host::new()?;
    let watcher = Watcher::new(FEATURE_WRITE_PROTECT)?;
    let [a, b] = host.twins(PAGES)?;
    watcher.register(b.memory(), MODE_WRITE_PROTECT)?;
    watcher.protect(b.memory().address(), PAGES, PROTECT)?;
    let seen = faults(&watcher, b.memory(), |page| page as u64 + 9)?;
    ensure!(seen == PAGES, "{seen} of {PAGES} writes were seen");
    b.check_with(|page| page as u64 + 9)?;
    a.check_with(|page| page as u64 + 1)
}

fn userfaultfd_moves_of_merged_pages_lose_nothing() -> Outcome {
    let host = Host::new()?;
    let watcher = Watcher::new(FEATURE_MOVE)?;
    let [a, b] = host.twins(PAGES)?;
    let target = Memory::new(PAGES, Backing::Small)?;
    watcher.register(&target, MODE_MISSING)?;
    let (mut moved, mut refused) = (0, 0);
    let mut place = vec![None; PAGES];
    // Each page a few times, so that some moves meet a page in the middle of merging.
    for round in 0..4 {
        for (page, place) in place.iter_mut().enumerate() {
            if place.is_some() {
                continue;
            }
            let (to, from) = (target.page_address(page), a.memory().page_address(page));
            match watcher.request(MOVE, &mut [to, from, 4096, ALLOW_HOLES, 0]) {
                Ok(()) => {
                    moved += 1;
                    *place = Some(round);
                }
                Err(error) => {
                    if refused == 0 {
                        println!("the first refusal: {error}");
                    }
                    refused += 1;
                    // Break the sharing of some, so that the next round can move them.
                    if page % 2 == round % 2 {
                        fill(a.memory(), page, page as u64 + 1);
                    }
                }
            }
        }
    }
    println!("{moved} pages moved, {refused} moves refused");
    for (page, place) in place.iter().enumerate() {
        match place {
            Some(_) => check(&target, page, page as u64 + 1)?,
            None => check(a.memory(), page, page as u64 + 1)?,
        }
    }
    b.check_with(|page| page as u64 + 1)?;
    drop(watcher);
    a.fill_with(|page| page as u64 + 1);
    wait::until("merging again", CONVERGE, || {
        Ok::<_, Failure>(common_frames(&a, &b)? == PAGES)
    })
    .map(|_| ())
}
