// SPDX-License-Identifier: GPL-2.0

//! Addresses that an ioctl cannot read from or write to.

use std::os::fd::AsRawFd;

use tinyvm::{
    Backing,
    Memory, //
};
use twinpage_lab::ensure;
use twinpage_lab::module::uapi;
use twinpage_lab::random::Random;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::call;
use crate::expect::{
    either,
    refused, //
};
use crate::guest::Guest;
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("pointer.version", 30, version),
    operation("pointer.attach", 12, attach),
    operation("pointer.detach", 12, detach),
    operation("pointer.read", 30, read),
    operation("pointer.buffer", 30, buffer),
];

/// What is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Memory.
    Good,
    /// Memory that cannot be written to.
    ReadOnly,
    /// Memory that ends too early.
    Straddling,
    /// Nothing, or nothing of a program's.
    Nowhere,
}

/// Pages with holes between them, for arguments of ioctls.
pub struct Scratch {
    memory: Memory,
}

/// Pages of a scratch: one to write to, one to read from, one that others take away. A hole follows
/// each.
const WRITABLE: usize = 0;
const READABLE: usize = 2;
pub const VANISHING: usize = 4;

impl Scratch {
    pub fn new() -> Result<Scratch, Failure> {
        let memory = Memory::new(6, Backing::Small)?;
        for hole in [1, 3, 5] {
            memory.protect(hole, 1, libc::PROT_NONE)?;
        }
        Ok(Scratch { memory })
    }

    /// Its pages.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Writes bytes into a page.
    pub fn put(&self, page: usize, offset: usize, bytes: &[u8]) -> u64 {
        for (index, byte) in bytes.iter().enumerate().take(4096 - offset) {
            // SAFETY: the offset is below 4096, so the byte is in the page, which `page` checks.
            unsafe {
                self.memory
                    .page(page)
                    .add(offset + index)
                    .write_volatile(*byte)
            };
        }
        self.memory.page_address(page) + offset as u64
    }

    /// Reads words out of the page that can be written to.
    pub fn words<const N: usize>(&self, address: u64) -> [u64; N] {
        let offset = (address - self.memory.address()) as usize;
        assert!(offset + 8 * N <= 4096);
        let at = self.memory.page(WRITABLE).wrapping_add(offset);
        // SAFETY: the words are in the page; they need not be aligned.
        std::array::from_fn(|word| unsafe { at.cast::<u64>().add(word).read_unaligned() })
    }

    /// Puts bytes where they can be read, or not; returns the address.
    pub fn place(&self, random: &mut Random, place: Place, bytes: &[u8]) -> Result<u64, Failure> {
        Ok(match place {
            Place::Good => self.put(WRITABLE, random.below(4096 - bytes.len()), bytes),
            Place::Straddling => {
                let missing = 1 + random.below(bytes.len());
                self.put(WRITABLE, 4096 - bytes.len() + missing, bytes)
            }
            Place::ReadOnly => {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                self.memory.protect(READABLE, 1, access)?;
                let at = self.put(READABLE, random.below(4096 - bytes.len()), bytes);
                self.memory.protect(READABLE, 1, libc::PROT_READ)?;
                at
            }
            Place::Nowhere => match random.below(6) {
                0 => random.below(4096) as u64,
                1 => self.memory.page_address(1) + random.below(4096) as u64,
                2 => 0xffff_8000_0000_0000 | (random.word() >> 17),
                3 => u64::MAX - random.below(8192) as u64,
                4 => 0x0000_7fff_ffff_f000 + random.below(8192) as u64,
                _ => 0x8000_0000_0000_0000 | random.word(),
            },
        })
    }
}

/// The bytes of an argument.
pub fn bytes<T: twinpage_lab::module::Argument>(argument: &T) -> Vec<u8> {
    let first: *const T = argument;
    // SAFETY: the types of the header have no padding; the bytes are copied while `argument` is
    // borrowed.
    unsafe { std::slice::from_raw_parts(first.cast(), size_of::<T>()) }.to_vec()
}

/// Any place, seldom a good one.
pub fn any(random: &mut Random) -> Place {
    random.pick(&[
        Place::Good,
        Place::ReadOnly,
        Place::Straddling,
        Place::Nowhere,
    ])
}

fn version(worker: &mut Worker) -> Done {
    let place = any(&mut worker.random);
    let argument = bytes(&uapi::twinpage_version::default());
    let at = worker.scratch.place(&mut worker.random, place, &argument)?;
    let result = call::ioctl(worker.device.as_raw_fd(), uapi::IOC_VERSION, at);
    if place != Place::Good {
        refused("version", result, &[libc::EFAULT])?;
        return Ok(1);
    }
    either("version", result, &[])?;
    let [version, reserved @ ..] = worker.scratch.words::<4>(at);
    ensure!(
        version as u32 == uapi::TWINPAGE_UAPI_VERSION,
        "{version:#x}"
    );
    ensure!(reserved == [0; 3], "{reserved:?}");
    Ok(1)
}

fn attach(worker: &mut Worker) -> Done {
    let Some(guest) = worker.choose(|guest| guest.id.is_none()) else {
        return Ok(0);
    };
    let place = any(&mut worker.random);
    let argument = bytes(&uapi::twinpage_attach {
        vm_fd: worker.guests[guest].file(),
        domain: worker.guests[guest].domain(),
        ..Default::default()
    });
    let at = worker.scratch.place(&mut worker.random, place, &argument)?;
    let result = call::ioctl(worker.device.as_raw_fd(), uapi::IOC_ATTACH, at);
    if place == Place::Good {
        either("attach", result, &[])?;
        worker.guests[guest].id = Some(worker.scratch.words::<3>(at)[2] as u32);
    } else {
        refused("attach", result, &[libc::EFAULT])?;
        // It is not attached, or this would be refused.
        worker.attach(guest)?;
    }
    Ok(1)
}

fn detach(worker: &mut Worker) -> Done {
    let Some(guest) = worker.choose(Guest::is_attached) else {
        return Ok(0);
    };
    let place = any(&mut worker.random);
    let id = worker.guests[guest].id.unwrap_or(0);
    let argument = bytes(&uapi::twinpage_detach {
        id,
        ..Default::default()
    });
    let at = worker.scratch.place(&mut worker.random, place, &argument)?;
    let result = call::ioctl(worker.device.as_raw_fd(), uapi::IOC_DETACH, at);
    match place {
        Place::Good => drop(either("detach", result, &[])?),
        _ => refused("detach", result, &[libc::EFAULT])?,
    }
    // What cannot be read has no effect; what cannot be written has had it.
    if matches!(place, Place::Good | Place::ReadOnly) {
        worker.forget(guest);
        is_gone(worker, id)?;
    }
    Ok(1)
}

/// Fails if a VM is still attached.
fn is_gone(worker: &Worker, id: u32) -> Outcome {
    let again = worker
        .device
        .detach(id, twinpage_lab::module::Merged::Keep)
        .map_err(|(error, _)| error);
    refused("a second detach", again, &[libc::ENOENT])
}

/// An argument that asks for a page which may or may not be merged.
fn question(worker: &mut Worker, buffer: u64) -> uapi::twinpage_read {
    let guest = worker.choose(|_| true);
    let (domain, content) = match guest {
        Some(at) => {
            let guest = &worker.guests[at];
            let page = worker.random.below(guest.pages());
            (guest.domain().max(1), guest.content(page))
        }
        None => (1, crate::guest::Content::Zero),
    };
    uapi::twinpage_read {
        domain,
        digest: worker.digest(content),
        buffer,
        ..Default::default()
    }
}

fn read(worker: &mut Worker) -> Done {
    let place = any(&mut worker.random);
    let page = tinyvm::Memory::new(1, Backing::Small)?;
    let argument = bytes(&question(worker, page.address()));
    let at = worker.scratch.place(&mut worker.random, place, &argument)?;
    let result = call::ioctl(worker.device.as_raw_fd(), uapi::IOC_READ, at);
    match place {
        Place::Good | Place::ReadOnly => drop(either("read", result, &[libc::ENOENT])?),
        _ => refused("read", result, &[libc::EFAULT])?,
    }
    Ok(1)
}

fn buffer(worker: &mut Worker) -> Done {
    let place = any(&mut worker.random);
    let buffer = match place {
        Place::Good => worker.scratch.memory().page_address(WRITABLE),
        _ => {
            let some = [0; 2048];
            worker.scratch.place(&mut worker.random, place, &some)?
        }
    };
    let mut argument = question(worker, buffer);
    let result = worker.device.ioctl(uapi::IOC_READ, &mut argument);
    match place {
        Place::Good => drop(either("read", result, &[libc::ENOENT])?),
        _ => refused("read", result, &[libc::ENOENT, libc::EFAULT])?,
    }
    Ok(1)
}
