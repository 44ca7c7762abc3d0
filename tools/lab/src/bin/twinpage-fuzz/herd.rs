// SPDX-License-Identifier: GPL-2.0

//! VMs come and go, are attached and detached as they should be, and lose no byte.

use twinpage_lab::child::in_child;
use twinpage_lab::ensure;
use twinpage_lab::module::{
    Merged,
    Stats, //
};
use twinpage_lab::tap::Outcome;

use crate::expect::{
    either,
    refused,
    well, //
};
use crate::guest::Guest;
use crate::operations::{
    operation,
    Done,
    Operation, //
};
use crate::worker::Worker;

pub const OPERATIONS: &[Operation] = &[
    operation("guest.create", 8, create),
    operation("guest.close", 4, close),
    operation("guest.attach", 16, attach),
    operation("guest.attach-twice", 8, attach_twice),
    operation("guest.detach", 4, detach),
    operation("guest.unmerge", 2, unmerge),
    operation("guest.unmerge-interrupted", 2, unmerge_interrupted),
    operation("guest.offer", 8, offer),
    operation("guest.write", 60, write),
    operation("guest.discard", 10, discard),
    operation("guest.slot", 10, slot),
    operation("guest.check", 60, check),
    operation("guest.fork", 1, fork),
    operation("guest.stats", 10, stats),
];

/// VMs that a worker has at once.
const MOST: usize = 4;

fn create(worker: &mut Worker) -> Done {
    if worker.guests.len() >= MOST {
        return Ok(0);
    }
    let guest = Guest::new(&mut worker.random)?;
    worker.guests.push(guest);
    Ok(1)
}

fn close(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|_| true) else {
        return Ok(0);
    };
    worker.guests.swap_remove(at).check()?;
    Ok(1)
}

impl Worker {
    /// Attaches a VM that is not attached.
    pub fn attach(&mut self, at: usize) -> Outcome {
        let guest = &mut self.guests[at];
        let id = well("attach", self.device.attach(guest.file(), guest.domain()))?;
        ensure!(!self.past.contains(&id), "the number {id} came again");
        guest.id = Some(id);
        Ok(())
    }

    /// A VM that was attached is no longer.
    pub fn forget(&mut self, at: usize) {
        let guest = &mut self.guests[at];
        guest.offered = false;
        if let Some(id) = guest.id.take() {
            if self.past.len() > 32 {
                self.past.truncate(2);
            }
            self.past.push(id);
        }
    }

    /// Detaches a VM; whether that is known to be possible depends on whether others may, too.
    fn detach(&mut self, at: usize, merged: Merged, errors: &[i32]) -> Done {
        let guest = &self.guests[at];
        let Some(id) = guest.id else { return Ok(0) };
        let mut errors = errors.to_vec();
        if guest.offered {
            errors.extend([libc::ENOENT, libc::EBUSY]);
        }
        let result = self.device.detach(id, merged).map_err(|(error, _)| error);
        let code = result.as_ref().err().and_then(std::io::Error::raw_os_error);
        let detached = either("detach", result, &errors)?;
        if let (Some(detached), Merged::Unmerge) = (detached, merged) {
            ensure!(detached.remaining == 0, "{detached:?}");
        }
        if detached.is_some() || code == Some(libc::ENOENT) {
            self.forget(at);
        }
        self.guests[at].check()?;
        Ok(1)
    }
}

fn attach(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|guest| guest.id.is_none()) else {
        return Ok(0);
    };
    worker.attach(at)?;
    Ok(1)
}

fn attach_twice(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(Guest::is_attached) else {
        return Ok(0);
    };
    let domain = worker.random.number();
    let again = worker.device.attach(worker.guests[at].file(), domain);
    refused("a second attach", again, &[libc::EEXIST])?;
    Ok(1)
}

fn detach(worker: &mut Worker) -> Done {
    match worker.choose(|guest| guest.id.is_some()) {
        Some(at) => worker.detach(at, Merged::Keep, &[]),
        None => Ok(0),
    }
}

fn unmerge(worker: &mut Worker) -> Done {
    match worker.choose(|guest| guest.id.is_some()) {
        Some(at) => worker.detach(at, Merged::Unmerge, &[libc::EBUSY]),
        None => Ok(0),
    }
}

fn unmerge_interrupted(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|guest| guest.id.is_some()) else {
        return Ok(0);
    };
    crate::call::alarm_in(1 + worker.random.below(3000) as i64);
    let done = worker.detach(at, Merged::Unmerge, &[libc::EBUSY, libc::EINTR]);
    crate::call::alarm_in(0);
    done
}

fn offer(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(Guest::is_attached) else {
        return Ok(0);
    };
    worker.guests[at].offered = true;
    let place = worker.random.below(64);
    worker.board.offer(place, worker.guests[at].id.unwrap_or(0));
    Ok(1)
}

fn write(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|_| true) else {
        return Ok(0);
    };
    let guest = &mut worker.guests[at];
    for _ in 0..16 {
        let page = worker.random.below(guest.pages());
        guest.check_page(page)?;
        guest.rewrite(&mut worker.random, page);
    }
    Ok(1)
}

fn discard(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|_| true) else {
        return Ok(0);
    };
    let guest = &mut worker.guests[at];
    let page = worker.random.below(guest.pages());
    let pages = 1 + worker.random.below((guest.pages() - page).min(40));
    guest.discard(page, pages)?;
    Ok(1)
}

fn slot(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|_| true) else {
        return Ok(0);
    };
    let there = worker.random.one_in(2);
    // Flags of a slot cannot be changed in all ways at once: it is made anew.
    worker.guests[at].alias(false, 0)?;
    worker.guests[at].alias(there, worker.random.below(2) as u32)?;
    Ok(1)
}

fn check(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|_| true) else {
        return Ok(0);
    };
    if worker.random.one_in(8) {
        worker.guests[at].check()?;
    }
    for _ in 0..16 {
        let page = worker.random.below(worker.guests[at].pages());
        worker.guests[at].check_page(page)?;
    }
    Ok(1)
}

fn fork(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(|guest| guest.memory().file().is_none()) else {
        return Ok(0);
    };
    let guest = &mut worker.guests[at];
    let random = &mut worker.random;
    let child = in_child(|| {
        for page in 0..guest.pages().min(64) {
            guest.rewrite(random, page);
        }
        guest.check().is_ok()
    })?;
    guest.check()?;
    child.join()?;
    guest.check()?;
    Ok(1)
}

fn stats(worker: &mut Worker) -> Done {
    let Some(at) = worker.choose(Guest::is_attached) else {
        return Ok(0);
    };
    let guest = &worker.guests[at];
    let stats = Stats::of(guest.id.unwrap_or(0))?;
    let (sum, pages) = (stats.sum()?, stats.get("pages")?);
    ensure!(sum == pages, "{sum} of {pages} pages: {stats:?}");
    ensure!(stats.get("domain")? == guest.domain(), "{stats:?}");
    let own = u64::from(std::process::id());
    ensure!(stats.get("pid")? == own, "{stats:?}, not of {own}");
    Ok(1)
}
