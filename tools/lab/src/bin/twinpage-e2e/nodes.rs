// SPDX-License-Identifier: GPL-2.0

//! Hosts with several NUMA nodes.

use std::fs;
use std::io::{
    Read,
    Write, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::{
    Backing,
    Memory, //
};
use twinpage_lab::module::{
    self,
    Merged, //
};
use twinpage_lab::process::{
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
    fill,
    goes_on,
    in_child,
    pipe,
    saved_pages,
    Guest,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "moving_memory_between_nodes_races_with_merging",
        seconds: 240,
        run: moving_memory_between_nodes_races_with_merging,
    },
    Test {
        name: "copies_keep_their_frames_when_memory_moves",
        seconds: 120,
        run: copies_keep_their_frames_when_memory_moves,
    },
    Test {
        name: "merge_across_nodes_decides_whether_nodes_share",
        seconds: 180,
        run: merge_across_nodes_decides_whether_nodes_share,
    },
    Test {
        name: "unmerging_memory_bound_to_a_full_node_kills_nobody",
        seconds: 600,
        run: unmerging_memory_bound_to_a_full_node_kills_nobody,
    },
    Test {
        name: "pages_that_numa_balancing_watches_merge",
        seconds: 240,
        run: pages_that_numa_balancing_watches_merge,
    },
];

/// Moves only pages that no other process maps (`include/uapi/linux/mempolicy.h`).
const MPOL_MF_MOVE: libc::c_int = 1 << 1;

/// Moves pages whoever maps them.
const MPOL_MF_MOVE_ALL: libc::c_int = 1 << 2;

/// Has the kernel put pages together, for which it moves them.
const COMPACT: &str = "/proc/sys/vm/compact_memory";

/// How many nodes there are.
fn nodes() -> usize {
    (0..64)
        .filter(|node| fs::metadata(format!("/sys/devices/system/node/node{node}")).is_ok())
        .count()
        .max(1)
}

/// Skips a test that is about several nodes.
fn several_nodes() -> Outcome {
    match nodes() {
        0 | 1 => Err(Failure::Skipped("the host has one node".into())),
        _ => Ok(()),
    }
}

/// Asks for all pages to be on one node, and says which are; pages that cannot move may stay.
fn move_pages(memory: &Memory, node: usize, flags: libc::c_int) -> Result<usize, Failure> {
    let node = node as i32;
    let pages: Vec<_> = (0..memory.pages()).map(|page| memory.page(page)).collect();
    let nodes = vec![node; pages.len()];
    let mut status = vec![-1_i32; pages.len()];
    // SAFETY: the three lists have as many elements as the count says; the pages keep their
    // content.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            flags,
        )
    };
    ensure!(
        result >= 0,
        "move_pages: {}",
        std::io::Error::last_os_error()
    );
    Ok(status.into_iter().filter(|&on| on == node).count())
}

fn moving_memory_between_nodes_races_with_merging() -> Outcome {
    const TIME: Duration = Duration::from_secs(15);
    let nodes = nodes();
    let host = Host::new()?;
    let guest = host.guest(1024, Backing::Small, PRIVATE)?;
    guest.fill_with(|page| page as u64 % 64);
    let (mut saved, mut moved, mut round) = (0, 0, 0);
    let start = Instant::now();
    while goes_on(start, TIME, saved > 512 && (nodes == 1 || moved > 512)) {
        for page in (0..1024).filter(|page| page % 3 == round % 3) {
            fill(guest.memory(), page, page as u64 % 64);
        }
        // Compaction moves pages wherever it likes; with more nodes, so does this.
        match nodes > 1 {
            true => moved += move_pages(guest.memory(), round % nodes, MPOL_MF_MOVE)?,
            false => drop(fs::write(COMPACT, "1")),
        }
        guest.check_with(|page| page as u64 % 64)?;
        saved += saved_pages(&[&guest])?;
        round += 1;
    }
    println!("{nodes} nodes, {round} rounds, {moved} pages where they should be, {saved} merges");
    ensure!(saved > 512, "only {saved} merges were seen");
    ensure!(nodes == 1 || moved > 512, "only {moved} pages were moved");
    Ok(())
}

/// A copy is on no list from which pages are taken (mm/migrate.c:__add_folio_for_migration,
/// mm/mempolicy.c:migrate_folio_add, mm/compaction.c:isolate_migratepages_block).
fn copies_keep_their_frames_when_memory_moves() -> Outcome {
    const PAGES: usize = 1024;
    several_nodes()?;
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    let before = a.frames()?;
    for flags in [MPOL_MF_MOVE, MPOL_MF_MOVE_ALL] {
        for node in [0, 1] {
            let there = move_pages(a.memory(), node, flags)?;
            println!("{there} of {PAGES} copies are on node {node}");
            bind(a.memory(), node, flags)?;
            ensure!(
                a.frames()? == before && b.frames()? == before,
                "copies have other frames after moves to node {node} with flags {flags}"
            );
        }
    }
    drop(fs::write(COMPACT, "1"));
    ensure!(a.frames()? == before, "compaction gave pages other frames");
    ensure!(b.frames()? == before, "compaction gave twins other frames");
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)
}

fn merge_across_nodes_decides_whether_nodes_share() -> Outcome {
    const PAGES: usize = 512;
    several_nodes()?;
    let host = Host::new()?;
    module::set("run", 0)?;
    module::set("merge_across_nodes", 0)?;
    let guests = [0, 1, 1].map(|_| host.guest(PAGES, Backing::Small, DOMAIN));
    let [here, there, too] = guests;
    let guests = [here?, there?, too?];
    for (guest, node) in guests.iter().zip([0, 1, 1]) {
        guest.fill_with(|page| page as u64 + 1);
        let moved = move_pages(guest.memory(), node, MPOL_MF_MOVE)?;
        ensure!(moved == PAGES, "{moved} pages are on node {node}");
    }
    let [here, there, too] = &guests;
    module::set("run", 1)?;
    host.until_saved(&[there, too], PAGES)?;
    host.looks(2)?;
    let common = common_frames(here, there)? + common_frames(here, too)?;
    ensure!(common == 0, "{common} pages are shared across nodes");
    // The copies are where the pages were.
    let where_now = |guest: &Guest, node| move_pages(guest.memory(), node, MPOL_MF_MOVE);
    ensure!(where_now(too, 1)? == PAGES, "copies are on another node");
    module::set("run", 2)?;
    module::set("merge_across_nodes", 1)?;
    module::set("run", 1)?;
    host.until_saved(&[here, there, too], 2 * PAGES)?;
    for guest in &guests {
        guest.check_with(|page| page as u64 + 1)?;
    }
    Ok(())
}

/// Lets memory be on one node only, and moves what is on another if the flags say so.
fn bind(memory: &Memory, node: usize, flags: libc::c_int) -> Outcome {
    let nodes = 1_u64 << node;
    // SAFETY: the range is that of the mapping, whose pages keep their content, and the mask has as
    // many bits as the call is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            memory.address(),
            memory.pages() * 4096,
            libc::MPOL_BIND,
            &raw const nodes,
            64,
            flags,
        )
    };
    ensure!(result == 0, "mbind: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Memory that must be on one node.
pub fn bound(mib: usize, backing: Backing, node: usize) -> Result<Memory, Failure> {
    let memory = Memory::new(mib * 256, backing)?;
    bind(&memory, node, 0)?;
    Ok(memory)
}

/// What is free on a node, in MiB.
fn free_on(node: usize) -> Result<usize, Failure> {
    let text = fs::read_to_string(format!("/sys/devices/system/node/node{node}/meminfo"))?;
    let line = text.lines().find(|line| line.contains("MemFree:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok());
    let kib = kib.ok_or_else(|| Failure::Failed(format!("no MemFree in:\n{text}")))?;
    Ok(kib / 1024)
}

/// The host has memory, but not where the VM's may be.
fn unmerging_memory_bound_to_a_full_node_kills_nobody() -> Outcome {
    const MERGED: usize = 192;
    several_nodes()?;
    let key = |page: usize| page as u64 % 7 + 1;
    let host = Host::new()?;
    let mut guest = Guest::over(bound(MERGED, Backing::Small, 1)?)?;
    guest.attach(&host, PRIVATE)?;
    guest.fill_with(key);
    host.until_saved(&[&guest], MERGED * 256 * 99 / 100)?;
    module::set("run", 0)?;
    let kills = oom_kills()?;
    // Another process takes what merging gave back, but for a part of what unmerging needs.
    let (mut filled, mut fill_node) = pipe()?;
    let hog = in_child(|| {
        let mut work = || -> Outcome {
            let all = free_on(1)?.saturating_sub(MERGED / 3);
            let hog = bound(all, Backing::Huge, 1)?;
            for page in 0..hog.pages() {
                hog.set_word(page, 0, 1 + page as u64);
            }
            fill_node.write_all(b"!")?;
            loop {
                std::thread::sleep(CONVERGE);
            }
        };
        work().is_ok()
    })?;
    filled.read_exact(&mut [0])?;
    println!("{} MiB free for {MERGED} MiB", free_on(1)?);
    let result = host.device().detach(guest.id(), Merged::Unmerge);
    println!("{result:?}, {} MiB free", free_on(1)?);
    let killed = oom_kills()? - kills;
    hog.kill()?;
    ensure!(killed == 0, "unmerging killed {killed} processes");
    let error = result.err().and_then(|(error, _)| error.raw_os_error());
    ensure!(error == Some(libc::ENOMEM), "{error:?}");
    guest.detach(&host, Merged::Unmerge)?;
    guest.check_with(key)
}

/// Whether the kernel watches which pages processes use.
const BALANCING: &str = "/proc/sys/kernel/numa_balancing";

/// Another setting of NUMA balancing, until the value goes.
pub struct Balancing(Vec<(String, String)>);

impl Balancing {
    /// The kernel lets processes use their pages unwatched.
    pub fn off() -> Result<Balancing, Failure> {
        let mut before = Vec::new();
        if let Ok(text) = fs::read_to_string(BALANCING) {
            fs::write(BALANCING, "0")?;
            before.push((BALANCING.to_owned(), text));
        }
        Ok(Balancing(before))
    }

    /// It watches this process as soon and as often as it can.
    fn on() -> Result<Balancing, Failure> {
        let scan = "/sys/kernel/debug/sched/numa_balancing";
        let settings = [
            (BALANCING.to_owned(), "1"),
            (format!("{scan}/scan_delay_ms"), "10"),
            (format!("{scan}/scan_period_min_ms"), "100"),
            (format!("{scan}/scan_period_max_ms"), "100"),
        ];
        let mut before = Vec::new();
        for (path, value) in settings {
            let Ok(text) = fs::read_to_string(&path) else {
                return Err(Failure::Skipped(format!("there is no {path}")));
            };
            before.push((path.clone(), text));
            fs::write(path, value)?;
        }
        Ok(Balancing(before))
    }
}

impl Drop for Balancing {
    fn drop(&mut self) {
        for (path, text) in &self.0 {
            drop(fs::write(path, text.trim()));
        }
    }
}

/// The kernel takes the right to access pages away, to see who comes for them. Idle pages stay so.
fn pages_that_numa_balancing_watches_merge() -> Outcome {
    const PAGES: usize = 4096;
    several_nodes()?;
    let watched = || field("/proc/vmstat", "numa_pte_updates");
    let _balancing = Balancing::on()?;
    let host = Host::new()?;
    module::set("run", 0)?;
    let small = host.guest(PAGES, Backing::Small, PRIVATE)?;
    let huge = host.guest(PAGES, Backing::Huge, PRIVATE)?;
    module::set("thp_split_threshold", 1)?;
    let key = |page: usize| page as u64 % 100 + 1;
    small.fill_with(key);
    huge.fill_with(key);
    let (before, stop) = (watched()?, AtomicBool::new(false));
    std::thread::scope(|scope| -> Outcome {
        // Only a process that uses its processor is looked at.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let result = wait::until("watching", CONVERGE, || {
            Ok::<_, Failure>(watched()? >= before + PAGES as u64)
        });
        stop.store(true, Ordering::Relaxed);
        result.map(|_| ())
    })?;
    println!("{} entries are watched", watched()? - before);
    module::set("run", 1)?;
    host.until_saved(&[&small, &huge], 2 * (PAGES - 100))?;
    small.check_with(key)?;
    huge.check_with(key)?;
    // Being watched, written and merged at once loses nothing.
    let end = Instant::now() + Duration::from_secs(10);
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        for guest in [&small, &huge] {
            guest.check_with(|page| key(page) + (round - 1) / 4)?;
            guest.fill_with(|page| key(page) + round / 4);
        }
    }
    println!("{round} rounds, {} entries watched", watched()? - before);
    Ok(())
}
