// SPDX-License-Identifier: GPL-2.0

//! Guest memory that others read and write: disks, pipes, rings.

use std::fs::{
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Read, //
};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    FileExt,
    OpenOptionsExt, //
};

use io_uring::{
    opcode,
    types,
    IoUring, //
};
use tinyvm::{
    content,
    fresh,
    Counter,
    WORDS, //
};
use twinpage_lab::files::pipe;
use twinpage_lab::random::Random;

use crate::vmm::{
    Machine,
    Trouble, //
};

/// Pages of the disk that are one monitor's own.
const SHARE: usize = 64;

/// A page as bytes, aligned for a disk.
#[repr(align(4096))]
struct Bytes([u8; 4096]);

impl Bytes {
    fn of(number: u32) -> Bytes {
        let mut bytes = Bytes([0; 4096]);
        let words = content(number);
        for (to, word) in bytes.0.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Fails unless this is the content of one of the numbers.
    fn must_be(&self, what: &str, numbers: &[u32]) -> Result<(), Trouble> {
        if numbers.iter().any(|&number| Bytes::of(number).0 == self.0) {
            return Ok(());
        }
        let seen = u32::from_le_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]);
        Err(Trouble::Wrong(format!(
            "{what}: expected numbers {numbers:x?}, the first word seen is {seen:#x}"
        )))
    }
}

/// Fails with the kernel's error unless a page was moved.
fn whole(moved: isize) -> io::Result<()> {
    match moved {
        4096 => Ok(()),
        0.. => Err(io::Error::other(format!("moved {moved} bytes"))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A kind that other guests have too.
fn number(random: &mut Random) -> u32 {
    fresh(random.below(64) as u64)
}

/// Some data page, as a page of the memory, and as one of the guest's.
fn some_page(machine: &Machine, random: &mut Random) -> (usize, usize) {
    let (page, _) = machine.some_pages(random, 1);
    (page, page - machine.first_page)
}

/// Tells the guest what somebody wrote for it, and looks whether it is there.
fn written(counter: &Counter, data: usize, number: u32) -> Result<(), Trouble> {
    counter.believe(data, number);
    Ok(counter.check(data)?)
}

/// One page as a vector for the kernel.
fn vector(at: *mut u8) -> libc::iovec {
    libc::iovec {
        iov_base: at.cast(),
        iov_len: 4096,
    }
}

/// A page waits in a pipe while the guest runs. The pipe shows the page as it was, if it was shared
/// then, or as it is.
pub fn splice(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, data) = some_page(machine, random);
    let (mut reader, writer) = pipe()?;
    let before = {
        let state = machine.still();
        let page = vector(machine.memory.page(page));
        // SAFETY: the vector points to one page of guest memory, which outlives the pipe.
        whole(unsafe { libc::vmsplice(writer.as_raw_fd(), &page, 1, 0) })?;
        state.counter.number(data)
    };
    random.nap(100);
    let state = machine.still();
    let mut bytes = Bytes([0; 4096]);
    reader.read_exact(&mut bytes.0)?;
    bytes.must_be("a pipe", &[before, state.counter.number(data)])
}

/// The disk, without the page cache, and where this monitor's part of it has a free page.
fn disk(machine: &Machine, random: &mut Random) -> io::Result<(File, libc::off_t)> {
    let name = machine
        .plan
        .disk
        .as_ref()
        .ok_or_else(|| io::Error::other("there is no disk"))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(name)?;
    let page = machine.plan.number as usize * SHARE + random.below(SHARE);
    Ok((file, (page * 4096) as libc::off_t))
}

/// A disk writes into guest memory.
pub fn direct_read(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, data) = some_page(machine, random);
    let number = number(random);
    let (disk, at) = disk(machine, random)?;
    disk.write_all_at(&Bytes::of(number).0, at as u64)?;
    let state = machine.still();
    let buffer = machine.memory.page(page).cast();
    // SAFETY: the buffer is one page of guest memory.
    whole(unsafe { libc::pread(disk.as_raw_fd(), buffer, 4096, at) })?;
    written(&state.counter, data, number)
}

/// A disk reads guest memory.
pub fn direct_write(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, data) = some_page(machine, random);
    let (disk, at) = disk(machine, random)?;
    let number = {
        let state = machine.still();
        let buffer = machine.memory.page(page).cast();
        // SAFETY: the buffer is one page of guest memory.
        whole(unsafe { libc::pwrite(disk.as_raw_fd(), buffer, 4096, at) })?;
        state.counter.number(data)
    };
    let mut bytes = Bytes([0; 4096]);
    disk.read_exact_at(&mut bytes.0, at as u64)?;
    bytes.must_be("a disk", &[number])
}

/// A ring holds a page for longer: what it moves is what the guest has there, always.
pub fn registered(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, data) = some_page(machine, random);
    let mut ring = IoUring::new(4)?;
    let buffer = vector(machine.memory.page(page));
    // SAFETY: the buffer is one page of guest memory, which outlives the ring.
    unsafe { ring.submitter().register_buffers(&[buffer])? };
    random.nap(150);
    let state = machine.still();
    let (mut reader, writer) = pipe()?;
    let write = opcode::WriteFixed::new(
        types::Fd(writer.as_raw_fd()),
        machine.memory.page(page),
        4096,
        0,
    );
    transfer(&mut ring, &write.build())?;
    let mut bytes = Bytes([0; 4096]);
    reader.read_exact(&mut bytes.0)?;
    bytes.must_be("a registered buffer", &[state.counter.number(data)])?;

    // And what comes in is what the guest sees.
    let zeroes = File::open("/dev/zero")?;
    let read = opcode::ReadFixed::new(
        types::Fd(zeroes.as_raw_fd()),
        machine.memory.page(page),
        4096,
        0,
    );
    transfer(&mut ring, &read.build())?;
    if machine.memory.read_page(page) != [0; WORDS] {
        let text = format!("data page {data} lost what a ring read into it");
        return Err(Trouble::Wrong(text));
    }
    written(&state.counter, data, 0)
}

/// One transfer of a ring, to its end.
fn transfer(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> Result<(), Trouble> {
    // SAFETY: the entry's buffer is registered, and guest memory outlives the ring.
    let pushed = unsafe { ring.submission().push(entry) };
    pushed.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next().map(|entry| entry.result()) {
        Some(4096) => Ok(()),
        Some(error @ ..0) => Err(io::Error::from_raw_os_error(-error).into()),
        other => Err(Trouble::Wrong(format!("a ring moved {other:?} bytes"))),
    }
}
