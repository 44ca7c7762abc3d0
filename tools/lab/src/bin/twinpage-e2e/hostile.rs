// SPDX-License-Identifier: GPL-2.0

//! What a guest can do against the module harms nobody else.

use std::array;
use std::collections::HashSet;
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};

use tinyvm::Backing;
use twinpage_engine::engine::crafted;
use twinpage_lab::module::{
    self,
    Merged, //
};
use twinpage_lab::pagemap::Frames;
use twinpage_lab::process::field;
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
    saved_pages,
    skipped,
    Guest,
    Host,
    CONVERGE,
    DOMAIN, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "crafted_pages_with_one_hash_stay_themselves",
        seconds: 300,
        run: crafted_pages_with_one_hash_stay_themselves,
    },
    Test {
        name: "a_churning_guest_exhausts_neither_memory_nor_time",
        seconds: 900,
        run: a_churning_guest_exhausts_neither_memory_nor_time,
    },
];

/// The words of a page.
type Content = [u64; 512];

/// Pages of a hostile VM: crafted ones, and ones that are written again and again.
const CRAFTED: usize = 4096;
const CHURNED: usize = 1024;

/// Pages of each of two others.
const TWINS: usize = 256;

/// What the scanner may take of a processor, in percent, with a churning guest.
const SHARE: i64 = 30;

/// Bytes of records that may stay for the next copies: a spare chunk, and the list of chunks.
const SPARE: i64 = 16_384;

/// What the records of pages may take: far more than they do, far less than what they record.
fn records_are_small(hostile: usize) -> Outcome {
    let limit = 64 * (hostile + 2 * TWINS) as i64;
    let bytes = module::counter("metadata_bytes")?;
    ensure!(bytes <= limit, "{bytes} bytes of records");
    Ok(())
}

/// Page `page` of a guest that crafts its pages. They are made for a seed that is not the module's,
/// which nobody knows; a part of them has the hash of the page of zeroes all the same.
fn crafted_page(page: usize) -> Content {
    array::from_fn(crafted::words(page as u64 + 1, 0x0123_4567_89ab_cdef))
}

fn crafted_pages_with_one_hash_stay_themselves() -> Outcome {
    let content = crafted_page;
    let host = Host::new()?;
    let hostile = host.guest(CRAFTED, Backing::Small, DOMAIN)?;
    for page in 0..CRAFTED {
        hostile.memory().write_page(page, &content(page));
    }
    let _twins = host.twins(TWINS)?;
    wait::until("a collision", CONVERGE, || {
        Ok::<_, Failure>(skipped(&hostile, "collision")? > 0)
    })?;
    host.looks(4)?;
    println!("{} pages collide", skipped(&hostile, "collision")?);
    records_are_small(CRAFTED)?;
    let mut seen = HashSet::new();
    let frames = Frames::open()?;
    for (page, frame) in hostile.frames()?.into_iter().enumerate() {
        ensure!(
            hostile.memory().read_page(page) == content(page),
            "page {page} holds something else"
        );
        let frame = frame.ok_or_else(|| Failure::Failed(format!("page {page} is not there")))?;
        ensure!(
            seen.insert(frame) && !frames.flags(frame)?.zero(),
            "page {page} shares its frame"
        );
    }
    Ok(())
}

/// What page `page` holds in a round: pages come in pairs, and no round is like another.
fn key(round: u64, page: usize) -> u64 {
    (round << 32) | (page as u64 / 2)
}

/// Writes all pages anew until told to stop, each time when half of them have merged; returns the
/// last round.
fn churn(guest: &Guest, stop: &AtomicBool) -> Result<u64, Failure> {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let merges = guest.stats()?.get("merges")?;
        guest.fill_with(|page| key(round, page));
        while guest.stats()?.get("merges")? < merges + CHURNED as u64 / 2
            && !stop.load(Ordering::Relaxed)
        {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(round)
}

/// Looks at what the churning guest costs, until its pages have merged and parted several times
/// over.
fn watch(guest: &Guest) -> Outcome {
    // Copies that nobody maps any more are there until the next pass, one for two pages at most, and
    // the kernel takes some memory for itself. If copies stayed, it would be 12 MiB in the end.
    const LIMIT_KB: u64 = 10 << 10;
    const MERGES: u64 = 6 * CHURNED as u64;
    const LONGEST: Duration = Duration::from_secs(600);
    let free = field("/proc/meminfo", "MemFree")?;
    let (start, spent) = (Instant::now(), module::counter("cpu_ns")?);
    wait::until("enough merges", LONGEST, || {
        records_are_small(CHURNED)?;
        let missing = free.saturating_sub(field("/proc/meminfo", "MemFree")?);
        ensure!(missing <= LIMIT_KB, "{missing} KiB of memory are missing");
        Ok::<_, Failure>(guest.stats()?.get("merges")? >= MERGES)
    })?;
    let spent = module::counter("cpu_ns")? - spent;
    let percent = spent * 100 / start.elapsed().as_nanos() as i64;
    println!("{percent} % of one processor, {:?}", start.elapsed());
    ensure!(percent <= 2 * SHARE, "{percent} % is far above {SHARE} %");
    Ok(())
}

fn a_churning_guest_exhausts_neither_memory_nor_time() -> Outcome {
    let host = Host::new()?;
    module::set("advisor_mode", "cpu")?;
    module::set("advisor_max_cpu", SHARE)?;
    let twins = host.twins(TWINS)?;
    let records = module::counter("metadata_bytes")?;
    let hostile = host.guest(CHURNED, Backing::Small, DOMAIN)?;
    hostile.fill_with(|page| key(0, page));
    let stop = AtomicBool::new(false);
    let last = std::thread::scope(|scope| {
        let churning = scope.spawn(|| churn(&hostile, &stop));
        let seen = watch(&hostile);
        stop.store(true, Ordering::Relaxed);
        let last = churning.join().unwrap_or(Ok(0));
        last.and_then(|last| seen.map(|()| last))
    })?;
    let saved = saved_pages(&[&twins[0], &twins[1]])?;
    ensure!(saved == TWINS, "{saved} pages of the others are saved");
    hostile.check_with(|page| key(last, page))?;
    hostile.detach(&host, Merged::Unmerge)?;
    wait::until("records to go", CONVERGE, || {
        Ok::<_, Failure>(module::counter("metadata_bytes")? <= records + SPARE)
    })
    .map(|_| ())
}
