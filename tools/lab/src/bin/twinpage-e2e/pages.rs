// SPDX-License-Identifier: GPL-2.0

//! What a process may do with merged pages, and what the kernel keeps account of.

use std::fs;
use std::os::unix::fs::FileExt;

use tinyvm::{
    Backing,
    Memory, //
};
use twinpage_lab::pagemap::{
    Frame,
    Idle, //
};
use twinpage_lab::process::field;
use twinpage_lab::swap::{
    Kind,
    Swap, //
};
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
    check,
    common_frames,
    fill,
    in_child,
    Guest,
    Host,
    DOMAIN,
    PRIVATE, //
};
use crate::owner::Pair;

pub const TESTS: &[Test] = &[
    Test {
        name: "rss_counters_follow_merging",
        seconds: 120,
        run: rss_counters_follow_merging,
    },
    Test {
        name: "a_process_with_merged_pages_exits_and_executes",
        seconds: 120,
        run: a_process_with_merged_pages_exits_and_executes,
    },
    Test {
        name: "soft_dirty_bits_survive_merging",
        seconds: 120,
        run: soft_dirty_bits_survive_merging,
    },
    Test {
        name: "every_madvise_leaves_the_twin_alone",
        seconds: 180,
        run: every_madvise_leaves_the_twin_alone,
    },
    Test {
        name: "another_process_cannot_page_merged_pages_out",
        seconds: 180,
        run: another_process_cannot_page_merged_pages_out,
    },
    Test {
        name: "a_copy_never_shows_as_idle",
        seconds: 120,
        run: a_copy_never_shows_as_idle,
    },
    Test {
        name: "guard_regions_stay_and_leave_the_twin_alone",
        seconds: 120,
        run: guard_regions_stay_and_leave_the_twin_alone,
    },
    Test {
        name: "protection_changes_do_not_make_a_shared_page_writable",
        seconds: 120,
        run: protection_changes_do_not_make_a_shared_page_writable,
    },
    Test {
        name: "merged_pages_can_be_moved",
        seconds: 120,
        run: merged_pages_can_be_moved,
    },
    Test {
        name: "sealed_memory_merges_and_comes_apart",
        seconds: 120,
        run: sealed_memory_merges_and_comes_apart,
    },
    Test {
        name: "merged_pages_can_be_locked_afterwards",
        seconds: 120,
        run: merged_pages_can_be_locked_afterwards,
    },
    Test {
        name: "merged_pages_that_are_locked_on_fault_stay_merged",
        seconds: 120,
        run: merged_pages_that_are_locked_on_fault_stay_merged,
    },
    Test {
        name: "a_forked_monitor_has_pages_of_its_own",
        seconds: 180,
        run: a_forked_monitor_has_pages_of_its_own,
    },
    Test {
        name: "unmerging_raises_no_warning",
        seconds: 120,
        run: unmerging_raises_no_warning,
    },
];

const PAGES: usize = 1024;

/// Resident KiB of this process: anonymous, of files.
fn resident() -> Result<(u64, u64), Failure> {
    let status = "/proc/self/status";
    Ok((field(status, "RssAnon")?, field(status, "RssFile")?))
}

fn rss_counters_follow_merging() -> Outcome {
    let host = Host::new()?;
    module::set("run", 0)?;
    let twins = host.equals(PAGES)?;
    let zeroes = host.guest(PAGES, Backing::Small, PRIVATE)?;
    for page in 0..PAGES {
        zeroes.memory().write_page(page, &[0; tinyvm::WORDS]);
    }
    let (anonymous, file) = resident()?;
    module::set("run", 1)?;
    host.until_saved(&[&twins[0], &twins[1]], PAGES)?;
    host.until_saved(&[&zeroes], PAGES)?;
    let (anonymous_now, file_now) = resident()?;
    println!("RssAnon {anonymous} -> {anonymous_now}, RssFile {file} -> {file_now} KiB");
    // Zero pages are nobody's; merged pages are counted as file or (debug kernels) anonymous pages.
    let (before, after) = (anonymous + file, anonymous_now + file_now);
    let gone = before.abs_diff(after);
    let expected = PAGES as u64 * 4;
    ensure!(
        gone.abs_diff(expected) < 512,
        "{gone} KiB less resident, not {expected}"
    );
    let moved = anonymous - anonymous_now.min(anonymous);
    let d1 = 3 * expected;
    let right = moved.abs_diff(d1) < 512 || moved.abs_diff(expected) < 512;
    ensure!(right, "RssAnon fell by {moved} KiB");
    // Writing moves everything back.
    module::set("run", 0)?;
    for guest in twins.iter().chain([&zeroes]) {
        guest.fill_with(|page| page as u64 + 2);
    }
    let (anonymous_then, file_then) = resident()?;
    let close = anonymous_then.abs_diff(anonymous) < 512 && file_then.abs_diff(file) < 512;
    ensure!(
        close,
        "after writing RssAnon is {anonymous_then}, RssFile {file_then} KiB"
    );
    Ok(())
}

fn a_process_with_merged_pages_exits_and_executes() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    // The log is searched for "Bad rss-counter" and "Bad page" when the test is over.
    in_child(|| true)?.join()?;
    in_child(|| a.check_with(|page| page as u64 + 1).is_ok())?.join()?;
    in_child(|| {
        use std::os::unix::process::CommandExt;
        let error = std::process::Command::new("/bin/busybox")
            .arg("true")
            .exec();
        println!("{error}");
        false
    })?
    .join()?;
    b.check_with(|page| page as u64 + 1)?;
    ensure!(
        common_frames(&a, &b)? == PAGES,
        "the children unmerged something"
    );
    Ok(())
}

fn soft_dirty_bits_survive_merging() -> Outcome {
    let host = Host::new()?;
    module::set("run", 0)?;
    let a = host.guest(PAGES, Backing::Small, DOMAIN)?;
    let b = host.guest(PAGES, Backing::Small, DOMAIN)?;
    a.fill_with(|page| page as u64 + 1);
    b.fill_with(|page| page as u64 + 1);
    if let Err(error) = fs::write("/proc/self/clear_refs", "4") {
        return Err(Failure::Skipped(format!("no soft-dirty bits: {error}")));
    }
    for page in (0..PAGES).step_by(2) {
        fill(a.memory(), page, page as u64 + 1);
    }
    let bits = |guest: &Guest| -> Result<Vec<bool>, Failure> {
        let entries = guest.entries()?;
        Ok(entries.iter().map(|entry| entry.soft_dirty()).collect())
    };
    let before = (bits(&a)?, bits(&b)?);
    let set = before.0.iter().filter(|bit| **bit).count();
    if set != PAGES / 2 {
        let text = format!("the kernel has no soft-dirty bits ({set})");
        return Err(Failure::Skipped(text));
    }
    module::set("run", 1)?;
    host.until_saved(&[&a, &b], PAGES)?;
    let after = (bits(&a)?, bits(&b)?);
    for page in 0..PAGES {
        ensure!(
            before.0[page] == after.0[page],
            "page {page} of A: bit changed"
        );
        ensure!(
            before.1[page] == after.1[page],
            "page {page} of B: bit changed"
        );
    }
    b.memory().set_word(1, 0, 0);
    ensure!(bits(&b)?[1], "a write to a merged page is not soft-dirty");
    Ok(())
}

fn every_madvise_leaves_the_twin_alone() -> Outcome {
    const MADV_COLLAPSE: libc::c_int = 25;
    let harmless = [
        libc::MADV_NORMAL,
        libc::MADV_RANDOM,
        libc::MADV_SEQUENTIAL,
        libc::MADV_WILLNEED,
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        libc::MADV_FREE,
        libc::MADV_POPULATE_READ,
        libc::MADV_POPULATE_WRITE,
        libc::MADV_DONTDUMP,
        libc::MADV_DODUMP,
        libc::MADV_DONTFORK,
        libc::MADV_DOFORK,
        libc::MADV_MERGEABLE,
        libc::MADV_UNMERGEABLE,
        libc::MADV_HUGEPAGE,
        MADV_COLLAPSE,
        libc::MADV_NOHUGEPAGE,
    ];
    let host = Host::new()?;
    for advice in harmless {
        let [a, b] = host.twins(512)?;
        // Not every kernel knows every advice.
        let known = a.memory().advise(0, 512, advice);
        let left = common_frames(&a, &b)?;
        println!(
            "advice {advice}: {}, {left} of 512 still shared",
            match known {
                Ok(()) => "taken".to_owned(),
                Err(error) => error.to_string(),
            }
        );
        a.check_with(|page| page as u64 + 1)?;
        b.check_with(|page| page as u64 + 1)?;
    }
    for advice in [libc::MADV_DONTNEED, libc::MADV_WIPEONFORK] {
        let [a, b] = host.twins(512)?;
        a.memory().advise(0, 512, advice)?;
        let expected = (advice == libc::MADV_DONTNEED).then_some(0);
        let seen = a.memory().word(3, 3);
        ensure!(
            expected.is_none_or(|zero| zero == seen),
            "{seen:#x} after {advice}"
        );
        b.check_with(|page| page as u64 + 1)?;
    }
    Ok(())
}

/// What it may advise about passes over copies, as they are on no list of the page reclaim
/// (mm/madvise.c:madvise_cold_or_pageout_pte_range).
fn another_process_cannot_page_merged_pages_out() -> Outcome {
    let swap = Swap::on(Kind::Loop, 16)?;
    let host = Host::new()?;
    let pair = Pair::start(&host, PAGES)?;
    for advice in [libc::MADV_COLD, libc::MADV_PAGEOUT] {
        pair.owner.advise(advice)?;
        pair.still_merged(&format!("advice {advice}"))?;
    }
    pair.others_were_paged_out()?;
    pair.finish()?;
    swap.off()
}

/// It is on no list of the page reclaim (mm/page_idle.c:page_idle_get_folio).
fn a_copy_never_shows_as_idle() -> Outcome {
    const HALF: usize = PAGES / 2;
    let idle = match Idle::open() {
        Ok(idle) => idle,
        Err(error) => return Err(Failure::Skipped(format!("no idle page tracking: {error}"))),
    };
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    for page in 0..HALF {
        fill(a.memory(), page, page as u64 + 1);
    }
    ensure!(
        common_frames(&a, &b)? == PAGES - HALF,
        "writing unmerged other pages"
    );
    let frames = a.frames()?;
    for &frame in frames.iter().flatten() {
        idle.mark(frame)?;
    }
    let shown = |frames: &[Option<Frame>]| -> Result<usize, Failure> {
        let mut shown = 0;
        for &frame in frames.iter().flatten() {
            shown += usize::from(idle.shows(frame)?);
        }
        Ok(shown)
    };
    let (ordinary, copies) = (shown(&frames[..HALF])?, shown(&frames[HALF..])?);
    println!("{ordinary} ordinary pages and {copies} copies show as idle");
    // What was faulted in last may be on no list yet.
    ensure!(ordinary > HALF * 3 / 4, "only {ordinary} of {HALF} show");
    ensure!(copies == 0, "{copies} copies show as idle");
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)
}

/// Entries that are no pages, with which an access faults for good (Linux 6.13).
fn guard_regions_stay_and_leave_the_twin_alone() -> Outcome {
    const MADV_GUARD_INSTALL: libc::c_int = 102;
    const MADV_GUARD_REMOVE: libc::c_int = 103;
    const GUARDED: std::ops::Range<usize> = 100..140;
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    let guard = |advice| a.memory().advise(GUARDED.start, GUARDED.len(), advice);
    if let Err(error) = guard(MADV_GUARD_INSTALL) {
        return Err(Failure::Skipped(error.to_string()));
    }
    host.looks(2)?;
    let own = fs::File::open("/proc/self/mem")?;
    for page in 0..PAGES {
        let word = own.read_exact_at(&mut [0; 8], a.memory().page_address(page));
        let guarded = GUARDED.contains(&page);
        ensure!(guarded == word.is_err(), "page {page}: {word:?}");
    }
    ensure!(
        common_frames(&a, &b)? == PAGES - GUARDED.len(),
        "guards took the place of other pages, or of none"
    );
    b.check_with(|page| page as u64 + 1)?;
    guard(MADV_GUARD_REMOVE)?;
    for page in GUARDED {
        ensure!(a.memory().word(page, 0) == 0, "page {page} is not empty");
    }
    a.fill_with(|page| page as u64 + 1);
    host.until_saved(&[&a, &b], PAGES)?;
    b.check_with(|page| page as u64 + 1)
}

fn protection_changes_do_not_make_a_shared_page_writable() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    module::set("run", 0)?;
    let all = libc::PROT_READ | libc::PROT_WRITE;
    for rights in [
        libc::PROT_READ,
        libc::PROT_NONE,
        libc::PROT_READ | libc::PROT_EXEC,
    ] {
        a.memory().protect(0, PAGES, rights)?;
        a.memory().protect(0, PAGES, all)?;
    }
    ensure!(
        common_frames(&a, &b)? == PAGES,
        "changing the rights unmerged"
    );
    a.fill_with(|page| page as u64 + 5000);
    b.check_with(|page| page as u64 + 1)?;
    a.check_with(|page| page as u64 + 5000)
}

fn merged_pages_can_be_moved() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    let target = Memory::new(PAGES, Backing::Small)?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let bytes = PAGES * 4096;
    // SAFETY: both ranges are whole mappings of this test; what is left of `a` is unmapped, and
    // nothing touches it before it is dropped.
    let moved = unsafe {
        let (from, to) = (a.memory().page(0), target.page(0));
        libc::mremap(from.cast(), bytes, bytes, flags, to)
    };
    ensure!(
        moved == target.page(0).cast(),
        "{}",
        std::io::Error::last_os_error()
    );
    (0..PAGES).try_for_each(|page| check(&target, page, page as u64 + 1))?;
    let own = twinpage_lab::pagemap::Pagemap::own()?;
    let entries = own.read(target.address(), PAGES)?;
    for (page, (entry, frame)) in entries.iter().zip(b.frames()?).enumerate() {
        ensure!(entry.frame() == frame, "page {page} was copied by moving");
    }
    for page in 0..PAGES {
        fill(&target, page, 9);
    }
    b.check_with(|page| page as u64 + 1)?;
    // The slot of the first VM points at nothing now; that must not disturb the scanner.
    host.looks(2)
}

/// Sealed mappings cannot change; merging and unmerging change none (Linux 6.10).
fn sealed_memory_merges_and_comes_apart() -> Outcome {
    let host = Host::new()?;
    module::set("run", 0)?;
    let twins = host.equals(PAGES)?;
    for twin in &twins {
        let memory = twin.memory();
        // SAFETY: sealing takes rights from the mapping, and nothing from what it maps.
        let sealed =
            unsafe { libc::syscall(libc::SYS_mseal, memory.address(), memory.pages() * 4096, 0) };
        if sealed != 0 {
            return Err(Failure::Skipped(
                std::io::Error::last_os_error().to_string(),
            ));
        }
        let changed = memory.protect(0, 1, libc::PROT_READ);
        ensure!(changed.is_err(), "sealed memory was protected");
    }
    let [a, b] = &twins;
    module::set("run", 1)?;
    host.until_saved(&[a, b], PAGES)?;
    a.detach(&host, module::Merged::Unmerge)?;
    ensure!(common_frames(a, b)? == 0, "still shared");
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)
}

fn merged_pages_can_be_locked_afterwards() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(64)?;
    a.memory().lock()?;
    a.check_with(|page| page as u64 + 1)?;
    host.looks(2)?;
    // SAFETY: the range is the VM's memory.
    let unlocked = unsafe { libc::munlock(a.memory().page(0).cast(), 64 * 4096) };
    ensure!(unlocked == 0, "munlock");
    host.until_saved(&[&a, &b], 64)?;
    a.check_with(|page| page as u64 + 1)
}

/// Nothing is written to them (mm/gup.c:populate_vma_page_range), and a copy, which is on no list,
/// is marked at most (mm/mlock.c:__mlock_folio).
fn merged_pages_that_are_locked_on_fault_stay_merged() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(64)?;
    let before = a.frames()?;
    let at = a.memory().page(0).cast::<libc::c_void>();
    // SAFETY: the range is the VM's memory; locking changes no content.
    let locked = unsafe { libc::mlock2(at, 64 * 4096, libc::MLOCK_ONFAULT) };
    ensure!(locked == 0, "mlock2: {}", std::io::Error::last_os_error());
    // What is written to gets a frame of its own, and keeps it while it is locked.
    fill(a.memory(), 5, 6);
    host.looks(2)?;
    let mut now = a.frames()?;
    ensure!(now[5] != before[5], "a locked page was merged");
    now[5] = before[5];
    ensure!(now == before, "locking gave pages other frames");
    ensure!(b.frames()? == before, "the twin has other frames");
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)?;
    // SAFETY: the range is the VM's memory.
    let unlocked = unsafe { libc::munlock(at, 64 * 4096) };
    ensure!(unlocked == 0, "munlock");
    host.until_saved(&[&a, &b], 64)?;
    a.check_with(|page| page as u64 + 1)
}

fn a_forked_monitor_has_pages_of_its_own() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    for round in 0..4_u64 {
        let child = in_child(|| {
            let right = a.check_with(|page| page as u64 + 1).is_ok();
            a.fill_with(|page| page as u64 + 100);
            right && a.check_with(|page| page as u64 + 100).is_ok()
        })?;
        // The parent writes to some pages meanwhile, which copies for it alone.
        for page in (0..PAGES).step_by(3) {
            fill(b.memory(), page, page as u64 + 1);
        }
        child.join()?;
        a.check_with(|page| page as u64 + 1)?;
        b.check_with(|page| page as u64 + 1)?;
        println!("round {round}: {} shared", common_frames(&a, &b)?);
    }
    // Pages that a child shares with its parent by forking may merge too.
    host.until_saved(&[&a, &b], PAGES)
}

fn unmerging_raises_no_warning() -> Outcome {
    let host = Host::new()?;
    let [a, b] = host.twins(PAGES)?;
    let detached = a.detach(&host, module::Merged::Unmerge)?;
    ensure!(detached.remaining == 0, "{detached:?}");
    ensure!(detached.unmerged == PAGES as u64, "{detached:?}");
    ensure!(common_frames(&a, &b)? == 0, "still shared");
    a.check_with(|page| page as u64 + 1)?;
    b.check_with(|page| page as u64 + 1)
}
