// SPDX-License-Identifier: GPL-2.0

//! A core dump of a monitor has the bytes of its guest, merged or not.

use std::collections::HashSet;
use std::fs::{
    self,
    File, //
};
use std::io::{
    Read,
    Write, //
};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::sys::signal::{
    kill,
    Signal, //
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
use twinpage_guest::pattern::Stream;
use twinpage_lab::files::borrow;
use twinpage_lab::module::{
    Stats,
    DEBUGFS, //
};
use twinpage_lab::pagemap::{
    Frames,
    Pagemap, //
};
use twinpage_lab::process::Bytes;
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
    in_child,
    pipe,
    Child,
    Guest,
    Host,
    CONVERGE,
    DOMAIN, //
};
use crate::life::{
    until_gone, //
};

pub const TESTS: &[Test] = &[Test {
    name: "a_core_dump_has_the_bytes_of_merged_pages",
    seconds: 240,
    run: a_core_dump_has_the_bytes_of_merged_pages,
}];

const PAGES: usize = 2048;

/// Where the kernel puts the core file.
const CORE: &str = "/tmp/twinpage.core";

/// What stands in each page: a quarter is zero, a quarter is the same everywhere, a quarter is in
/// both VMs, a quarter is in this one alone.
fn key(page: usize) -> Option<u64> {
    match page % 4 {
        0 => None,
        1 => Some(1),
        2 => Some(1_000_000 + page as u64),
        _ => Some(own_key(std::process::id(), page)),
    }
}

/// The key of a page that no other monitor has.
fn own_key(pid: u32, page: usize) -> u64 {
    (u64::from(pid) << 32) | page as u64
}

fn content(key: Option<u64>) -> Vec<u8> {
    let mut stream = key.map(Stream::new);
    let words = (0..WORDS).map(|_| stream.as_mut().map_or(0, Stream::next));
    words.flat_map(u64::to_le_bytes).collect()
}

/// A monitor that has filled its guest's memory and waits to be killed.
struct Monitor {
    child: Child,
    vm: i32,
    address: u64,
    keys: Vec<Option<u64>>,
}

impl Monitor {
    fn start() -> Result<Monitor, Failure> {
        let (mut reader, mut writer) = pipe()?;
        let child = in_child(|| wait_to_be_killed(&mut writer).is_ok())?;
        let mut told = [0; 12];
        reader.read_exact(&mut told)?;
        let (vm, address) = told.split_at(4);
        let pid = child.pid();
        Ok(Monitor {
            child,
            vm: i32::from_le_bytes(vm.try_into().unwrap_or_default()),
            address: u64::from_le_bytes(address.try_into().unwrap_or_default()),
            keys: (0..PAGES)
                .map(|page| match page % 4 {
                    3 => Some(own_key(pid, page)),
                    _ => key(page),
                })
                .collect(),
        })
    }

    fn attach(&self, host: &Host) -> Result<u32, Failure> {
        let vm = borrow(self.child.pid(), self.vm)?;
        Ok(host.device().attach(vm.as_raw_fd(), DOMAIN)?)
    }

    /// Pages that share their frame, with each other or by being the page of zeroes.
    fn saved(&self) -> Result<usize, Failure> {
        let frames = Frames::open()?;
        let (mut seen, mut saved) = (HashSet::new(), 0);
        let entries = Pagemap::of(self.child.pid())?.read(self.address, PAGES)?;
        for frame in entries.into_iter().filter_map(|entry| entry.frame()) {
            let more = frames.mappings(frame)? > 1 && !seen.insert(frame);
            saved += usize::from(more || frames.flags(frame)?.zero());
        }
        Ok(saved)
    }

    /// Compares what `read` gives for each page with what was written there.
    fn compare(
        &self,
        what: &str,
        read: impl Fn(u64, &mut [u8; 4096]) -> std::io::Result<()>,
    ) -> Outcome {
        let mut page = [0; 4096];
        for (index, &key) in self.keys.iter().enumerate() {
            read(index as u64, &mut page)?;
            ensure!(content(key) == page, "page {index} of {what} is wrong");
        }
        Ok(())
    }

    fn frames(&self) -> Result<Vec<u64>, Failure> {
        let entries = Pagemap::of(self.child.pid())?.read(self.address, PAGES)?;
        Ok(entries
            .into_iter()
            .map(|entry| entry.frame().map_or(0, |frame| frame.0))
            .collect())
    }
}

fn wait_to_be_killed(writer: &mut File) -> Outcome {
    let guest = Guest::detached(PAGES, Backing::Small)?;
    for page in 0..PAGES {
        match key(page) {
            Some(key) => crate::host::fill(guest.memory(), page, key),
            None => guest.memory().write_page(page, &[0; WORDS]),
        }
    }
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limit is a valid structure for the length of the call.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) };
    ensure!(raised == 0, "{}", std::io::Error::last_os_error());
    let mut told = guest.vm()?.as_raw_fd().to_le_bytes().to_vec();
    told.extend(guest.memory().address().to_le_bytes());
    writer.write_all(&told)?;
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// The part of a core file that holds the memory from `address` on.
fn segment(core: &File, address: u64, bytes: u64) -> Result<u64, Failure> {
    let mut header = [0; 64];
    core.read_exact_at(&mut header, 0)?;
    ensure!(&header[..4] == b"\x7fELF", "the core file is none");
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let first = number(&header[32..40]);
    let count = u64::from(u16::from_le_bytes([header[56], header[57]]));
    for index in 0..count {
        let mut program = [0; 56];
        core.read_exact_at(&mut program, first + index * 56)?;
        let (offset, start, size) = (
            number(&program[8..16]),
            number(&program[16..24]),
            number(&program[32..40]),
        );
        if program[0] == 1 && start <= address && address + bytes <= start + size {
            return Ok(offset + (address - start));
        }
    }
    Err(Failure::Failed(format!(
        "none of {count} segments has {bytes} bytes at {address:#x}"
    )))
}

fn a_core_dump_has_the_bytes_of_merged_pages() -> Outcome {
    let monitors = [Monitor::start()?, Monitor::start()?];
    let host = Host::new()?;
    let ids = [monitors[0].attach(&host)?, monitors[1].attach(&host)?];
    // Pages of one content may have several frames (max_page_sharing), not all of them common.
    let (mut saved, mut common) = (0, 0);
    wait::until("merging", CONVERGE, || {
        let own: HashSet<_> = monitors[0].frames()?.into_iter().collect();
        let others = monitors[1].frames()?;
        saved = monitors[0].saved()?;
        common = others.iter().filter(|frame| own.contains(frame)).count();
        Ok::<_, Failure>(saved >= PAGES / 2 - 16 && common >= PAGES / 2 - 16)
    })
    .map_err(|late| {
        let stats = ids.map(Stats::of);
        Failure::Failed(format!("{late}: {saved} saved, {common} common\n{stats:?}"))
    })?;
    println!("{saved} pages saved, {common} mapped by both monitors");

    fs::write("/proc/sys/kernel/core_pattern", CORE)?;
    fs::write("/proc/sys/kernel/core_uses_pid", "0")?;
    let [victim, survivor] = monitors;
    let pid = Pid::from_raw(victim.child.pid() as i32);
    kill(pid, Signal::SIGQUIT)?;
    let status = waitpid(pid, None)?;
    ensure!(
        matches!(status, WaitStatus::Signaled(_, Signal::SIGQUIT, true)),
        "the monitor ended with {status:?}"
    );
    let core = File::open(CORE)?;
    let offset = segment(&core, victim.address, (PAGES * 4096) as u64)?;
    victim.compare("the core file", |index, page| {
        core.read_exact_at(page, offset + index * 4096)
    })?;
    drop(core);
    fs::remove_file(CORE)?;
    until_gone(ids[0])?;
    let other = format!("{DEBUGFS}/{}", ids[1]);
    ensure!(fs::metadata(other).is_ok(), "the other VM went too");
    let bytes = Bytes::of(survivor.child.pid())?;
    survivor.compare("the other monitor", |index, page| {
        bytes.page(survivor.address + index * 4096, page)
    })?;
    survivor.child.kill()?;
    until_gone(ids[1])
}
