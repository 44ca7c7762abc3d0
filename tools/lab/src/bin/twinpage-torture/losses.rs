// SPDX-License-Identifier: GPL-2.0

//! Monitors that the kernel kills, and frames that break.

use std::fs;
use std::io;
use std::os::fd::{
    AsRawFd,
    OwnedFd, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::time::Duration;

use nix::sys::signal::Signal;
use twinpage_lab::ensure;
use twinpage_lab::files::borrow;
use twinpage_lab::module::{
    self,
    Device,
    Merged, //
};
use twinpage_lab::pagemap::{
    Flags,
    Frame,
    Frames, //
};
use twinpage_lab::process::field;
use twinpage_lab::random::Random;
use twinpage_lab::tap::Failure;
use twinpage_lab::wait;

use crate::events::{
    signal,
    tolerate,
    with_ksmd,
    GROUP, //
};
use crate::fleet::{
    Monitor,
    NOT_EVERY_TIME, //
};
use crate::frames::frames_of;
use crate::host::{
    self,
    Host, //
};

/// Breaks a frame, as a machine check does.
const CORRUPT: &str = "/sys/kernel/debug/hwpoison/corrupt-pfn";

/// The longest that a monitor without memory may live: until it writes to a merged page, or finds one
/// missing.
const STARVES: Duration = Duration::from_secs(10);

/// Ends one of the monitors; another takes its place.
pub fn lose_one(
    host: &Host,
    random: &mut Random,
    end: impl FnOnce(Monitor) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let replacement = host.another()?;
    let mut monitors = host.monitors();
    let index = random.below(monitors.len());
    let domain = host::domain(random);
    let Some(place) = monitors.get_mut(index) else {
        return Ok(());
    };
    let result = end(std::mem::replace(place, replacement));
    if module::is_loaded() {
        host::attach(place, domain)?;
    }
    result
}

/// Kills a monitor while its VM is detached and attached, by this process, again and again.
pub fn kill_and_attach(host: &Host, random: &mut Random, signal: i32) -> Result<(), Failure> {
    let (domain, nap) = (host::domain(random), random.below(100) as u64);
    lose_one(host, random, |monitor| {
        // A killed monitor is gone for whoever looks for its files.
        let vm = borrow(monitor.pid(), monitor.vms()?.guest);
        let (attached, done) = (monitor.attached, AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| attach_until(vm, attached, domain, &done));
            std::thread::sleep(Duration::from_millis(nap));
            monitor.kill(signal);
            done.store(true, Ordering::Release);
        });
        Ok(())
    })
}

/// Attaches and detaches a VM until told to stop. The module may be gone, or the VM.
fn attach_until(
    vm: io::Result<OwnedFd>,
    mut attached: Option<u32>,
    domain: u64,
    done: &AtomicBool,
) {
    let (Ok(vm), Ok(device)) = (vm, Device::open()) else {
        return;
    };
    while !done.load(Ordering::Acquire) {
        if let Some(id) = attached.take() {
            let _ = device.detach(id, Merged::Keep);
        }
        attached = device.attach(vm.as_raw_fd(), domain).ok();
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Does something to one of the monitors and kills it.
fn kill_after(
    host: &Host,
    random: &mut Random,
    how: impl FnOnce(&Monitor) -> Result<(), Failure>,
) -> Result<(), Failure> {
    lose_one(host, random, |monitor| {
        let result = how(&monitor);
        monitor.kill(libc::SIGKILL);
        result
    })
}

/// A group for one monitor at a time: what it has was charged to its old group, what it gets from now
/// on is charged here.
fn group(name: &str) -> Result<String, Failure> {
    let group = format!("{GROUP}-{name}");
    if fs::metadata(&group).is_err() {
        fs::create_dir(&group).map_err(|error| Failure::Skipped(error.to_string()))?;
    }
    Ok(group)
}

/// A monitor whose group may have little more memory, but swap, for a moment: whoever gives it a page,
/// it or the module, takes another away first. Then it checks its memory and ends, unless the kernel
/// killed it, which it does where nothing can be taken away.
pub fn squeeze(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let group = group("squeezed")?;
    let (mib, nap) = (1 + random.below(3), random.below(1000) as u64);
    host::write(&format!("{group}/memory.max"), format!("{mib}M"))?;
    lose_one(host, random, |mut monitor| {
        let before = oom_kills(&group)?;
        let pid = monitor.pid().to_string();
        host::write(&format!("{group}/cgroup.procs"), pid)?;
        std::thread::sleep(Duration::from_millis(nap));
        let unmerged = host::detach(&mut monitor, Merged::Unmerge);
        host::write(&format!("{group}/memory.max"), "max")?;
        let checked = monitor.finish();
        match oom_kills(&group)? > before {
            true => tolerate(checked),
            false => checked.and(unmerged),
        }
    })
}

/// A monitor whose group has no memory left is killed by the kernel.
pub fn starve(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let group = group("hungry")?;
    host::write(&format!("{group}/memory.swap.max"), "0")?;
    let starved = kill_after(host, random, |monitor| {
        let before = oom_kills(&group)?;
        let pid = monitor.pid().to_string();
        host::write(&format!("{group}/cgroup.procs"), pid)?;
        host::write(&format!("{group}/memory.max"), "65536")?;
        let killed: Result<_, Failure> =
            wait::until("an OOM kill", STARVES, || Ok(oom_kills(&group)? > before));
        tolerate(killed.map(|_| ()))
    });
    host::write(&format!("{group}/memory.max"), "max")?;
    starved
}

/// How many processes of a group the kernel has killed for want of memory.
fn oom_kills(group: &str) -> Result<u64, Failure> {
    Ok(field(&format!("{group}/memory.events"), "oom_kill")?)
}

/// A frame breaks that one monitor alone maps, which may not survive it.
pub fn break_own(host: &Host, random: &mut Random) -> Result<(), Failure> {
    if !random.one_in(4) {
        return Err(Failure::Skipped(NOT_EVERY_TIME.into()));
    }
    let seed = random.below(usize::MAX);
    kill_after(host, random, |monitor| {
        let mut random = Random::new(seed as u64, 0);
        signal(monitor.pid(), Signal::SIGSTOP)?;
        let frames = Frames::open()?;
        let frame = some_frame(monitor, &mut random, |frame| {
            Ok(frames.mappings(frame)? <= 1 && !is_copy(frames.flags(frame)?))
        })?;
        let broken = host::write(CORRUPT, frame.0.to_string());
        signal(monitor.pid(), Signal::SIGCONT)?;
        std::thread::sleep(Duration::from_millis(random.below(500) as u64));
        broken
    })
}

/// A merged copy breaks that several pages map. The kernel does not know whose it is: it marks the
/// frame, refuses to do more, and kills nobody. All VMs go on, the copy is given to no further page,
/// and whoever writes gets another frame.
pub fn break_merged(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let monitors = host.monitors();
    let frames = Frames::open()?;
    let Some(monitor) = monitors.get(random.below(monitors.len())) else {
        return Ok(());
    };
    let frame = some_merged(host, monitor, &frames, random)?;
    let told = fs::write(CORRUPT, frame.0.to_string());
    if matches!(&told, Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return Err(Failure::Skipped(format!("no {CORRUPT}")));
    }
    let flags = frames.flags(frame)?;
    if !is_copy(flags) {
        return Err(Failure::Skipped("it came apart meanwhile".into()));
    }
    ensure!(flags.poisoned(), "a broken copy is not marked: {told:?}");
    match told.map_err(|error| error.raw_os_error()) {
        Err(Some(libc::EBUSY | libc::EIO)) => Ok(()),
        other => Err(Failure::Failed(format!("breaking a copy: {other:?}"))),
    }
}

/// The kernel shall move a merged copy off a frame that may break soon, which it cannot. A copy that
/// comes apart meanwhile may leave a free frame, which it can take out of use
/// (mm/memory-failure.c:soft_offline_page): then nobody maps it.
pub fn offline_merged(host: &Host, random: &mut Random) -> Result<(), Failure> {
    let monitors = host.monitors();
    let Some(monitor) = monitors.get(random.below(monitors.len())) else {
        return Ok(());
    };
    let frame = some_merged(host, monitor, &Frames::open()?, random)?;
    let at = format!("{:#x}", frame.0 * 4096);
    match fs::write("/sys/devices/system/memory/soft_offline_page", at) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EIO)) => Ok(()),
        Err(error) => Err(Failure::Skipped(error.to_string())),
        Ok(()) => {
            for monitor in monitors.iter() {
                let pid = monitor.pid();
                let mapped = frames_of(pid).is_ok_and(|frames| frames.contains(&frame));
                ensure!(
                    !mapped,
                    "{frame:x?} is out of use, and process {pid} maps it"
                );
            }
            Err(Failure::Skipped("it came apart meanwhile".into()))
        }
    }
}

/// A merged copy that a monitor maps, and somebody else too. Where it looks like ksmd's, it must not
/// be ksmd's: those the kernel knows whose they are.
fn some_merged(
    host: &Host,
    monitor: &Monitor,
    frames: &Frames,
    random: &mut Random,
) -> Result<Frame, Failure> {
    some_frame(monitor, random, |frame| {
        let flags = frames.flags(frame)?;
        let ours = is_copy(flags) && !(flags.ksm() && with_ksmd(host.seed));
        Ok(ours && !flags.poisoned() && frames.mappings(frame)? > 1)
    })
}

/// Whether a frame that is mapped in guest memory is a merged copy.
fn is_copy(flags: Flags) -> bool {
    !flags.lru() && !flags.zero() && !flags.huge() && (flags.ksm() || !flags.anonymous())
}

/// Some frame of a monitor's guest memory that will do.
fn some_frame(
    monitor: &Monitor,
    random: &mut Random,
    will_do: impl Fn(Frame) -> io::Result<bool>,
) -> Result<Frame, Failure> {
    let frames = frames_of(monitor.pid())?;
    let start = random.below(frames.len().max(1));
    let (before, after) = frames.split_at(start.min(frames.len()));
    for &frame in after.iter().chain(before) {
        if will_do(frame)? {
            return Ok(frame);
        }
    }
    Err(Failure::Skipped("no such frame".into()))
}
