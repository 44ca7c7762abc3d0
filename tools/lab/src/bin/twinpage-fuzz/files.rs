// SPDX-License-Identifier: GPL-2.0

//! Attaching files that are no VMs.

use std::fs::OpenOptions;
use std::os::fd::{
    AsRawFd,
    OwnedFd, //
};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use tinyvm::{
    Backing,
    Memory, //
};
use twinpage_lab::module::{
    DEBUGFS,
    DEVICE,
    SYSFS, //
};
use twinpage_lab::uffd::Watcher;

use crate::call;
use crate::expect::refused;
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("file.number", 30, number),
    operation("file.path", 30, path),
    operation("file.nameless", 30, nameless),
    operation("file.of-vm", 15, of_vm),
];

/// Ioctls of a VM that make files which belong to it, and their arguments.
const CREATE_VCPU: u32 = 0xae41;
const GET_STATS_FD: u32 = 0xaece;

fn must_fail(worker: &mut Worker, what: &str, file: i32, error: i32) -> Done {
    let domain = worker.random.number();
    refused(what, worker.device.attach(file, domain), &[error])?;
    Ok(1)
}

/// Numbers that are no files.
fn number(worker: &mut Worker) -> Done {
    let file = match worker.random.below(4) {
        0 => -1,
        1 => libc::AT_FDCWD,
        2 => worker.random.word() as i32 | i32::MIN,
        _ => (1 << 20) | worker.random.below(1 << 20) as i32,
    };
    must_fail(worker, &format!("file {file}"), file, libc::EBADF)
}

/// Files that have a name, as files or as names.
fn path(worker: &mut Worker) -> Done {
    let random = &mut worker.random;
    let path = random.pick(&[
        "/dev/kvm",
        "/dev/null",
        "/dev/zero",
        "/dev/mem",
        DEVICE,
        SYSFS,
        DEBUGFS,
        "/proc/self/mem",
        "/proc/self/ns/user",
        "/sys/kernel/mm/twinpage/run",
        "/tmp",
    ]);
    let as_name = random.one_in(3);
    let flags = if as_name { libc::O_PATH } else { 0 };
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    // Not every kernel has each of them.
    let Ok(file) = opened else { return Ok(0) };
    let error = if as_name { libc::EBADF } else { libc::EINVAL };
    must_fail(worker, path, file.as_raw_fd(), error)
}

/// Files that have no name.
fn nameless(worker: &mut Worker) -> Done {
    let (reader, writer) = twinpage_lab::files::pipe()?;
    let (one, other) = UnixStream::pair()?;
    let memory = Memory::new(1, Backing::Shared)?;
    let files: Vec<OwnedFd> = vec![
        reader.into(),
        writer.into(),
        one.into(),
        other.into(),
        call::event()?,
        call::epoll()?,
        call::own_process()?,
    ];
    let watcher = Watcher::new(&[]);
    let place = worker.random.below(files.len() + 2);
    let file = match (place.checked_sub(files.len()), watcher.as_ref()) {
        (None, _) => files[place].as_raw_fd(),
        (Some(0), Ok(watcher)) => watcher.as_raw_fd(),
        _ => memory.file().unwrap_or(0),
    };
    must_fail(
        worker,
        &format!("nameless file {place}"),
        file,
        libc::EINVAL,
    )
}

/// Files of a VM that are not the VM.
fn of_vm(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|_| true) else {
        return Ok(0);
    };
    let number = worker.random.pick(&[CREATE_VCPU, GET_STATS_FD]);
    let argument = match number {
        CREATE_VCPU => worker.random.below(200) as u64,
        _ => 0,
    };
    // A processor of that number may be there already.
    let Ok(file) = call::kvm_file(worker.guests[at].file(), number, argument) else {
        return Ok(0);
    };
    must_fail(worker, "a part of a VM", file.as_raw_fd(), libc::EINVAL)
}
