// SPDX-License-Identifier: GPL-2.0

//! What happens to monitors and module from outside: to the module, to processes, to the kernel.

use std::fs::{
    self,
    File, //
};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use twinpage_lab::blocks::{
    Block,
    Zone, //
};
use twinpage_lab::faults::{
    self,
    Changed, //
};
use twinpage_lab::module::{
    self,
    Merged,
    Stats,
    DEBUGFS, //
};
use twinpage_lab::random::Random;
use twinpage_lab::tap::Failure;
use twinpage_lab::wait;

use crate::debugger;
use crate::fleet::{
    Monitor,
    NOT_EVERY_TIME, //
};
use crate::frames::common_frame;
use crate::host::{
    self,
    Host, //
};
use crate::losses;
use crate::neighbour::Neighbour;
use crate::stranger;

/// One of the things that happen, to the host or to a part of it.
pub struct Event<T = Host> {
    /// Its name in reports.
    pub name: &'static str,
    /// Makes it happen. [`Failure::Skipped`]: the kernel did not want to.
    pub run: fn(&T, &mut Random) -> Result<(), Failure>,
}

macro_rules! events {
    ($($name:literal $run:expr,)+) => { &[$(Event { name: $name, run: $run },)+] };
}

/// What happens to the module and to attachments, one after the other.
pub const MODULE: &[Event] = events![
    "attach" attach,
    "attach" attach,
    "attach" attach,
    "detach" detach,
    "re-attach elsewhere" reattach,
    "attach of its twin" attach_twin,
    "knob" knob,
    "knob" knob,
    "knob" knob,
    "run 2" unmerge,
    "read debugfs" read_debugfs,
    "isolation" isolation,
    "rmmod and insmod" reload,
];

/// What happens to the monitors and to the rest of the kernel.
pub const KERNEL: &[Event] = events![
    "exit" |host, random| losses::lose_one(host, random, Monitor::finish),
    "SIGKILL" |host, random| kill(host, random, libc::SIGKILL),
    "core dump" |host, random| kill(host, random, libc::SIGABRT),
    "SIGSTOP" stop,
    "ptrace poke" debugger::poke,
    "process_vm_readv" stranger::read_vm,
    "process_vm_writev" stranger::write_vm,
    "write through /proc/mem" stranger::write_mem,
    "cgroup freeze" freeze,
    "memcg reclaim" reclaim,
    "memcg limit" limit,
    "memcg hard limit" losses::squeeze,
    "OOM kill" losses::starve,
    "memory failure" losses::break_own,
    "memory failure of a copy" losses::break_merged,
    "soft offline of a copy" losses::offline_merged,
    "ksmd" ksmd,
    "khugepaged" khugepaged,
    "compaction" |_, _| host::write("/proc/sys/vm/compact_memory", "1"),
    "drop caches" |_, _| host::write("/proc/sys/vm/drop_caches", "3"),
    "NUMA balancing" balance,
    "memory offline" hotplug_memory,
    "CPU offline" hotplug_cpu,
    "suspend to freezer" suspend,
    "allocation failures" fail_allocations,
];

/// The longest that a few passes over all VMs may take: blocks of a VM that is busy are passed over,
/// and an emulated machine may have to share its processors.
const ORPHANS_GO: Duration = Duration::from_secs(600);

/// The group that all monitors are in.
pub const GROUP: &str = "/sys/fs/cgroup/torture";

/// Runs something on one of the monitors, while nobody else attaches or kills.
pub fn with_one(
    host: &Host,
    random: &mut Random,
    run: impl FnOnce(&mut Monitor) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut monitors = host.monitors();
    let index = random.below(monitors.len());
    match monitors.get_mut(index) {
        Some(monitor) => run(monitor),
        None => Ok(()),
    }
}

/// An error of the module that it may give: no memory, or the process is going.
pub fn tolerate<T>(result: Result<T, Failure>) -> Result<T, Failure> {
    result.map_err(|failure| Failure::Skipped(failure.to_string()))
}

fn attach(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let domain = host::domain(random);
    with_one(host, random, |monitor| host::attach(monitor, domain))
}

fn merged(random: &mut Random) -> Merged {
    match random.one_in(2) {
        true => Merged::Keep,
        false => Merged::Unmerge,
    }
}

fn detach(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let merged = merged(random);
    with_one(host, random, |monitor| match monitor.attached {
        Some(_) => host::detach(monitor, merged),
        None => Err(Failure::Skipped("it is not attached".into())),
    })
}

fn reattach(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let domain = host::domain(random);
    with_one(host, random, |monitor| {
        host::detach(monitor, Merged::Unmerge)?;
        host::attach(monitor, domain)
    })
}

/// Another VM with the memory of a monitor's guest, which is detached before, or not.
fn attach_twin(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let (domain, merged) = (host::domain(random), merged(random));
    let (alone, nap) = (random.one_in(2), random.below(300) as u64);
    with_one(host, random, |monitor| {
        if alone {
            host::detach(monitor, merged)?;
        }
        let twin = host::borrowed(monitor, monitor.vms()?.twin)?;
        let device = host::device()?;
        let id = device.attach(twin.as_raw_fd(), domain);
        let id = id.map_err(|error| host::may_be("attach", error))?;
        std::thread::sleep(Duration::from_millis(nap));
        // It may come in a moment in which the guest has no slot, which then gets none.
        let both = has_pages(Some(id)) && has_pages(monitor.attached);
        if device.detach(id, merged).is_err() {
            let kept = device.detach(id, Merged::Keep);
            kept.map_err(|(error, _)| Failure::Failed(format!("detaching a twin: {error}")))?;
        }
        match both {
            true => Err(Failure::Failed("memory is in two attached VMs".into())),
            false => Ok(()),
        }
    })
}

/// Whether the module knows of memory of a VM, which may have ended.
fn has_pages(id: Option<u32>) -> bool {
    let pages = id.and_then(|id| Stats::of(id).ok()?.get("pages").ok());
    pages.is_some_and(|pages| pages > 0)
}

/// Settings, with values of their range. What makes merging slow is rare, or nothing would be merged.
const KNOBS: &[(&str, &[&str])] = &[
    ("run", &["0", "1", "1", "1", "1"]),
    (
        "pages_to_scan",
        &["1", "64", "4096", "4096", "4096", "65536", "65536", "65536"],
    ),
    ("sleep_millisecs", &["0", "0", "1", "20"]),
    ("use_zero_pages", &["0", "1"]),
    ("smart_scan", &["0", "0", "1"]),
    ("max_page_sharing", &["2", "3", "16", "256"]),
    ("merge_across_nodes", &["0", "1"]),
    ("advisor_mode", &["none", "none", "none", "cpu"]),
    ("advisor_max_cpu", &["1", "50", "100"]),
    ("thp_split_threshold", &["1", "1", "64", "512"]),
    ("merge_batch", &["1", "2", "32", "512"]),
    (
        "max_break_rate",
        &["0", "0", "0", "0", "0", "0", "1", "100"],
    ),
    ("unmerge_on_exit", &["0", "1"]),
];

fn knob(_: &Host, random: &mut Random) -> Result<(), Failure> {
    let (name, values) = random.pick(KNOBS);
    let value = random.pick(values);
    module::set(name, value).map_err(|error| host::may_be(name, error))
}

fn unmerge(_: &Host, random: &mut Random) -> Result<(), Failure> {
    let result = module::set("run", 2);
    random.nap(200);
    module::set("run", 1)?;
    result.map_err(|error| host::may_be("run", error))
}

/// Reads every file of the module, whole or in part, while it changes. Some stay open until the next
/// time, and are read then, when their VM may be gone.
fn read_debugfs(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let mut open_files = host.open_files();
    for mut file in open_files.drain(..) {
        let _ = file.read_to_end(&mut Vec::new());
    }
    // Where allocations fail, a module may come without them, or not come back at all.
    let none = |error: std::io::Error| Failure::Skipped(error.to_string());
    for directory in fs::read_dir(DEBUGFS).map_err(none)?.flatten() {
        let Ok(files) = fs::read_dir(directory.path()) else {
            continue;
        };
        for file in files.flatten() {
            if random.one_in(2) {
                continue;
            }
            // The VM may be gone by now.
            let Ok(mut open) = File::open(file.path()) else {
                continue;
            };
            match random.one_in(4) {
                true => open_files.push(open),
                false => drop(open.read_to_end(&mut Vec::new())),
            }
        }
    }
    for file in fs::read_dir(module::SYSFS).map_err(none)?.flatten() {
        let _ = fs::read(file.path());
    }
    Ok(())
}

/// Whether ksmd takes part in a run. It knows no domains, and a frame of its own looks like one of
/// ours on a debug kernel; so in a run with it nobody can tell whether domains are kept apart.
pub fn with_ksmd(seed: u64) -> bool {
    seed % 2 == 0
}

/// No frame but that of zeroes is mapped by VMs of different domains, as the kernel tells.
fn isolation(host: &Host, _: &mut Random) -> Result<(), Failure> {
    if with_ksmd(host.seed) {
        return Err(Failure::Skipped("ksmd shares across domains".into()));
    }
    let monitors = host.monitors();
    if common_frame(host, &monitors)?.is_none() {
        return Ok(());
    }
    // Pages that were elsewhere while their VM was unmerged (moved, swapped out) still map a copy of
    // another domain. The next pass over the VM gives them their own.
    module::set("run", 1)?;
    host::hurry()?;
    let mut common = None;
    let settled: Result<_, Failure> = wait::until("isolation", ORPHANS_GO, || {
        common = common_frame(host, &monitors)?;
        Ok(common.is_none())
    });
    settled.map_err(|failure| Failure::Failed(common.unwrap_or(failure.to_string())))?;
    host.record.did("isolation after a wait");
    Ok(())
}

/// The module goes, with or without what it merged, and comes back.
fn reload(host: &Host, random: &mut Random) -> Result<(), Failure> {
    if !random.one_in(3) {
        return Err(Failure::Skipped(NOT_EVERY_TIME.into()));
    }
    let mut monitors = host.monitors();
    let mut attached: Vec<_> = host.neighbours.iter().map(Neighbour::attached).collect();
    let mut open_files = host.open_files();
    if !open_files.is_empty() && module::unload().is_ok() {
        return Err(Failure::Failed("the module went under open files".into()));
    }
    open_files.clear();
    host::unload()?;
    attached.iter_mut().for_each(|attached| **attached = None);
    random.nap(300);
    host::load()?;
    drop(attached);
    monitors
        .iter_mut()
        .for_each(|monitor| monitor.attached = None);
    for monitor in monitors.iter_mut() {
        let domain = host::domain(random);
        host::attach(monitor, domain)?;
    }
    Ok(())
}

/// A monitor dies.
fn kill(host: &Host, random: &mut Random, signal: libc::c_int) -> Result<(), Failure> {
    let killed = losses::kill_and_attach(host, random, signal);
    let _ = fs::remove_file("/tmp/core");
    killed
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: Signal) -> Result<(), Failure> {
    Ok(nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid as i32),
        signal,
    )?)
}

fn stop(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let nap = random.below(400) as u64;
    with_one(host, random, |monitor| {
        signal(monitor.pid(), Signal::SIGSTOP)?;
        std::thread::sleep(Duration::from_millis(nap));
        signal(monitor.pid(), Signal::SIGCONT)
    })
}

fn freeze(_: &Host, random: &mut Random) -> Result<(), Failure> {
    host::write(&format!("{GROUP}/cgroup.freeze"), "1")?;
    random.nap(300);
    host::write(&format!("{GROUP}/cgroup.freeze"), "0")
}

fn reclaim(_: &Host, random: &mut Random) -> Result<(), Failure> {
    let mib = 1 + random.below(8);
    host::write(&format!("{GROUP}/memory.reclaim"), format!("{mib}M"))
}

/// The group may use less than it has, for a moment: the rest is swapped out.
fn limit(_: &Host, random: &mut Random) -> Result<(), Failure> {
    let current = fs::read_to_string(format!("{GROUP}/memory.current"))?;
    let current: u64 = current.trim().parse().unwrap_or(64 << 20);
    host::write(&format!("{GROUP}/memory.high"), (current / 2).to_string())?;
    random.nap(300);
    host::write(&format!("{GROUP}/memory.high"), "max")
}

/// The kernel's own merger works on what monitors advise it to.
fn ksmd(host: &Host, random: &mut Random) -> Result<(), Failure> {
    if !with_ksmd(host.seed) {
        return Err(Failure::Skipped("a run without it".into()));
    }
    host::write("/sys/kernel/mm/ksm/sleep_millisecs", "5")?;
    switch_on("/sys/kernel/mm/ksm/run", random, &["0", "2"])
}

/// Switches something on; now and then it is off before, for a moment.
fn switch_on(path: &str, random: &mut Random, off: &[&str]) -> Result<(), Failure> {
    if random.one_in(2) {
        host::write(path, random.pick(off))?;
        random.nap(1000);
    }
    host::write(path, "1")
}

/// Never told to take no rest at all: it would hold up each grace period of RCU tasks, and with it
/// whoever loads the module (mm/khugepaged.c:khugepaged_wait_work).
fn khugepaged(_: &Host, random: &mut Random) -> Result<(), Failure> {
    let khugepaged = "/sys/kernel/mm/transparent_hugepage/khugepaged";
    let often = random.pick(&["1", "50", "10000"]);
    host::write(&format!("{khugepaged}/scan_sleep_millisecs"), often)?;
    host::write(&format!("{khugepaged}/alloc_sleep_millisecs"), "50")?;
    host::write(&format!("{khugepaged}/max_ptes_shared"), "511")
}

fn balance(_: &Host, random: &mut Random) -> Result<(), Failure> {
    let scan = "/sys/kernel/debug/sched/numa_balancing";
    host::write(&format!("{scan}/scan_delay_ms"), "10")?;
    host::write(&format!("{scan}/scan_period_min_ms"), "100")?;
    host::write(&format!("{scan}/scan_period_max_ms"), "200")?;
    switch_on("/proc/sys/kernel/numa_balancing", random, &["0"])
}

/// A block of memory goes away, its pages elsewhere, and comes back.
fn hotplug_memory(_: &Host, random: &mut Random) -> Result<(), Failure> {
    let blocks = Block::inner()?;
    if blocks.is_empty() {
        return Err(Failure::Skipped("no memory to take out".into()));
    }
    let block = &blocks[random.below(blocks.len())];
    let gone = block.offline();
    random.nap(200);
    let back = block.online(Zone::Any);
    // Free pages of hugetlb that were there are gone from the pool for good.
    host::fill_hugetlb();
    gone?;
    tolerate(back.map_err(Failure::from))
}

fn hotplug_cpu(_: &Host, random: &mut Random) -> Result<(), Failure> {
    let online = "/sys/devices/system/cpu/cpu1/online";
    host::write(online, "0")?;
    random.nap(300);
    host::write(online, "1").map_err(|failure| Failure::Failed(failure.to_string()))
}

/// Everything freezes, as for a suspend to memory that stops there. It takes five seconds.
fn suspend(_: &Host, random: &mut Random) -> Result<(), Failure> {
    if !random.one_in(6) {
        return Err(Failure::Skipped(NOT_EVERY_TIME.into()));
    }
    host::write("/sys/power/pm_test", "freezer")?;
    let frozen = host::write("/sys/power/state", "mem");
    host::write("/sys/power/pm_test", "none")?;
    frozen
}

/// How many allocations of a kind may fail in a moment: more than ever do.
const MANY: u64 = 1_000_000_000;

/// Allocations of the module fail, one in so many, for a while.
fn fail_allocations(_: &Host, random: &mut Random) -> Result<(), Failure> {
    let Some((start, end)) = module_text() else {
        return Err(Failure::Skipped("the module is not loaded".into()));
    };
    let (start, end) = (format!("{start:#x}"), format!("{end:#x}"));
    let (interval, times) = (random.pick(&["1", "7", "50"]), MANY.to_string());
    let mut settings = faults::EVERY_KIND.to_vec();
    settings.extend([
        ("failslab/require-start", &*start),
        ("failslab/require-end", &*end),
        ("failslab/times", &*times),
        ("failslab/interval", interval),
        ("fail_page_alloc/require-start", &*start),
        ("fail_page_alloc/require-end", &*end),
        ("fail_page_alloc/times", &*times),
        ("fail_page_alloc/interval", interval),
        // Nothing fails before the rest is set, nor once these are put back, which is first.
        ("failslab/probability", "100"),
        ("fail_page_alloc/probability", "100"),
    ]);
    // Not every kernel can do it at all.
    let failing = tolerate(Changed::to(settings).map_err(Failure::from))?;
    random.nap(500);
    let refused = faults::KINDS.into_iter().any(|kind| {
        let left = faults::number(&format!("{kind}/times"));
        left.is_ok_and(|left| left < MANY)
    });
    drop(failing);
    match refused {
        true => Ok(()),
        false => Err(Failure::Skipped("no allocation was refused".into())),
    }
}

/// Where the module's code is.
fn module_text() -> Option<(u64, u64)> {
    let modules = fs::read_to_string("/proc/modules").ok()?;
    let line = modules.lines().find(|line| line.starts_with("twinpage "))?;
    let words: Vec<_> = line.split_whitespace().collect();
    let size: u64 = words.get(1)?.parse().ok()?;
    let address = words.iter().find_map(|word| word.strip_prefix("0x"))?;
    let start = u64::from_str_radix(address, 16).ok()?;
    Some((start, start + size))
}
