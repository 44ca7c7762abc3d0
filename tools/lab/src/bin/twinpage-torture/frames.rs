// SPDX-License-Identifier: GPL-2.0

//! The frames behind what monitors give to their guests, as the kernel tells.

use std::collections::{
    HashMap,
    HashSet, //
};
use std::fs;

use twinpage_lab::pagemap::{
    Entry,
    Frame,
    Frames,
    Pagemap, //
};
use twinpage_lab::tap::Failure;

use crate::fleet::Monitor;
use crate::host::Host;

/// A frame, other than that of zeroes, that VMs of different domains map: monitors, and QEMU guests.
pub fn common_frame(host: &Host, monitors: &[Monitor]) -> Result<Option<String>, Failure> {
    let frames = Frames::open()?;
    let mut owner: HashMap<Frame, (u64, u32)> = HashMap::new();
    let attached = monitors.iter().filter(|monitor| monitor.attached.is_some());
    let vms = attached.map(|monitor| (monitor.pid(), monitor.domain));
    for (process, domain) in vms.chain(host.attached_neighbours()) {
        // A VM of the private domain shares with no other VM.
        let domain = match domain {
            0 => u64::MAX - u64::from(process),
            domain => domain,
        };
        for frame in frames_of(process)? {
            let (other, pid) = *owner.entry(frame).or_insert((domain, process));
            if other == domain {
                continue;
            }
            // A broken copy can be read no more, so nobody gets it back; it is on its way out.
            let flags = frames.flags(frame)?;
            if !flags.zero() && !flags.poisoned() {
                return Ok(Some(format!(
                    "frame {:#x} is mapped in domains {other:#x} (process {pid}) and \
                     {domain:#x} (process {process})",
                    frame.0
                )));
            }
        }
    }
    Ok(None)
}

/// Pages of all monitors beyond the first of each frame. The page of zeroes does not count: pages that
/// were discarded and read map it without anybody's help.
pub fn saved_pages(host: &Host) -> Result<usize, Failure> {
    let frames = Frames::open()?;
    let mut seen = HashSet::new();
    let mut saved = 0;
    for monitor in host.monitors().iter() {
        for frame in frames_of(monitor.pid())? {
            saved += usize::from(!seen.insert(frame) && !frames.flags(frame)?.zero());
        }
    }
    Ok(saved)
}

/// The frames behind the guest memory of a process.
pub fn frames_of(pid: u32) -> Result<Vec<Frame>, Failure> {
    let pagemap = Pagemap::of(pid)?;
    let mut frames = Vec::new();
    for (address, pages) in guest_memory(pid) {
        let entries = pagemap.read(address, pages)?;
        frames.extend(entries.into_iter().filter_map(Entry::frame));
    }
    Ok(frames)
}

/// Anonymous mappings of a process that may be guest memory: all that have no name. Those of threads'
/// stacks and of large allocations are among them.
pub fn guest_memory(pid: u32) -> Vec<(u64, usize)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let range = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let anonymous = words.nth(3)? == "0";
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let named = line.ends_with(']');
        (anonymous && !named && end < 1 << 47).then_some((start, ((end - start) / 4096) as usize))
    };
    maps.lines().filter_map(range).collect()
}
