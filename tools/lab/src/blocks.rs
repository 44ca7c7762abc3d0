// SPDX-License-Identifier: GPL-2.0

//! Blocks of memory that can be taken away and brought back (memory hotplug).
//!
//! Files: `Documentation/admin-guide/mm/memory-hotplug.rst` of the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{
    Command,
    Stdio, //
};
use std::time::Duration;

use crate::pagemap::{
    Frame,
    PAGE_BYTES, //
};
use crate::tap::Failure;
use crate::wait;

const MEMORY: &str = "/sys/devices/system/memory";

/// How long the kernel may try to take a block away.
const LIMIT: Duration = Duration::from_secs(30);

/// What a block is brought back for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Whatever the kernel thinks best.
    Any,
    /// Pages that can move, and no others.
    Movable,
}

/// A block of memory.
#[derive(Clone, Debug)]
pub struct Block {
    path: PathBuf,
    first: u64,
    pages: u64,
}

impl Block {
    /// All of them, by their addresses; none on a kernel that has no memory hotplug.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn all() -> io::Result<Vec<Block>> {
        let Ok(entries) = fs::read_dir(MEMORY) else {
            return Ok(Vec::new());
        };
        let hex = |file: PathBuf| -> io::Result<u64> {
            let text = fs::read_to_string(file)?;
            u64::from_str_radix(text.trim(), 16).map_err(io::Error::other)
        };
        let pages = hex(format!("{MEMORY}/block_size_bytes").into())? / PAGE_BYTES;
        let mut blocks = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.join("state").exists() {
                let first = hex(path.join("phys_index"))? * pages;
                blocks.push(Block { path, first, pages });
            }
        }
        blocks.sort_by_key(|block| block.first);
        Ok(blocks)
    }

    /// Those in use that lie between others of their zone. Where one at its end comes back, Linux sets
    /// the zone's new start before its new length, unseen by DEBUG_VM, which may stop the machine then
    /// (mm/memory_hotplug.c:resize_zone_range, mm/page_alloc.c:page_outside_zone_boundaries).
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn inner() -> io::Result<Vec<Block>> {
        let mut zones: BTreeMap<(usize, String), Vec<Block>> = BTreeMap::new();
        for block in Self::all()? {
            if fs::read_to_string(block.path.join("state"))?.trim() == "online" {
                let zone = fs::read_to_string(block.path.join("valid_zones"))?;
                let of = zones.entry((block.node()?, zone)).or_default();
                of.push(block);
            }
        }
        let inner = zones.into_values().flat_map(|mut blocks| {
            blocks.pop();
            blocks.into_iter().skip(1)
        });
        Ok(inner.collect())
    }

    /// Whether a frame is in it.
    pub fn has(&self, frame: Frame) -> bool {
        (self.first..self.first + self.pages).contains(&frame.0)
    }

    /// The NUMA node that it is of.
    ///
    /// # Errors
    ///
    /// The kernel's; or it does not tell.
    pub fn node(&self) -> io::Result<usize> {
        let names = fs::read_dir(&self.path)?.flatten();
        let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let node = names.find_map(|name| name.strip_prefix("node")?.parse().ok());
        node.ok_or_else(|| io::Error::other("a block of no node"))
    }

    /// Takes it away. A process of its own does, which gets a signal after half a minute: the kernel
    /// tries until then while somebody holds a page of the block, as a soft offline does, which itself
    /// waits for this to end (mm/madvise.c:madvise_inject_error,
    /// mm/memory-failure.c:soft_offline_page).
    ///
    /// # Errors
    ///
    /// [`Failure::Skipped`] if the kernel did not, or not in time.
    pub fn offline(&self) -> Result<(), Failure> {
        let mut child = Command::new("sh")
            .args(["-c", "echo offline >\"$1\"", "sh"])
            .arg(self.path.join("state"))
            .stderr(Stdio::piped())
            .spawn()?;
        let ended: Result<_, Failure> = wait::until("taking memory away", LIMIT, || {
            Ok(child.try_wait()?.is_some())
        });
        child.kill()?;
        let done = child.wait_with_output()?;
        let why = match (ended, done.status.success()) {
            (Ok(_), true) => return Ok(()),
            (Ok(_), false) => String::from_utf8_lossy(&done.stderr).trim().to_owned(),
            (Err(failure), _) => failure.to_string(),
        };
        Err(Failure::Skipped(why))
    }

    /// Brings it back.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn online(&self, zone: Zone) -> io::Result<()> {
        let state = match zone {
            Zone::Any => "online",
            Zone::Movable => "online_movable",
        };
        fs::write(self.path.join("state"), state)
    }
}
