// SPDX-License-Identifier: GPL-2.0

//! Ioctls that do not exist, of VMs that are not attached, and of digests that nobody has.

use std::os::fd::AsRawFd;

use twinpage_lab::ensure;
use twinpage_lab::module::{
    uapi,
    Merged, //
};

use crate::call;
use crate::expect::{
    either,
    refused, //
};
use crate::guest::own_content;
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::pointers;
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("ioctl.number", 60, number),
    operation("ioctl.detach-unknown", 30, detach_unknown),
    operation("ioctl.detach-others", 10, detach_others),
    operation("ioctl.read", 40, read),
    operation("ioctl.read-foreign", 20, read_foreign),
];

const KNOWN: [u32; 4] = [
    uapi::IOC_VERSION,
    uapi::IOC_ATTACH,
    uapi::IOC_DETACH,
    uapi::IOC_READ,
];

/// A number that is nearly right: another direction, size, letter or command.
fn number(worker: &mut Worker) -> Done {
    let random = &mut worker.random;
    let known = random.pick(&KNOWN);
    let number = match random.below(4) {
        0 => known ^ (1 << (30 + random.below(2))),
        1 => known ^ ((1 + random.below(0x3fff) as u32) << 16),
        2 => known & !0xff | (4 + random.below(252) as u32),
        _ => known & !0xff00 | 0xbd00,
    };
    let place = pointers::any(random);
    let at = worker.scratch.place(random, place, &[0; 64])?;
    let result = call::ioctl(worker.device.as_raw_fd(), number, at);
    refused(&format!("ioctl {number:#x}"), result, &[libc::ENOTTY])?;
    Ok(1)
}

fn detach_unknown(worker: &mut Worker) -> Done {
    let id = match worker.random.below(3) {
        0 => worker.random.number() as u32 | (1 << 30),
        _ => worker.random.pick(&worker.past),
    };
    let merged = worker.random.pick(&[Merged::Keep, Merged::Unmerge]);
    let result = worker.device.detach(id, merged).map_err(|(error, _)| error);
    refused(&format!("detach {id}"), result, &[libc::ENOENT])?;
    Ok(1)
}

/// Detaches what another worker has attached, perhaps at the moment when that does.
fn detach_others(worker: &mut Worker) -> Done {
    let place = worker.random.below(64);
    let id = worker.board.offered(place);
    let merged = worker.random.pick(&[Merged::Keep, Merged::Unmerge]);
    let result = worker.device.detach(id, merged).map_err(|(error, _)| error);
    either("detach", result, &[libc::ENOENT, libc::EBUSY])?;
    Ok(1)
}

/// Asks for a page that may be merged.
fn read(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|guest| guest.domain() != 0) else {
        return Ok(0);
    };
    let guest = &worker.guests[at];
    let page = worker.random.below(guest.pages());
    let (domain, content) = (guest.domain(), guest.content(page));
    let digest = worker.digest(content);
    let result = worker.device.read(domain, digest);
    if let Some(bytes) = either("read", result, &[libc::ENOENT])? {
        let words = content.words();
        let differs = bytes
            .chunks_exact(8)
            .zip(words)
            .any(|(bytes, word)| bytes != word.to_le_bytes());
        ensure!(!differs, "the bytes of {content:?} are others");
    }
    Ok(1)
}

/// Asks one domain for what only VMs of another have, and for what nobody has.
fn read_foreign(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|guest| guest.is_attached()) else {
        return Ok(0);
    };
    let owner = worker.guests[at].domain();
    let asked = worker.random.pick(&[0, 1, 2, u64::MAX, owner ^ 4]);
    let content = own_content(owner, worker.random.below(24));
    let mut digest = worker.digest(content);
    if asked == owner {
        digest[worker.random.below(32)] ^= 1 << worker.random.below(8);
    }
    let error = match asked {
        0 => libc::EINVAL,
        _ => libc::ENOENT,
    };
    let result = worker.device.read(asked, digest);
    refused(
        &format!("a page of domain {owner} from {asked}"),
        result,
        &[error],
    )?;
    Ok(1)
}
