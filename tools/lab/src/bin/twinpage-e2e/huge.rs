// SPDX-License-Identifier: GPL-2.0

//! Huge pages are split only when that is worth it.

use tinyvm::Backing;
use twinpage_lab::pagemap::Frames;
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    module, //
};

use crate::host::{
    skipped,
    Guest,
    Host,
    PRIVATE, //
};

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
];

/// How many frames of a VM belong to a huge page.
fn huge_pages(guest: &Guest) -> Result<usize, Failure> {
    let frames = Frames::open()?;
    let mut huge = 0;
    for frame in guest.frames()?.into_iter().flatten() {
        huge += usize::from(frames.flags(frame)?.huge());
    }
    Ok(huge)
}

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
