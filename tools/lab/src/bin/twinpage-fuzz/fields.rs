// SPDX-License-Identifier: GPL-2.0

//! Arguments with something in fields that must be zero.

use twinpage_lab::module::{
    uapi,
    Argument, //
};
use twinpage_lab::random::Random;

use crate::expect::refused;
use crate::guest::Guest;
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("field.attach", 15, attach),
    operation("field.detach", 30, detach),
    operation("field.read", 30, read),
];

/// A number other than 0.
fn junk(random: &mut Random) -> u64 {
    random.number().max(1)
}

fn must_fail<T: Argument + std::fmt::Debug>(worker: &Worker, number: u32, mut argument: T) -> Done {
    let result = worker.device.ioctl(number, &mut argument);
    refused(&format!("{argument:?}"), result, &[libc::EINVAL])?;
    Ok(1)
}

fn attach(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|guest| guest.id.is_none()) else {
        return Ok(0);
    };
    let mut argument = uapi::twinpage_attach {
        vm_fd: worker.guests[at].file(),
        domain: worker.guests[at].domain(),
        ..Default::default()
    };
    let random = &mut worker.random;
    match random.below(3) {
        0 => argument.flags = 1 << random.below(32),
        1 => argument.pad = 1 << random.below(32),
        _ => argument.reserved[random.below(4)] = junk(random),
    }
    must_fail(worker, uapi::IOC_ATTACH, argument)?;
    // It is not attached, or this would be refused.
    worker.attach(at)?;
    Ok(1)
}

fn detach(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(Guest::is_attached) else {
        return Ok(0);
    };
    let random = &mut worker.random;
    let mut argument = uapi::twinpage_detach {
        id: worker.guests[at].id.unwrap_or(0),
        flags: random.below(2) as u32,
        ..Default::default()
    };
    match random.below(2) {
        0 => argument.flags |= 2 << random.below(31),
        _ => argument.reserved[random.below(3)] = junk(random),
    }
    must_fail(worker, uapi::IOC_DETACH, argument)
}

fn read(worker: &mut Worker) -> Done {
    let random = &mut worker.random;
    let mut page = [0_u64; tinyvm::WORDS];
    let mut argument = uapi::twinpage_read {
        domain: 1,
        buffer: page.as_mut_ptr() as u64,
        ..Default::default()
    };
    match random.below(2) {
        0 => argument.domain = 0,
        _ => argument.reserved[random.below(2)] = junk(random),
    }
    must_fail(worker, uapi::IOC_READ, argument)
}
