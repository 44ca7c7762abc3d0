// SPDX-License-Identifier: GPL-2.0

//! Open files: made in pairs, taken from other processes.

use std::fs::File;
use std::io;
use std::os::fd::{
    AsRawFd,
    FromRawFd,
    OwnedFd, //
};

/// The two ends of a pipe: for reading, for writing.
///
/// # Errors
///
/// Too many files are open.
pub fn pipe() -> io::Result<(File, File)> {
    let (reader, writer) = nix::unistd::pipe()?;
    Ok((File::from(reader), File::from(writer)))
}

/// What a call that opens a file returned.
fn opened(number: libc::c_long) -> io::Result<OwnedFd> {
    match number {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the call just returned this file, and nobody else knows it.
        number => Ok(unsafe { OwnedFd::from_raw_fd(number as i32) }),
    }
}

/// A file that stands for a process.
///
/// # Errors
///
/// The process is gone.
pub fn handle(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers only.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    opened(number)
}

/// A copy of a file that another process has open.
///
/// # Errors
///
/// The process or the file is gone.
pub fn borrow(pid: u32, file: i32) -> io::Result<OwnedFd> {
    let process = handle(pid)?;
    // SAFETY: the call takes integers only.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), file, 0) };
    opened(number)
}
