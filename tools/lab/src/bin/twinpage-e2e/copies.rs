// SPDX-License-Identifier: GPL-2.0

//! Merged copies: how many pages share one, and when it is given back.

use std::time::Duration;

use tinyvm::Backing;
use twinpage_lab::pagemap::Frames;
use twinpage_lab::process::field;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    module,
    wait, //
};

use crate::host::{
    saved_pages,
    Guest,
    Host,
    CONVERGE,
    PRIVATE, //
};

const PAGES: usize = 512;

pub const TESTS: &[Test] = &[
    Test {
        name: "a_frame_has_at_most_max_page_sharing_mappings",
        seconds: 120,
        run: a_frame_has_at_most_max_page_sharing_mappings,
    },
    Test {
        name: "a_copy_that_nobody_maps_is_freed_within_a_pass",
        seconds: 180,
        run: a_copy_that_nobody_maps_is_freed_within_a_pass,
    },
    Test {
        name: "the_shrinker_frees_copies_that_nobody_maps",
        seconds: 180,
        run: the_shrinker_frees_copies_that_nobody_maps,
    },
];

fn a_frame_has_at_most_max_page_sharing_mappings() -> Outcome {
    const LIMIT: usize = 16;
    let host = Host::new()?;
    module::set("max_page_sharing", LIMIT)?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    guest.fill_with(|_| 42);
    // A race between two copies may leave some with fewer mappings than they could have.
    host.until_saved(&[&guest], PAGES - 2 * PAGES / LIMIT)?;
    host.passes(2)?;
    let frames = Frames::open()?;
    for frame in guest.frames()?.into_iter().flatten() {
        let mappings = frames.mappings(frame)?;
        ensure!(
            mappings <= LIMIT as u64,
            "{frame:?} has {mappings} mappings"
        );
    }
    guest.check_with(|_| 42)
}

/// Frames of the first VM, once both have dropped all their pages.
fn copies_then_drop(host: &Host) -> Result<([Guest; 2], u64), Failure> {
    const MANY: usize = 8192;
    let twins = host.twins(MANY)?;
    let shared = module::counter("pages_shared")?;
    ensure!(shared >= MANY as i64, "pages_shared is {shared}");
    module::set("run", 0)?;
    let before = field("/proc/meminfo", "MemFree")?;
    for twin in &twins {
        twin.memory().advise(0, MANY, libc::MADV_DONTNEED)?;
    }
    Ok((twins, before))
}

/// Waits until the host has most of the 32 MiB of copies back.
fn until_freed(before: u64) -> Outcome {
    wait::until("getting the memory of the copies back", CONVERGE, || {
        let free = field("/proc/meminfo", "MemFree")?;
        Ok(free >= before + 24 * 1024)
    })
    .map(|_| ())
}

fn a_copy_that_nobody_maps_is_freed_within_a_pass() -> Outcome {
    let host = Host::new()?;
    let (twins, before) = copies_then_drop(&host)?;
    module::set("run", 1)?;
    host.passes(1)?;
    let shared = module::counter("pages_shared")?;
    ensure!(shared == 0, "pages_shared is {shared} after a pass");
    until_freed(before)?;
    ensure!(saved_pages(&[&twins[0]])? == 0, "still mapped");
    Ok(())
}

fn the_shrinker_frees_copies_that_nobody_maps() -> Outcome {
    const MANY: usize = 8192;
    let host = Host::new()?;
    let twins = host.twins(MANY)?;
    // One more block, then the scanner rests for a minute: only the shrinker can do it.
    module::set("pages_to_scan", 1)?;
    module::set("advisor_mode", "none")?;
    module::set("sleep_millisecs", 60_000)?;
    std::fs::write("/proc/sys/vm/drop_caches", "2")?;
    std::thread::sleep(Duration::from_secs(2));
    let before = field("/proc/meminfo", "MemFree")?;
    for twin in &twins {
        twin.memory().advise(0, MANY, libc::MADV_DONTNEED)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let kept = field("/proc/meminfo", "MemFree")?;
    ensure!(
        kept < before + 8 * 1024,
        "the copies went without the shrinker"
    );
    wait::until("freeing by the shrinker", Duration::from_secs(40), || {
        std::fs::write("/proc/sys/vm/drop_caches", "2")?;
        let free = field("/proc/meminfo", "MemFree")?;
        Ok::<_, Failure>(free >= before + 24 * 1024)
    })?;
    Ok(())
}
