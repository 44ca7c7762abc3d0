// SPDX-License-Identifier: GPL-2.0

//! Pages that somebody else holds stay where they are.

use std::fs::{
    File,
    OpenOptions, //
};
use std::io::{
    IoSlice,
    Read,
    Write, //
};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{
    Duration,
    Instant, //
};

use io_uring::{
    opcode,
    types,
    IoUring, //
};
use nix::sys::signal::{
    raise,
    Signal, //
};
use nix::sys::uio::{
    process_vm_writev,
    RemoteIoVec, //
};
use nix::sys::wait::{
    waitpid,
    WaitStatus, //
};
use nix::unistd::Pid;
use tinyvm::{
    Backing,
    WORDS, //
};
use twinpage_lab::files::borrow;
use twinpage_lab::pagemap::Pagemap;
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
    check,
    fill,
    goes_on,
    in_child,
    mismatch,
    pipe,
    skipped,
    Guest,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "registered_io_uring_buffers_stay_where_they_are",
        seconds: 120,
        run: registered_io_uring_buffers_stay_where_they_are,
    },
    Test {
        name: "registering_merged_pages_gives_them_frames_of_their_own",
        seconds: 120,
        run: registering_merged_pages_gives_them_frames_of_their_own,
    },
    Test {
        name: "pages_in_a_pipe_stay_where_they_are",
        seconds: 120,
        run: pages_in_a_pipe_stay_where_they_are,
    },
    Test {
        name: "a_poke_of_what_may_not_be_written_changes_no_other",
        seconds: 120,
        run: a_poke_of_what_may_not_be_written_changes_no_other,
    },
    Test {
        name: "direct_io_into_merging_pages_loses_nothing",
        seconds: 600,
        run: direct_io_into_merging_pages_loses_nothing,
    },
    Test {
        name: "a_merged_page_can_be_read_and_poked",
        seconds: 120,
        run: a_merged_page_can_be_read_and_poked,
    },
];

const PAGES: usize = 64;

/// A ring for which the first half of a VM's pages is registered.
fn register(guest: &Guest) -> Result<IoUring, Failure> {
    let ring = match IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => return Err(Failure::Skipped(format!("no io_uring: {error}"))),
    };
    let buffer = libc::iovec {
        iov_base: guest.memory().page(0).cast(),
        iov_len: PAGES / 2 * 4096,
    };
    // SAFETY: the buffer is the first half of the VM's memory, which outlives the ring's use of it.
    unsafe { ring.submitter().register_buffers(&[buffer])? };
    Ok(ring)
}

fn registered_io_uring_buffers_stay_where_they_are() -> Outcome {
    let host = Host::new()?;
    module::set("run", 0)?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    a.fill_with(|page| page as u64);
    b.fill_with(|page| page as u64);
    let mut ring = register(&a)?;
    let before = a.frames()?;
    module::set("run", 1)?;
    host.until_saved(&[&a, &b], PAGES / 2)?;
    host.looks(3)?;
    ensure!(
        a.frames()?[..PAGES / 2] == before[..PAGES / 2],
        "a registered page was replaced"
    );
    let pinned = skipped(&a, "pinned")?;
    ensure!(
        pinned == PAGES as u64 / 2,
        "{pinned} are counted pinned: {}",
        a.told()
    );
    read_into_buffer(&mut ring, &a)?;
    (0..PAGES).try_for_each(|page| check(b.memory(), page, page as u64))?;
    ring.submitter().unregister_buffers()?;
    drop(ring);
    host.until_saved(&[&a], PAGES / 2)
}

/// The kernel pins them to write to them (io_uring/memmap.c:io_pin_pages).
fn registering_merged_pages_gives_them_frames_of_their_own() -> Outcome {
    const HALF: usize = PAGES / 2;
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    let copies = b.frames()?;
    ensure!(a.frames()? == copies, "a page is not merged");
    let mut ring = register(&a)?;
    let pinned = a.frames()?;
    let shared = (0..HALF).filter(|&page| pinned[page] == copies[page]);
    let shared = shared.count();
    ensure!(shared == 0, "{shared} registered pages are still merged");
    ensure!(
        pinned[HALF..] == copies[HALF..],
        "other pages were unmerged"
    );
    ensure!(b.frames()? == copies, "the twin was unmerged");
    a.check_with(|page| page as u64 + 1)?;
    module::set("run", 1)?;
    host.looks(3)?;
    ensure!(a.frames()? == pinned, "a registered page was replaced");
    read_into_buffer(&mut ring, &a)?;
    (HALF..PAGES).try_for_each(|page| check(a.memory(), page, page as u64 + 1))?;
    b.check_with(|page| page as u64 + 1)
}

/// What the kernel writes into the registered buffer must be what the process sees.
fn read_into_buffer(ring: &mut IoUring, guest: &Guest) -> Outcome {
    let zeroes = File::open("/dev/zero")?;
    let read = opcode::ReadFixed::new(
        types::Fd(zeroes.as_raw_fd()),
        guest.memory().page(0),
        (PAGES / 2 * 4096) as u32,
        0,
    );
    // SAFETY: the buffer of this entry is registered and alive until the completion below.
    unsafe { ring.submission().push(&read.build())? };
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map(|entry| entry.result());
    ensure!(
        result == Some((PAGES / 2 * 4096) as i32),
        "the read returned {result:?}"
    );
    for page in 0..PAGES / 2 {
        ensure!(
            guest.memory().read_page(page) == [0; WORDS],
            "page {page} lost the read"
        );
    }
    Ok(())
}

fn pages_in_a_pipe_stay_where_they_are() -> Outcome {
    const SPLICED: usize = 8;
    let host = Host::new()?;
    module::set("run", 0)?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    a.fill_with(|page| page as u64);
    b.fill_with(|page| page as u64);
    let (mut reader, writer) = crate::host::pipe()?;
    let vector = libc::iovec {
        iov_base: a.memory().page(0).cast(),
        iov_len: SPLICED * 4096,
    };
    // SAFETY: the vector points into the VM's memory, which outlives the pipe.
    let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &vector, 1, 0) };
    ensure!(
        spliced == (SPLICED * 4096) as isize,
        "vmsplice returned {spliced}"
    );
    let before = a.frames()?;
    module::set("run", 1)?;
    host.until_saved(&[&a, &b], PAGES - SPLICED)?;
    host.looks(3)?;
    ensure!(
        a.frames()?[..SPLICED] == before[..SPLICED],
        "a page in a pipe was replaced"
    );
    // The pipe holds the page, not a copy: it shows what is written now.
    for page in 0..SPLICED {
        fill(a.memory(), page, 1000 + page as u64);
    }
    let mut content = vec![0; SPLICED * 4096];
    reader.read_exact(&mut content)?;
    let other = tinyvm::Memory::new(SPLICED, Backing::Small)?;
    for (index, word) in content.chunks_exact(8).enumerate() {
        let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        other.set_word(index / WORDS, index % WORDS, word);
    }
    (0..SPLICED).try_for_each(|page| check(&other, page, 1000 + page as u64))
}

/// A block device in memory whose pages are read without the page cache.
fn disk() -> Result<File, Failure> {
    twinpage_lab::swap::prepare(16)?;
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open("/dev/zram0")?)
}

/// One direct transfer between a page and the disk.
fn transfer(disk: &File, guest: &Guest, page: usize, at: usize, write: bool) -> Outcome {
    let (file, offset) = (disk.as_raw_fd(), (at * 4096) as libc::off_t);
    let buffer = guest.memory().page(page);
    // SAFETY: the buffer is one page of the VM's memory.
    let moved = unsafe {
        match write {
            true => libc::pwrite(file, buffer.cast(), 4096, offset),
            false => libc::pread(file, buffer.cast(), 4096, offset),
        }
    };
    ensure!(
        moved == 4096,
        "a transfer of page {page}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

fn direct_io_into_merging_pages_loses_nothing() -> Outcome {
    const KINDS: usize = 4;
    let disk = disk()?;
    let host = Host::new()?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    // The disk holds few contents, so that what is read merges at once, while the next read of the
    // same page may be under way.
    for kind in 0..KINDS {
        fill(guest.memory(), 0, kind as u64);
        transfer(&disk, &guest, 0, kind, true)?;
    }
    let (mut round, mut saved) = (0, 0);
    let start = Instant::now();
    while round < 400 || goes_on(start, Duration::ZERO, saved > PAGES) {
        for page in 0..PAGES {
            transfer(&disk, &guest, page, (page + round) % KINDS, false)?;
        }
        for page in 0..PAGES {
            let key = ((page + round) % KINDS) as u64;
            if let Some(mismatch) = mismatch(guest.memory(), page, key) {
                let text = format!("round {round}, page {page} {mismatch}");
                return Err(Failure::Failed(text));
            }
        }
        saved += crate::host::saved_pages(&[&guest])?;
        round += 1;
    }
    println!("{saved} merges seen");
    ensure!(saved > PAGES, "only {saved} merges were seen");
    Ok(())
}

/// This process reads and writes its own memory in the ways in which others could.
fn a_merged_page_can_be_read_and_poked() -> Outcome {
    use std::os::unix::fs::FileExt;
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    // SAFETY: `getpid` takes nothing and cannot fail.
    let pid = unsafe { libc::getpid() };
    let mut copy = [0_u8; 4096];
    let local = libc::iovec {
        iov_base: copy.as_mut_ptr().cast(),
        iov_len: 4096,
    };
    let remote = libc::iovec {
        iov_base: a.memory().page(5).cast(),
        iov_len: 4096,
    };
    // SAFETY: both vectors point to 4096 bytes of this process.
    let read = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    ensure!(read == 4096, "process_vm_readv returned {read}");
    let words: Vec<_> = copy.chunks_exact(8).collect();
    for (word, bytes) in words.into_iter().enumerate() {
        let seen = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        ensure!(
            seen == a.memory().word(5, word),
            "word {word} reads {seen:#x}"
        );
    }
    // A debugger's write goes to a copy of its own.
    module::set("run", 0)?;
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&4711_u64.to_le_bytes(), a.memory().page_address(6))?;
    ensure!(a.memory().word(6, 0) == 4711, "the write was lost");
    check(b.memory(), 6, 7)?;
    module::set("run", 1)?;
    fill(a.memory(), 6, 7);
    wait::until("merging again", CONVERGE, || {
        Ok::<_, Failure>(a.frames()?[6] == b.frames()?[6])
    })
    .map(|_| ())
}

/// Pages of zeroes before the others, and the word of each page that is poked.
const EMPTY: usize = 8;
const POKED: usize = 17;

/// What the poked word of a page becomes.
fn poked(page: usize) -> u64 {
    0xdead_0000 + page as u64
}

fn write_all(guest: &Guest) {
    for page in 0..PAGES {
        match page < EMPTY {
            true => guest.memory().write_page(page, &[0; WORDS]),
            false => fill(guest.memory(), page, page as u64),
        }
    }
}

fn check_all(guest: &Guest) -> Outcome {
    for page in 0..EMPTY {
        let empty = guest.memory().read_page(page) == [0; WORDS];
        ensure!(empty, "page {page} is not empty");
    }
    (EMPTY..PAGES).try_for_each(|page| check(guest.memory(), page, page as u64))
}

/// One request to the kernel about a process that this one traces.
pub fn trace(request: libc::c_uint, pid: libc::pid_t, at: u64, value: u64) -> Outcome {
    // SAFETY: these requests take integers, of which `at` is an address of the other process.
    let done = unsafe { libc::syscall(libc::SYS_ptrace, request, pid, at, value) };
    let error = std::io::Error::last_os_error();
    ensure!(done == 0, "ptrace {request} at {at:#x}: {error}");
    Ok(())
}

/// A monitor that takes its right to write away once its pages are merged, stops to be poked, and
/// looks at what it has then.
fn be_poked(mut go: File, mut tell: File) -> Outcome {
    let guest = Guest::detached(PAGES, Backing::Small)?;
    write_all(&guest);
    let before: Vec<_> = (0..PAGES)
        .map(|page| guest.memory().word(page, POKED))
        .collect();
    tell.write_all(&guest.vm()?.as_raw_fd().to_le_bytes())?;
    tell.write_all(&guest.memory().address().to_le_bytes())?;
    go.read_exact(&mut [0])?;
    guest.memory().protect(0, PAGES, libc::PROT_READ)?;
    trace(libc::PTRACE_TRACEME, 0, 0, 0)?;
    raise(Signal::SIGSTOP)?;
    let all = libc::PROT_READ | libc::PROT_WRITE;
    guest.memory().protect(0, PAGES, all)?;
    for (page, word) in before.into_iter().enumerate() {
        let seen = guest.memory().word(page, POKED);
        ensure!(seen == poked(page), "page {page} lost the poke: {seen:#x}");
        guest.memory().set_word(page, POKED, word);
    }
    check_all(&guest)
}

/// A debugger may write where its tracee may not (FOLL_FORCE): to a copy of the page, or a
/// breakpoint in one VM would be one in all.
fn a_poke_of_what_may_not_be_written_changes_no_other() -> Outcome {
    let ((mut told, tell), (go, mut let_go)) = (pipe()?, pipe()?);
    // Forked before this process has any memory of a guest.
    let child = in_child(|| match be_poked(go, tell) {
        Ok(()) => true,
        Err(failure) => {
            println!("in the monitor: {failure}");
            false
        }
    })?;
    let (mut vm, mut address) = ([0; 4], [0; 8]);
    told.read_exact(&mut vm)?;
    told.read_exact(&mut address)?;
    let address = u64::from_le_bytes(address);
    let vm = borrow(child.pid(), i32::from_le_bytes(vm))?;
    let host = Host::new()?;
    host.device().attach(vm.as_raw_fd(), DOMAIN)?;
    let own = host.guest(PAGES, Backing::Small, DOMAIN)?;
    write_all(&own);
    let pagemap = Pagemap::of(child.pid())?;
    let theirs = || -> Result<Vec<_>, Failure> {
        let entries = pagemap.read(address, PAGES)?;
        Ok(entries.into_iter().map(|entry| entry.frame()).collect())
    };
    wait::until("merging", CONVERGE, || {
        Ok::<_, Failure>(theirs()? == own.frames()?)
    })?;
    module::set("run", 0)?;
    let before = own.frames()?;
    ensure!(before.iter().all(Option::is_some), "a page is not there");
    let_go.write_all(b"!")?;
    let pid = Pid::from_raw(child.pid() as i32);
    let status = waitpid(pid, None)?;
    ensure!(
        matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)),
        "the monitor did not stop: {status:?}"
    );
    ensure!(
        theirs()? == before,
        "taking the right to write away unmerged"
    );
    // Who does not force may not write there.
    let remote = RemoteIoVec {
        base: address as usize,
        len: 8,
    };
    let refused = process_vm_writev(pid, &[IoSlice::new(&[1; 8])], &[remote]);
    ensure!(refused == Err(nix::errno::Errno::EFAULT), "{refused:?}");
    for page in 0..PAGES {
        let at = address + (page * 4096 + POKED * 8) as u64;
        trace(libc::PTRACE_POKEDATA, pid.as_raw(), at, poked(page))?;
    }
    ensure!(own.frames()? == before, "the other VM's frames changed");
    check_all(&own)?;
    let mut pairs = theirs()?.into_iter().zip(&before);
    let shared = pairs.position(|(now, before)| now == *before);
    ensure!(
        shared.is_none(),
        "page {shared:?} was poked where both see it"
    );
    trace(libc::PTRACE_DETACH, pid.as_raw(), 0, 0)?;
    child.join()?;
    check_all(&own)
}
