// SPDX-License-Identifier: GPL-2.0

//! Which pages merge, and with which others.

use tinyvm::Backing;
use twinpage_lab::module::{
    self,
    Merged, //
};
use twinpage_lab::pagemap::Frames;
use twinpage_lab::tap::{
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    wait, //
};

use crate::host::{
    common_frames,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "equal_pages_of_two_vms_share_a_frame",
        seconds: 120,
        run: equal_pages_of_two_vms_share_a_frame,
    },
    Test {
        name: "the_shared_frame_was_no_guests_before",
        seconds: 120,
        run: the_shared_frame_was_no_guests_before,
    },
    Test {
        name: "a_write_to_a_merged_page_changes_no_other",
        seconds: 120,
        run: a_write_to_a_merged_page_changes_no_other,
    },
    Test {
        name: "a_private_vm_merges_inside_itself_only",
        seconds: 120,
        run: a_private_vm_merges_inside_itself_only,
    },
    Test {
        name: "domains_share_no_frame",
        seconds: 120,
        run: domains_share_no_frame,
    },
    Test {
        name: "a_vm_that_changes_its_domain_shares_with_the_new_one_only",
        seconds: 180,
        run: a_vm_that_changes_its_domain_shares_with_the_new_one_only,
    },
    Test {
        name: "zero_pages_map_the_page_of_zeroes",
        seconds: 120,
        run: zero_pages_map_the_page_of_zeroes,
    },
    Test {
        name: "ksm_counts_none_of_our_zero_pages",
        seconds: 120,
        run: ksm_counts_none_of_our_zero_pages,
    },
    Test {
        name: "without_use_zero_pages_zeroes_share_an_ordinary_frame",
        seconds: 120,
        run: without_use_zero_pages_zeroes_share_an_ordinary_frame,
    },
    Test {
        name: "every_batch_size_merges",
        seconds: 180,
        run: every_batch_size_merges,
    },
];

const PAGES: usize = 512;

fn equal_pages_of_two_vms_share_a_frame() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    let frames = Frames::open()?;
    for (page, (one, other)) in a.frames()?.into_iter().zip(b.frames()?).enumerate() {
        ensure!(one == other, "page {page}: {one:?} and {other:?}");
        let Some(frame) = one else { continue };
        let mappings = frames.mappings(frame)?;
        ensure!(mappings == 2, "page {page} is mapped {mappings} times");
    }
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)
}

fn the_shared_frame_was_no_guests_before() -> Outcome {
    let host = Host::new()?;
    module::set("run", 0)?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    a.fill_with(|page| page as u64 + 1);
    b.fill_with(|page| page as u64 + 1);
    let mut before: Vec<_> = a.frames()?;
    before.extend(b.frames()?);
    module::set("run", 1)?;
    host.until_saved(&[&a, &b], PAGES)?;
    // A frame that one page gave up may be the copy of a later one, but never of its own content:
    // the copy is made while both old frames are in use.
    for (page, frame) in a.frames()?.into_iter().enumerate() {
        let adopted = frame == before[page] || frame == before[PAGES + page];
        ensure!(!adopted, "page {page} now shares a guest's old frame");
    }
    Ok(())
}

fn a_write_to_a_merged_page_changes_no_other() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    for page in (0..PAGES).step_by(2) {
        a.memory().set_word(page, 3, 4711);
    }
    let common = common_frames(&a, &b)?;
    ensure!(common == PAGES / 2, "{common} frames are still shared");
    b.check_with(|page| page as u64 + 1)?;
    for page in 0..PAGES {
        let seen = a.memory().word(page, 3);
        let expected = match page % 2 {
            0 => 4711,
            _ => b.memory().word(page, 3),
        };
        ensure!(seen == expected, "page {page} holds {seen:#x}");
    }
    Ok(())
}

fn a_private_vm_merges_inside_itself_only() -> Outcome {
    let host = Host::new()?;
    let a = host.guest(PAGES, Backing::Small, PRIVATE)?;
    let b = host.guest(PAGES, Backing::Small, PRIVATE)?;
    // Each content twice in each VM.
    a.fill_with(|page| page as u64 / 2 + 1);
    b.fill_with(|page| page as u64 / 2 + 1);
    host.until_saved(&[&a], PAGES / 2)?;
    host.until_saved(&[&b], PAGES / 2)?;
    host.looks(3)?;
    let common = common_frames(&a, &b)?;
    ensure!(common == 0, "private VMs share {common} frames");
    a.check_with(|page| page as u64 / 2 + 1)
}

fn domains_share_no_frame() -> Outcome {
    let host = Host::new()?;
    let guests = [
        host.guest(PAGES, Backing::Small, 1)?,
        host.guest(PAGES, Backing::Small, 1)?,
        host.guest(PAGES, Backing::Small, 2)?,
        host.guest(PAGES, Backing::Small, 2)?,
        host.guest(PAGES, Backing::Small, PRIVATE)?,
    ];
    for guest in &guests {
        guest.fill_with(|page| page as u64 + 1);
    }
    host.until_saved(&[&guests[0], &guests[1]], PAGES)?;
    host.until_saved(&[&guests[2], &guests[3]], PAGES)?;
    host.looks(3)?;
    for (index, other) in [(0, 2), (0, 4), (1, 3), (2, 4)] {
        let common = common_frames(&guests[index], &guests[other])?;
        ensure!(common == 0, "VMs {index} and {other} share {common} frames");
    }
    Ok(())
}

fn a_vm_that_changes_its_domain_shares_with_the_new_one_only() -> Outcome {
    let host = Host::new()?;
    let [old, mut moved] = host.twins(PAGES)?;
    let new = host.guest(PAGES, Backing::Small, DOMAIN + 1)?;
    new.fill_with(|page| page as u64 + 1);
    let detached = moved.detach(&host, Merged::Unmerge)?;
    ensure!(detached.remaining == 0, "{detached:?}");
    ensure!(
        common_frames(&old, &moved)? == 0,
        "detached, and still shared"
    );
    moved.attach(&host, DOMAIN + 1)?;
    host.until_saved(&[&new, &moved], PAGES)?;
    host.looks(2)?;
    let common = common_frames(&old, &moved)?;
    ensure!(common == 0, "shares {common} frames with its old domain");
    moved.check_with(|page| page as u64 + 1)
}

fn zero_pages_map_the_page_of_zeroes() -> Outcome {
    let host = Host::new()?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    guest.fill_with(|page| page as u64 + 1);
    for page in 0..PAGES {
        guest.memory().write_page(page, &[0; tinyvm::WORDS]);
    }
    host.until_saved(&[&guest], PAGES)?;
    let frames = Frames::open()?;
    for frame in guest.frames()?.into_iter().flatten() {
        ensure!(frames.flags(frame)?.zero(), "{frame:?} is another frame");
    }
    wait::until("counting zero pages", CONVERGE, || {
        Ok(guest.stats()?.get("zero_pages")? == PAGES as u64)
    })
    .map_err(|failure: twinpage_lab::tap::Failure| failure)?;
    // Written again, each has a page of its own.
    guest.fill_with(|page| page as u64 + 1);
    guest.check_with(|page| page as u64 + 1)
}

fn ksm_counts_none_of_our_zero_pages() -> Outcome {
    let ksm = || std::fs::read_to_string("/sys/kernel/mm/ksm/ksm_zero_pages");
    let before = ksm()?;
    let host = Host::new()?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    for page in 0..PAGES {
        guest.memory().write_page(page, &[0; tinyvm::WORDS]);
    }
    host.until_saved(&[&guest], PAGES)?;
    ensure!(ksm()? == before, "ksm counts {} while mapped", ksm()?);
    guest.memory().advise(0, PAGES / 2, libc::MADV_DONTNEED)?;
    guest.memory().set_word(PAGES - 1, 0, 1);
    ensure!(ksm()? == before, "ksm counts {} after unmapping", ksm()?);
    drop(guest);
    ensure!(ksm()? == before, "ksm counts {} at the end", ksm()?);
    Ok(())
}

fn without_use_zero_pages_zeroes_share_an_ordinary_frame() -> Outcome {
    let host = Host::new()?;
    module::set("use_zero_pages", 0)?;
    let guest = host.guest(64, Backing::Small, PRIVATE)?;
    for page in 0..64 {
        guest.memory().write_page(page, &[0; tinyvm::WORDS]);
    }
    host.until_saved(&[&guest], 63)?;
    let frames = Frames::open()?;
    for frame in guest.frames()?.into_iter().flatten() {
        ensure!(!frames.flags(frame)?.zero(), "the page of zeroes is used");
    }
    Ok(())
}

fn every_batch_size_merges() -> Outcome {
    let host = Host::new()?;
    for batch in [1, 2, 7, 32, 512] {
        module::set("merge_batch", batch)?;
        let [a, b] = host.twins(1100)?;
        a.check_with(|page| page as u64 + 1)?;
        b.check_with(|page| page as u64 + 1)?;
    }
    Ok(())
}
