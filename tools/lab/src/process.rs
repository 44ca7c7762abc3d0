// SPDX-License-Identifier: GPL-2.0

//! Other processes: their memory, their signals, their end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The bytes of another process.
///
/// `/proc/PID/mem` takes plain references; `process_vm_readv` pins pages, which gives a page of
/// some kernels its own copy back: a judge must not change what it judges.
pub struct Bytes(File);

impl Bytes {
    /// Opens the memory of a process.
    ///
    /// # Errors
    ///
    /// The process is gone, or this one has no right to look.
    pub fn of(pid: u32) -> io::Result<Bytes> {
        File::open(format!("/proc/{pid}/mem")).map(Bytes)
    }

    /// Reads one page.
    ///
    /// # Errors
    ///
    /// Nothing is mapped there.
    pub fn page(&self, address: u64, page: &mut [u8; 4096]) -> io::Result<()> {
        self.0.read_exact_at(page, address)
    }
}

/// One number of a file of `Name: number ...` lines, such as `/proc/meminfo`.
///
/// # Errors
///
/// No such file, or no such name in it.
pub fn field(file: &str, name: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(file)?;
    text.lines()
        .filter_map(|line| line.split_once([':', ' ']))
        .find(|(key, _)| *key == name)
        .and_then(|(_, rest)| {
            rest.trim_start_matches([':', ' ', '\t'])
                .split_whitespace()
                .next()
        })
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{file} has no '{name}'")))
}

/// Keeps the per-CPU lists of free pages short, which may hold tens of MiB that are not in `MemFree`.
///
/// # Errors
///
/// There is no such setting; `MemFree` may lag.
pub fn keep_lists_short() -> io::Result<()> {
    std::fs::write("/proc/sys/vm/percpu_pagelist_high_fraction", "1000000")
}

/// Memory that the host could give out, in KiB.
///
/// # Errors
///
/// No `/proc/meminfo`.
pub fn available_kib() -> io::Result<u64> {
    field("/proc/meminfo", "MemAvailable")
}

/// Processes that the kernel has killed for want of memory.
///
/// # Errors
///
/// No `/proc/vmstat`.
pub fn oom_kills() -> io::Result<u64> {
    field("/proc/vmstat", "oom_kill")
}
