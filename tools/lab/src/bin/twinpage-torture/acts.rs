// SPDX-License-Identifier: GPL-2.0

//! What a monitor does to the memory of its guest, while the guest runs or stands still.

use std::fs::File;
use std::io::{
    self,
    Read,
    Write, //
};
use std::sync::atomic::{
    AtomicBool,
    AtomicUsize,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::{
    content,
    fresh,
    Backing,
    Lost,
    Memory,
    Slot, //
};
use twinpage_lab::files::pipe;
use twinpage_lab::pagemap::{
    Entry,
    Frames,
    Pagemap, //
};
use twinpage_lab::random::Random;
use twinpage_lab::uffd::{
    Faults,
    Feature,
    Watcher, //
};

use crate::fleet::NOT_EVERY_TIME;
use crate::transfer;
use crate::unmap::{
    guard,
    show_hugetlb,
    show_shared,
    unmap,
    TABLE, //
};
use crate::vmm::{
    Machine,
    Trouble, //
};

/// One of the things that a monitor does.
pub struct Act {
    /// Its name in reports.
    pub name: &'static str,
    /// Does it.
    pub run: fn(&Machine, &mut Random) -> Result<(), Trouble>,
}

macro_rules! acts {
    ($($name:literal $run:expr,)+) => { &[$(Act { name: $name, run: $run },)+] };
}

/// `madvise` values that libc lacks (`include/uapi/asm-generic/mman-common.h`).
const MADV_COLD: libc::c_int = 20;
const MADV_PAGEOUT: libc::c_int = 21;
/// Makes pages there that can be written, or says why not.
pub const MADV_POPULATE_WRITE: libc::c_int = 23;
const MADV_COLLAPSE: libc::c_int = 25;
const MADV_SOFT_OFFLINE: libc::c_int = 101;

/// Logs which pages the guest writes.
const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1;

/// Where a second slot shows the memory again.
const ALIAS: u64 = 1 << 30;

/// All of them.
pub const ACTS: &[Act] = acts![
    "madvise cold" |machine, random| advise(machine, random, MADV_COLD),
    "madvise pageout" |machine, random| advise(machine, random, MADV_PAGEOUT),
    "madvise nohugepage" |machine, random| advise(machine, random, libc::MADV_NOHUGEPAGE),
    "madvise hugepage" |machine, random| advise(machine, random, libc::MADV_HUGEPAGE),
    "madvise collapse" collapse,
    "madvise mergeable" |machine, random| advise(machine, random, libc::MADV_MERGEABLE),
    "madvise unmergeable" |machine, random| advise(machine, random, libc::MADV_UNMERGEABLE),
    "madvise populate" |machine, random| advise(machine, random, MADV_POPULATE_WRITE),
    "madvise dontneed" discard,
    "madvise free" free_lazily,
    "soft offline" soft_offline,
    "mlock" lock,
    "mprotect" protect,
    "mremap" remap,
    "munmap" unmap,
    "shared memory in its place" show_shared,
    "hugetlb in its place" show_hugetlb,
    "guard regions" guard,
    "move_pages" change_node,
    "clear soft-dirty" clear_soft_dirty,
    "fork" fork,
    "slot delete and add" replace_slot,
    "slot alias and move" alias_slot,
    "dirty log" log_writes,
    "userfaultfd write-protect" watch_writes,
    "userfaultfd missing" watch_holes,
    "userfaultfd move" move_away,
    "vmsplice" transfer::splice,
    "O_DIRECT read" transfer::direct_read,
    "O_DIRECT write" transfer::direct_write,
    "io_uring registered" transfer::registered,
    "audit" audit,
];

fn advise(machine: &Machine, random: &mut Random, advice: libc::c_int) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, usize::MAX);
    Ok(machine.memory.advise(page, pages, advice)?)
}

fn refused(why: &str) -> Result<(), Trouble> {
    Err(Trouble::Refused(io::Error::other(why)))
}

/// The first pages of the memory, which begins where a huge page can, become one, unless they are in
/// several mappings, or somebody is faster.
fn collapse(machine: &Machine, _: &mut Random) -> Result<(), Trouble> {
    if machine.memory.pages() < TABLE {
        return refused("there is no room for a huge page");
    }
    let advise = |advice| machine.memory.advise(0, TABLE, advice);
    advise(libc::MADV_UNMERGEABLE)?;
    advise(libc::MADV_HUGEPAGE)?;
    // Each page must be one of its own.
    advise(MADV_POPULATE_WRITE)?;
    let before = begins_huge(machine)?;
    let collapsed = advise(MADV_COLLAPSE);
    let huge = begins_huge(machine)?;
    if machine.backing() == Backing::Small {
        advise(libc::MADV_NOHUGEPAGE)?;
    }
    collapsed?;
    match (before, huge) {
        (false, true) => Ok(()),
        (true, _) => refused("there was a huge page"),
        (false, false) => refused("there is no huge page"),
    }
}

/// Whether the first page of the memory is a part of a huge one.
fn begins_huge(machine: &Machine) -> io::Result<bool> {
    match entries(&machine.memory, 0, 1)?[0].frame() {
        Some(frame) => Ok(Frames::open()?.flags(frame)?.huge()),
        None => Ok(false),
    }
}

fn audit(machine: &Machine, _: &mut Random) -> Result<(), Trouble> {
    Ok(machine.still().counter.audit()?)
}

/// Pages are gone: they read as zeroes from now on.
fn discard(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 64);
    let state = machine.still();
    machine.memory.advise(page, pages, libc::MADV_DONTNEED)?;
    let first = page - machine.first_page;
    (first..first + pages).for_each(|page| state.counter.believe(page, 0));
    // As a guest does with memory that it takes back.
    for page in first..first + pages / 2 {
        put(machine, &state.counter, page, random.below(64));
    }
    Ok((first..first + pages).try_for_each(|page| state.counter.check(page))?)
}

/// Gives a data page the content of a kind.
pub fn put(machine: &Machine, counter: &tinyvm::Counter, page: usize, kind: usize) {
    let number = fresh(kind as u64);
    counter.believe(page, number);
    machine
        .memory
        .write_page(machine.first_page + page, &content(number));
}

/// Each page may be gone or not until it is written again.
fn free_lazily(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 16);
    let state = machine.still();
    machine.memory.advise(page, pages, libc::MADV_FREE)?;
    random.nap(30);
    for page in page - machine.first_page..page - machine.first_page + pages {
        if let Err(lost) = state.counter.check(page) {
            if machine.memory.read_page(machine.first_page + page) != content(0) {
                return Err(lost.into());
            }
        }
        put(machine, &state.counter, page, random.below(64));
    }
    Ok(())
}

/// The kernel moves pages off frames that may break soon. It takes each frame out of use for ever,
/// so this is rare.
fn soft_offline(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, _) = machine.some_pages(random, 1);
    if !random.one_in(8) {
        return Err(std::io::Error::other(NOT_EVERY_TIME).into());
    }
    Ok(machine.memory.advise(page, 1, MADV_SOFT_OFFLINE)?)
}

fn lock(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 64);
    let (at, bytes) = (machine.memory.page(page).cast(), pages * 4096);
    // SAFETY: the range is guest memory; locking changes no content.
    let locked = unsafe { libc::mlock(at, bytes) };
    let error = std::io::Error::last_os_error();
    random.nap(50);
    // SAFETY: as above.
    unsafe { libc::munlock(at, bytes) };
    match locked {
        0 => Ok(()),
        _ => Err(error.into()),
    }
}

/// The guest meets pages that it may not write, or not even read, for a moment.
fn protect(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 64);
    let access = random.pick(&[libc::PROT_READ, libc::PROT_NONE]);
    let protected = machine.memory.protect(page, pages, access);
    random.nap(10);
    let all = libc::PROT_READ | libc::PROT_WRITE;
    machine
        .memory
        .protect(page, pages, all)
        .map_err(|error| Trouble::Wrong(error.to_string()))?;
    Ok(protected?)
}

/// Pages go to other addresses and come back.
fn remap(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 64);
    let state = machine.still();
    let scratch = Memory::new(pages, Backing::Small)?;
    // What is lost already was not lost by moving it.
    (0..pages).try_for_each(|index| state.counter.check(page - machine.first_page + index))?;
    // The kernel restarts an mremap that a signal interrupts while it breaks KSM pages. If that was
    // not in the first of several mappings, the second try unmaps what the first one moved.
    machine.memory.advise(page, pages, libc::MADV_UNMERGEABLE)?;
    let before = entries(&machine.memory, page, pages)?;
    // The old addresses stay mapped, empty, so that nobody else settles there.
    let away = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    relocate(machine.memory.page(page), scratch.page(0), pages, away)?;
    let after = entries(&scratch, 0, pages)?;
    random.nap(10);
    let number = |index: usize| state.counter.number(page - machine.first_page + index);
    let wrong: Vec<_> = (0..pages)
        .filter(|&index| scratch.read_page(index) != content(number(index)))
        .map(|index| (index, number(index), before[index], after[index]))
        .collect();
    if !wrong.is_empty() {
        let text = format!(
            "{} of {pages} pages at {:p} are wrong after mremap to {:p}; index, number, entry before \
             and after: {wrong:x?}; mapped: {}",
            wrong.len(),
            machine.memory.page(page),
            scratch.page(0),
            std::fs::read_to_string("/proc/self/maps")?.replace('\n', "; ")
        );
        return Err(Trouble::Wrong(text));
    }
    let back = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    relocate(scratch.page(0), machine.memory.page(page), pages, back)
        .map_err(|error| Trouble::Wrong(format!("mremap back: {error}")))?;
    Ok((0..pages).try_for_each(|index| state.counter.check(page - machine.first_page + index))?)
}

fn relocate(from: *mut u8, to: *mut u8, pages: usize, flags: libc::c_int) -> std::io::Result<()> {
    // SAFETY: both ranges are guest memory or scratch memory of this process, accessed in volatile
    // words only; the guest stands still and uses neither.
    let at = unsafe { libc::mremap(from.cast(), pages * 4096, pages * 4096, flags, to) };
    match at {
        libc::MAP_FAILED => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn change_node(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 128);
    let list: Vec<_> = (page..page + pages)
        .map(|page| machine.memory.page(page))
        .collect();
    let node = random.below(2) as i32;
    let before = move_pages(&list, None)?;
    let after = move_pages(&list, Some(&vec![node; pages]))?;
    let moved = |(&before, &after): (&i32, &i32)| before >= 0 && before != node && after == node;
    match before.iter().zip(&after).any(moved) {
        true => Ok(()),
        false => refused("no page was moved"),
    }
}

/// Moves each page to its node, if there are any; the node of each from then on, or why it has none.
fn move_pages(list: &[*mut u8], nodes: Option<&[i32]>) -> io::Result<Vec<i32>> {
    let nodes = nodes.map_or(std::ptr::null(), <[i32]>::as_ptr);
    let mut status = vec![-1_i32; list.len()];
    // SAFETY: the lists that are there have as many elements as the count says; pages keep their
    // content.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            list.len(),
            list.as_ptr(),
            nodes,
            status.as_mut_ptr(),
            // MPOL_MF_MOVE_ALL: shared pages too.
            1 << 2,
        )
    };
    match moved {
        0.. => Ok(status),
        _ => Err(io::Error::last_os_error()),
    }
}

fn clear_soft_dirty(_: &Machine, random: &mut Random) -> Result<(), Trouble> {
    // 1: referenced bits of all pages, 2: of anonymous pages, 4: soft-dirty bits.
    let what = random.pick(&["1", "2", "4"]);
    Ok(std::fs::write("/proc/self/clear_refs", what)?)
}

/// A child has its own view of all pages, which nobody changes but the child.
fn fork(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let state = machine.still();
    let (page, pages) = machine.some_pages(random, 32);
    let (reader, mut writer) = pipe()?;
    // SAFETY: the child only reads and writes guest memory, which needs no lock and no allocation,
    // and ends; all it uses was made before.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().into()),
        0 => {
            let counter = &state.counter;
            let before = counter.audit();
            for index in page - machine.first_page..page - machine.first_page + pages {
                put(machine, counter, index, index % 64);
            }
            let wrong = before.and_then(|()| counter.audit()).err();
            if let Some(lost) = wrong {
                tell(&mut writer, &lost);
            }
            // SAFETY: the call ends the process; nothing of the parent's is to be cleaned up here.
            unsafe { libc::_exit(i32::from(wrong.is_some())) }
        }
        child => {
            drop((state, writer));
            let mut status = 0;
            // SAFETY: `status` is a place for the result.
            unsafe { libc::waitpid(child, &mut status, 0) };
            if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1 {
                return Err(told(reader));
            }
            Ok(())
        }
    }
}

/// Tells the parent what a child saw, without any allocation.
fn tell(parent: &mut File, lost: &Lost) {
    let Lost { gfn, .. } = *lost;
    let numbers = [lost.number, lost.expected, lost.seen].map(u64::from);
    for word in [gfn, lost.offset as u64].into_iter().chain(numbers) {
        // The status says that something is wrong, whatever becomes of this.
        let _ = parent.write_all(&word.to_le_bytes());
    }
}

/// What a child of fork saw.
fn told(mut child: File) -> Trouble {
    let mut bytes = Vec::new();
    // What cannot be read is missing below.
    let _ = child.read_to_end(&mut bytes);
    let words: Vec<_> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
        .collect();
    Trouble::Wrong(match words[..] {
        [gfn, offset, number, expected, seen] => format!(
            "a child of fork: gfn {gfn:#x} byte {offset:#x}: expected {expected:#x} (number \
             {number:#x}), seen {seen:#x}"
        ),
        _ => "a child of fork saw a wrong byte".into(),
    })
}

/// The slot that shows all of the memory at guest address 0.
fn slot(machine: &Machine, flags: u32) -> Slot {
    Slot {
        host: machine.memory.address(),
        pages: machine.memory.pages(),
        flags,
        ..Slot::default()
    }
}

fn replace_slot(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let _state = machine.still();
    let gone = Slot {
        pages: 0,
        ..slot(machine, 0)
    };
    machine.vm.set_slot(gone)?;
    random.nap(20);
    let back = machine.vm.set_slot(slot(machine, 0));
    back.map_err(|error| Trouble::Wrong(format!("the slot did not come back: {error}")))
}

/// A second slot shows the memory again, elsewhere, then elsewhere again.
fn alias_slot(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let alias = |guest, pages| Slot {
        number: 1,
        guest,
        pages,
        ..slot(machine, 0)
    };
    let pages = machine.memory.pages();
    machine.vm.set_slot(alias(ALIAS, pages))?;
    random.nap(20);
    let moved = machine.vm.set_slot(alias(2 * ALIAS, pages));
    random.nap(20);
    machine.vm.set_slot(alias(0, 0))?;
    Ok(moved?)
}

/// The dirty log goes on and off, as for a migration that is given up.
fn log_writes(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    machine
        .vm
        .set_slot(slot(machine, KVM_MEM_LOG_DIRTY_PAGES))?;
    random.nap(100);
    let log = machine.vm.dirty_pages(0, machine.memory.pages());
    machine.vm.set_slot(slot(machine, 0))?;
    Ok(log.map(|_| ())?)
}

/// How long a guest may take to come by a range.
const COMES_BY: Duration = Duration::from_secs(2);

/// Somebody answers every fault of a range, of which there should be one, while the guest runs.
fn watched(
    watcher: &Watcher,
    (address, pages): (u64, usize),
    meanwhile: impl FnOnce() -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let nobody = || answered.load(Ordering::Acquire) == 0;
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| watcher.answer_counting(&done, &answered));
        let result = meanwhile();
        let end = Instant::now() + COMES_BY;
        while result.is_ok() && nobody() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let gone = watcher.unregister(address, pages);
        done.store(true, Ordering::Release);
        match answers.join() {
            Ok(answers) => answers?,
            Err(_) => return Err(Trouble::Wrong("the watcher panicked".into())),
        }
        gone?;
        result?;
        match nobody() {
            true => refused("nobody came by"),
            false => Ok(()),
        }
    })
}

fn watch_writes(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 128);
    let range = (machine.memory.page_address(page), pages);
    let watcher = Watcher::new(&[Feature::WriteProtect])?;
    watcher.register(range.0, pages, Faults::Writes)?;
    watched(&watcher, range, || {
        watcher.protect(range.0, pages, true)?;
        random.nap(60);
        Ok(())
    })
}

/// Pages that the monitor discards come back by its own hand.
fn watch_holes(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 64);
    let range = (machine.memory.page_address(page), pages);
    let watcher = Watcher::new(&[Feature::Move])?;
    let state = machine.still();
    watcher.register(range.0, pages, Faults::Missing)?;
    watched(&watcher, range, || {
        machine.memory.advise(page, pages, libc::MADV_DONTNEED)?;
        for page in page - machine.first_page..page - machine.first_page + pages {
            state.counter.believe(page, 0);
        }
        drop(state);
        random.nap(60);
        Ok(())
    })
}

/// Pages move to other memory; what comes in their place is the same.
fn move_away(machine: &Machine, random: &mut Random) -> Result<(), Trouble> {
    let (page, pages) = machine.some_pages(random, 16);
    let target = Memory::new(pages, Backing::Small)?;
    let watcher = Watcher::new(&[Feature::Move])?;
    watcher.register(target.address(), pages, Faults::Missing)?;
    let state = machine.still();
    let mut refused = None;
    for index in 0..pages {
        let (to, from) = (
            target.page_address(index),
            machine.memory.page_address(page + index),
        );
        if let Err(error) = watcher.move_pages(to, from, 1) {
            refused = Some(error);
            continue;
        }
        let data = page - machine.first_page + index;
        let number = state.counter.number(data);
        // A page that was not there, a hole, stays one.
        let moved = match is_mapped(&target, index)? {
            true => target.read_page(index),
            false => content(0),
        };
        if moved != content(number) {
            let text = format!("data page {data} is wrong after UFFDIO_MOVE");
            return Err(Trouble::Wrong(text));
        }
        machine.memory.write_page(page + index, &moved);
    }
    refused.map_or(Ok(()), |error| Err(error.into()))
}

/// Whether a page is there, in memory or swapped out; reading a hole would make it one.
fn is_mapped(memory: &Memory, page: usize) -> std::io::Result<bool> {
    let entries = entries(memory, page, 1)?;
    Ok(entries
        .iter()
        .all(|entry| entry.frame().is_some() || entry.swapped()))
}

/// The page table entries of some pages.
fn entries(memory: &Memory, page: usize, pages: usize) -> std::io::Result<Vec<Entry>> {
    Pagemap::own()?.read(memory.page_address(page), pages)
}
