// SPDX-License-Identifier: GPL-2.0

//! System calls with numbers and addresses that no library would let through.

use std::io;
use std::os::fd::{
    FromRawFd,
    OwnedFd,
    RawFd, //
};

/// What a system call returned.
fn result(returned: libc::c_long) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// Any ioctl.
///
/// `address` is inside a [`Scratch`](crate::pointers::Scratch), or nothing of this program is there.
pub fn ioctl(file: RawFd, number: u32, address: u64) -> io::Result<usize> {
    // SAFETY: what the kernel may write to is memory that is only used through raw words, as the
    // caller says.
    result(unsafe { libc::syscall(libc::SYS_ioctl, file, libc::c_ulong::from(number), address) })
}

/// Reads into an address, which is as for [`ioctl`].
pub fn read_at(file: RawFd, address: u64, length: usize, offset: i64) -> io::Result<usize> {
    // SAFETY: as for `ioctl`.
    result(unsafe { libc::syscall(libc::SYS_pread64, file, address, length, offset) })
}

/// Writes from an address; any will do.
pub fn write_at(file: RawFd, address: u64, length: usize, offset: i64) -> io::Result<usize> {
    // SAFETY: the kernel only reads there, and checks that it can.
    result(unsafe { libc::syscall(libc::SYS_pwrite64, file, address, length, offset) })
}

/// Copies bytes to an address, which is as for [`ioctl`], if something is there.
pub fn copy(from: &[u8], to: u64) -> io::Result<usize> {
    let length = from.len();
    let (from, to) = ([from.as_ptr() as u64, length as u64], [to, length as u64]);
    let own = std::process::id();
    let (from, to) = (from.as_ptr(), to.as_ptr());
    // SAFETY: each vector is one structure of an address and a length; the kernel checks what it
    // writes to, and that is as for `ioctl`.
    result(unsafe { libc::syscall(libc::SYS_process_vm_writev, own, from, 1, to, 1, 0) })
}

/// Moves the offset of a file.
pub fn seek(file: RawFd, offset: i64, whence: i32) -> io::Result<usize> {
    // SAFETY: the call takes integers only.
    result(unsafe { libc::syscall(libc::SYS_lseek, file, offset, whence) })
}

/// Maps a file, and unmaps it again should that work.
pub fn map(file: RawFd, length: usize, access: i32, flags: i32, offset: i64) -> io::Result<usize> {
    // SAFETY: the kernel chooses an address where nothing is.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, file, offset) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nothing was done with the new mapping.
    unsafe { libc::munmap(base, length) };
    Ok(0)
}

/// Sends a part of a file into another.
pub fn send(to: RawFd, from: RawFd, length: usize) -> io::Result<usize> {
    let nowhere = std::ptr::null_mut::<libc::off_t>();
    // SAFETY: the call takes integers, and a null pointer that it knows.
    result(unsafe { libc::syscall(libc::SYS_sendfile, to, from, nowhere, length) })
}

/// Asks what a file is ready for.
pub fn poll(file: RawFd) -> io::Result<usize> {
    let mut asked = libc::pollfd {
        fd: file,
        events: libc::POLLIN | libc::POLLOUT | libc::POLLPRI,
        revents: 0,
    };
    // SAFETY: there is one structure, as the call says.
    result(unsafe { libc::poll(&mut asked, 1, 0) }.into())
}

/// Makes a file of a system call that returns one.
fn opened(returned: libc::c_long) -> io::Result<OwnedFd> {
    let file = result(returned)?;
    // SAFETY: the call just returned this file, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(file as RawFd) })
}

/// The file that an ioctl of KVM returns.
pub fn kvm_file(file: RawFd, number: u32, argument: u64) -> io::Result<OwnedFd> {
    opened(ioctl(file, number, argument)? as libc::c_long)
}

/// An event counter.
pub fn event() -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers only.
    opened(unsafe { libc::syscall(libc::SYS_eventfd2, 0, 0) })
}

/// An epoll file.
pub fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers only.
    opened(unsafe { libc::syscall(libc::SYS_epoll_create1, 0) })
}

/// This process as a file.
pub fn own_process() -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers only.
    opened(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) })
}

/// Ends this process when its parent ends.
pub fn die_with_parent() {
    // SAFETY: the call takes integers only; it cannot fail with a signal that exists.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
}

/// Closes all files from a number on but one.
pub fn close_all_but(first: u32, keep: Option<RawFd>) {
    let close = |from: u32, to: u32| {
        if from <= to {
            // SAFETY: only forked children call this, which use no file afterwards but the one
            // that is kept, and never drop what they inherited.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    };
    match keep.map(|file| file as u32) {
        Some(file) => {
            close(first, file - 1);
            close(file + 1, u32::MAX);
        }
        None => close(first, u32::MAX),
    }
}

/// Gives up one capability.
pub fn without_capability(number: u32) -> io::Result<()> {
    let header = [0x2008_0522_u32, 0];
    let all = !(1_u32 << number);
    let high = (1 << 9) - 1;
    let data = [all, all, 0, high, high, 0];
    // SAFETY: the structures of version 3 are two words and twice three words, which is what is
    // here; the call only reads them.
    result(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(|_| ())
}

/// Sends an alarm to this process soon, and lets system calls end with it.
pub fn alarm_in(microseconds: i64) {
    extern "C" fn nothing(_: libc::c_int) {}
    let after = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        },
    };
    // SAFETY: the handler does nothing; all zeroes are a `sigaction` without flags, so that system
    // calls are not restarted; the structures live until the calls return.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_REAL, &after, std::ptr::null_mut());
    }
}
