// SPDX-License-Identifier: GPL-2.0

//! Userfaultfd watchers miss no write, and may move pages that others merge.

use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::time::Duration;

use tinyvm::{
    Backing,
    Memory, //
};
use twinpage_lab::ensure;
use twinpage_lab::module::{
    self,
    Merged, //
};
use twinpage_lab::pagemap::{
    Frames,
    Pagemap, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::uffd::{
    Faults,
    Feature,
    Watcher, //
};
use twinpage_lab::wait;

use crate::host::{
    check,
    common_frames,
    fill,
    skipped,
    Host,
    CONVERGE,
    DOMAIN, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "a_watched_mapping_is_not_merged",
        seconds: 120,
        run: a_watched_mapping_is_not_merged,
    },
    Test {
        name: "watching_merged_pages_misses_no_write",
        seconds: 120,
        run: watching_merged_pages_misses_no_write,
    },
    Test {
        name: "watched_copies_can_be_unmerged_and_stay_watched",
        seconds: 120,
        run: watched_copies_can_be_unmerged_and_stay_watched,
    },
    Test {
        name: "hidden_copies_come_apart_once_reads_may_go_on",
        seconds: 120,
        run: hidden_copies_come_apart_once_reads_may_go_on,
    },
    Test {
        name: "a_scan_of_the_pagemap_finds_writes_to_merged_pages",
        seconds: 120,
        run: a_scan_of_the_pagemap_finds_writes_to_merged_pages,
    },
    Test {
        name: "merged_pages_are_not_missing_until_they_are_discarded",
        seconds: 120,
        run: merged_pages_are_not_missing_until_they_are_discarded,
    },
    Test {
        name: "userfaultfd_moves_of_merged_pages_lose_nothing",
        seconds: 180,
        run: userfaultfd_moves_of_merged_pages_lose_nothing,
    },
];

const PAGES: usize = 256;

/// Does something while somebody watches; what came of it, and the number of faults he saw.
fn watched<T>(watcher: &Watcher, work: impl FnOnce() -> T) -> Result<(T, usize), Failure> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counter = scope.spawn(|| watcher.answer(&done));
        let came = work();
        done.store(true, Ordering::Release);
        match counter.join() {
            Ok(faults) => Ok((came, faults?)),
            Err(_) => Err(Failure::Failed("the watcher panicked".into())),
        }
    })
}

/// Writes to each page while somebody watches; the number of faults he saw.
fn faults(
    watcher: &Watcher,
    memory: &Memory,
    key: impl Fn(usize) -> u64,
) -> Result<usize, Failure> {
    let write = || (0..memory.pages()).for_each(|page| fill(memory, page, key(page)));
    let ((), seen) = watched(watcher, write)?;
    Ok(seen)
}

fn a_watched_mapping_is_not_merged() -> Outcome {
    let host = Host::new()?;
    module::set("run", 0)?;
    let watcher = Watcher::new(&[Feature::WriteProtect])?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    a.fill_with(|page| page as u64 / 2);
    b.fill_with(|page| page as u64 / 2);
    watcher.register(b.memory().address(), PAGES, Faults::Writes)?;
    watcher.protect(b.memory().address(), PAGES, true)?;
    module::set("run", 1)?;
    host.until_saved(&[&a], PAGES / 2)?;
    host.looks(2)?;
    ensure!(skipped(&b, "uffd")? == PAGES as u64, "{}", b.told());
    ensure!(common_frames(&a, &b)? == 0, "watched pages were merged");
    for (page, entry) in b.entries()?.into_iter().enumerate() {
        ensure!(entry.write_protected(), "page {page} is no longer watched");
    }
    let seen = faults(&watcher, b.memory(), |page| page as u64 + 9)?;
    ensure!(seen == PAGES, "{seen} of {PAGES} writes were seen");
    b.check_with(|page| page as u64 + 9)?;
    drop(watcher);
    b.fill_with(|page| page as u64 / 2);
    host.until_saved(&[&b], PAGES / 2)
}

fn watching_merged_pages_misses_no_write() -> Outcome {
    let host = Host::new()?;
    let watcher = Watcher::new(&[Feature::WriteProtect])?;
    let [a, b] = host.twins(PAGES)?;
    watcher.register(b.memory().address(), PAGES, Faults::Writes)?;
    watcher.protect(b.memory().address(), PAGES, true)?;
    let seen = faults(&watcher, b.memory(), |page| page as u64 + 9)?;
    ensure!(seen == PAGES, "{seen} of {PAGES} writes were seen");
    b.check_with(|page| page as u64 + 9)?;
    a.check_with(|page| page as u64 + 1)
}

/// Each by itself, and by an attach to a domain that may not share them.
fn watched_copies_can_be_unmerged_and_stay_watched() -> Outcome {
    const OTHER: u64 = DOMAIN + 1;
    let host = Host::new()?;
    let watcher = Watcher::new(&[Feature::WriteProtect])?;
    let [a, mut b] = host.twins(PAGES)?;
    watcher.register(b.memory().address(), PAGES, Faults::Writes)?;
    watcher.protect(b.memory().address(), PAGES, true)?;
    host.looks(1)?;
    let told = b.stats()?.get("pages_merged")?;
    ensure!(told == PAGES as u64, "not told as merged: {}", b.told());
    b.detach(&host, Merged::Keep)?;
    ensure!(common_frames(&a, &b)? == PAGES, "unmerged too early");
    b.attach(&host, OTHER)?;
    ensure!(common_frames(&a, &b)? == 0, "two domains share frames");
    for (page, entry) in b.entries()?.into_iter().enumerate() {
        ensure!(entry.write_protected(), "page {page} is no longer watched");
    }
    let seen = faults(&watcher, b.memory(), |page| page as u64 + 9)?;
    ensure!(seen == PAGES, "{seen} of {PAGES} writes were seen");
    b.check_with(|page| page as u64 + 9)?;
    a.check_with(|page| page as u64 + 1)
}

/// A copy that is hidden comes apart by a fault, which somebody has to answer, unless he said that
/// faults go on.
fn hidden_copies_come_apart_once_reads_may_go_on() -> Outcome {
    let host = Host::new()?;
    let watcher = Watcher::new(&[Feature::ReadWriteProtect])?;
    let [a, b] = host.twins(PAGES)?;
    watcher.register(b.memory().address(), PAGES, Faults::Accesses)?;
    watcher.hide(b.memory().address(), PAGES, true)?;
    let done = AtomicBool::new(false);
    let (looked, detached, seen) = std::thread::scope(|scope| {
        let unmerger = scope.spawn(|| b.detach(&host, Merged::Unmerge));
        std::thread::sleep(Duration::from_secs(2));
        let looked = common_frames(&a, &b).and_then(|left| {
            ensure!(left == PAGES, "{left} of {PAGES} hidden pages are left");
            Ok(())
        });
        let counter = scope.spawn(|| watcher.answer(&done));
        let read = b.check_with(|page| page as u64 + 1);
        let detached = unmerger.join();
        done.store(true, Ordering::Release);
        (looked.and(read), detached, counter.join())
    });
    looked?;
    let panicked = |_| Failure::Failed("a thread panicked".into());
    detached.map_err(panicked)??;
    let seen = seen.map_err(panicked)??;
    ensure!(seen == PAGES, "{seen} of {PAGES} reads were seen");
    ensure!(common_frames(&a, &b)? == 0, "copies are left");
    drop(watcher);
    let [a, b] = host.twins(PAGES)?;
    let features = [Feature::ReadWriteProtect, Feature::ReadWriteProtectAsync];
    let watcher = Watcher::new(&features)?;
    watcher.register(b.memory().address(), PAGES, Faults::Accesses)?;
    watcher.hide(b.memory().address(), PAGES, true)?;
    b.detach(&host, Merged::Unmerge)?;
    ensure!(common_frames(&a, &b)? == 0, "copies are left");
    b.check_with(|page| page as u64 + 1)?;
    a.check_with(|page| page as u64 + 1)
}

/// As checkpointing and sanitizers track memory, without anybody who answers faults.
fn a_scan_of_the_pagemap_finds_writes_to_merged_pages() -> Outcome {
    let host = Host::new()?;
    let features = [Feature::WriteProtect, Feature::WriteProtectAsync];
    let watcher = Watcher::new(&features)?;
    let [a, b] = host.twins(PAGES)?;
    let zeroes = host.guest(1, Backing::Small, DOMAIN)?;
    zeroes.memory().write_page(0, &[0; tinyvm::WORDS]);
    host.until_saved(&[&zeroes], 1)?;
    let pagemap = Pagemap::own()?;
    let zero = pagemap.scan(zeroes.memory().address(), 1)?[0];
    ensure!(zero.zero() && !zero.file(), "a page of zeroes is {zero:?}");
    let start = b.memory().address();
    watcher.register(start, PAGES, Faults::Writes)?;
    pagemap.protect_written(start, PAGES)?;
    let (frames, b_frames) = (Frames::open()?, b.frames()?);
    for (page, seen) in pagemap.scan(start, PAGES)?.into_iter().enumerate() {
        let frame = b_frames[page].ok_or_else(|| Failure::Failed("no frame".into()))?;
        let anonymous = frames.flags(frame)?.anonymous();
        let right = !seen.written() && seen.file() != anonymous && !seen.zero();
        ensure!(right, "page {page} is {seen:?}");
    }
    ensure!(common_frames(&a, &b)? == PAGES, "tracking unmerged pages");
    let key = |page: usize| page as u64 + if page % 3 == 0 { 9 } else { 1 };
    for page in (0..PAGES).step_by(3) {
        fill(b.memory(), page, key(page));
    }
    for (page, seen) in pagemap.scan(start, PAGES)?.into_iter().enumerate() {
        ensure!(seen.written() == (page % 3 == 0), "page {page} is {seen:?}");
    }
    b.check_with(key)?;
    a.check_with(|page| page as u64 + 1)
}

/// Whoever answers for missing pages gives zeroes, so what he is asked for shows.
fn merged_pages_are_not_missing_until_they_are_discarded() -> Outcome {
    const HALF: usize = PAGES / 2;
    let host = Host::new()?;
    let watcher = Watcher::new(&[])?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    watcher.register(b.memory().address(), PAGES, Faults::Missing)?;
    let (read, seen) = watched(&watcher, || b.check_with(|page| page as u64 + 1))?;
    ensure!(seen == 0, "somebody was asked for {seen} merged pages");
    read?;
    ensure!(common_frames(&a, &b)? == PAGES, "watching unmerged pages");
    b.memory().advise(0, HALF, libc::MADV_DONTNEED)?;
    let is_empty = |page: &usize| b.memory().read_page(*page) == [0; tinyvm::WORDS];
    let (empty, seen) = watched(&watcher, || (0..PAGES).filter(is_empty).count())?;
    ensure!(
        (empty, seen) == (HALF, HALF),
        "of {HALF} discarded pages {seen} were asked for, {empty} are empty"
    );
    // What comes in this way merges.
    b.memory().advise(0, HALF, libc::MADV_DONTNEED)?;
    for page in 0..HALF {
        let (to, from) = (b.memory().page_address(page), a.memory().page_address(page));
        watcher.copy_page(to, from)?;
    }
    module::set("run", 1)?;
    host.until_saved(&[&a, &b], PAGES)?;
    b.check_with(|page| page as u64 + 1)?;
    a.check_with(|page| page as u64 + 1)
}

fn userfaultfd_moves_of_merged_pages_lose_nothing() -> Outcome {
    let host = Host::new()?;
    let watcher = Watcher::new(&[Feature::Move])?;
    let [a, b] = host.twins(PAGES)?;
    let target = Memory::new(PAGES, Backing::Small)?;
    watcher.register(target.address(), PAGES, Faults::Missing)?;
    let (mut moved, mut refused) = (0, 0);
    let mut place = vec![None; PAGES];
    // Each page a few times, so that some moves meet a page in the middle of merging.
    for round in 0..4 {
        for (page, place) in place.iter_mut().enumerate() {
            if place.is_some() {
                continue;
            }
            // A page that was just written to can be moved, until it merges again.
            if page % 2 == round % 2 {
                fill(a.memory(), page, page as u64 + 1);
            }
            let (to, from) = (target.page_address(page), a.memory().page_address(page));
            match watcher.move_pages(to, from, 1) {
                Ok(()) => {
                    moved += 1;
                    *place = Some(round);
                }
                Err(error) => {
                    if refused == 0 {
                        println!("the first refusal: {error}");
                    }
                    refused += 1;
                }
            }
        }
    }
    println!("{moved} pages moved, {refused} moves refused");
    ensure!(moved > 0 && refused > 0, "only one of both happened");
    for (page, place) in place.iter().enumerate() {
        match place {
            Some(_) => check(&target, page, page as u64 + 1)?,
            None => check(a.memory(), page, page as u64 + 1)?,
        }
    }
    b.check_with(|page| page as u64 + 1)?;
    drop(watcher);
    a.fill_with(|page| page as u64 + 1);
    wait::until("merging again", CONVERGE, || {
        Ok::<_, Failure>(common_frames(&a, &b)? == PAGES)
    })
    .map(|_| ())
}
