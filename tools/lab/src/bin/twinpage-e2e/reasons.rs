// SPDX-License-Identifier: GPL-2.0

//! What cannot be merged is left alone and counted by its reason.

use std::collections::HashSet;
use std::fs;

use tinyvm::{
    Backing,
    Memory,
    Slot, //
};
use twinpage_lab::content::{
    check,
    fill, //
};
use twinpage_lab::ensure;
use twinpage_lab::module::{
    self,
    Merged, //
};
use twinpage_lab::pagemap::{
    Entry,
    Frames,
    Pagemap, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::wait;

use crate::host::{
    saved_pages,
    skipped,
    Guest,
    Host,
    CONVERGE,
    DOMAIN,
    PRIVATE, //
};

pub const TESTS: &[Test] = &[
    Test {
        name: "shared_memory_is_counted_and_left_alone",
        seconds: 120,
        run: shared_memory_is_counted_and_left_alone,
    },
    Test {
        name: "private_file_memory_is_refused_and_survives_truncation",
        seconds: 120,
        run: private_file_memory_is_refused_and_survives_truncation,
    },
    Test {
        name: "hugetlb_memory_is_counted_and_left_alone",
        seconds: 120,
        run: hugetlb_memory_is_counted_and_left_alone,
    },
    Test {
        name: "locked_memory_is_counted_and_left_alone",
        seconds: 120,
        run: locked_memory_is_counted_and_left_alone,
    },
    Test {
        name: "memory_beside_a_guest_memfd_is_counted_and_left_alone",
        seconds: 120,
        run: memory_beside_a_guest_memfd_is_counted_and_left_alone,
    },
    Test {
        name: "copies_beside_a_guest_memfd_can_be_unmerged",
        seconds: 120,
        run: copies_beside_a_guest_memfd_can_be_unmerged,
    },
    Test {
        name: "memory_without_rights_is_counted_special",
        seconds: 120,
        run: memory_without_rights_is_counted_special,
    },
    Test {
        name: "a_slot_over_nothing_is_counted_no_vma",
        seconds: 120,
        run: a_slot_over_nothing_is_counted_no_vma,
    },
    Test {
        name: "pages_of_ksmd_are_counted_and_left_alone",
        seconds: 180,
        run: pages_of_ksmd_are_counted_and_left_alone,
    },
    Test {
        name: "untouched_zero_pages_are_counted_zero",
        seconds: 120,
        run: untouched_zero_pages_are_counted_zero,
    },
];

const PAGES: usize = 512;

/// Waits until all pages of a VM are counted under one reason, and none is saved.
fn until_all(host: &Host, guest: &Guest, reason: &str) -> Outcome {
    let pages = guest.memory().pages() as u64;
    let result: Result<_, Failure> =
        wait::until(reason, CONVERGE, || Ok(skipped(guest, reason)? == pages));
    result.map_err(|failure| Failure::Failed(format!("{failure}: {}", guest.told())))?;
    host.looks(2)?;
    ensure!(
        skipped(guest, reason)? == pages,
        "no longer: {}",
        guest.told()
    );
    Ok(())
}

/// A VM with equal pages on some memory, all counted under `reason` and none merged.
fn refused(backing: Backing, reason: &str) -> Result<(Host, Guest), Failure> {
    let host = Host::new()?;
    let guest = host.guest(PAGES, backing, PRIVATE)?;
    guest.fill_with(|_| 42);
    let before = guest.frames()?;
    until_all(&host, &guest, reason)?;
    ensure!(guest.frames()? == before, "frames changed");
    guest.check_with(|_| 42)?;
    Ok((host, guest))
}

fn shared_memory_is_counted_and_left_alone() -> Outcome {
    refused(Backing::Shared, "shared").map(|_| ())
}

fn private_file_memory_is_refused_and_survives_truncation() -> Outcome {
    let (host, guest) = refused(Backing::PrivateFile, "shared")?;
    let file = guest.memory().file().unwrap_or(-1);
    let bytes = (PAGES * 4096) as libc::off_t;
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the file is open; what is punched out is the file's content, not the private copies.
    let punched = unsafe { libc::fallocate(file, punch, 0, bytes) };
    ensure!(punched == 0, "{}", std::io::Error::last_os_error());
    // Every page was written, so each is a private copy that the hole does not reach.
    host.looks(2)?;
    guest.check_with(|_| 42)
}

fn hugetlb_memory_is_counted_and_left_alone() -> Outcome {
    let pool = "/proc/sys/vm/nr_hugepages";
    if fs::write(pool, "8").is_err() {
        return Err(Failure::Skipped("the kernel has no hugetlb".into()));
    }
    let result = match tinyvm::Memory::new(PAGES, Backing::Hugetlb) {
        Ok(_) => refused(Backing::Hugetlb, "hugetlb").map(|_| ()),
        Err(error) => Err(Failure::Skipped(error.to_string())),
    };
    fs::write(pool, "0")?;
    result
}

fn locked_memory_is_counted_and_left_alone() -> Outcome {
    let host = Host::new()?;
    let guest = Guest::detached(PAGES, Backing::Small)?;
    guest.fill_with(|_| 42);
    guest.memory().lock()?;
    let mut guest = guest;
    guest.attach(&host, PRIVATE)?;
    until_all(&host, &guest, "locked")?;
    ensure!(saved_pages(&[&guest])? == 0, "locked pages were merged");
    Ok(())
}

/// A slot that shows `beside` from 1 GiB on.
fn slot_of(beside: &Memory) -> Slot {
    Slot {
        number: 1,
        guest: 1 << 30,
        host: beside.address(),
        pages: PAGES,
        ..Slot::default()
    }
}

/// Shows memory in a slot that has memory of the guest's own beside it.
fn show_beside_a_guest_memfd(guest: &Guest, slot: Slot) -> Outcome {
    match guest.vm()?.add_private_slot(slot) {
        Err(tinyvm::Error::Kvm { what, source }) if source.errno() == libc::ENOTTY => {
            Err(Failure::Skipped(format!("KVM cannot {what}")))
        }
        added => Ok(added?),
    }
}

fn memory_beside_a_guest_memfd_is_counted_and_left_alone() -> Outcome {
    let host = Host::new()?;
    let mut guest = Guest::detached(PAGES, Backing::Small)?;
    let beside = Memory::new(PAGES, Backing::Small)?;
    show_beside_a_guest_memfd(&guest, slot_of(&beside))?;
    guest.fill_with(|_| 42);
    (0..PAGES).for_each(|page| fill(&beside, page, 42));
    let frames = || Pagemap::own()?.read(beside.address(), PAGES);
    let before = frames()?;
    guest.attach(&host, PRIVATE)?;
    host.until_saved(&[&guest], PAGES - 8)?;
    until_all(&host, &guest, "gmem")?;
    ensure!(frames()? == before, "frames changed");
    Ok(())
}

fn copies_beside_a_guest_memfd_can_be_unmerged() -> Outcome {
    let host = Host::new()?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    let beside = Memory::new(PAGES, Backing::Small)?;
    (0..PAGES).for_each(|page| fill(&beside, page, 42));
    let frames = || -> Result<HashSet<_>, Failure> {
        let entries = Pagemap::own()?.read(beside.address(), PAGES)?;
        Ok(entries.into_iter().map(Entry::frame).collect())
    };
    let slot = slot_of(&beside);
    guest.vm()?.set_slot(slot)?;
    wait::until("merging", CONVERGE, || {
        Ok::<_, Failure>(frames()?.len() < PAGES / 2)
    })?;
    guest.vm()?.set_slot(Slot { pages: 0, ..slot })?;
    show_beside_a_guest_memfd(&guest, slot)?;
    // Until the module knows the slot.
    host.looks(1)?;
    let detached = guest.detach(&host, Merged::Unmerge)?;
    ensure!(frames()?.len() == PAGES, "still merged after {detached:?}");
    (0..PAGES).try_for_each(|page| check(&beside, page, 42))
}

fn memory_without_rights_is_counted_special() -> Outcome {
    for rights in [libc::PROT_READ, libc::PROT_NONE] {
        let host = Host::new()?;
        let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
        module::set("run", 0)?;
        guest.fill_with(|_| 42);
        guest.memory().protect(0, PAGES, rights)?;
        module::set("run", 1)?;
        until_all(&host, &guest, "special")?;
        ensure!(saved_pages(&[&guest])? == 0, "merged");
        guest
            .memory()
            .protect(0, PAGES, libc::PROT_READ | libc::PROT_WRITE)?;
        guest.check_with(|_| 42)?;
        drop((guest, host));
        module::unload()?;
    }
    Ok(())
}

fn a_slot_over_nothing_is_counted_no_vma() -> Outcome {
    let host = Host::new()?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    let gone = tinyvm::Memory::new(PAGES, Backing::Small)?;
    guest.vm()?.set_slot(tinyvm::Slot {
        number: 1,
        guest: 0x1000_0000,
        host: gone.address(),
        pages: PAGES,
        ..Default::default()
    })?;
    drop(gone);
    wait::until("no_vma", CONVERGE, || {
        Ok::<_, Failure>(skipped(&guest, "no_vma")? == PAGES as u64)
    })
    .map(|_| ())
    .map_err(|failure| Failure::Failed(format!("{failure}: {}", guest.told())))
}

fn pages_of_ksmd_are_counted_and_left_alone() -> Outcome {
    let ksm = |name: &str, value: &str| fs::write(format!("/sys/kernel/mm/ksm/{name}"), value);
    if ksm("run", "0").is_err() {
        return Err(Failure::Skipped("the kernel has no KSM".into()));
    }
    let host = Host::new()?;
    module::set("run", 0)?;
    let guest = host.guest(PAGES, Backing::Small, DOMAIN)?;
    guest.fill_with(|_| 42);
    guest.memory().advise(0, PAGES, libc::MADV_MERGEABLE)?;
    for (name, value) in [
        ("sleep_millisecs", "1"),
        ("pages_to_scan", "5000"),
        ("run", "1"),
    ] {
        ksm(name, value)?;
    }
    let frames = Frames::open()?;
    let owned = || -> Result<usize, Failure> {
        let mut owned = 0;
        for frame in guest.frames()?.into_iter().flatten() {
            owned += usize::from(frames.flags(frame)?.ksm());
        }
        Ok(owned)
    };
    wait::until("ksmd", CONVERGE, || Ok::<_, Failure>(owned()? == PAGES))?;
    ksm("run", "0")?;
    module::set("run", 1)?;
    until_all(&host, &guest, "ksm")?;
    ensure!(owned()? == PAGES, "ksmd lost pages");
    // Both at work at once must harm neither.
    ksm("run", "1")?;
    for round in 0..5 {
        guest.fill_with(|page| round * 10 + page as u64 % 5);
        host.looks(2)?;
        guest.check_with(|page| round * 10 + page as u64 % 5)?;
    }
    ksm("run", "2")?;
    guest.check_with(|page| 40 + page as u64 % 5)
}

fn untouched_zero_pages_are_counted_zero() -> Outcome {
    let host = Host::new()?;
    let guest = host.guest(PAGES, Backing::Small, PRIVATE)?;
    // Reading maps the page of zeroes without our help.
    for page in 0..PAGES {
        ensure!(guest.memory().word(page, 0) == 0, "not zero");
    }
    until_all(&host, &guest, "zero")
}
