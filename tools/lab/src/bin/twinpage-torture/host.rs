// SPDX-License-Identifier: GPL-2.0

//! The host under torture: its monitors, the module, and what is put back at the end.

use std::fs::{
    self,
    File, //
};
use std::io;
use std::os::fd::{
    AsRawFd,
    OwnedFd, //
};
use std::sync::{
    Arc,
    Mutex,
    MutexGuard, //
};
use std::time::Duration;

use twinpage_lab::files::borrow;
use twinpage_lab::module::{
    self,
    Device,
    Merged, //
};
use twinpage_lab::random::Random;
use twinpage_lab::tap::Failure;
use twinpage_lab::wait;

use crate::fleet::{
    Monitor,
    Record, //
};
use crate::neighbour::Neighbour;

/// Domains that VMs are attached to; 0 is that of VMs that share with no other.
const DOMAINS: [u64; 4] = [0, 7, 7, 8];

/// The longest that the module takes to come or to go.
const COMES_OR_GOES: Duration = Duration::from_secs(120);

/// What all actors of a run share.
pub struct Host {
    /// The seed of the run.
    pub seed: u64,
    /// What happened.
    pub record: Arc<Record>,
    /// The QEMU guests beside the monitors.
    pub neighbours: Vec<Neighbour>,
    /// How monitors are called.
    arguments: Vec<String>,
    monitors: Mutex<Vec<Monitor>>,
    started: Mutex<u64>,
    open_files: Mutex<Vec<File>>,
}

impl Host {
    /// A host with these QEMU guests and so many monitors.
    pub fn new(
        seed: u64,
        record: Arc<Record>,
        neighbours: Vec<Neighbour>,
        arguments: Vec<String>,
        monitors: usize,
    ) -> Result<Host, Failure> {
        let host = Host {
            seed,
            record,
            neighbours,
            arguments,
            monitors: Mutex::new(Vec::new()),
            started: Mutex::new(0),
            open_files: Mutex::new(Vec::new()),
        };
        for _ in 0..monitors {
            let monitor = host.another()?;
            host.monitors().push(monitor);
        }
        Ok(host)
    }

    /// Starts one more monitor.
    pub fn another(&self) -> Result<Monitor, Failure> {
        let number = {
            let mut started = self
                .started
                .lock()
                .unwrap_or_else(|error| error.into_inner());
            *started += 1;
            *started
        };
        let monitor = Monitor::start(number, &self.arguments, &self.record)?;
        monitor.vms()?;
        Ok(monitor)
    }

    /// Processes and domains of the QEMU guests that are attached. Who holds the monitors may ask.
    pub fn attached_neighbours(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.neighbours.iter().filter_map(|neighbour| {
            let attached = *neighbour.attached();
            attached.map(|(_, domain)| (neighbour.pid, domain))
        })
    }

    /// Files of the module in debugfs that are held open, so that it cannot go. What they are about may
    /// be gone.
    pub fn open_files(&self) -> MutexGuard<'_, Vec<File>> {
        self.open_files
            .lock()
            .unwrap_or_else(|error| error.into_inner())
    }

    /// All monitors; who holds this keeps others from attaching and killing.
    pub fn monitors(&self) -> MutexGuard<'_, Vec<Monitor>> {
        self.monitors
            .lock()
            .unwrap_or_else(|error| error.into_inner())
    }
}

/// An error of the module that it may give: memory is short, pages are busy, or the process or the
/// module is going.
pub fn may_be(what: &str, error: io::Error) -> Failure {
    let text = format!("{what}: {error}");
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EBUSY | libc::EINTR | libc::ESRCH | libc::ENOENT) => {
            Failure::Skipped(text)
        }
        _ => Failure::Failed(text),
    }
}

/// A VM of a monitor, which may be going.
pub fn borrowed(monitor: &Monitor, vm: i32) -> Result<OwnedFd, Failure> {
    borrow(monitor.pid(), vm).map_err(|error| Failure::Skipped(error.to_string()))
}

/// The module's device.
pub fn device() -> Result<Device, Failure> {
    Device::open().map_err(|error| may_be("the device", error))
}

/// Attaches a monitor, unless it is attached: then the module must refuse.
pub fn attach(monitor: &mut Monitor, domain: u64) -> Result<(), Failure> {
    let vm = borrowed(monitor, monitor.vms()?.guest)?;
    let attached = device()?.attach(vm.as_raw_fd(), domain);
    let there = monitor.attached.is_some();
    match attached {
        Ok(_) if there => Err(Failure::Failed("it is attached twice".into())),
        Err(error) if there && error.raw_os_error() == Some(libc::EEXIST) => {
            Err(Failure::Skipped("it is attached".into()))
        }
        Ok(id) => {
            monitor.attached = Some(id);
            monitor.domain = domain;
            Ok(())
        }
        Err(error) => Err(may_be("attach", error)),
    }
}

/// Some domain.
pub fn domain(random: &mut Random) -> u64 {
    random.pick(&DOMAINS)
}

/// Detaches a monitor. What cannot be unmerged for want of memory leaves it attached.
pub fn detach(monitor: &mut Monitor, merged: Merged) -> Result<(), Failure> {
    let Some(id) = monitor.attached else {
        return Ok(());
    };
    match device()?.detach(id, merged) {
        Ok(_) => {
            monitor.attached = None;
            Ok(())
        }
        Err((error, _)) => Err(may_be("detach", error)),
    }
}

/// Loads the module, in a hurry.
pub fn load() -> Result<(), Failure> {
    wait::until("loading", COMES_OR_GOES, || {
        if module::is_loaded() {
            return Ok(true);
        }
        match module::load() {
            // While allocations fail, so may those of a module that was loaded where it was before.
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Ok(false),
            loaded => {
                loaded?;
                watch_races().map(|()| true)
            }
        }
    })?;
    hurry()
}

/// Lets the module scan without rest.
pub fn hurry() -> Result<(), Failure> {
    module::set("advisor_mode", "none")?;
    module::set("sleep_millisecs", 1)?;
    module::set("pages_to_scan", 4096)?;
    module::set("thp_split_threshold", 1)?;
    module::set("max_break_rate", 0)?;
    Ok(())
}

/// Unloads the module, which nobody else uses for longer than a moment.
pub fn unload() -> Result<(), Failure> {
    wait::until("unloading", COMES_OR_GOES, || {
        Ok(!module::is_loaded() || module::unload().is_ok())
    })
    .map(|_| ())
}

/// Writes a file of the kernel; where there is none, that is a refusal like any other.
pub fn write(path: &str, value: impl AsRef<[u8]>) -> Result<(), Failure> {
    fs::write(path, value).map_err(|error| Failure::Skipped(format!("{path}: {error}")))
}

/// Has a few huge pages at hand for monitors that map such where their guest's memory was. Where there
/// are none they say so.
pub fn fill_hugetlb() {
    let _ = fs::write("/proc/sys/vm/nr_hugepages", "4");
}

/// Lets the kernel's race detector, where there is one, watch the module's functions.
fn watch_races() -> Result<(), Failure> {
    const KCSAN: &str = "/sys/kernel/debug/kcsan";
    if fs::metadata(KCSAN).is_err() {
        return Ok(());
    }
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let functions = symbols.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (kind, name) = (words.nth(1)?, words.next()?);
        // The C side: only C is instrumented.
        let wanted = matches!(kind, "t" | "T") && words.next() == Some("[twinpage]");
        (wanted && !name.starts_with("_R") && !name.contains('.')).then_some(name)
    });
    write(KCSAN, "whitelist")?;
    for function in functions {
        // The kernel may have a function of that name, too.
        write(KCSAN, format!("!twinpage:{function}"))?;
    }
    write(KCSAN, "on")
}
