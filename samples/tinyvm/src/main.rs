// SPDX-License-Identifier: GPL-2.0

//! Runs a few tiny VMs with equal memory, for Twinpage to merge.
//!
//! Start it, then attach it with `twinpage attach --pid PID --domain tiny` and watch
//! `twinpage status --watch`. The guests go on checking their pages, and write to all of them every
//! few seconds, so that the number of merged pages falls and rises.

use std::time::{
    Duration,
    Instant, //
};

use tinyvm::{
    Backing,
    Counter,
    Sweep, //
};

/// How the program is called.
const USAGE: &str = "usage: tinyvm [VMS [PAGES [SECONDS]]]";

/// How often the guests write to their pages.
const WRITE_EVERY: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = [2, 4096, 60];
    for (index, argument) in std::env::args().skip(1).enumerate() {
        *numbers.get_mut(index).ok_or(USAGE)? = argument.parse().map_err(|_| USAGE)?;
    }
    let [vms, pages, seconds] = numbers;
    let mut counters = (0..vms)
        .map(|_| Counter::new(pages, Backing::Small, |page| page as u64 + 1))
        .collect::<Result<Vec<_>, _>>()?;
    println!(
        "process {}: {vms} VMs with {pages} equal pages each, for {seconds} s",
        std::process::id()
    );
    let end = Instant::now() + Duration::from_secs(seconds as u64);
    let mut write_at = Instant::now() + WRITE_EVERY;
    let mut sweeps = 0_u64;
    while Instant::now() < end {
        let kind = if Instant::now() > write_at {
            write_at += WRITE_EVERY;
            println!("{sweeps} sweeps, every page as it should be; writing to all of them");
            Sweep::Write
        } else {
            Sweep::Read
        };
        for counter in &mut counters {
            if let Err(lost) = counter.sweep(kind)? {
                return Err(format!("a guest found a wrong page: {lost:?}").into());
            }
        }
        sweeps += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{sweeps} sweeps, every page as it should be");
    Ok(())
}
