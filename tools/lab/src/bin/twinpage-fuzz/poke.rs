// SPDX-License-Identifier: GPL-2.0

//! What one can do to any open file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use twinpage_lab::ensure;
use twinpage_lab::random::Random;

use crate::call;
use crate::expect::either;
use crate::operations::Done;
use crate::pointers;
use crate::worker::Worker;

/// Refusals that tell of the call, not of trouble in the module.
const ERRORS: [i32; 20] = [
    libc::EACCES,
    libc::EBADF,
    libc::EFAULT,
    libc::EFBIG,
    libc::EINTR,
    libc::EINVAL,
    libc::EIO,
    libc::EISDIR,
    libc::ENODEV,
    libc::ENOENT,
    libc::ENOTTY,
    libc::ENXIO,
    libc::EOPNOTSUPP,
    libc::EOVERFLOW,
    libc::EPERM,
    libc::ESPIPE,
    libc::EROFS,
    libc::ENOSPC,
    libc::EAGAIN,
    libc::ESRCH,
];

/// A length: none, some, a page and its neighbours, far too much.
fn length(random: &mut Random) -> usize {
    match random.below(4) {
        0 => random.below(200),
        1 => 4095 + random.below(3),
        2 => random.below(1 << 20),
        _ => isize::MAX as usize - random.below(2),
    }
}

/// An offset: near the begin, inside, far off, wrong.
pub fn offset(random: &mut Random) -> i64 {
    match random.below(4) {
        0 => random.below(130) as i64,
        1 => random.below(1 << 20) as i64,
        2 => i64::MAX - random.below(4096) as i64,
        _ => random.number() as i64,
    }
}

/// Does something to a file at random.
pub fn poke(worker: &mut Worker, file: &File) -> Done {
    let random = &mut worker.random;
    let place = pointers::any(random);
    // Less than a page is there, whatever is asked for.
    let at = worker.scratch.place(random, place, &[b'1'; 512])?;
    let (length, offset) = (length(random), offset(random));
    let number = file.as_raw_fd();
    let what = random.below(8);
    let result: io::Result<usize> = match what {
        0 | 1 => call::read_at(number, at, length, offset),
        2 => call::seek(number, offset, random.below(7) as i32),
        3 => {
            let access = random.below(8) as i32;
            let flags = 1 + random.below(3) as i32;
            call::map(
                number,
                length.clamp(1, 1 << 20),
                access,
                flags,
                offset & !4095,
            )
        }
        4 => call::poll(number),
        5 => file.sync_all().map(|()| 0),
        6 => {
            let (reader, writer) = twinpage_lab::files::pipe()?;
            let sent = call::send(writer.as_raw_fd(), number, random.below(60_000));
            drop(reader);
            sent
        }
        _ => file.metadata().map(|_| 0),
    };
    let done = either(&format!("poke {what}"), result, &ERRORS)?;
    let limit = if what == 2 {
        usize::MAX
    } else {
        length.max(60_000)
    };
    ensure!(done.unwrap_or(0) <= limit, "poke {what} did {done:?} bytes");
    Ok(1)
}
