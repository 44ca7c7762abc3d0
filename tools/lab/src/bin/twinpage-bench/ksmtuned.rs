// SPDX-License-Identifier: GPL-2.0

//! The rules of `ksmtuned`, the daemon of the qemu-kvm packages that tunes ksmd, with the numbers
//! that its configuration file comes with.

use std::collections::BTreeSet;
use std::io;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_lab::process::field;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::merger::{
    Mergeable,
    Merger, //
};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(60);

/// The rest between two batches on a host with 16 GiB; a smaller one rests longer.
const SLEEP_MS: u64 = 10;
const SLEEP_FOR_KIB: u64 = 16 << 20;

/// What is added to the pages of a batch when memory is short, and taken away when it is not.
const BOOST: u64 = 300;
const DECAY: u64 = 50;
const PAGES: std::ops::RangeInclusive<u64> = 64..=1250;

/// Memory is short when less than this part of it is free, in percent.
const SHORT_PERCENT: u64 = 20;

/// The daemon.
pub struct Ksmtuned {
    looked: Instant,
    pages: u64,
    total_kib: u64,
}

impl Ksmtuned {
    /// One that was started now.
    pub fn new() -> Result<Ksmtuned, Failure> {
        Ok(Ksmtuned {
            looked: Instant::now(),
            pages: 0,
            total_kib: field("/proc/meminfo", "MemTotal")?,
        })
    }

    /// Looks, when it is time to.
    pub fn look<G: Mergeable>(&mut self, ksmd: &Merger<G>) -> Outcome {
        if self.looked.elapsed() < INTERVAL {
            return Ok(());
        }
        self.looked = Instant::now();
        let memory = |name| field("/proc/meminfo", name);
        let free = memory("MemFree")? + memory("Buffers")? + memory("Cached")?;
        let committed = committed_kib(ksmd.guests())?;
        let short = self.total_kib * SHORT_PERCENT / 100;
        if committed + short < self.total_kib && free > short {
            return ksmd.set("run", 0);
        }
        self.pages = match free < short {
            true => self.pages + BOOST,
            false => self.pages.saturating_sub(DECAY),
        };
        self.pages = self.pages.clamp(*PAGES.start(), *PAGES.end());
        let sleep = (SLEEP_MS * SLEEP_FOR_KIB / self.total_kib).max(SLEEP_MS);
        ksmd.set("pages_to_scan", self.pages)?;
        ksmd.set("sleep_millisecs", sleep)?;
        ksmd.set("run", 1)
    }
}

/// The memory of the processes that the guests run in.
fn committed_kib<G: Mergeable>(guests: &[G]) -> io::Result<u64> {
    let pids: BTreeSet<_> = guests.iter().map(|guest| guest.ram().pid).collect();
    let memory = |pid| field(&format!("/proc/{pid}/status"), "VmRSS");
    pids.into_iter().map(memory).sum()
}
