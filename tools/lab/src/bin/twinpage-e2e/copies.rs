// SPDX-License-Identifier: GPL-2.0

//! Merged copies: how many pages share one, and when it is given back.

use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::sys::signal::{
    kill,
    Signal, //
};
use nix::sys::wait::{
    waitpid,
    WaitStatus, //
};
use nix::unistd::Pid;
use tinyvm::Backing;
use twinpage_lab::files::handle;
use twinpage_lab::pagemap::Frames;
use twinpage_lab::process::field;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    module,
    wait, //
};

use crate::host::{
    key,
    saved_pages,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};
use crate::owner::Owner;
use crate::pins::trace;

const PAGES: usize = 512;

pub const TESTS: &[Test] = &[
    Test {
        name: "a_frame_has_at_most_max_page_sharing_mappings",
        seconds: 120,
        run: a_frame_has_at_most_max_page_sharing_mappings,
    },
    Test {
        name: "a_copy_that_nobody_maps_is_freed_within_a_pass",
        seconds: 180,
        run: a_copy_that_nobody_maps_is_freed_within_a_pass,
    },
    Test {
        name: "the_copies_of_vms_that_end_do_not_wait_for_a_pass",
        seconds: 180,
        run: the_copies_of_vms_that_end_do_not_wait_for_a_pass,
    },
    Test {
        name: "reaping_a_killed_monitor_leaves_its_twin_alone",
        seconds: 240,
        run: reaping_a_killed_monitor_leaves_its_twin_alone,
    },
    Test {
        name: "the_shrinker_frees_copies_that_nobody_maps",
        seconds: 180,
        run: the_shrinker_frees_copies_that_nobody_maps,
    },
];

fn a_frame_has_at_most_max_page_sharing_mappings() -> Outcome {
    const LIMIT: usize = 16;
    let host = Host::new()?;
    module::set("max_page_sharing", LIMIT)?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    guest.fill_with(|_| 42);
    // A race between two copies may leave some with fewer mappings than they could have.
    host.until_saved(&[&guest], PAGES - 2 * PAGES / LIMIT)?;
    host.looks(2)?;
    let frames = Frames::open()?;
    for frame in guest.frames()?.into_iter().flatten() {
        let mappings = frames.mappings(frame)?;
        ensure!(
            mappings <= LIMIT as u64,
            "{frame:?} has {mappings} mappings"
        );
    }
    guest.check_with(|_| 42)
}

/// Copies of two VMs that drop all of their pages.
const MANY: usize = 8192;

/// Whether the host has most of the 32 MiB of copies back.
fn has_back(before: u64) -> Result<bool, Failure> {
    Ok(field("/proc/meminfo", "MemFree")? >= before + 24 * 1024)
}

fn a_copy_that_nobody_maps_is_freed_within_a_pass() -> Outcome {
    let host = Host::new()?;
    let twins = host.twins(MANY)?;
    let shared = module::counter("pages_shared")?;
    ensure!(shared >= MANY as i64, "pages_shared is {shared}");
    // So that their blocks are not visited in every pass any more.
    host.looks(4)?;
    // An empty pass for each batch, and time to see what the first one does.
    module::set("pages_to_scan", 256)?;
    module::set("sleep_millisecs", 400)?;
    let before = field("/proc/meminfo", "MemFree")?;
    for twin in &twins {
        twin.memory().advise(0, MANY, libc::MADV_DONTNEED)?;
    }
    host.passes(1)?;
    ensure!(has_back(before)?, "the copies are still there after a pass");
    host.looks(1)?;
    let shared = module::counter("pages_shared")?;
    ensure!(shared == 0, "pages_shared is {shared} after a look");
    ensure!(saved_pages(&[&twins[0]])? == 0, "still mapped");
    Ok(())
}

/// One more block, then the scanner rests for a minute.
fn rest() -> Outcome {
    module::set("pages_to_scan", 1)?;
    module::set("advisor_mode", "none")?;
    module::set("sleep_millisecs", 60_000)?;
    Ok(())
}

fn the_copies_of_vms_that_end_do_not_wait_for_a_pass() -> Outcome {
    let host = Host::new()?;
    let _bystander = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let twins = host.twins(MANY)?;
    rest()?;
    let before = field("/proc/meminfo", "MemFree")?;
    drop(twins);
    wait::until("freeing of the copies", Duration::from_secs(40), || {
        has_back(before)
    })
    .map(|_| ())
}

/// Kills a process, stops it where its end begins, and takes its memory meanwhile.
fn kill_and_reap(process: u32) -> Outcome {
    let pid = Pid::from_raw(process as i32);
    let file = handle(process)?;
    let stop = libc::PTRACE_O_TRACEEXIT as u64;
    trace(libc::PTRACE_SEIZE, pid.as_raw(), 0, stop)?;
    kill(pid, Signal::SIGKILL)?;
    let status = waitpid(pid, None)?;
    let stopped = matches!(status, WaitStatus::PtraceEvent(..));
    ensure!(stopped, "the process did not stop at its end: {status:?}");
    wait::until("reaping", CONVERGE, || {
        // SAFETY: the call takes integers; the process whose memory goes never runs again.
        let reaped = unsafe { libc::syscall(libc::SYS_process_mrelease, file.as_raw_fd(), 0) };
        let error = std::io::Error::last_os_error();
        // Somebody may be in the way for a moment.
        let again = error.raw_os_error() == Some(libc::EAGAIN);
        ensure!(reaped == 0 || again, "process_mrelease: {error}");
        Ok(reaped == 0)
    })
    .map(|_| ())
}

/// Whose mappings go is not whose copies go (mm/oom_kill.c:__oom_reap_task_mm).
fn reaping_a_killed_monitor_leaves_its_twin_alone() -> Outcome {
    let host = Host::new()?;
    let owner = Owner::start(CloneFlags::empty(), MANY)?;
    host.device().attach(owner.vm.as_raw_fd(), DOMAIN)?;
    let twin = host.guest(MANY, Backing::Small, DOMAIN)?;
    twin.fill_with(key);
    wait::until("merging", CONVERGE, || {
        Ok::<_, Failure>(owner.frames()? == twin.frames()?)
    })?;
    let before = twin.frames()?;
    let process = owner.child.pid();
    kill_and_reap(process)?;
    let left = owner.frames()?.into_iter().flatten().count();
    ensure!(left == 0, "the killed process still maps {left} pages");
    ensure!(twin.frames()? == before, "the twin has other frames");
    let frames = Frames::open()?;
    for &frame in before.iter().flatten() {
        let mappings = frames.mappings(frame)?;
        ensure!(mappings == 1, "{frame:?} has {mappings} mappings");
    }
    twin.check_with(key)?;
    trace(libc::PTRACE_DETACH, process as libc::pid_t, 0, 0)?;
    owner.child.kill()?;
    drop(owner.vm);
    twin.check_with(key)?;
    let free = field("/proc/meminfo", "MemFree")?;
    drop(twin);
    wait::until("freeing of the copies", CONVERGE, || has_back(free)).map(|_| ())
}

fn the_shrinker_frees_copies_that_nobody_maps() -> Outcome {
    let host = Host::new()?;
    let twins = host.twins(MANY)?;
    // Only the shrinker can do it.
    rest()?;
    std::fs::write("/proc/sys/vm/drop_caches", "2")?;
    std::thread::sleep(Duration::from_secs(2));
    let before = field("/proc/meminfo", "MemFree")?;
    for twin in &twins {
        twin.memory().advise(0, MANY, libc::MADV_DONTNEED)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let kept = field("/proc/meminfo", "MemFree")?;
    ensure!(
        kept < before + 8 * 1024,
        "the copies went without the shrinker"
    );
    wait::until("freeing by the shrinker", Duration::from_secs(40), || {
        std::fs::write("/proc/sys/vm/drop_caches", "2")?;
        has_back(before)
    })?;
    Ok(())
}
