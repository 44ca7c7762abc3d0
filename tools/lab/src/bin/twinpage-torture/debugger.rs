// SPDX-License-Identifier: GPL-2.0

//! A debugger that stops a monitor and writes to its guest's memory.

use std::fs;
use std::io;
use std::ptr::null_mut;
use std::time::Duration;

use nix::sys::signal::Signal;
use twinpage_lab::ensure;
use twinpage_lab::random::Random;
use twinpage_lab::tap::Failure;
use twinpage_lab::wait;

use crate::events::{
    signal,
    tolerate,
    with_one, //
};
use crate::frames::guest_memory;
use crate::host::Host;

/// The longest that a monitor may take to stop.
const STOPS: Duration = Duration::from_secs(5);

/// How often something is put back before it counts as lost: memory may be short for a moment.
const TRIES: u32 = 100;

/// What came of some tries, of which one must go well.
pub struct Tries {
    done: u32,
    refused: String,
}

impl Tries {
    /// None yet; why there may be none.
    pub fn new(none: &str) -> Tries {
        Tries {
            done: 0,
            refused: none.to_owned(),
        }
    }

    /// Adds one. What is wrong is not a refusal.
    pub fn add(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        match result {
            Ok(()) => self.done += 1,
            Err(Failure::Skipped(why)) => self.refused = why,
            Err(wrong) => return Err(wrong),
        }
        Ok(())
    }

    /// Whether one went well.
    pub fn verdict(self) -> Result<(), Failure> {
        match self.done {
            0 => Err(Failure::Skipped(self.refused)),
            _ => Ok(()),
        }
    }
}

/// Puts something back, if need be again and again; `what` is lost if that fails.
pub fn insist(what: &str, mut put: impl FnMut() -> io::Result<()>) -> Result<(), Failure> {
    for _ in 0..TRIES {
        if put().is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Failure::Failed(format!("{what} stays as it was left")))
}

/// Writes another word to some page of each mapping, sees that it is there, and puts the old one
/// back. Both give a merged page a copy of its own; other VMs that had it must not see the word.
pub fn poke(host: &Host, random: &mut Random) -> Result<(), Failure> {
    while_stopped(host, random, poke_stopped)
}

/// Does something to a monitor of which all threads stand still: only then is its memory not
/// somebody's to use meanwhile.
pub fn while_stopped(
    host: &Host,
    random: &mut Random,
    run: impl FnOnce(u32, &mut Random) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let seed = random.below(usize::MAX);
    with_one(host, random, |monitor| {
        let mut random = Random::new(seed as u64, 0);
        let pid = monitor.pid();
        signal(pid, Signal::SIGSTOP)?;
        let stopped: Result<_, Failure> =
            wait::until("the stop of all threads", STOPS, || Ok(all_stopped(pid)));
        let result = tolerate(stopped).and_then(|_| run(pid, &mut random));
        signal(pid, Signal::SIGCONT)?;
        result
    })
}

/// Whether every thread of a process has stopped.
fn all_stopped(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
        state.starts_with('T')
    })
}

fn poke_stopped(pid: u32, random: &mut Random) -> Result<(), Failure> {
    let tracee = Tracee::seize(pid).map_err(|error| Failure::Skipped(error.to_string()))?;
    let mut tries = Tries::new("no memory");
    for (address, pages) in guest_memory(pid) {
        let at = address + random.below(pages) as u64 * 4096 + 8 * random.below(512) as u64;
        tries.add(tracee.swap_and_back(at))?;
    }
    tries.verdict()
}

/// The first thread of a process, which this thread traces; it stays stopped, and is let go of with
/// the value.
struct Tracee(libc::pid_t);

impl Tracee {
    /// Begins to trace a process that is stopped.
    fn seize(pid: u32) -> io::Result<Tracee> {
        let pid = pid as libc::pid_t;
        ask(libc::PTRACE_SEIZE, pid, 0, 0)?;
        let tracee = Tracee(pid);
        // SAFETY: nobody wants the status: the thread was stopped, and is a tracee's way of stopped
        // from here on.
        match unsafe { libc::waitpid(pid, null_mut(), libc::__WALL) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(tracee),
        }
    }

    /// The word at an address.
    fn peek(&self, at: u64) -> io::Result<u64> {
        let mut word = 0_u64;
        // The system call, unlike the C function, leaves the word where it is told to.
        // SAFETY: the kernel writes a word to `word`, and reads the other process alone.
        let done = unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                libc::PTRACE_PEEKDATA,
                self.0,
                at,
                &raw mut word,
            )
        };
        match done {
            0 => Ok(word),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn poke(&self, at: u64, word: u64) -> io::Result<()> {
        ask(libc::PTRACE_POKEDATA, self.0, at, word)
    }

    /// Writes another word and puts back the one that was there.
    fn swap_and_back(&self, at: u64) -> Result<(), Failure> {
        let refused = |error: io::Error| Failure::Skipped(error.to_string());
        let word = self.peek(at).map_err(refused)?;
        self.poke(at, !word).map_err(refused)?;
        let (expected, seen) = (!word, self.peek(at)?);
        insist(&format!("the word at {at:#x}"), || self.poke(at, word))?;
        ensure!(
            seen == expected,
            "poked {expected:#x} at {at:#x} and saw {seen:#x}"
        );
        Ok(())
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // It may be gone.
        let _ = ask(libc::PTRACE_DETACH, self.0, 0, 0);
    }
}

fn ask(request: libc::c_uint, pid: libc::pid_t, at: u64, value: u64) -> io::Result<()> {
    // SAFETY: these requests take integers, of which `at` is an address of the other process.
    match unsafe { libc::syscall(libc::SYS_ptrace, request, pid, at, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
