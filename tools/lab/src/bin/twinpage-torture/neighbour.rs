// SPDX-License-Identifier: GPL-2.0

//! An unmodified QEMU guest beside the monitors: it boots, merges, gives pages back by its balloon,
//! and is asked now and then whether its memory is right.

use std::io;
use std::os::fd::AsRawFd;

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
use crate::host::Host;

/// Its memory, MiB, and the least that its balloon leaves it.
const MEMORY: usize = 192;
const LEAST: usize = 160;

/// Its domain: one that monitors are in, too.
pub const DOMAIN: u64 = 7;

/// How much it goes before monitors, as a nice value. It is one of a dozen that always want to run,
/// and its kernel has watchdogs.
const NICE: libc::c_int = -10;

/// The guest.
pub struct Neighbour {
    vmm: Vmm,
}

impl Neighbour {
    /// Boots it and waits until it has filled its memory.
    pub fn start() -> Result<Neighbour, Failure> {
        let guest = Guest {
            name: "neighbour".into(),
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
        Ok(Neighbour { vmm })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.vmm.pid()
    }

    /// Asks it to compare all of its memory.
    pub fn verify(&mut self) -> Result<(), Failure> {
        Ok(self.vmm.fine(Request::Verify).map(|_| ())?)
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

/// What happens to it.
pub const EVENTS: &[Event] = &[
    Event {
        name: "QEMU attach, detach",
        run: |host, random| {
            with(host, random, |neighbour, random| {
                toggle(&mut host.neighbour_attached(), neighbour, random)
            })
        },
    },
    Event {
        name: "QEMU balloon",
        run: |host, random| with(host, random, balloon),
    },
    Event {
        name: "QEMU verify",
        run: |host, random| with(host, random, |neighbour, _| neighbour.verify()),
    },
    Event {
        name: "QEMU write",
        run: |host, random| with(host, random, write),
    },
];

fn with(
    host: &Host,
    random: &mut Random,
    run: impl FnOnce(&mut Neighbour, &mut Random) -> Result<(), Failure>,
) -> Result<(), Failure> {
    match host.neighbour().as_mut() {
        Some(neighbour) => run(neighbour, random),
        None => Err(Failure::Skipped("there is none".into())),
    }
}

fn toggle(
    attached: &mut Option<u32>,
    neighbour: &Neighbour,
    random: &mut Random,
) -> Result<(), Failure> {
    let done = match *attached {
        None => attach(neighbour).map(|id| *attached = Some(id)),
        Some(id) if random.one_in(4) => {
            *attached = None;
            detach(id)
        }
        Some(_) => Ok(()),
    };
    // The module may be gone, or short of memory.
    tolerate(done)
}

fn attach(neighbour: &Neighbour) -> Result<u32, Failure> {
    let vm = neighbour.vmm.vm()?;
    Ok(Device::open()?.attach(vm.as_raw_fd(), DOMAIN)?)
}

fn detach(id: u32) -> Result<(), Failure> {
    let detached = Device::open()?.detach(id, Merged::Unmerge);
    detached.map(|_| ()).map_err(|(error, _)| error.into())
}

fn balloon(neighbour: &mut Neighbour, random: &mut Random) -> Result<(), Failure> {
    let bytes = (LEAST + random.below(MEMORY - LEAST + 1)) << 20;
    let balloon = json!({ "value": bytes });
    Ok(neighbour.vmm.qmp.run("balloon", balloon).map(|_| ())?)
}

fn write(neighbour: &mut Neighbour, random: &mut Random) -> Result<(), Failure> {
    let pages = 1 + random.below(500);
    Ok(neighbour.vmm.fine(Request::Write(pages)).map(|_| ())?)
}
