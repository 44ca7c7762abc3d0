// SPDX-License-Identifier: GPL-2.0

//! Arguments that change, vanish, or take their time, while an ioctl looks at them.

use std::os::fd::AsRawFd;
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::time::Duration;

use tinyvm::{
    Backing,
    Memory, //
};
use twinpage_lab::module::uapi;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};
use twinpage_lab::uffd::{
    Faults,
    Watcher, //
};

use crate::call;
use crate::expect::either;
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::pointers::{
    bytes,
    VANISHING, //
};
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("timing.vanishing", 2, vanishing),
    operation("timing.watched", 2, watched),
];

/// A number of an ioctl and an argument that may be right.
fn any(worker: &mut Worker, guest: usize, buffer: u64) -> (u32, Vec<u8>) {
    let guest = &worker.guests[guest];
    match worker.random.below(4) {
        0 => (uapi::IOC_VERSION, bytes(&uapi::twinpage_version::default())),
        1 => (
            uapi::IOC_ATTACH,
            bytes(&uapi::twinpage_attach {
                vm_fd: guest.file(),
                ..Default::default()
            }),
        ),
        2 => (
            uapi::IOC_DETACH,
            bytes(&uapi::twinpage_detach {
                id: guest.id.unwrap_or(0),
                ..Default::default()
            }),
        ),
        _ => (
            uapi::IOC_READ,
            bytes(&uapi::twinpage_read {
                domain: 1,
                buffer,
                ..Default::default()
            }),
        ),
    }
}

/// What may come of an argument of which nobody knows what it was when it was read.
const ERRORS: [i32; 6] = [
    libc::EFAULT,
    libc::EINVAL,
    libc::EBADF,
    libc::ENOENT,
    libc::EEXIST,
    libc::EBUSY,
];

/// Takes the page away and gives it back, until `done`.
fn toggle(memory: &Memory, done: &AtomicBool) -> Outcome {
    let write = libc::PROT_READ | libc::PROT_WRITE;
    while !done.load(Ordering::Acquire) {
        memory.protect(VANISHING, 1, libc::PROT_NONE)?;
        memory.protect(VANISHING, 1, libc::PROT_READ)?;
        memory.protect(VANISHING, 1, write)?;
        memory.advise(VANISHING, 1, libc::MADV_DONTNEED)?;
    }
    Ok(memory.protect(VANISHING, 1, write)?)
}

fn vanishing(worker: &mut Worker) -> Done {
    const CALLS: usize = 16;
    let Some(guest) = worker.choose(|_| true) else {
        return Ok(0);
    };
    let buffer = worker.scratch.memory().page_address(VANISHING);
    let calls: Vec<_> = (0..CALLS).map(|_| any(worker, guest, buffer)).collect();
    let done = AtomicBool::new(false);
    let scratch = &worker.scratch;
    let device = worker.device.as_raw_fd();
    let results = std::thread::scope(|scope| {
        let toggler = scope.spawn(|| toggle(scratch.memory(), &done));
        let results: Vec<_> = calls
            .iter()
            .map(|(number, argument)| {
                // There may be nothing to write to, which must not be a fault of this program.
                let _ = call::copy(argument, buffer);
                call::ioctl(device, *number, buffer)
            })
            .collect();
        done.store(true, Ordering::Release);
        let toggled = toggler.join();
        toggled.unwrap_or_else(|_| Err(Failure::Failed("the other thread panicked".into())))?;
        Ok::<_, Failure>(results)
    })?;
    for result in results {
        either("a vanishing argument", result, &ERRORS)?;
    }
    // Nobody knows whether it is attached now.
    worker.guests.swap_remove(guest).check()?;
    Ok(CALLS as u64)
}

/// An argument, and a buffer, that somebody else brings when he likes.
fn watched(worker: &mut Worker) -> Done {
    let Some(guest) = worker.choose(|_| true) else {
        return Ok(0);
    };
    let watcher = match Watcher::new(&[]) {
        Ok(watcher) => watcher,
        Err(Failure::Skipped(_)) => return Ok(0),
        Err(failure) => return Err(failure),
    };
    let (late, source) = (
        Memory::new(1, Backing::Small)?,
        Memory::new(1, Backing::Small)?,
    );
    watcher.register(late.address(), 1, Faults::Missing)?;
    let (number, argument) = any(worker, guest, late.address());
    for (index, word) in argument.chunks_exact(8).enumerate() {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        source.set_word(0, index, u64::from_ne_bytes(bytes));
    }
    let patience = Duration::from_millis(worker.random.below(40) as u64);
    let done = AtomicBool::new(false);
    let device = worker.device.as_raw_fd();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| bring(&watcher, &source, patience, &done));
        let result = call::ioctl(device, number, late.address());
        done.store(true, Ordering::Release);
        result
    });
    either("a late argument", result, &ERRORS)?;
    // Nobody knows whether it is attached now.
    worker.guests.swap_remove(guest).check()?;
    Ok(1)
}

/// Brings the page when somebody waits for it, but not at once.
fn bring(
    watcher: &Watcher,
    source: &Memory,
    patience: Duration,
    done: &AtomicBool,
) -> std::io::Result<()> {
    while !done.load(Ordering::Acquire) {
        if let Some(fault) = watcher.fault()? {
            std::thread::sleep(patience);
            watcher.copy_page(fault.page, source.address())?;
        }
        std::thread::yield_now();
    }
    Ok(())
}
