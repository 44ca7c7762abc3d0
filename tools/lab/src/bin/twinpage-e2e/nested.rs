// SPDX-License-Identifier: GPL-2.0

//! Real guest code reads and writes pages while they merge.

use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::sync::atomic::{
    AtomicBool,
    AtomicUsize,
    Ordering, //
};
use std::sync::Arc;
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::{
    content,
    fresh,
    Backing,
    Counter,
    Memory,
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
    Frames,
    Pagemap, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::wait;

use crate::host::{
    goes_on,
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
        name: "memory_that_kvm_maps_ahead_stays_merged",
        seconds: 180,
        run: memory_that_kvm_maps_ahead_stays_merged,
    },
    Test {
        name: "memory_may_go_and_move_while_its_guest_runs",
        seconds: 600,
        run: memory_may_go_and_move_while_its_guest_runs,
    },
    Test {
        name: "the_dirty_log_has_guest_writes_and_no_merges",
        seconds: 240,
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

/// Compares every data page with what the guest remembers of it.
fn audit(counter: &Counter) -> Outcome {
    let audited = counter.audit();
    audited.map_err(|lost| Failure::Failed(format!("the host saw {lost:?}")))
}

/// Data pages that are in huge pages.
fn huge_pages(counter: &Counter) -> Result<usize, Failure> {
    let flags = Frames::open()?;
    let mut huge = 0;
    for frame in frames(counter)?.into_iter().flatten() {
        huge += usize::from(flags.flags(frame)?.huge());
    }
    Ok(huge)
}

/// Guests count for a while; every sweep checks every page.
fn count(backing: Backing, pages: usize) -> Outcome {
    let host = Host::new()?;
    module::set("thp_split_threshold", 1)?;
    let mut counters = Vec::new();
    for _ in 0..2 {
        let counter = Counter::new(pages, backing, |page| page as u64 % 50)?;
        let huge = huge_pages(&counter)?;
        match backing {
            Backing::Huge => ensure!(huge == pages, "only {huge} pages are in huge ones"),
            _ => ensure!(huge == 0, "{huge} pages are in huge ones"),
        }
        attach(&host, &counter)?;
        counters.push(counter);
    }
    let (mut reads, mut writes, mut merged) = (0_u64, 0_u64, 0);
    let start = Instant::now();
    while goes_on(start, TIME, merged > pages) {
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
        "{reads} reading and {writes} writing sweeps over {pages} pages, {merged} merges seen"
    );
    counters.iter().try_for_each(audit)?;
    ensure!(merged > pages, "only {merged} merges were seen");
    Ok(())
}

fn guest_code_never_sees_a_foreign_page() -> Outcome {
    count(Backing::Small, PAGES)
}

fn guest_code_is_right_while_huge_pages_split() -> Outcome {
    // With what lies before them they fill two huge pages.
    count(Backing::Huge, 768)
}

/// Lets KVM map all data pages while the guest stands still.
fn map_ahead(counter: &Counter) -> Outcome {
    // `include/uapi/linux/kvm.h` of the kernel.
    const CHECK_EXTENSION: libc::c_ulong = 0xae03;
    const PRE_FAULT_MEMORY: libc::c_ulong = (3 << 30) | (64 << 16) | (0xae << 8) | 0xd5;
    const CAP_PRE_FAULT_MEMORY: libc::c_int = 236;
    let vm = counter.vm().as_raw_fd();
    // SAFETY: the request takes an integer.
    let able = unsafe { libc::ioctl(vm, CHECK_EXTENSION, CAP_PRE_FAULT_MEMORY) };
    if able <= 0 {
        return Err(Failure::Skipped("KVM cannot map memory ahead".into()));
    }
    // First address, bytes, flags, and five words of no use.
    let mut range = [0_u64; 8];
    range[0] = counter.first_page() as u64 * 4096;
    range[1] = counter.pages() as u64 * 4096;
    while range[1] > 0 {
        let argument = range.as_mut_ptr();
        // SAFETY: the kernel reads and writes eight 64-bit words, and there are as many.
        let mapped = unsafe { libc::ioctl(counter.processor(), PRE_FAULT_MEMORY, argument) };
        let error = std::io::Error::last_os_error();
        ensure!(mapped == 0, "{} bytes are left: {error}", range[1]);
    }
    Ok(())
}

/// It is a read by the guest (arch/x86/kvm/mmu/mmu.c:kvm_arch_vcpu_pre_fault_memory).
fn memory_that_kvm_maps_ahead_stays_merged() -> Outcome {
    let host = Host::new()?;
    let mut counters = Vec::new();
    for _ in 0..2 {
        let counter = Counter::new(PAGES, Backing::Small, |page| page as u64 + 1)?;
        attach(&host, &counter)?;
        counters.push(counter);
    }
    wait::until("merging", CONVERGE, || {
        Ok::<_, Failure>(saved(&counters)? == PAGES)
    })?;
    module::set("run", 0)?;
    let copies = frames(&counters[0])?;
    counters.iter().try_for_each(map_ahead)?;
    for counter in &mut counters {
        let now = frames(counter)?;
        ensure!(now == copies, "mapping ahead gave pages other frames");
        sweep(counter, Sweep::Read)?;
        ensure!(frames(counter)? == copies, "reading unmerged pages");
    }
    sweep(&mut counters[0], Sweep::Write)?;
    let written = frames(&counters[0])?;
    let same = (0..PAGES).filter(|&page| written[page] == copies[page]);
    let same = same.count();
    ensure!(same == 0, "{same} pages have the frame that they shared");
    ensure!(frames(&counters[1])? == copies, "the twin was unmerged");
    for counter in &mut counters {
        sweep(counter, Sweep::Read)?;
        audit(counter)?;
    }
    Ok(())
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
    let (mut round, mut seen) = (0, 0);
    let start = Instant::now();
    while round < 20 || goes_on(start, Duration::ZERO, seen > PAGES) {
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
        round += 1;
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

/// How far a guest got.
#[derive(Default)]
struct Told {
    sweeps: AtomicUsize,
    /// Times that it met memory that was not there.
    stops: AtomicUsize,
}

/// What a data page holds at first. Of eight pages the guest writes the first; the next three are
/// zeroes, so that they may be discarded at any moment; the rest have twins and never change.
fn kind(page: usize) -> u64 {
    match page % 8 {
        1..=3 => 0,
        _ => 1 + page as u64 % 5,
    }
}

/// Sweeps until told to stop; memory that is not there is met again and again.
fn sweep_on(counter: &mut Counter, told: &Told, stop: &AtomicBool) -> Outcome {
    let mut swept = Ok(());
    while swept.is_ok() && !stop.load(Ordering::Acquire) {
        match counter.sweep(Sweep::WriteEighth(0)) {
            Ok(Ok(())) => {
                told.sweeps.fetch_add(1, Ordering::AcqRel);
            }
            Ok(Err(lost)) => swept = Err(Failure::Failed(format!("the guest saw {lost:?}"))),
            Err(tinyvm::Error::Kvm { source, .. }) if source.errno() == libc::EFAULT => {
                told.stops.fetch_add(1, Ordering::AcqRel);
                std::thread::yield_now();
            }
            Err(error) => swept = Err(error.into()),
        }
    }
    stop.store(true, Ordering::Release);
    swept
}

/// Pages that never change and share their frame.
fn saved_twins(memories: &[Arc<Memory>], first: usize) -> Result<usize, Failure> {
    let own = Pagemap::own()?;
    let (mut seen, mut saved) = (HashSet::new(), 0);
    for memory in memories {
        let entries = own.read(memory.page_address(first), PAGES)?;
        let twins = entries
            .into_iter()
            .enumerate()
            .filter(|(page, _)| page % 8 > 3);
        let frames = twins.filter_map(|(_, entry)| entry.frame());
        saved += frames.filter(|&frame| !seen.insert(frame)).count();
    }
    Ok(saved)
}

/// Moves pages to where other memory was.
fn relocate(from: *mut u8, to: *mut u8, pages: usize) -> Outcome {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: one range is guest memory, the other scratch memory or the hole that guest memory
    // left, where nobody else settles; both are accessed in volatile words only.
    let at = unsafe { libc::mremap(from.cast(), pages * 4096, pages * 4096, flags, to) };
    let error = std::io::Error::last_os_error();
    ensure!(at == to.cast(), "mremap: {error}");
    Ok(())
}

/// Moves pages away under the running guest, which must stand still before it ends a second sweep:
/// else it goes on with frames that are no longer there.
fn move_away(memory: &Memory, page: usize, told: &Told, stop: &AtomicBool) -> Outcome {
    const MOVED: usize = 64;
    let scratch = Memory::new(MOVED, Backing::Small)?;
    relocate(memory.page(page), scratch.page(0), MOVED)?;
    let sweeps = told.sweeps.load(Ordering::Acquire);
    let stops = told.stops.load(Ordering::Acquire);
    let stopped = wait::until("the guest's stop", CONVERGE, || {
        let now = told.stops.load(Ordering::Acquire);
        Ok::<_, Failure>(now > stops || stop.load(Ordering::Acquire))
    });
    let more = told.sweeps.load(Ordering::Acquire) - sweeps;
    relocate(scratch.page(0), memory.page(page), MOVED)?;
    // Where its memory was, nothing is left to be unmapped.
    std::mem::forget(scratch);
    stopped?;
    ensure!(more <= 1, "the guest made {more} sweeps without its memory");
    Ok(())
}

/// Zero pages of the guest go, under its feet.
fn zeroes_go(memory: &Memory, first: usize, with_mapping: bool) -> Outcome {
    for page in (first + 1..first + PAGES).step_by(8) {
        if with_mapping {
            memory.unmap(page, 3)?;
            memory.map_again(page, 3, Backing::Small)?;
        } else {
            memory.advise(page, 3, libc::MADV_DONTNEED)?;
        }
    }
    Ok(())
}

/// Writes what pages hold already, so that they merge anew.
fn rewrite(memory: &Memory, first: usize) {
    for page in (0..PAGES).filter(|page| page % 8 != 0) {
        memory.write_page(first + page, &content(fresh(kind(page))));
    }
}

/// One thing that happens to the first guest's memory.
fn happen(
    round: usize,
    memories: &[Arc<Memory>],
    first: usize,
    guests: (&Told, &AtomicBool),
) -> Outcome {
    let (told, stop) = guests;
    let memory = &memories[0];
    match round % 4 {
        0 => {
            wait::until("merging", CONVERGE, || {
                let saved = saved_twins(memories, first)?;
                Ok::<_, Failure>(saved > PAGES / 2 || stop.load(Ordering::Acquire))
            })?;
            // What follows meets the scanner at work.
            memories.iter().for_each(|memory| rewrite(memory, first));
            Ok(())
        }
        1 => zeroes_go(memory, first, false),
        2 => zeroes_go(memory, first, true),
        _ => move_away(memory, first + 8 * (round % 16), told, stop),
    }
}

/// Frames that merging frees are used again at once, by copies and by what the guests write: a guest
/// that still has one sees, or spoils, a foreign page.
fn memory_may_go_and_move_while_its_guest_runs() -> Outcome {
    const ROUNDS: usize = 48;
    let host = Host::new()?;
    module::set("smart_scan", 0)?;
    let mut counters = Vec::new();
    for _ in 0..2 {
        let counter = Counter::new(PAGES, Backing::Small, kind)?;
        attach(&host, &counter)?;
        counters.push(counter);
    }
    let first = counters[0].first_page();
    let memories: Vec<_> = counters.iter().map(|one| one.memory().clone()).collect();
    let (told, stop) = ([Told::default(), Told::default()], AtomicBool::new(false));
    std::thread::scope(|scope| -> Outcome {
        let guests = counters.iter_mut().zip(&told);
        let guests: Vec<_> = guests
            .map(|(counter, told)| scope.spawn(|| sweep_on(counter, told, &stop)))
            .collect();
        let mut rounds = (0..ROUNDS).take_while(|_| !stop.load(Ordering::Acquire));
        let done = rounds.try_for_each(|round| happen(round, &memories, first, (&told[0], &stop)));
        stop.store(true, Ordering::Release);
        for guest in guests {
            let swept = guest.join();
            swept.map_err(|_| Failure::Failed("a guest's thread panicked".into()))??;
        }
        done
    })?;
    let [sweeps, stops] = [&told[0].sweeps, &told[0].stops].map(|n| n.load(Ordering::Acquire));
    println!("{sweeps} sweeps, {stops} stops");
    ensure!(stops >= ROUNDS / 4, "the guest met only {stops} holes");
    for counter in &mut counters {
        // It may stand in the middle of a sweep.
        sweep(counter, Sweep::WriteEighth(0))?;
        audit(counter)?;
    }
    Ok(())
}
