// SPDX-License-Identifier: GPL-2.0

//! What all processes of the fuzzer see: counts, who does what, whether to stop.

use std::ptr::null_mut;
use std::sync::atomic::{
    AtomicBool,
    AtomicU32,
    AtomicU64,
    Ordering::Relaxed, //
};
use std::time::{
    Duration,
    Instant, //
};

use nix::errno::Errno;
use nix::sys::wait::{
    waitpid,
    WaitPidFlag,
    WaitStatus, //
};
use nix::unistd::Pid;
use twinpage_lab::child::Child;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::operations::operations;

/// Processes that work at once.
pub const WORKERS: usize = 3;

/// Room for kinds of operations.
const KINDS: usize = 64;

/// How long an operation may take on an emulated processor, when others keep it busy.
const LIMIT: Duration = Duration::from_secs(240);

/// Memory that all processes share. Zeroes are a board on which nothing happened.
pub struct Board {
    counts: [Count; KINDS],
    places: [Place; WORKERS],
    stop: AtomicBool,
    offered: [AtomicU32; 4],
}

/// What was done of a kind, and how many microseconds it took.
struct Count {
    done: AtomicU64,
    took: AtomicU64,
}

/// What a worker does.
struct Place {
    kind: AtomicU64,
    begun: AtomicU64,
}

impl Board {
    /// A board that forked children share.
    pub fn new() -> Result<&'static Board, Failure> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe { libc::mmap(null_mut(), size_of::<Board>(), access, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: the mapping is page aligned, long enough, zeroed, and never unmapped; the type
        // consists of atomic integers, of which zero is a value.
        Ok(unsafe { &*base.cast::<Board>() })
    }

    /// A worker begins an operation.
    pub fn begin(&self, worker: usize, kind: usize) {
        self.places[worker].kind.store(kind as u64, Relaxed);
        self.places[worker].begun.fetch_add(1, Relaxed);
    }

    /// So many operations of a kind are done, and took so long together.
    pub fn done(&self, kind: usize, operations: u64, took: Duration) {
        self.counts[kind].done.fetch_add(operations, Relaxed);
        let took = took.as_micros() as u64;
        self.counts[kind].took.fetch_add(took, Relaxed);
    }

    /// How many operations of a kind were done.
    pub fn count(&self, kind: usize) -> u64 {
        self.counts[kind].done.load(Relaxed)
    }

    /// How long those of a kind took together, of the time of all workers.
    pub fn took(&self, kind: usize) -> Duration {
        Duration::from_micros(self.counts[kind].took.load(Relaxed))
    }

    /// How many operations were done.
    pub fn total(&self) -> u64 {
        (0..KINDS).map(|kind| self.count(kind)).sum()
    }

    /// Whether to stop.
    pub fn is_over(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Lets anybody detach the VM with this number.
    pub fn offer(&self, place: usize, id: u32) {
        self.offered[place % self.offered.len()].store(id, Relaxed);
    }

    /// A VM that may be detached, or was.
    pub fn offered(&self, place: usize) -> u32 {
        self.offered[place % self.offered.len()].load(Relaxed)
    }

    /// Waits for the workers to end, and names what one of them hangs in.
    pub fn watch(&self, workers: Vec<Child>) -> Outcome {
        let mut outcome = Ok(());
        let mut seen = [(0, Instant::now()); WORKERS];
        let mut running: Vec<_> = workers.into_iter().enumerate().collect();
        while let Some((number, worker)) = running.pop() {
            match ended(&worker)? {
                Some(true) => continue,
                Some(false) => {
                    outcome = Err(Failure::Failed(format!(
                        "worker {number} failed in {}",
                        self.doing(number)
                    )));
                    self.stop.store(true, Relaxed);
                    continue;
                }
                None => {}
            }
            let begun = self.places[number].begun.load(Relaxed);
            if begun != seen[number].0 {
                seen[number] = (begun, Instant::now());
            }
            if seen[number].1.elapsed() > LIMIT {
                return Err(self.hangs(number, &worker));
            }
            running.insert(0, (number, worker));
            std::thread::sleep(Duration::from_millis(100));
        }
        outcome
    }

    /// The name of what a worker does.
    fn doing(&self, worker: usize) -> &'static str {
        let kind = self.places[worker].kind.load(Relaxed) as usize;
        operations()
            .nth(kind)
            .map_or("nothing", |operation| operation.name)
    }

    fn hangs(&self, number: usize, worker: &Child) -> Failure {
        self.stop.store(true, Relaxed);
        let pid = worker.pid();
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let stack = read("stack").unwrap_or_default();
        let state = read("wchan").unwrap_or_default();
        let text = format!(
            "worker {number} hangs in {}: {state}\n{stack}",
            self.doing(number)
        );
        // What it waits for may keep it from dying; the machine is given up then.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid as i32), nix::sys::signal::SIGKILL);
        Failure::Failed(text)
    }
}

/// Whether a process has ended, and well.
fn ended(child: &Child) -> Result<Option<bool>, Errno> {
    let pid = Pid::from_raw(child.pid() as i32);
    Ok(match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
        WaitStatus::StillAlive => None,
        WaitStatus::Exited(_, 0) => Some(true),
        _ => Some(false),
    })
}
