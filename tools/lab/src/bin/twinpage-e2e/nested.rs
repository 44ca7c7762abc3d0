// SPDX-License-Identifier: GPL-2.0

//! Real guest code reads and writes pages while they merge.

use std::os::fd::AsRawFd;
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::{
    Backing,
    Counter,
    Slot,
    Sweep, //
};
use twinpage_lab::ensure;
use twinpage_lab::module::{
    self,
    Stats, //
};
use twinpage_lab::pagemap::{
    Frame,
    Pagemap, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::wait;

use crate::host::{
    Host,
    CONVERGE,
    DOMAIN, //
};
use crate::nodes::Balancing;

pub const TESTS: &[Test] = &[
    Test {
        name: "guest_code_never_sees_a_foreign_page",
        seconds: 240,
        run: guest_code_never_sees_a_foreign_page,
    },
    Test {
        name: "guest_code_is_right_while_huge_pages_split",
        seconds: 240,
        run: guest_code_is_right_while_huge_pages_split,
    },
    Test {
        name: "the_dirty_log_has_guest_writes_and_no_merges",
        seconds: 180,
        run: the_dirty_log_has_guest_writes_and_no_merges,
    },
    Test {
        name: "a_migrating_vm_is_paused",
        seconds: 180,
        run: a_migrating_vm_is_paused,
    },
];

const PAGES: usize = 200;

/// How long guests count.
const TIME: Duration = Duration::from_secs(20);

fn attach(host: &Host, counter: &Counter) -> Result<u32, Failure> {
    Ok(host.device().attach(counter.vm().as_raw_fd(), DOMAIN)?)
}

/// Frames of the data pages.
fn frames(counter: &Counter) -> Result<Vec<Option<Frame>>, Failure> {
    let memory = counter.memory();
    let first = counter.first_page();
    let entries = Pagemap::own()?.read(memory.page_address(first), memory.pages() - first)?;
    Ok(entries.into_iter().map(|entry| entry.frame()).collect())
}

/// Data pages that share their frame with another one.
fn saved(counters: &[Counter]) -> Result<usize, Failure> {
    let mut seen = std::collections::HashSet::new();
    let mut saved = 0;
    for counter in counters {
        let mapped = frames(counter)?.into_iter().flatten();
        saved += mapped.filter(|&frame| !seen.insert(frame)).count();
    }
    Ok(saved)
}

fn sweep(counter: &mut Counter, kind: Sweep) -> Outcome {
    match counter.sweep(kind)? {
        Ok(()) => Ok(()),
        Err(lost) => Err(Failure::Failed(format!("the guest saw {lost:?}"))),
    }
}

/// Guests count for a while; every sweep checks every page.
fn count(backing: Backing) -> Outcome {
    let host = Host::new()?;
    module::set("thp_split_threshold", 1)?;
    let mut counters = Vec::new();
    for _ in 0..2 {
        let counter = Counter::new(PAGES, backing, |page| page as u64 % 50)?;
        attach(&host, &counter)?;
        counters.push(counter);
    }
    let (mut reads, mut writes, mut merged) = (0_u64, 0_u64, 0);
    let end = Instant::now() + TIME;
    while Instant::now() < end {
        // Long enough between two writes for the scanner to merge what became equal.
        let rest = Instant::now() + Duration::from_millis(300);
        while Instant::now() < rest {
            for counter in &mut counters {
                sweep(counter, Sweep::Read)?;
            }
            reads += 1;
        }
        merged += saved(&counters)?;
        for counter in &mut counters {
            sweep(counter, Sweep::Write)?;
        }
        writes += 1;
    }
    println!(
        "{reads} reading and {writes} writing sweeps over {PAGES} pages, {merged} merges seen"
    );
    for counter in &counters {
        if let Err(lost) = counter.audit() {
            return Err(Failure::Failed(format!("the host saw {lost:?}")));
        }
    }
    ensure!(merged > PAGES, "only {merged} merges were seen");
    Ok(())
}

fn guest_code_never_sees_a_foreign_page() -> Outcome {
    count(Backing::Small)
}

fn guest_code_is_right_while_huge_pages_split() -> Outcome {
    count(Backing::Huge)
}

/// The slot of a counter's memory, with or without a dirty log.
fn log(counter: &Counter, flags: u32) -> Outcome {
    counter.vm().set_slot(Slot {
        host: counter.memory().address(),
        pages: counter.memory().pages(),
        flags,
        ..Slot::default()
    })?;
    Ok(())
}

/// Data pages in the dirty log.
fn dirty(counter: &Counter) -> Result<usize, Failure> {
    let dirty = counter.vm().dirty_pages(0, counter.memory().pages())?;
    Ok(dirty[counter.first_page()..]
        .iter()
        .filter(|page| **page)
        .count())
}

fn the_dirty_log_has_guest_writes_and_no_merges() -> Outcome {
    // KVM also logs a page that the guest reads after somebody else invalidated its mapping.
    let _unwatched = Balancing::off()?;
    let host = Host::new()?;
    let mut counter = Counter::new(PAGES, Backing::Small, |page| page as u64 % 50)?;
    attach(&host, &counter)?;
    let mut seen = 0;
    for round in 0..20 {
        // A page that is written to while it is about to merge loses its mapping in vain, and is
        // logged when it is read next: true enough, but no merge. So nothing merges meanwhile.
        module::set("run", 0)?;
        sweep(&mut counter, Sweep::Write)?;
        module::set("run", 1)?;
        // Everything is equal and mapped in the guest; the log starts in the middle of merging.
        std::thread::sleep(Duration::from_millis(10 * round));
        log(&counter, 1)?;
        std::thread::sleep(Duration::from_millis(100));
        let merges = saved(std::slice::from_ref(&counter))?;
        sweep(&mut counter, Sweep::Read)?;
        let bits = dirty(&counter)?;
        ensure!(
            bits == 0,
            "{bits} pages are dirty after {merges} merges and no write"
        );
        sweep(&mut counter, Sweep::Write)?;
        let bits = dirty(&counter)?;
        ensure!(
            bits == PAGES,
            "{bits} of {PAGES} written pages are dirty ({merges} were merged)"
        );
        log(&counter, 0)?;
        seen += merges;
    }
    println!("{seen} merges");
    ensure!(seen > PAGES, "only {seen} merges were seen");
    Ok(())
}

fn a_migrating_vm_is_paused() -> Outcome {
    let host = Host::new()?;
    let counter = Counter::new(PAGES, Backing::Small, |page| page as u64)?;
    let id = attach(&host, &counter)?;
    host.looks(2)?;
    log(&counter, 1)?;
    wait::until("pausing", CONVERGE, || {
        Ok::<_, Failure>(Stats::of(id)?.get("skip_paused")? > 0)
    })?;
    let first = counter.first_page();
    for page in first..first + PAGES {
        counter.memory().write_page(page, &[1; tinyvm::WORDS]);
    }
    host.looks(2)?;
    let merged = saved(std::slice::from_ref(&counter))?;
    ensure!(
        merged == 0,
        "{merged} pages were merged while the log is on"
    );
    log(&counter, 0)?;
    wait::until("going on", CONVERGE, || {
        Ok::<_, Failure>(saved(std::slice::from_ref(&counter))? > PAGES / 2)
    })
    .map(|_| ())
}
