// SPDX-License-Identifier: GPL-2.0

//! Unmodified QEMU guests beside the monitors: they boot, merge, give pages back by their balloons,
//! and are asked now and then whether their memory is right.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{
    Mutex,
    MutexGuard, //
};

use serde_json::json;
use twinpage_guest::config::Config;
use twinpage_guest::protocol::Request;
use twinpage_lab::guest::Guest;
use twinpage_lab::module::{
    Device,
    Merged, //
};
use twinpage_lab::random::Random;
use twinpage_lab::tap::Failure;
use twinpage_lab::vmm::Vmm;

use crate::events::{
    tolerate,
    Event, //
};
use crate::fleet::NOT_EVERY_TIME;
use crate::host;

/// The memory of each, MiB, and the least that its balloon leaves it.
const MEMORY: usize = 192;
const LEAST: usize = 160;

/// How much they go before monitors, as a nice value. Each is one of a dozen that always want to run,
/// and its kernel has watchdogs.
const NICE: libc::c_int = -10;

/// A guest.
pub struct Neighbour {
    /// Its process.
    pub pid: u32,
    attached: Mutex<Option<(u32, u64)>>,
    vmm: Mutex<Vmm>,
}

impl Neighbour {
    /// Boots guest `number` and waits until it has filled its memory, with what others have too.
    pub fn start(number: usize) -> Result<Neighbour, Failure> {
        let guest = Guest {
            name: format!("neighbour{number}"),
            memory_mib: MEMORY,
            content: Config {
                common: 8,
                own: 2,
                dup: 8,
                zero: 8,
                churn: 1,
                ..Config::default()
            },
            balloon: true,
        };
        set_nice(NICE)?;
        // What it starts inherits that.
        let started = guest.start(&std::env::temp_dir(), &[]);
        set_nice(0)?;
        let mut vmm = started?;
        vmm.ready()?;
        Ok(Neighbour {
            pid: vmm.pid(),
            attached: Mutex::new(None),
            vmm: Mutex::new(vmm),
        })
    }

    /// Number and domain of its attachment. Who wants the monitors or its QEMU, too, takes them first.
    pub fn attached(&self) -> MutexGuard<'_, Option<(u32, u64)>> {
        self.attached
            .lock()
            .unwrap_or_else(|error| error.into_inner())
    }

    /// Its QEMU. It may be held for minutes, by who waits for an answer: who holds the monitors does
    /// not wait for it, lest everything stands still.
    fn vmm(&self) -> MutexGuard<'_, Vmm> {
        self.vmm.lock().unwrap_or_else(|error| error.into_inner())
    }

    /// Asks it to compare all of its memory.
    pub fn verify(&self) -> Result<(), Failure> {
        Ok(self.vmm().fine(Request::Verify).map(|_| ())?)
    }
}

/// Changes the nice value of this thread.
fn set_nice(value: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes integers only.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What happens to each of them.
pub const EVENTS: &[Event<Neighbour>] = &[
    Event {
        name: "QEMU attach, detach",
        run: toggle,
    },
    Event {
        name: "QEMU balloon",
        run: balloon,
    },
    Event {
        name: "QEMU verify",
        run: |neighbour, _| Neighbour::verify(neighbour),
    },
    Event {
        name: "QEMU write",
        run: write,
    },
];

fn toggle(neighbour: &Neighbour, random: &mut Random) -> Result<(), Failure> {
    let (domain, stays) = (host::domain(random), !random.one_in(4));
    let vmm = neighbour.vmm();
    let mut attached = neighbour.attached();
    // The module may be gone, or short of memory: then it keeps what it has.
    *attached = match *attached {
        None => Some((tolerate(attach(&vmm, domain))?, domain)),
        Some(_) if stays => return Err(Failure::Skipped(NOT_EVERY_TIME.into())),
        Some((id, _)) => {
            tolerate(detach(id))?;
            None
        }
    };
    Ok(())
}

fn attach(vmm: &Vmm, domain: u64) -> Result<u32, Failure> {
    let vm = vmm.vm()?;
    Ok(Device::open()?.attach(vm.as_raw_fd(), domain)?)
}

fn detach(id: u32) -> Result<(), Failure> {
    let detached = Device::open()?.detach(id, Merged::Unmerge);
    detached.map(|_| ()).map_err(|(error, _)| error.into())
}

fn balloon(neighbour: &Neighbour, random: &mut Random) -> Result<(), Failure> {
    let bytes = (LEAST + random.below(MEMORY - LEAST + 1)) << 20;
    let balloon = json!({ "value": bytes });
    Ok(neighbour.vmm().qmp.run("balloon", balloon).map(|_| ())?)
}

fn write(neighbour: &Neighbour, random: &mut Random) -> Result<(), Failure> {
    let pages = 1 + random.below(500);
    Ok(neighbour.vmm().fine(Request::Write(pages)).map(|_| ())?)
}
