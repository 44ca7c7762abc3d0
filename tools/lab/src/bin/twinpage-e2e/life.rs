// SPDX-License-Identifier: GPL-2.0

//! VMs die, the module comes and goes, at any moment.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{
    self,
    File, //
};
use std::io::{
    Read,
    Write, //
};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{
    Duration,
    Instant, //
};

use nix::kmod::{
    delete_module,
    DeleteModuleFlags, //
};
use nix::sys::signal::Signal;
use nix::sys::wait::{
    waitpid,
    WaitPidFlag, //
};
use nix::unistd::Pid;
use tinyvm::{
    Backing,
    Counter,
    Sweep, //
};
use twinpage_lab::files::borrow;
use twinpage_lab::module::{
    self,
    Merged,
    DEBUGFS, //
};
use twinpage_lab::pagemap::Frames;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    wait, //
};

use crate::host::{
    common_frames,
    fails_with,
    goes_on,
    in_child,
    saved_pages,
    skipped,
    Child,
    Guest,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "vms_that_are_killed_while_they_merge_go_away",
        seconds: 300,
        run: vms_that_are_killed_while_they_merge_go_away,
    },
    Test {
        name: "a_vm_whose_file_is_closed_first_goes_away",
        seconds: 120,
        run: a_vm_whose_file_is_closed_first_goes_away,
    },
    Test {
        name: "a_process_that_stands_still_holds_up_only_the_end_of_its_vm",
        seconds: 500,
        run: a_process_that_stands_still_holds_up_only_the_end_of_its_vm,
    },
    Test {
        name: "a_resting_scanner_lets_go_of_vms",
        seconds: 180,
        run: a_resting_scanner_lets_go_of_vms,
    },
    Test {
        name: "a_stopped_scanner_lets_go_of_vms",
        seconds: 300,
        run: a_stopped_scanner_lets_go_of_vms,
    },
    Test {
        name: "the_vendor_module_stays_while_a_vm_is_attached",
        seconds: 120,
        run: the_vendor_module_stays_while_a_vm_is_attached,
    },
    Test {
        name: "merged_pages_outlive_the_module",
        seconds: 180,
        run: merged_pages_outlive_the_module,
    },
    Test {
        name: "unmerge_on_exit_unmerges_when_unloading",
        seconds: 180,
        run: unmerge_on_exit_unmerges_when_unloading,
    },
    Test {
        name: "an_open_file_keeps_the_module",
        seconds: 300,
        run: an_open_file_keeps_the_module,
    },
    Test {
        name: "the_module_unloads_under_load",
        seconds: 900,
        run: the_module_unloads_under_load,
    },
    Test {
        name: "attaching_and_detaching_under_load",
        seconds: 180,
        run: attaching_and_detaching_under_load,
    },
];

const PAGES: usize = 1024;

/// Within this time a VM that ended is let go of, whatever the scanner does; it may rest longer.
const SOON: Duration = Duration::from_secs(40);

/// A VM in a process of its own that writes for ever.
struct Victim {
    child: Child,
    vm: i32,
}

impl Victim {
    /// Starts it. It has all files of this process, so the device should not be open.
    fn start() -> Result<Victim, Failure> {
        let (mut reader, mut writer) = crate::host::pipe()?;
        let child = in_child(|| {
            let Ok(guest) = Guest::detached(PAGES, Backing::Small) else {
                return false;
            };
            let Ok(vm) = guest.vm() else { return false };
            if writer.write_all(&vm.as_raw_fd().to_le_bytes()).is_err() {
                return false;
            }
            for round in 0.. {
                guest.fill_with(|page| page as u64 % 50 + round / 4);
                if guest
                    .check_with(|page| page as u64 % 50 + round / 4)
                    .is_err()
                {
                    return false;
                }
            }
            true
        })?;
        let mut vm = [0; 4];
        reader.read_exact(&mut vm)?;
        let vm = i32::from_le_bytes(vm);
        Ok(Victim { child, vm })
    }

    /// Attaches it through a copy of its file.
    fn attach(&self, host: &Host) -> Result<u32, Failure> {
        let vm = borrow(self.child.pid(), self.vm)?;
        Ok(host.device().attach(vm.as_raw_fd(), DOMAIN)?)
    }
}

/// Waits until the module has let go of a VM.
pub fn until_gone(id: u32) -> Outcome {
    wait::until("forgetting the VM", CONVERGE, || {
        Ok::<_, Failure>(fs::metadata(format!("{DEBUGFS}/{id}")).is_err())
    })
    .map(|_| ())
}

fn vms_that_are_killed_while_they_merge_go_away() -> Outcome {
    const ROUNDS: u64 = 25;
    let host = Host::new()?;
    let survivor = host.guest(PAGES, Backing::Small, DOMAIN)?;
    survivor.fill_with(|page| page as u64 % 50);
    let (mut round, mut shared) = (0, 0);
    let start = Instant::now();
    while round < ROUNDS || goes_on(start, Duration::ZERO, shared > 0) {
        let victim = Victim::start()?;
        let id = victim.attach(&host)?;
        // If that is too short for all of them, others live longer and longer.
        let life = match round {
            0..ROUNDS => round % 10,
            _ => round,
        };
        std::thread::sleep(Duration::from_millis(37 * life));
        shared += usize::from(shares_with_others(&survivor)?);
        victim.child.kill()?;
        until_gone(id)?;
        survivor.check_with(|page| page as u64 % 50)?;
        round += 1;
    }
    println!("{shared} of {round} were killed while they shared frames");
    ensure!(shared > 0, "none had merged when it was killed");
    host.looks(2)?;
    let copies = module::counter("pages_shared")?;
    ensure!(copies <= 60, "{copies} copies are still there");
    Ok(())
}

/// Whether a frame of a VM is mapped more often than by the VM.
fn shares_with_others(guest: &Guest) -> Result<bool, Failure> {
    let mut own = BTreeMap::new();
    for frame in guest.frames()?.into_iter().flatten() {
        *own.entry(frame).or_insert(0) += 1;
    }
    let frames = Frames::open()?;
    for (frame, times) in own {
        if !frames.flags(frame)?.zero() && frames.mappings(frame)? > times {
            return Ok(true);
        }
    }
    Ok(false)
}

fn a_vm_whose_file_is_closed_first_goes_away() -> Outcome {
    let host = Host::new()?;
    let [mut a, b] = host.twins(PAGES)?;
    a.close_vm();
    until_gone(a.id())?;
    a.check_with(|page| page as u64 + 1)?;
    ensure!(common_frames(&a, &b)? == PAGES, "closing the VM unmerged");
    a.fill_with(|page| page as u64 + 2);
    b.check_with(|page| page as u64 + 1)?;
    host.looks(2)?;
    a.check_with(|page| page as u64 + 2)
}

/// Lets a VM run once, so that KVM has a thread in its process, and tells its file. Told to go on,
/// closes it and stops the process.
fn run_and_close(mut told: impl Read, mut tell: impl Write) -> Outcome {
    let mut counter = Counter::new(PAGES, Backing::Small, |page| page as u64)?;
    counter
        .sweep(Sweep::Read)?
        .map_err(|lost| Failure::Failed(format!("{lost:?}")))?;
    tell.write_all(&counter.vm().as_raw_fd().to_le_bytes())?;
    told.read_exact(&mut [0])?;
    drop(counter);
    nix::sys::signal::raise(Signal::SIGSTOP)?;
    Ok(())
}

fn a_process_that_stands_still_holds_up_only_the_end_of_its_vm() -> Outcome {
    let (mut reader, writer) = crate::host::pipe()?;
    let (told, mut tell) = crate::host::pipe()?;
    let child = in_child(|| run_and_close(told, writer).is_ok())?;
    let mut vm = [0; 4];
    reader.read_exact(&mut vm)?;
    let vm = borrow(child.pid(), i32::from_le_bytes(vm))?;
    let host = Host::new()?;
    let id = host.device().attach(vm.as_raw_fd(), DOMAIN)?;
    tell.write_all(b"!")?;
    let pid = Pid::from_raw(child.pid() as i32);
    waitpid(pid, Some(WaitPidFlag::WUNTRACED))?;
    // Nobody but the module has it now.
    drop(vm);
    let went_on = until_gone(id).and_then(|()| host.twins(PAGES).map(|_| ()));
    child.kill()?;
    went_on
}

/// Closes a new VM and fails unless it is let go of soon.
fn closed_and_gone(host: &Host) -> Outcome {
    let mut guest = host.guest(1, Backing::Small, PRIVATE)?;
    std::thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    guest.close_vm();
    until_gone(guest.id())?;
    let took = start.elapsed();
    ensure!(took < SOON, "the VM was let go of after {took:?}");
    Ok(())
}

fn a_resting_scanner_lets_go_of_vms() -> Outcome {
    let host = Host::new()?;
    module::set("sleep_millisecs", 60_000)?;
    closed_and_gone(&host)?;
    closed_and_gone(&host)
}

/// Two domains have more copies than are polled at once, and the scanner stops anywhere in them.
fn a_stopped_scanner_lets_go_of_vms() -> Outcome {
    const COPIES: usize = 1500;
    let host = Host::new()?;
    let mut guests = Vec::new();
    for domain in [DOMAIN, DOMAIN + 1] {
        for _ in 0..2 {
            let guest = host.guest(COPIES, Backing::Small, domain)?;
            guest.fill_with(|page| page as u64 + 1);
            guests.push(guest);
        }
    }
    host.until_saved(&guests.iter().collect::<Vec<_>>(), 2 * COPIES)?;
    for round in 0..8 {
        module::set("run", 1)?;
        std::thread::sleep(Duration::from_millis(50 + 7 * round));
        module::set("run", 0)?;
        closed_and_gone(&host)?;
    }
    Ok(())
}

fn the_vendor_module_stays_while_a_vm_is_attached() -> Outcome {
    let vendors: [(&str, &CStr); 2] = [("kvm_amd", c"kvm_amd"), ("kvm_intel", c"kvm_intel")];
    let vendor = vendors
        .into_iter()
        .find(|(name, _)| module::users(name).is_some());
    let Some((name, c_name)) = vendor else {
        return Err(Failure::Skipped("KVM is built into this kernel".into()));
    };
    let users = || module::users(name).unwrap_or_default();
    let host = Host::new()?;
    let mut guest = Guest::detached(PAGES, Backing::Small)?;
    let mut before = users();
    guest.attach(&host, PRIVATE)?;
    let mut attached = users();
    while attached <= before {
        // Unless a VM of the test before this one went away meanwhile, attaching added none.
        guest.detach(&host, Merged::Keep)?;
        let now = users();
        ensure!(
            now < before,
            "{name} has {before} users before and {attached} after"
        );
        before = now;
        guest.attach(&host, PRIVATE)?;
        attached = users();
    }
    let removed = delete_module(c_name, DeleteModuleFlags::O_NONBLOCK);
    ensure!(removed.is_err(), "{name} was removed under an attached VM");
    guest.detach(&host, Merged::Keep)?;
    // Fewer, if a VM of the test before this one went away meanwhile.
    ensure!(
        users() <= before,
        "{name} has {before} users before and {} after detaching",
        users()
    );
    guest.attach(&host, PRIVATE)?;
    guest.close_vm();
    wait::until("giving the vendor module up", CONVERGE, || {
        Ok::<_, Failure>(users() < before)
    })
    .map(|_| ())
}

fn merged_pages_outlive_the_module() -> Outcome {
    let key = |page: usize| page as u64 + 1;
    let host = Host::new()?;
    let [mut a, mut b] = host.twins(PAGES)?;
    let before = a.frames()?;
    drop(host);
    module::unload()?;
    // Reading, forking, copying on write, discarding and leaving: all without the module.
    ensure!(a.frames()? == before, "unloading changed frames");
    a.check_with(key)?;
    in_child(|| {
        a.fill_with(|page| page as u64 + 5000);
        a.check_with(|page| page as u64 + 5000).is_ok() && b.check_with(key).is_ok()
    })?
    .join()?;
    for page in 0..100 {
        a.memory().set_word(page, 9, 1);
    }
    a.memory().advise(100, 100, libc::MADV_DONTNEED)?;
    b.check_with(key)?;
    let frames = Frames::open()?;
    for (page, frame) in b.frames()?.into_iter().enumerate() {
        let Some(frame) = frame else { continue };
        let mappings = frames.mappings(frame)?;
        let expected = if page < 200 { 1 } else { 2 };
        ensure!(
            mappings == expected,
            "page {page} is mapped {mappings} times"
        );
    }
    // A module that is loaded again neither loses nor harms what the last one left.
    let host = Host::new()?;
    a.attach(&host, DOMAIN)?;
    b.attach(&host, DOMAIN)?;
    host.looks(3)?;
    println!("{} orphans", skipped(&a, "orphan")?);
    a.fill_with(key);
    b.fill_with(key);
    host.until_saved(&[&a, &b], PAGES)?;
    a.check_with(key)?;
    b.check_with(key)
}

fn unmerge_on_exit_unmerges_when_unloading() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("unmerge_on_exit", 1)?;
    drop(host);
    module::unload()?;
    ensure!(saved_pages(&[&a, &b])? == 0, "pages are still merged");
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)
}

/// Unloads, however often that takes; the device may be open for a moment.
fn unload_now() -> Outcome {
    let start = Instant::now();
    wait::until("unloading", CONVERGE, || {
        Ok::<_, Failure>(module::unload().is_ok())
    })?;
    let took = start.elapsed();
    // How fast the machine is decides about seconds; that it ends is what counts.
    ensure!(took < Duration::from_secs(100), "unloading took {took:?}");
    Ok(())
}

/// Closing a file takes code of the module.
fn an_open_file_keeps_the_module() -> Outcome {
    for name in ["stats", "slots", "digests"] {
        let host = Host::new()?;
        let guest = host.guest(16, Backing::Small, PRIVATE)?;
        let path = PathBuf::from(DEBUGFS).join(guest.id().to_string());
        let mut file = File::open(path.join(name))?;
        file.read_exact(&mut [0; 8])?;
        drop((guest, host));
        let unloaded = module::unload();
        fails_with("unloading", unloaded, libc::EWOULDBLOCK)?;
        drop(file);
        unload_now()?;
    }
    Ok(())
}

fn the_module_unloads_under_load() -> Outcome {
    let mut victims: Vec<Child> = Vec::new();
    for round in 0..8 {
        let fresh = [Victim::start()?, Victim::start()?];
        let host = Host::new()?;
        for victim in fresh {
            victim.attach(&host)?;
            victims.push(victim.child);
        }
        drop(host);
        std::thread::sleep(Duration::from_millis(100 + 150 * round));
        unload_now()?;
        // The victims of earlier rounds go on writing with what was merged; one of them goes.
        if let Some(victim) = victims.pop() {
            victim.kill()?;
        }
    }
    // One that found a wrong page has ended by itself.
    victims.into_iter().try_for_each(Child::kill)
}

fn attaching_and_detaching_under_load() -> Outcome {
    let host = Host::new()?;
    let mut a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let key = |round: u64| move |page: usize| page as u64 + round / 8;
    for round in 0..60_u64 {
        if round % 8 == 0 {
            a.fill_with(key(round));
            b.fill_with(key(round));
        }
        std::thread::sleep(Duration::from_millis(20 * (round % 8)));
        let merged = match round % 2 {
            0 => Merged::Keep,
            _ => Merged::Unmerge,
        };
        let detached = a.detach(&host, merged)?;
        if merged == Merged::Unmerge {
            ensure!(detached.remaining == 0, "{detached:?}");
            ensure!(common_frames(&a, &b)? == 0, "still shared in round {round}");
        }
        a.check_with(key(round))?;
        b.check_with(key(round))?;
        // Only what is attached to the same domain may ever share.
        a.attach(&host, DOMAIN + round % 3)?;
        if round % 3 != 0 && merged == Merged::Unmerge {
            let common = common_frames(&a, &b)?;
            ensure!(
                common == 0,
                "{common} frames across domains in round {round}"
            );
        }
    }
    Ok(())
}
