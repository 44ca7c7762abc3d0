// SPDX-License-Identifier: GPL-2.0

//! Another process that reads and writes the memory of a monitor's guest: this one.

use std::fs::OpenOptions;
use std::io::{
    self,
    IoSlice,
    IoSliceMut, //
};
use std::os::unix::fs::FileExt;

use nix::sys::uio::{
    process_vm_readv,
    process_vm_writev,
    RemoteIoVec, //
};
use nix::unistd::Pid;
use twinpage_lab::pagemap::Pagemap;
use twinpage_lab::process::Bytes;
use twinpage_lab::random::Random;
use twinpage_lab::tap::Failure;

use crate::debugger::{
    insist,
    while_stopped,
    Tries, //
};
use crate::events::tolerate;
use crate::frames::guest_memory;
use crate::host::Host;

/// Pages of each mapping that are tried.
const PAGES: usize = 32;

/// The bytes of a page.
type Page = [u8; 4096];

/// Writes a page of another process.
type Write = fn(u32, u64, &Page) -> io::Result<()>;

/// Reads pages of a stopped monitor with `process_vm_readv`, which pins them; whoever does not pin
/// them sees the same.
pub fn read_vm(host: &Host, random: &mut Random) -> Result<(), Failure> {
    each_page(host, random, |pid, at| {
        let (mut pinned, mut seen) = ([0; 4096], [0; 4096]);
        let remote = RemoteIoVec {
            base: at as usize,
            len: 4096,
        };
        let local = &mut [IoSliceMut::new(&mut pinned)];
        let moved = process_vm_readv(Pid::from_raw(pid as i32), local, &[remote]);
        refused(moved.map_err(io::Error::from).and_then(whole))?;
        refused(Bytes::of(pid).and_then(|memory| memory.page(at, &mut seen)))?;
        same(&pinned, &seen, at)
    })
}

/// Writes to pages of a stopped monitor with `process_vm_writev`.
pub fn write_vm(host: &Host, random: &mut Random) -> Result<(), Failure> {
    write_pages(host, random, |pid, at, page| {
        let remote = RemoteIoVec {
            base: at as usize,
            len: 4096,
        };
        let pid = Pid::from_raw(pid as i32);
        whole(process_vm_writev(pid, &[IoSlice::new(page)], &[remote])?)
    })
}

/// Writes to pages of a stopped monitor through its `/proc/PID/mem`.
pub fn write_mem(host: &Host, random: &mut Random) -> Result<(), Failure> {
    write_pages(host, random, |pid, at, page| {
        let memory = OpenOptions::new()
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        memory.write_all_at(page, at)
    })
}

/// Writes other bytes, sees that they are there, and puts the old ones back. Both give a merged page
/// a copy of its own; other VMs that had it must not see the bytes.
fn write_pages(host: &Host, random: &mut Random, write: Write) -> Result<(), Failure> {
    each_page(host, random, |pid, at| {
        let memory = refused(Bytes::of(pid))?;
        let (mut before, mut seen) = ([0; 4096], [0; 4096]);
        refused(memory.page(at, &mut before))?;
        let other = before.map(|byte| !byte);
        refused(write(pid, at, &other))?;
        let read = memory.page(at, &mut seen);
        insist(&format!("the page at {at:#x}"), || write(pid, at, &before))?;
        refused(read)?;
        same(&other, &seen, at)?;
        refused(memory.page(at, &mut seen))?;
        same(&before, &seen, at)
    })
}

/// Does something to some pages of each mapping of a stopped monitor. Only those that are there and
/// that no userfaultfd watches: who waits for a stopped monitor's answer waits for ever.
fn each_page(
    host: &Host,
    random: &mut Random,
    mut run: impl FnMut(u32, u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    while_stopped(host, random, |pid, random| {
        let pagemap = refused(Pagemap::of(pid))?;
        let mut tries = Tries::new("no page is there");
        for (address, pages) in guest_memory(pid) {
            let entries = refused(pagemap.read(address, pages))?;
            for _ in 0..PAGES.min(pages) {
                let page = random.below(pages);
                let entry = entries[page];
                if entry.frame().is_none() || entry.write_protected() {
                    continue;
                }
                tries.add(run(pid, address + page as u64 * 4096))?;
            }
        }
        tries.verdict()
    })
}

/// An error of the kernel, which it may give.
fn refused<T>(result: io::Result<T>) -> Result<T, Failure> {
    tolerate(result.map_err(Failure::from))
}

/// Fails unless a page was moved.
fn whole(moved: usize) -> io::Result<()> {
    match moved {
        4096 => Ok(()),
        _ => Err(io::Error::other(format!("moved {moved} bytes"))),
    }
}

fn same(expected: &Page, seen: &Page, at: u64) -> Result<(), Failure> {
    let differs = expected.iter().zip(seen).position(|(a, b)| a != b);
    match differs {
        None => Ok(()),
        Some(byte) => Err(Failure::Failed(format!(
            "at {at:#x} byte {byte:#x}: expected {:#x}, seen {:#x}",
            expected[byte], seen[byte]
        ))),
    }
}
