// SPDX-License-Identifier: GPL-2.0

//! Memory runs short, is swapped out, or breaks.

use std::fs::{
    self,
    File, //
};
use std::io::{
    Read,
    Write, //
};
use std::os::fd::AsRawFd;

use tinyvm::{
    Backing,
    Memory, //
};
use twinpage_lab::cgroup::Group;
use twinpage_lab::damon::Damon;
use twinpage_lab::module::{
    self,
    Merged, //
};
use twinpage_lab::pagemap::{
    Frame,
    Frames, //
};
use twinpage_lab::process::{
    available_kib,
    field,
    oom_kills, //
};
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
    fill,
    in_child,
    pipe,
    saved_pages,
    Child,
    Guest,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};
use crate::owner::Pair;
use twinpage_lab::swap::{
    used_kib,
    Kind,
    Swap, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "unmerging_stops_before_the_host_runs_out_of_memory",
        seconds: 800,
        run: unmerging_stops_before_the_host_runs_out_of_memory,
    },
    Test {
        name: "unmerging_stops_at_the_limit_of_a_control_group",
        seconds: 300,
        run: unmerging_stops_at_the_limit_of_a_control_group,
    },
    Test {
        name: "run_2_goes_on_after_a_vm_that_keeps_its_pages",
        seconds: 300,
        run: run_2_goes_on_after_a_vm_that_keeps_its_pages,
    },
    Test {
        name: "unmerging_charges_the_control_group_that_a_vm_moved_to",
        seconds: 300,
        run: unmerging_charges_the_control_group_that_a_vm_moved_to,
    },
    Test {
        name: "swapped_pages_merge_when_they_come_back",
        seconds: 240,
        run: swapped_pages_merge_when_they_come_back,
    },
    Test {
        name: "swapoff_leaves_copies_alone_and_what_it_brings_back_merges",
        seconds: 240,
        run: swapoff_leaves_copies_alone_and_what_it_brings_back_merges,
    },
    Test {
        name: "damon_cannot_page_merged_pages_out",
        seconds: 180,
        run: damon_cannot_page_merged_pages_out,
    },
    Test {
        name: "a_poisoned_copy_is_retired",
        seconds: 180,
        run: a_poisoned_copy_is_retired,
    },
    Test {
        name: "merging_gives_memory_back_to_the_host",
        seconds: 240,
        run: merging_gives_memory_back_to_the_host,
    },
];

fn merging_gives_memory_back_to_the_host() -> Outcome {
    const PAGES: usize = 16_384;
    let host = Host::new()?;
    module::set("run", 0)?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    guest.fill_with(|page| page as u64 % 16);
    let before = available_kib()?;
    module::set("run", 1)?;
    host.until_saved(&[&guest], PAGES - 16 - PAGES / 256)?;
    let gain = available_kib()?.saturating_sub(before) / 1024;
    println!("{gain} MiB more available for {} MiB merged", PAGES / 256);
    ensure!(gain >= 56, "only {gain} of 64 MiB came back");
    Ok(())
}

/// Fails unless some memory is free, about 1/64 of all, and nobody was killed.
fn stopped_at_the_floor(what: &str, kills: u64) -> Outcome {
    let floor = field("/proc/meminfo", "MemTotal")? / 64;
    let free = available_kib()?;
    println!("{what}: {free} KiB available, the floor is at {floor} KiB");
    let killed = oom_kills()? - kills;
    ensure!(killed == 0, "{what} killed {killed} processes");
    ensure!(
        free >= floor * 3 / 4,
        "{what} left {free} KiB, the floor is at {floor} KiB"
    );
    Ok(())
}

/// Whether any VM is attached.
fn is_attached() -> Result<bool, Failure> {
    let entries = fs::read_dir(module::DEBUGFS)?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    Ok(names.any(|name| name.to_string_lossy().parse::<u32>().is_ok()))
}

fn unmerging_stops_before_the_host_runs_out_of_memory() -> Outcome {
    /// MiB that merge to nearly nothing.
    const MERGED: usize = 512;
    let host = Host::new()?;
    let mut guest = host.guest(MERGED * 256, Backing::Small, PRIVATE)?;
    guest.fill_with(|page| page as u64 % 7 + 1);
    host.until_saved(&[&guest], MERGED * 256 * 99 / 100)?;
    // Another program takes what merging gave back, but for a part of what unmerging needs.
    let leave = MERGED as u64 / 4;
    let take = (available_kib()? / 1024).saturating_sub(leave) as usize;
    let hog = Memory::new(take * 256, Backing::Huge)?;
    for page in 0..hog.pages() {
        hog.set_word(page, 0, 1 + page as u64);
    }
    println!("{} MiB available for {MERGED} MiB", available_kib()? / 1024);
    let kills = oom_kills()?;
    // Nothing is to merge again meanwhile.
    module::set("run", 0)?;
    let result = host.device().detach(guest.id(), Merged::Unmerge);
    stopped_at_the_floor("detaching", kills)?;
    let Err((error, detached)) = result else {
        return Err(Failure::Failed(
            "everything was unmerged without memory".into(),
        ));
    };
    ensure!(error.raw_os_error() == Some(libc::ENOMEM), "{error}");
    ensure!(detached.remaining > 0, "{detached:?}");
    let left = saved_pages(&[&guest])?;
    fails_with("run 2", module::set("run", 2), libc::ENOMEM)?;
    stopped_at_the_floor("run 2", kills)?;
    ensure!(guest.stats().is_ok(), "the VM is no longer attached");
    module::set("unmerge_on_exit", 1)?;
    drop(host);
    module::unload()?;
    stopped_at_the_floor("unloading", kills)?;
    // What a step was allowed to take may have been left by then.
    let now = saved_pages(&[&guest])?;
    ensure!(now + 4096 > left, "{now} of {left} pages are still merged");
    // A module that is loaded again does not know these copies, so they would have to come apart.
    let host = Host::new()?;
    let attached = host.device().attach(guest.vm()?.as_raw_fd(), PRIVATE);
    fails_with("attaching", attached, libc::ENOMEM)?;
    stopped_at_the_floor("attaching", kills)?;
    ensure!(!is_attached()?, "it was attached all the same");
    drop(hog);
    module::set("run", 0)?;
    guest.attach(&host, PRIVATE)?;
    ensure!(saved_pages(&[&guest])? == 0, "some are still merged");
    for page in (0..MERGED * 256).step_by(97) {
        crate::host::check(guest.memory(), page, page as u64 % 7 + 1)?;
    }
    Ok(())
}

/// A VM whose memory is charged to a group, in a process of its own.
struct Tenant {
    child: Child,
    id: u32,
    go: File,
}

impl Tenant {
    /// Starts it and waits until it has filled its memory, which merges to nearly nothing, and
    /// until that is merged.
    fn start(host: &Host, group: &Group, pages: usize) -> Result<Tenant, Failure> {
        let (mut to_parent, mut from_child) = pipe()?;
        let (mut to_child, go) = pipe()?;
        let mut work = || -> Outcome {
            group.set("cgroup.procs", "0")?;
            let guest = host.guest(pages, Backing::Small, PRIVATE)?;
            guest.fill_with(|page| page as u64 % 16);
            from_child.write_all(&guest.id().to_le_bytes())?;
            to_child.read_exact(&mut [0])?;
            guest.check_with(|page| page as u64 % 16)
        };
        let child = in_child(|| match work() {
            Ok(()) => true,
            Err(failure) => {
                println!("in the VM's process: {failure}");
                false
            }
        })?;
        let mut id = [0; 4];
        to_parent.read_exact(&mut id)?;
        let id = u32::from_le_bytes(id);
        wait::until("merging", CONVERGE, || {
            Ok::<_, Failure>(module::counter("pages_sharing")? > pages as i64 * 95 / 100)
        })?;
        host.looks(1)?;
        Ok(Tenant { child, id, go })
    }

    /// Lets it check its memory; it must find all of it as it was.
    fn finish(mut self) -> Outcome {
        self.go.write_all(b"!")?;
        self.child.join()
    }
}

/// Leaves the group of a VM with so many pages, which are merged, less than these are unmerged.
fn leave_too_little(group: &Group, pages: usize) -> Outcome {
    let charged = group.number("memory.current")?;
    group.set("memory.max", charged + (8 << 20))?;
    // Without swap the group has nowhere to go; not every kernel counts swap.
    let _ = group.set("memory.swap.max", 0);
    println!("{} MiB charged after merging", charged >> 20);
    let all = (pages * 4096) as u64;
    ensure!(charged < all / 2, "{charged} bytes are charged: not merged");
    Ok(())
}

fn unmerging_stops_at_the_limit_of_a_control_group() -> Outcome {
    const PAGES: usize = 16_384;
    let group = Group::new("twinpage-e2e")?;
    group.set("memory.max", "max")?;
    let host = Host::new()?;
    let tenant = Tenant::start(&host, &group, PAGES)?;
    leave_too_little(&group, PAGES)?;
    let result = host.device().detach(tenant.id, Merged::Unmerge);
    let charged = group.number("memory.current")?;
    println!("{result:?}, {} MiB charged", charged >> 20);
    let kills = group.event("oom_kill")?;
    ensure!(kills == 0, "unmerging killed {kills} processes");
    let Err((error, detached)) = result else {
        let text = "everything was unmerged beyond the limit";
        return Err(Failure::Failed(text.into()));
    };
    ensure!(error.raw_os_error() == Some(libc::ENOMEM), "{error}");
    ensure!(detached.remaining > 0, "{detached:?}");
    group.set("memory.max", "max")?;
    tenant.finish()
}

/// Guests are unmerged in the order in which they were attached.
fn run_2_goes_on_after_a_vm_that_keeps_its_pages() -> Outcome {
    const PAGES: usize = 16_384;
    const OTHERS: usize = 2048;
    let group = Group::new("twinpage-e2e")?;
    group.set("memory.max", "max")?;
    let host = Host::new()?;
    let tenant = Tenant::start(&host, &group, PAGES)?;
    let other = host.guest(OTHERS, Backing::Small, PRIVATE)?;
    other.fill_with(|page| page as u64 % 16);
    host.until_saved(&[&other], OTHERS * 95 / 100)?;
    leave_too_little(&group, PAGES)?;
    fails_with("run 2", module::set("run", 2), libc::ENOMEM)?;
    let kills = group.event("oom_kill")?;
    ensure!(kills == 0, "unmerging killed {kills} processes");
    let kept = module::Stats::of(tenant.id)?.get("pages_merged")?;
    let saved = saved_pages(&[&other])?;
    println!("{kept} pages of the first VM are merged, {saved} of the other");
    ensure!(tenant.id < other.id() && kept > 0, "the first VM kept none");
    ensure!(saved == 0, "{saved} pages of the other VM are still merged");
    other.check_with(|page| page as u64 % 16)?;
    group.set("memory.max", "max")?;
    tenant.finish()
}

fn unmerging_charges_the_control_group_that_a_vm_moved_to() -> Outcome {
    const PAGES: usize = 8192;
    /// What a group may be charged ahead, and more.
    const SLACK: u64 = 2 << 20;
    let groups = [Group::new("twinpage-e2e")?, Group::new("twinpage-e2e-new")?];
    let [old, new] = &groups;
    for group in &groups {
        group.set("memory.max", "max")?;
    }
    let host = Host::new()?;
    let tenant = Tenant::start(&host, old, PAGES)?;
    new.set("cgroup.procs", tenant.child.pid())?;
    let charged = || -> Result<[u64; 2], Failure> {
        Ok([old.number("memory.current")?, new.number("memory.current")?])
    };
    let before = charged()?;
    // Too little for what comes apart, so this must not be the one that is asked.
    old.set("memory.max", before[0] + (8 << 20))?;
    let result = host.device().detach(tenant.id, Merged::Unmerge);
    let after = charged()?;
    println!("{result:?}, {before:?} -> {after:?} bytes charged");
    let Ok(detached) = result else {
        return Err(Failure::Failed("not everything was unmerged".into()));
    };
    ensure!(detached.unmerged > PAGES as u64 * 9 / 10, "{detached:?}");
    let (bytes, more) = (detached.unmerged * 4096, after[1].saturating_sub(before[1]));
    ensure!(
        more.abs_diff(bytes) < SLACK,
        "the new group was charged {more} bytes for {bytes}"
    );
    ensure!(
        after[0] < before[0] + SLACK,
        "the old group was charged for what came apart"
    );
    tenant.finish()
}

/// Pages of a VM that are swapped out.
fn swapped(guest: &Guest) -> Result<usize, Failure> {
    let entries = guest.entries()?;
    Ok(entries.iter().filter(|entry| entry.swapped()).count())
}

fn swapped_pages_merge_when_they_come_back() -> Outcome {
    const PAGES: usize = 8192;
    let swap = Swap::on(Kind::Loop, 128)?;
    let host = Host::new()?;
    module::set("run", 0)?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    for guest in [&a, &b] {
        guest.fill_with(|page| page as u64 + 1);
        guest.memory().advise(0, PAGES, libc::MADV_PAGEOUT)?;
    }
    let out = swapped(&a)? + swapped(&b)?;
    ensure!(out > PAGES, "only {out} pages were swapped out");
    module::set("run", 1)?;
    host.looks(2)?;
    let still = swapped(&a)? + swapped(&b)?;
    ensure!(still == out, "scanning brought {} pages back", out - still);
    // Reading brings them back as copies of what is in the swap, which keeps its slots for them.
    module::set("run", 0)?;
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)?;
    let (free, used) = (field("/proc/meminfo", "MemFree")?, used_kib()?);
    module::set("run", 1)?;
    host.until_saved(&[&a, &b], PAGES)?;
    let (free_now, used_now) = (field("/proc/meminfo", "MemFree")?, used_kib()?);
    println!("MemFree {free} -> {free_now} KiB, swap used {used} -> {used_now} KiB");
    ensure!(
        free_now > free + 24 * 1024,
        "merging {} MiB freed {} KiB",
        PAGES / 256,
        free_now as i64 - free as i64
    );
    ensure!(
        used_now <= used / 4,
        "{used_now} KiB of swap are still in use"
    );
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)?;
    drop((a, b, host));
    swap.off()
}

fn swapoff_leaves_copies_alone_and_what_it_brings_back_merges() -> Outcome {
    const HALF: usize = 2048;
    let swap = Swap::on(Kind::Loop, 64)?;
    let host = Host::new()?;
    let guests = [
        host.guest(2 * HALF, Backing::Small, DOMAIN)?,
        host.guest(2 * HALF, Backing::Small, DOMAIN)?,
    ];
    let [a, b] = &guests;
    let fill_from = |guest: &Guest, first: usize| {
        (first..first + HALF).for_each(|page| fill(guest.memory(), page, page as u64 + 1));
    };
    guests.iter().for_each(|guest| fill_from(guest, 0));
    host.until_saved(&[a, b], HALF)?;
    module::set("run", 0)?;
    let copies = a.frames()?[..HALF].to_vec();
    for guest in &guests {
        fill_from(guest, HALF);
        guest.memory().advise(HALF, HALF, libc::MADV_PAGEOUT)?;
    }
    let out = swapped(a)? + swapped(b)?;
    println!("{out} of {} pages are swapped out", 2 * HALF);
    ensure!(out > HALF, "only {out} pages were swapped out");
    swap.off()?;
    for guest in &guests {
        let frames = guest.frames()?;
        let there = frames.iter().flatten().count();
        ensure!(there == 2 * HALF, "only {there} pages are there");
        ensure!(frames[..HALF] == copies[..], "a copy is gone");
        guest.check_with(|page| page as u64 + 1)?;
    }
    let common = common_frames(a, b)?;
    ensure!(common == HALF, "{common} frames are shared");
    module::set("run", 1)?;
    host.until_saved(&[a, b], 2 * HALF)?;
    guests
        .iter()
        .try_for_each(|guest| guest.check_with(|page| page as u64 + 1))
}

/// Its schemes by virtual address advise as madvise does (mm/damon/vaddr.c:damos_madvise).
fn damon_cannot_page_merged_pages_out() -> Outcome {
    let swap = Swap::on(Kind::Loop, 16)?;
    let damon = Damon::new()?;
    let host = Host::new()?;
    let pair = Pair::start(&host, 1024)?;
    let range = pair.owner.range();
    for action in ["cold", "pageout"] {
        damon.start(pair.owner.child.pid(), &range, action)?;
        wait::until(action, CONVERGE, || {
            Ok::<_, Failure>(damon.advised()? >= 4 * (range.end - range.start))
        })?;
        damon.stop()?;
        pair.still_merged(action)?;
    }
    pair.others_were_paged_out()?;
    pair.finish()?;
    swap.off()
}

/// Breaks the copy that a page maps, and says which frame that is.
pub fn break_copy(guest: &Guest, page: usize) -> Result<Frame, Failure> {
    let Some(frame) = guest.frames()?[page] else {
        return Err(Failure::Failed(format!("page {page} is not mapped")));
    };
    // A page outside the LRU is not "handled", which is an error, but the frame is marked.
    let poisoned = guest.memory().advise(page, 1, libc::MADV_HWPOISON);
    println!("poisoning: {poisoned:?}");
    if !Frames::open()?.flags(frame)?.poisoned() {
        let text = format!("the kernel cannot poison pages: {poisoned:?}");
        return Err(Failure::Skipped(text));
    }
    Ok(frame)
}

fn a_poisoned_copy_is_retired() -> Outcome {
    const PAGES: usize = 64;
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    let frame = break_copy(&a, 5)?;
    module::set("run", 1)?;
    host.looks(2)?;
    // A third VM with the same content must not come near the poisoned frame.
    let c = host.guest(PAGES, Backing::Small, DOMAIN)?;
    c.fill_with(|page| page as u64 + 1);
    host.until_saved(&[&b, &c], PAGES - 1)?;
    host.looks(3)?;
    ensure!(
        c.frames()?[5] != Some(frame),
        "a page was merged with a poisoned frame"
    );
    c.check_with(|page| page as u64 + 1)?;
    // Fresh pages of that content have a healthy copy of their own.
    fill(b.memory(), 5, 6);
    wait::until("merging with a healthy copy", CONVERGE, || {
        Ok::<_, Failure>(b.frames()?[5] == c.frames()?[5])
    })?;
    ensure!(common_frames(&b, &c)? == PAGES, "{}", c.told());
    Ok(())
}
