// SPDX-License-Identifier: GPL-2.0

//! The files of VMs in debugfs, read and misused while the VMs come and go.

use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use twinpage_lab::ensure;
use twinpage_lab::module::{
    slots,
    uapi,
    DEBUGFS, //
};
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
use crate::guest::{
    Content,
    Guest, //
};
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::pointers::{
    self,
    Place, //
};
use crate::poke::poke;
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("debugfs.read", 8, read),
    operation("debugfs.digests", 8, digests),
    operation("debugfs.slots", 15, own_slots),
    operation("debugfs.pointer", 25, pointer),
    operation("debugfs.write", 15, write),
    operation("debugfs.poke", 40, poke_any),
    operation("debugfs.kept-open", 40, kept_open),
    operation("device.poke", 20, poke_device),
];

/// Bytes of the header and of a record.
const RECORD: usize = 64;

/// What reading the file of a VM that goes may fail with.
const GONE: [i32; 4] = [libc::ENOENT, libc::EIO, libc::ESRCH, libc::EINVAL];

/// A file of any VM that is attached at this moment.
fn any_path(random: &mut Random) -> Result<Option<String>, Failure> {
    let vms: Vec<_> = fs::read_dir(DEBUGFS)?.flatten().collect();
    if vms.is_empty() {
        return Ok(None);
    }
    let vm = vms[random.below(vms.len())].path();
    let file = random.pick(&["stats", "slots", "digests"]);
    Ok(Some(vm.join(file).display().to_string()))
}

/// Reads all of a file of any VM, piece by piece.
fn read(worker: &mut Worker) -> Done {
    let Some(path) = any_path(&mut worker.random)? else {
        return Ok(0);
    };
    let Some(mut file) = either("open", File::open(&path), &GONE)? else {
        return Ok(1);
    };
    let mut bytes = vec![0; 1 + worker.random.below(9000)];
    while let Some(read) = either(&path, file.read(&mut bytes), &GONE)? {
        if read == 0 {
            break;
        }
    }
    Ok(1)
}

/// Number of a little-endian word.
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Reads records of a VM whose content is known.
fn digests(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(Guest::is_attached) else {
        return Ok(0);
    };
    let id = worker.guests[at].id.unwrap_or(0);
    let file = File::open(format!("{DEBUGFS}/{id}/digests"))?;
    let mut header = [0; RECORD];
    file.read_exact_at(&mut header, 0)?;
    let (magic, records) = (word(&header, 0), word(&header, 32) as usize);
    ensure!(magic == uapi::TWINPAGE_DIGESTS_MAGIC, "magic {magic:#x}");
    let first = worker.random.below(worker.guests[at].pages());
    let shift = worker.random.below(RECORD);
    let mut bytes = vec![0; worker.random.below(200 * RECORD)];
    let offset = RECORD + RECORD * first + shift;
    let read = file.read_at(&mut bytes, offset as u64)?;
    let end = RECORD + RECORD * records;
    ensure!(read <= end - offset, "{read} bytes at {offset} of {end}");
    let skip = (RECORD - shift) % RECORD;
    let whole = bytes[..read].get(skip..).unwrap_or(&[]);
    let first = first + usize::from(shift > 0);
    for (index, record) in whole.chunks_exact(RECORD).enumerate() {
        // Records of the alias follow; they have other gfns.
        if first + index < worker.guests[at].pages() {
            check_record(worker, at, first + index, record)?;
        }
    }
    Ok(1)
}

/// Compares a record with what its page holds.
fn check_record(worker: &mut Worker, at: usize, page: usize, record: &[u8]) -> Outcome {
    let content = worker.guests[at].content(page);
    let state = word(record, 8);
    ensure!(word(record, 0) == page as u64, "page {page}: {record:?}");
    ensure!(word(record, 56) == 0, "page {page}: {record:?}");
    let digest = &record[24..56];
    let none = [0; 32];
    let expected = match state as u32 {
        uapi::TWINPAGE_PAGE_ABSENT | uapi::TWINPAGE_PAGE_SKIPPED => none,
        _ => worker.digest(content),
    };
    ensure!(digest == expected, "page {page} of {content:?}: {record:?}");
    let fits = match state as u32 {
        uapi::TWINPAGE_PAGE_ZERO => content == Content::Zero,
        // Swap there is none, and files are skipped.
        uapi::TWINPAGE_PAGE_ABSENT => {
            content == Content::Zero || worker.guests[at].memory().file().is_some()
        }
        _ => state <= uapi::TWINPAGE_PAGE_SKIPPED.into(),
    };
    ensure!(fits, "page {page} of {content:?}: {record:?}");
    let serial = word(record, 16) != 0;
    let merged = state as u32 == uapi::TWINPAGE_PAGE_MERGED;
    ensure!(serial == merged, "page {page}: {record:?}");
    Ok(())
}

fn own_slots(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(Guest::is_attached) else {
        return Ok(0);
    };
    let guest = &worker.guests[at];
    let slots = slots(guest.id.unwrap_or(0))?;
    let address = guest.memory().address();
    let known = slots
        .iter()
        .all(|slot| slot.userspace_addr == address && slot.npages == guest.pages() as u64);
    ensure!(known && (1..=2).contains(&slots.len()), "{slots:?}");
    Ok(1)
}

fn pointer(worker: &mut Worker) -> Done {
    let Some(path) = any_path(&mut worker.random)? else {
        return Ok(0);
    };
    let Some(file) = either("open", File::open(&path), &GONE)? else {
        return Ok(1);
    };
    let random = &mut worker.random;
    let place = random.pick(&[Place::ReadOnly, Place::Nowhere]);
    let at = worker.scratch.place(random, place, &[0; 256])?;
    let length = 1 + random.below(9000);
    let offset = random.below(64) as i64;
    let result = call::read_at(file.as_raw_fd(), at, length, offset);
    let mut errors = GONE.to_vec();
    errors.push(libc::EFAULT);
    // Past the end there is nothing to write.
    let read = either(&path, result, &errors)?.unwrap_or(0);
    ensure!(read == 0, "{read} bytes of {path} went to {at:#x}");
    Ok(1)
}

fn write(worker: &mut Worker) -> Done {
    let Some(path) = any_path(&mut worker.random)? else {
        return Ok(0);
    };
    let opened = OpenOptions::new().write(true).open(&path);
    let Some(file) = either("open", opened, &GONE)? else {
        return Ok(1);
    };
    let place = pointers::any(&mut worker.random);
    let at = worker
        .scratch
        .place(&mut worker.random, place, b"1\n      ")?;
    let length = 1 + worker.random.below(8);
    let result = call::write_at(file.as_raw_fd(), at, length, 0);
    let mut errors = GONE.to_vec();
    errors.extend([libc::EBADF, libc::EFAULT, libc::EPERM, libc::ESPIPE]);
    refused(&format!("writing {path}"), result, &errors)?;
    Ok(1)
}

fn poke_any(worker: &mut Worker) -> Done {
    let Some(path) = any_path(&mut worker.random)? else {
        return Ok(0);
    };
    match either("open", File::open(path), &GONE)? {
        Some(file) => poke(worker, &file),
        None => Ok(1),
    }
}

/// Files that stay open, whatever becomes of their VMs.
fn kept_open(worker: &mut Worker) -> Done {
    const MOST: usize = 20;
    if worker.open.len() < MOST {
        let path = any_path(&mut worker.random)?;
        worker
            .open
            .extend(path.and_then(|path| File::open(path).ok()));
    }
    if worker.open.is_empty() {
        return Ok(0);
    }
    let at = worker.random.below(worker.open.len());
    let file = worker.open.swap_remove(at);
    let done = poke(worker, &file);
    if !worker.random.one_in(10) {
        worker.open.push(file);
    }
    done
}

fn poke_device(worker: &mut Worker) -> Done {
    let device = File::open(twinpage_lab::module::DEVICE)?;
    poke(worker, &device)
}
