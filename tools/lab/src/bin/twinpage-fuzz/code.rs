// SPDX-License-Identifier: GPL-2.0

//! A VM that runs code, which checks its pages from inside.

use std::os::fd::AsRawFd;

use tinyvm::{
    Backing,
    Counter,
    Sweep, //
};
use twinpage_lab::ensure;
use twinpage_lab::module::Merged;

use crate::expect::{
    either,
    well, //
};
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[operation("code.sweep", 6, sweep)];

/// A VM that runs code.
pub struct Code {
    counter: Counter,
    id: Option<u32>,
    sweeps: usize,
}

fn sweep(worker: &mut Worker) -> Done {
    let mut code = match worker.code.take() {
        Some(code) => code,
        None => Code {
            counter: Counter::new(1 + worker.random.below(200), Backing::Small, |page| {
                page as u64 % 5
            })?,
            id: None,
            sweeps: 10 + worker.random.below(200),
        },
    };
    let kind = worker
        .random
        .pick(&[Sweep::Read, Sweep::Read, Sweep::Write]);
    if let Err(lost) = code.counter.sweep(kind)? {
        ensure!(false, "a guest found a wrong page: {lost:?}");
    }
    let audit = code.counter.audit();
    ensure!(audit.is_ok(), "a guest's page is wrong: {audit:?}");
    if worker.random.one_in(8) {
        code.id = match code.id {
            None => {
                let file = code.counter.vm().as_raw_fd();
                let attached = worker.device.attach(file, 1);
                Some(well("attach", attached)?)
            }
            Some(id) => {
                let merged = worker.random.pick(&[Merged::Keep, Merged::Unmerge]);
                let detached = worker.device.detach(id, merged);
                let detached = detached.map_err(|(error, _)| error);
                let gone = either("detach", detached, &[libc::EBUSY])?.is_some();
                (!gone).then_some(id)
            }
        };
    }
    code.sweeps -= 1;
    worker.code = (code.sweeps > 0).then_some(code);
    Ok(1)
}
