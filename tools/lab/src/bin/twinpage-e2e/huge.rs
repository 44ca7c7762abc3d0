// SPDX-License-Identifier: GPL-2.0

//! Huge pages are split only when that is worth it.

use std::fs;

use tinyvm::Backing;
use twinpage_lab::pagemap::Frames;
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
    huge_pages,
    skipped,
    Guest,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

/// How many huge pages hugetlb has.
const HUGETLB_POOL: &str = "/proc/sys/vm/nr_hugepages";

/// What khugepaged may be told, and tells.
const KHUGEPAGED: &str = "/sys/kernel/mm/transparent_hugepage/khugepaged";

pub const TESTS: &[Test] = &[
    Test {
        name: "a_huge_page_with_few_twins_stays_whole",
        seconds: 120,
        run: a_huge_page_with_few_twins_stays_whole,
    },
    Test {
        name: "a_huge_page_with_many_twins_is_split",
        seconds: 120,
        run: a_huge_page_with_many_twins_is_split,
    },
    Test {
        name: "no_huge_page_takes_the_place_of_copies",
        seconds: 240,
        run: no_huge_page_takes_the_place_of_copies,
    },
    Test {
        name: "hugetlb_memory_in_place_of_a_huge_page_stays_whole",
        seconds: 120,
        run: hugetlb_memory_in_place_of_a_huge_page_stays_whole,
    },
];

fn skip_without_huge(guest: &Guest) -> Outcome {
    if huge_pages(guest)? < guest.memory().pages() {
        return Err(Failure::Skipped("the kernel gave no huge page".into()));
    }
    Ok(())
}

fn a_huge_page_with_few_twins_stays_whole() -> Outcome {
    let host = Host::new()?;
    module::set("thp_split_threshold", 64)?;
    // A fresh huge page is all zeroes, which would be reason enough to split it.
    module::set("run", 0)?;
    let guest = host.guest(512, Backing::Huge, PRIVATE)?;
    // 32 of 512 pages have a twin.
    guest.fill_with(|page| {
        if page < 32 {
            page as u64 / 2
        } else {
            page as u64
        }
    });
    skip_without_huge(&guest)?;
    module::set("run", 1)?;
    host.looks(4)?;
    ensure!(huge_pages(&guest)? == 512, "the huge page was split");
    let reason = skipped(&guest, "huge")?;
    ensure!(reason > 0, "not counted as huge: {}", guest.told());
    Ok(())
}

fn a_huge_page_with_many_twins_is_split() -> Outcome {
    let host = Host::new()?;
    module::set("thp_split_threshold", 64)?;
    module::set("run", 0)?;
    let guest = host.guest(1024, Backing::Huge, PRIVATE)?;
    let key = |page: usize| {
        if page < 256 {
            page as u64 / 2
        } else {
            page as u64
        }
    };
    guest.fill_with(key);
    skip_without_huge(&guest)?;
    module::set("run", 1)?;
    host.until_saved(&[&guest], 128)?;
    // The second huge page has nothing to give and stays whole.
    let huge = huge_pages(&guest)?;
    ensure!(huge == 512, "{huge} pages are still huge");
    guest.check_with(key)
}

/// Waits until khugepaged has come by all memory.
fn khugepaged_passes() -> Outcome {
    let scans = || -> Result<u64, Failure> {
        let text = fs::read_to_string(format!("{KHUGEPAGED}/full_scans"))?;
        Ok(text.trim().parse::<u64>()?)
    };
    let rest = format!("{KHUGEPAGED}/scan_sleep_millisecs");
    let (before, start) = (fs::read_to_string(&rest)?, scans()?);
    fs::write(&rest, "10")?;
    // The pass that runs now does not count.
    let passed = wait::until("a pass of khugepaged", CONVERGE, || {
        Ok::<_, Failure>(scans()? >= start + 2)
    });
    fs::write(rest, before.trim())?;
    passed.map(|_| ())
}

/// Nor the place of what lies between them (mm/khugepaged.c:collapse_scan_pmd).
fn no_huge_page_takes_the_place_of_copies() -> Outcome {
    const HALF: usize = 512;
    let host = Host::new()?;
    let twins = [
        host.guest(2 * HALF, Backing::Small, DOMAIN)?,
        host.guest(2 * HALF, Backing::Small, DOMAIN)?,
    ];
    // Every other page of the first half has a twin, all others are each VM's own.
    let key = |at: usize, page: usize| match page < HALF && page % 2 == 0 {
        true => page as u64 + 1,
        false => (page + (at + 1) * 2 * HALF) as u64 + 1,
    };
    for (at, twin) in twins.iter().enumerate() {
        twin.fill_with(|page| key(at, page));
    }
    host.until_saved(&[&twins[0], &twins[1]], HALF / 2)?;
    module::set("run", 0)?;
    // The VMs' own pages may move.
    let copies = |guest: &Guest| -> Result<Vec<_>, Failure> {
        let frames = guest.frames()?.into_iter();
        Ok(frames.take(HALF).step_by(2).collect())
    };
    let before = copies(&twins[0])?;
    for twin in &twins {
        let memory = twin.memory();
        memory.advise(0, 2 * HALF, libc::MADV_HUGEPAGE)?;
        let collapsed = memory.advise(0, HALF, libc::MADV_COLLAPSE);
        ensure!(collapsed.is_err(), "copies were collapsed");
        wait::until("collapsing the half without copies", CONVERGE, || {
            Ok::<_, Failure>(memory.advise(HALF, HALF, libc::MADV_COLLAPSE).is_ok())
        })?;
    }
    khugepaged_passes()?;
    for (at, twin) in twins.iter().enumerate() {
        ensure!(copies(twin)? == before, "copies are gone from VM {at}");
        let huge = huge_pages(twin)?;
        ensure!(huge == HALF, "{huge} pages of VM {at} are huge");
        twin.check_with(|page| key(at, page))?;
    }
    Ok(())
}

/// What the module knew of an address may be long gone when a twin of it comes along.
fn hugetlb_memory_in_place_of_a_huge_page_stays_whole() -> Outcome {
    let key = |page: usize| page as u64 + 1;
    if fs::write(HUGETLB_POOL, "4").is_err() {
        return Err(Failure::Skipped("the kernel has no hugetlb".into()));
    }
    let host = Host::new()?;
    module::set("thp_split_threshold", 64)?;
    module::set("run", 0)?;
    let guest = host.guest(512, Backing::Huge, DOMAIN)?;
    guest.fill_with(key);
    skip_without_huge(&guest)?;
    module::set("run", 1)?;
    host.looks(4)?;
    module::set("run", 0)?;
    guest.memory().unmap(0, 512)?;
    guest.memory().map_again(0, 512, Backing::Hugetlb)?;
    guest.fill_with(key);
    // A new VM is scanned first, and finds all its twins there.
    let twin = host.guest(512, Backing::Small, DOMAIN)?;
    twin.fill_with(key);
    module::set("run", 1)?;
    host.looks(4)?;
    guest.check_with(key)?;
    twin.check_with(key)?;
    let frames = Frames::open()?;
    for (page, frame) in guest.frames()?.into_iter().enumerate() {
        let frame = frame.ok_or_else(|| Failure::Failed(format!("page {page} is gone")))?;
        ensure!(frames.flags(frame)?.hugetlb(), "page {page} is no hugetlb");
    }
    drop((guest, twin));
    let freed = wait::until("the pool's pages", CONVERGE, || {
        let pool = fs::read_to_string("/proc/meminfo")?;
        Ok::<_, Failure>(
            pool.lines()
                .any(|line| line.starts_with("HugePages_Free:") && line.ends_with(" 4")),
        )
    });
    fs::write(HUGETLB_POOL, "0")?;
    freed.map(|_| ())
}
