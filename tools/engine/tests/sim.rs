// SPDX-License-Identifier: GPL-2.0

//! The engine on a made-up host whose guests do what they like between any two of its steps.
//!
//! Each case has a seed. `TWINPAGE_SEED=n` runs only that one, `TWINPAGE_CASES=n` that many.

mod host;

use host::{
    driver::{
        span,
        Driver,
        BLOCK, //
    },
    Chaos,
    Hashes, //
};
use rand::Rng;
use twinpage_engine::engine::{
    index::Progress,
    stats::Gauge,
    world::{
        Skip,
        RUN_PAGES, //
    }, //
};

/// The seeds to run: `cases` of them, or as the environment says.
fn seeds(cases: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("TWINPAGE_SEED");
    let cases = number("TWINPAGE_CASES").unwrap_or(if seed.is_some() { 1 } else { cases });
    let first = seed.unwrap_or(1);
    (first..first + cases).collect()
}

/// Runs a case for each seed; the seed of one that fails is the last that was printed.
fn for_each_seed(cases: u64, case: impl Fn(u64)) {
    for seed in seeds(cases) {
        println!("TWINPAGE_SEED={seed}");
        case(seed);
    }
}

/// Writes the same content to page `page` of all `guests`, another one for each page.
fn fill_alike(driver: &mut Driver, guests: &[u32], pages: std::ops::Range<u64>) {
    for guest in guests {
        for page in pages.clone() {
            driver.host.write(*guest, page, 1000 + page);
        }
    }
}

#[test]
fn equal_guests_merge_in_one_pass() {
    let mut driver = Driver::new(1);
    for guest in 0..4 {
        driver.add_guest(guest, 0, 3 * BLOCK);
    }
    fill_alike(&mut driver, &[0, 1, 2, 3], 0..3 * BLOCK);
    driver.round();
    for guest in 0..4 {
        assert_eq!(driver.gauge(guest, Gauge::Merged), 3 * BLOCK);
        assert_eq!(driver.host.count_merged(guest), 3 * BLOCK);
    }
    let totals = driver.index(0).totals();
    assert_eq!(totals.shared, 3 * BLOCK);
    assert_eq!(totals.sharing(), 9 * BLOCK);
    assert_eq!(driver.host.frames.borrow().used.len() as u64, 3 * BLOCK);
    // Each page is hashed once, and nothing more happens in later passes.
    assert_eq!(totals.counters.scanned, 12 * BLOCK);
    driver.round();
    assert_eq!(driver.index(0).totals().counters.scanned, 12 * BLOCK);
    driver.finish();
}

#[test]
fn a_page_that_was_held_for_a_moment_finds_its_twins_copy() {
    let mut driver = Driver::new(1);
    for guest in [0, 1] {
        driver.add_guest(guest, 0, BLOCK);
    }
    fill_alike(&mut driver, &[0, 1], 0..10);
    let held: Vec<u64> = (0..10)
        .map(|page| match driver.host.pte(1, page) {
            host::Pte::Frame(pfn) => pfn,
            other => panic!("page {page} is {other:?}"),
        })
        .collect();
    let pin = |driver: &mut Driver, pinned| {
        for pfn in &held {
            driver.host.frames.borrow_mut().get_mut(*pfn).pinned = pinned;
        }
    };
    pin(&mut driver, true);
    driver.round();
    pin(&mut driver, false);
    for _ in 0..10 {
        driver.round();
    }
    assert_eq!(driver.gauge(0, Gauge::Merged), 10);
    assert_eq!(driver.gauge(1, Gauge::Merged), 10);
    driver.finish();
}

#[test]
fn zero_pages_map_the_zero_page() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, BLOCK);
    for page in 0..BLOCK {
        driver.host.write(0, page, page % 2);
    }
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Zero), BLOCK / 2);
    assert_eq!(driver.gauge(0, Gauge::Merged), BLOCK / 2);
    assert_eq!(
        driver.host.frames.borrow().used.len(),
        1 + usize::from(BLOCK / 2 > 256)
    );
    driver.finish();
}

#[test]
fn without_zero_pages_zeroes_are_content_as_any() {
    let mut driver = Driver::new(1);
    driver.knobs.use_zero_pages = false;
    driver.add_guest(0, 0, 100);
    for page in 0..100 {
        driver.host.write(0, page, 0);
    }
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Zero), 0);
    assert_eq!(driver.gauge(0, Gauge::Merged), 100);
    driver.finish();
}

#[test]
fn neighbours_are_replaced_together() {
    for batch in [1, 7, 32, 512] {
        let mut driver = Driver::new(1);
        driver.knobs.merge_batch = batch;
        for guest in 0..3 {
            driver.add_guest(guest, 0, BLOCK);
        }
        fill_alike(&mut driver, &[0, 1, 2], 0..BLOCK);
        driver.round();
        let run = RUN_PAGES as u64;
        let batch = u64::from(batch).min(run);
        assert_eq!(driver.host.longest_run as u64, batch);
        // The first guest's pages as twins, the others' as their turns come.
        let batches = 3 * BLOCK / run * run.div_ceil(batch);
        assert_eq!(driver.host.share_calls, batches);
        driver.finish();
    }
}

#[test]
fn a_copy_has_no_more_pages_than_allowed() {
    for max in [2, 3, 10] {
        let mut driver = Driver::new(1);
        driver.knobs.max_page_sharing = max;
        driver.add_guest(0, 0, 2 * BLOCK);
        for page in 0..1000 {
            driver.host.write(0, page, 7);
        }
        driver.round();
        let frames = driver.host.frames.borrow();
        assert!(frames.used.values().all(|info| info.mapped <= max));
        let copies = frames.used.len() as u32;
        drop(frames);
        // All but the last one, which has nobody to share with.
        assert!(copies <= 1000_u32.div_ceil(max) + 1);
        assert!(driver.gauge(0, Gauge::Merged) >= 1000 - u64::from(max));
        driver.finish();
    }
}

#[test]
fn a_copy_for_two_is_given_to_both() {
    for (first, second) in [(3, 70), (70, 3), (3, BLOCK + 3)] {
        let mut driver = Driver::new(1);
        driver.knobs.max_page_sharing = 2;
        driver.add_guest(0, 0, 2 * BLOCK);
        driver.host.write(0, first, 5);
        driver.round();
        driver.host.write(0, second, 5);
        driver.round();
        assert_eq!(driver.gauge(0, Gauge::Merged), 2);
        driver.finish();
    }
}

#[test]
fn full_copies_are_given_out_again_when_pages_left_them() {
    let mut driver = Driver::new(1);
    driver.knobs.max_page_sharing = 4;
    driver.add_guest(0, 0, 64);
    for page in 0..5 {
        driver.host.write(0, page, 7);
    }
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Merged), 4);
    for page in 0..3 {
        driver.host.write(0, page, 100 + page);
    }
    for _ in 0..8 {
        driver.round();
    }
    assert_eq!(driver.gauge(0, Gauge::Merged), 2);
    assert_eq!(driver.gauge(0, Gauge::Unshared), 3);
    driver.finish();
}

#[test]
fn huge_twins_are_split_and_merge_in_one_pass() {
    let mut driver = Driver::new(1);
    for guest in 0..3 {
        driver.add_guest(guest, 0, 2 * BLOCK);
    }
    fill_alike(&mut driver, &[0, 1, 2], 0..2 * BLOCK);
    for guest in 0..3 {
        driver.host.collapse(guest, 0, BLOCK);
        driver.host.collapse(guest, BLOCK, BLOCK);
    }
    driver.round();
    for guest in 0..3 {
        assert_eq!(driver.gauge(guest, Gauge::Merged), 2 * BLOCK);
    }
    assert_eq!(driver.host.splits, 6);
    driver.finish();
}

#[test]
fn folios_of_any_size_are_split() {
    for size in [2, 16, 64, 256] {
        let mut driver = Driver::new(1);
        for guest in 0..2 {
            driver.add_guest(guest, 0, BLOCK);
        }
        fill_alike(&mut driver, &[0, 1], 0..BLOCK);
        for guest in 0..2 {
            for first in (0..BLOCK).step_by(size as usize) {
                driver.host.collapse(guest, first, size);
            }
        }
        driver.round();
        for guest in 0..2 {
            assert_eq!(driver.gauge(guest, Gauge::Merged), BLOCK);
        }
        driver.finish();
    }
}

#[test]
fn a_huge_page_is_split_when_enough_of_it_would_merge() {
    for (twins, split) in [(63, false), (64, true), (65, true)] {
        for huge_both in [false, true] {
            let mut driver = Driver::new(1);
            driver.add_guest(0, 0, BLOCK);
            driver.add_guest(1, 0, BLOCK);
            for page in 0..BLOCK {
                let alike = page % 7 == 0 && page / 7 < twins;
                driver.host.write(0, page, 1000 + page);
                driver
                    .host
                    .write(1, page, if alike { 1000 + page } else { 9000 + page });
            }
            driver.host.collapse(0, 0, BLOCK);
            if huge_both {
                driver.host.collapse(1, 0, BLOCK);
            }
            for _ in 0..3 {
                driver.round();
            }
            let merged = driver.gauge(0, Gauge::Merged);
            assert_eq!(merged, if split { twins } else { 0 });
            let huge = |guest| driver.gauge(guest, Gauge::Skip(Skip::Huge));
            // Of each two that are alike one could be saved.
            assert_eq!(huge(0) + huge(1), if split { 0 } else { twins });
            driver.finish();
        }
    }
}

#[test]
fn what_cannot_be_split_is_not_tried_for_each_page() {
    let mut driver = Driver::new(1);
    driver.host.chaos.no_split = 1000;
    driver.add_guest(0, 0, BLOCK);
    driver.add_guest(1, 0, BLOCK);
    fill_alike(&mut driver, &[0, 1], 0..BLOCK);
    driver.host.collapse(0, 0, BLOCK);
    driver.round();
    assert_eq!(driver.host.split_calls, 1);
    assert_eq!(driver.gauge(1, Gauge::Unshared), BLOCK);
    driver.host.collapse(1, 0, BLOCK);
    driver.round();
    assert!(driver.host.split_calls < 12);
    driver.host.calm();
    for _ in 0..9 {
        driver.round();
    }
    assert_eq!(driver.gauge(1, Gauge::Merged), BLOCK);
    driver.finish();
}

#[test]
fn zeroes_in_a_huge_page_count() {
    for (zeroes, split) in [(63, false), (64, true)] {
        let mut driver = Driver::new(1);
        driver.add_guest(0, 0, BLOCK);
        for page in 0..BLOCK {
            driver
                .host
                .write(0, page, if page < zeroes { 0 } else { 1000 + page });
        }
        driver.host.collapse(0, 0, BLOCK);
        driver.round();
        assert_eq!(driver.host.splits, u64::from(split));
        assert_eq!(driver.gauge(0, Gauge::Zero), if split { zeroes } else { 0 });
        driver.finish();
    }
}

#[test]
fn pages_that_never_change_are_looked_at_seldom() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, BLOCK);
    for page in 0..BLOCK {
        driver.host.write(0, page, 1000 + page);
    }
    // Not while that is off.
    driver.knobs.smart_scan = false;
    for _ in 0..5 {
        driver.round();
    }
    driver.knobs.smart_scan = true;
    for passes in 6..30 {
        driver.round();
        let scanned = driver.stats(0).counters.scanned;
        assert_eq!(scanned == passes * BLOCK, passes == 6);
    }
    driver.round();
    let early = driver.stats(0).counters.scanned;
    for _ in 0..16 {
        driver.round();
    }
    let counters = driver.stats(0).counters;
    assert_eq!(counters.scanned - early, BLOCK);
    // What was left out in passes without a visit counts at the next visit, for a whole stride.
    let all = counters.scanned + counters.skipped;
    assert!(all.abs_diff(46 * BLOCK) <= 4 * BLOCK, "{all}");
    driver.knobs.smart_scan = false;
    driver.round();
    assert_eq!(driver.stats(0).counters.scanned - counters.scanned, BLOCK);
    driver.finish();
}

#[test]
fn pages_that_change_do_not_merge_and_are_looked_at_seldom() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64);
    for round in 0..40 {
        for page in 0..64 {
            // Different at first; later all alike, but never twice the same.
            let content = if round == 0 { page } else { round };
            driver.host.write(0, page, 1000 + content);
        }
        driver.round();
        assert_eq!(driver.host.count_merged(0), 0);
    }
    assert!(driver.stats(0).counters.scanned < 64 * 40 / 3);
    driver.finish();
}

#[test]
fn a_new_page_finds_a_copy_at_first_sight() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64);
    driver.host.write(0, 0, 5);
    driver.host.write(0, 1, 5);
    driver.round();
    driver.host.write(0, 2, 5);
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Merged), 3);
    driver.finish();
}

#[test]
fn a_written_page_is_a_break_and_merges_again_when_it_rests() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64);
    for page in 0..3 {
        driver.host.write(0, page, 5);
    }
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Merged), 3);
    driver.host.write(0, 1, 6);
    driver.round();
    assert_eq!(driver.stats(0).counters.breaks, 1);
    assert_eq!(driver.gauge(0, Gauge::Volatile), 1);
    driver.host.write(0, 1, 5);
    driver.round();
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Merged), 3);
    driver.finish();
}

#[test]
fn nodes_are_kept_apart_if_asked() {
    for apart in [false, true] {
        let mut driver = Driver::new(1);
        driver.knobs.merge_across_nodes = !apart;
        driver.add_guest(0, 0, BLOCK);
        for page in 0..200 {
            driver.host.write(0, page, 1 + page / 100);
        }
        driver.round();
        assert_eq!(driver.gauge(0, Gauge::Merged), 200);
        assert_eq!(driver.index(0).totals().shared, if apart { 4 } else { 2 });
        driver.finish();
    }
}

#[test]
fn moved_pages_stay_merged() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 3 * BLOCK);
    for page in 0..100 {
        driver.host.write(0, page, 5 + page % 10);
    }
    driver.round();
    let merges = driver.stats(0).counters.merges;
    for page in 0..100 {
        driver.host.exchange(0, page, 2 * BLOCK + page * 2);
    }
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Merged), 100);
    assert_eq!(driver.stats(0).counters.merges, merges);
    assert_eq!(driver.host.count_merged(0), 100);
    driver.finish();
}

#[test]
fn copies_live_as_long_as_somebody_maps_them() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64);
    for page in 0..4 {
        driver.host.write(0, page, 5);
    }
    driver.round();
    let child = driver.host.fork(0);
    driver.host.exit(0);
    driver.round();
    assert_eq!(driver.index(0).copies(), 1);
    assert_eq!(driver.host.count_merged(child), 4);
    driver.host.verify();
    driver.host.exit(child);
    driver.sweep();
    assert_eq!(driver.index(0).copies(), 0);
    driver.finish();
}

#[test]
fn a_guest_that_changes_domains_shares_with_the_new_one_only() {
    let mut driver = Driver::new(1);
    for guest in 0..4 {
        driver.add_guest(guest, guest / 2, BLOCK);
    }
    fill_alike(&mut driver, &[0, 1, 2, 3], 0..300);
    driver.round();
    let ranges = driver.ranges[&1].clone();
    driver.detach(1);
    driver.host.mm(1).moved = true;
    driver.attach(1, 1, ranges);
    for _ in 0..3 {
        driver.round();
    }
    driver.host.mm(1).moved = false;
    driver.host.verify();
    assert_eq!(driver.gauge(1, Gauge::Merged), 300);
    assert_eq!(driver.index(1).totals().shared, 300);
    // The one that stayed is alone with its copies.
    assert_eq!(driver.gauge(0, Gauge::Merged), 300);
    driver.finish();
}

#[test]
fn memory_that_comes_and_goes_is_followed() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 4 * BLOCK);
    fill_alike(&mut driver, &[0], 0..4 * BLOCK);
    driver.round();
    // Pages beside absent ones were not looked at.
    driver
        .ranges
        .insert(0, vec![span(8 * BLOCK..8 * BLOCK + 10)]);
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Absent), 10);
    driver
        .ranges
        .insert(0, vec![span(8 * BLOCK..8 * BLOCK + 20)]);
    driver.refresh(0);
    assert_eq!(driver.gauge(0, Gauge::Unseen), 20);
    let layouts = [
        vec![span(0..4 * BLOCK)],
        vec![
            span(3..100),
            span(200..BLOCK + 1),
            span(3 * BLOCK - 1..3 * BLOCK),
        ],
        vec![],
        vec![span(100..101)],
        vec![
            span(0..BLOCK),
            span(BLOCK..2 * BLOCK),
            span(3 * BLOCK..4 * BLOCK),
        ],
        vec![span(BLOCK + 5..BLOCK + 6), span(2 * BLOCK..2 * BLOCK + 1)],
        vec![span(0..4 * BLOCK)],
    ];
    for ranges in layouts {
        let pages: u64 = ranges
            .iter()
            .map(|span| (span.end - span.start) / 4096)
            .sum();
        driver.ranges.insert(0, ranges);
        driver.refresh(0);
        assert_eq!(driver.stats(0).gauges.pages(), pages);
        driver.round();
        assert_eq!(driver.stats(0).gauges.pages(), pages);
        assert_eq!(driver.gauge(0, Gauge::Unseen), 0);
        assert_eq!(driver.gauge(0, Gauge::Unshared), pages);
    }
    driver.finish();
}

#[test]
fn memory_that_cannot_be_merged_takes_no_records() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64 * BLOCK);
    let empty = driver.index(0).totals().metadata_bytes;
    for page in 0..8 * BLOCK {
        driver.host.mm(0).special.insert(page, Skip::Shared);
    }
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Skip(Skip::Shared)), 8 * BLOCK);
    assert_eq!(driver.gauge(0, Gauge::Absent), 56 * BLOCK);
    assert_eq!(driver.index(0).totals().metadata_bytes, empty);
    // Nor does memory that was given back.
    fill_alike(&mut driver, &[0], 20 * BLOCK..24 * BLOCK);
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Unshared), 4 * BLOCK);
    for page in 20 * BLOCK..24 * BLOCK {
        driver.host.discard(0, page);
    }
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Absent), 56 * BLOCK);
    assert!(driver.index(0).totals().metadata_bytes < empty + 4096);
    driver.finish();
}

#[test]
fn seventeen_bytes_a_page() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64 * BLOCK);
    fill_alike(&mut driver, &[0], 0..64 * BLOCK);
    driver.strict = false;
    driver.round();
    let bytes = driver.index(0).totals().metadata_bytes as f64 / (64.0 * BLOCK as f64);
    println!("{bytes:.2} bytes for each tracked page");
    assert!(bytes < 17.5);
    driver.finish();
}

#[test]
fn equal_hashes_of_different_pages_do_no_harm() {
    for_each_seed(4, |seed| {
        let mut driver = Driver::new(seed);
        driver.host.hashes = Hashes::Few(5);
        driver.add_guest(0, 0, BLOCK);
        driver.add_guest(1, 0, BLOCK);
        for guest in 0..2 {
            for page in 0..400 {
                let content = driver.host.rng.random_range(1..100);
                driver.host.write(guest, page, content);
            }
        }
        for _ in 0..20 {
            driver.round();
        }
        let collisions = driver.gauge(0, Gauge::Skip(Skip::Collision));
        assert!(collisions > 100, "{collisions} collisions were given up");
        // What is given up costs little: 16 passes share less than the first one did.
        let calls = driver.host.share_calls;
        for _ in 0..16 {
            driver.round();
        }
        assert!(driver.host.share_calls - calls < 2 * 800);
        driver.finish();
    });
}

/// Two guests with so many blocks, all of them merged, that lose memory without being asked.
fn merged_pair(blocks: u64) -> Driver {
    let mut driver = Driver::new(1);
    driver.strict = false;
    for guest in 0..2 {
        driver.add_guest(guest, 0, blocks * BLOCK);
    }
    fill_alike(&mut driver, &[0, 1], 0..blocks * BLOCK);
    driver.round();
    driver
}

#[test]
fn memory_that_goes_is_forgotten_a_few_blocks_at_a_time() {
    let mut driver = merged_pair(20);
    assert_eq!(driver.gauge(0, Gauge::Merged), 20 * BLOCK);
    // A whole block stays, and a part of another.
    let ranges = [
        span(3 * BLOCK..4 * BLOCK),
        span(9 * BLOCK + 9..9 * BLOCK + 19),
    ];
    driver.ranges.insert(0, ranges.to_vec());
    let mut calls = 0;
    loop {
        let merged = driver.gauge(0, Gauge::Merged);
        let progress = driver.forget_outside(0, 2);
        if progress == Progress::Done {
            driver.refresh(0);
        }
        assert!(merged - driver.gauge(0, Gauge::Merged) <= 2 * BLOCK);
        if progress == Progress::Done {
            break;
        }
        calls += 1;
    }
    assert_eq!(calls, 9);
    assert_eq!(driver.gauge(0, Gauge::Merged), BLOCK + 10);
    // What is known of the rest is still known.
    assert_eq!(driver.forget_outside(0, 2), Progress::Done);
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Merged), BLOCK + 10);
    driver.finish();
}

/// Memory of which a VM leaves one page in each block, with one change of a memslot.
#[test]
fn pages_that_go_are_forgotten_a_few_blocks_at_a_time() {
    let mut driver = merged_pair(20);
    let page = |block: u64| block * BLOCK + 7 * block;
    let ranges = (0..20).map(|block| span(page(block)..page(block) + 1));
    driver.ranges.insert(0, ranges.collect());
    let mut calls = 0;
    while driver.forget_outside(0, 2) != Progress::Done {
        calls += 1;
        assert_eq!(
            driver.gauge(0, Gauge::Merged),
            20 + (20 - 2 * calls) * (BLOCK - 1)
        );
    }
    assert_eq!(calls, 10);
    driver.refresh(0);
    assert_eq!(driver.gauge(0, Gauge::Merged), 20);
    driver.round();
    driver.finish();
}

#[test]
fn a_pass_ends_though_the_memory_ahead_of_it_goes() {
    let mut driver = Driver::new(1);
    driver.strict = false;
    driver.add_guest(0, 0, 8 * BLOCK);
    fill_alike(&mut driver, &[0], 0..8 * BLOCK);
    for _ in 0..5 {
        assert!(driver.scan(0).is_ok_and(|step| !step.pass_ended));
    }
    driver.ranges.insert(0, vec![span(0..4 * BLOCK)]);
    driver.refresh(0);
    assert!(driver.scan(0).is_ok_and(|step| step.pass_ended));
    driver.round();
    driver.finish();
}

#[test]
fn what_was_unmerged_does_not_stay_calm() {
    let mut driver = Driver::new(1);
    driver.knobs.smart_scan = true;
    for guest in 0..2 {
        driver.add_guest(guest, 0, 4 * BLOCK);
    }
    fill_alike(&mut driver, &[0, 1], 0..4 * BLOCK);
    for _ in 0..20 {
        driver.round();
    }
    assert_eq!(driver.gauge(0, Gauge::Merged), 4 * BLOCK);
    assert!(driver.unmerge(0));
    assert_eq!(driver.gauge(0, Gauge::Merged), 0);
    driver.pass(0);
    assert_eq!(driver.gauge(0, Gauge::Merged), 4 * BLOCK);
    driver.finish();
}

#[test]
fn pages_that_cannot_be_shared_are_tried_seldom() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64);
    for page in 0..3 {
        driver.host.write(0, page, 5);
    }
    driver.round();
    driver.host.write(0, 3, 5);
    if let host::Pte::Frame(pfn) = driver.host.pte(0, 3) {
        driver.host.frames.borrow_mut().get_mut(pfn).pinned = true;
    }
    let calls = driver.host.share_calls;
    for _ in 0..24 {
        driver.round();
    }
    assert_eq!(driver.gauge(0, Gauge::Skip(Skip::Pinned)), 1);
    assert!(driver.host.share_calls - calls <= 6);
    driver.host.calm();
    for _ in 0..8 {
        driver.round();
    }
    assert_eq!(driver.gauge(0, Gauge::Merged), 4);
    driver.finish();
}

#[test]
fn a_busy_block_is_passed_over_in_the_end() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 3 * BLOCK);
    fill_alike(&mut driver, &[0], 0..3 * BLOCK);
    driver.host.chaos.busy = 1000;
    for _ in 0..2 {
        let mut busy = 0;
        while driver.scan(0).is_err() {
            busy += 1;
        }
        assert_eq!(busy, 256);
        // Its patience is at an end until the next pass.
        assert!(driver.scan(0).is_ok_and(|step| !step.pass_ended));
        assert!(driver.scan(0).is_ok_and(|step| step.pass_ended));
    }
    driver.host.calm();
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Unshared), 3 * BLOCK);
    driver.finish();
}

/// Otherwise a VM with an empty memslot of some TiB would hold up each pass for hours.
#[test]
fn memory_that_is_not_there_gives_no_patience_back() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 300 * BLOCK);
    let mut busy = 0;
    loop {
        driver.host.chaos.busy = 1000;
        busy += u32::from(driver.scan(0).is_err());
        driver.host.calm();
        if driver.scan(0).is_ok_and(|step| step.pass_ended) {
            break;
        }
    }
    assert_eq!(busy, 256);
    driver.finish();
}

#[test]
fn unmerging_gives_everybody_their_own() {
    let mut driver = Driver::new(1);
    for guest in 0..2 {
        driver.add_guest(guest, 0, 2 * BLOCK);
    }
    fill_alike(&mut driver, &[0, 1], 100..700);
    driver.host.write(0, 0, 0);
    driver.round();
    // Some of it moves where nothing was before.
    driver.ranges.insert(0, vec![span(0..8 * BLOCK)]);
    driver.refresh(0);
    driver.pass(0);
    for page in 100..200 {
        driver.host.exchange(0, page, 6 * BLOCK + page);
    }
    assert!(driver.unmerge(0));
    assert_eq!(driver.host.count_merged(0), 0);
    assert_eq!(driver.gauge(0, Gauge::Merged), 0);
    assert_eq!(driver.gauge(0, Gauge::Zero), 1);
    assert_eq!(driver.host.count_merged(1), 600);
    assert!(driver.unmerge(1));
    driver.sweep();
    assert_eq!(driver.index(0).copies(), 0);
    driver.round();
    assert_eq!(driver.host.count_merged(0), 600);
    driver.finish();
}

#[test]
fn unmerging_stops_when_memory_is_short_and_goes_on_later() {
    let mut driver = Driver::new(5);
    driver.add_guest(0, 0, 2 * BLOCK);
    for page in 0..2 * BLOCK {
        driver.host.write(0, page, 1 + page % 100);
    }
    driver.round();
    driver.host.chaos.no_memory = 20;
    let mut stops = 0;
    while !driver.unmerge(0) {
        stops += 1;
    }
    assert!(stops > 3);
    assert_eq!(driver.host.count_merged(0), 0);
    driver.finish();
}

#[test]
fn a_guest_that_writes_all_the_time_is_backed_off_and_others_merge() {
    let mut driver = Driver::new(1);
    driver.knobs.max_break_rate = 20;
    for guest in 0..3 {
        driver.add_guest(guest, 0, BLOCK);
    }
    fill_alike(&mut driver, &[0, 1], 0..BLOCK);
    driver.step_ns = 100_000_000;
    let mut lengths = Vec::new();
    for round in 0..600 {
        fill_alike(&mut driver, &[0], 0..BLOCK);
        if round == 300 {
            fill_alike(&mut driver, &[2], 0..BLOCK);
        }
        driver.round();
        let length = driver.restraint(0).backed_off_ms();
        if length > 0 && lengths.last() != Some(&length) {
            lengths.push(length);
        }
    }
    assert_eq!(lengths, [1000, 2000, 4000, 8000, 16_000, 32_000, 64_000]);
    // Without it, each round would have found as many breaks as there are pages.
    assert!(driver.stats(0).counters.breaks < 20 * BLOCK);
    for guest in [1, 2] {
        assert_eq!(driver.gauge(guest, Gauge::Merged), BLOCK);
        assert_eq!(driver.restraint(guest).times(), 0);
    }
    // Now it rests, until the last back-off is over and each page has had its turn.
    for _ in 0..230 {
        driver.round();
    }
    assert!(!driver.restraint(0).is_backed_off());
    assert_eq!(driver.gauge(0, Gauge::Merged), BLOCK);
    driver.finish();
}

/// Guests of two domains that do what they like; then they rest, and what can merge has merged.
fn anything_can_happen(seed: u64, chaos: Chaos, hashes: Hashes) {
    let mut driver = Driver::new(seed);
    driver.host.hashes = hashes;
    driver.host.alike = 1 + seed % 4;
    driver.knobs.max_page_sharing = driver.host.rng.random_range(2..40);
    driver.knobs.merge_batch = driver.host.rng.random_range(1..80);
    driver.knobs.smart_scan = driver.host.rng.random();
    driver.knobs.use_zero_pages = driver.host.rng.random();
    driver.knobs.thp_split_threshold = driver.host.rng.random_range(1..128);
    driver.knobs.max_break_rate = driver.host.rng.random_range(0..10);
    driver.step_ns = 200_000_000;
    for guest in 0..4 {
        driver.add_guest(guest, guest % 2, 2 * BLOCK);
        let pages = driver.host.rng.random_range(1..2 * BLOCK);
        for page in 0..pages {
            let content = driver.host.rng.random_range(0..driver.host.contents);
            driver.host.write(guest, page, content);
        }
    }
    driver.host.chaos = chaos;
    for round in 0..6 {
        for guest in driver.attached() {
            driver.refresh(guest);
            for _ in 0..3 {
                let _ = driver.scan(guest);
            }
        }
        driver.sweep();
        disturb(&mut driver, seed, round);
    }
    driver.host.calm();
    driver.strict = false;
    driver.knobs.max_break_rate = 0;
    // A page that was taken for a collision rests for 32 passes.
    for _ in 0..36 {
        driver.round();
    }
    driver.host.verify();
    for index in [0, 1] {
        let max = driver.knobs.max_page_sharing;
        let (missed, all) = driver.host.duplicates(index, max, &driver.ranges);
        if hashes == Hashes::Good {
            assert_eq!(missed, 0, "of {all} duplicates");
        }
    }
    for guest in driver.attached() {
        let merged = driver.host.merged_by(guest, &driver.ranges[&guest]);
        assert_eq!(driver.gauge(guest, Gauge::Merged), merged.len() as u64);
        // Not one is of the domain that the guest was in before.
        let index = driver.index_of(guest);
        assert!(merged.iter().all(|maker| *maker == index));
    }
    driver.finish();
}

/// What happens to guests as a whole.
fn disturb(driver: &mut Driver, seed: u64, round: u64) {
    let guests = driver.attached();
    let at = driver.host.rng.random_range(0..guests.len());
    let guest = guests[at];
    match (seed + round) % 6 {
        0 => {
            let ranges = driver.ranges[&guest].clone();
            let index = 1 - driver.index_of(guest);
            driver.detach(guest);
            driver.host.mm(guest).moved = true;
            driver.attach(guest, index, ranges);
        }
        1 => {
            driver.unmerge(guest);
        }
        2 => {
            let a = driver.host.rng.random_range(0..BLOCK);
            let b = driver.host.rng.random_range(a + 1..2 * BLOCK);
            driver
                .ranges
                .insert(guest, vec![span(0..a + 1), span(b..2 * BLOCK + 3)]);
        }
        3 => {
            driver.ranges.insert(guest, vec![span(0..2 * BLOCK)]);
        }
        _ => {}
    }
}

#[test]
fn rare_disturbances() {
    for_each_seed(16, |seed| {
        let chaos = Chaos {
            happens: 20,
            busy: 5,
            no_memory: 5,
            no_split: 50,
        };
        anything_can_happen(seed, chaos, Hashes::Good);
    });
}

#[test]
fn constant_disturbances() {
    for_each_seed(16, |seed| {
        let chaos = Chaos {
            happens: 500,
            busy: 100,
            no_memory: 100,
            no_split: 300,
        };
        anything_can_happen(seed, chaos, Hashes::Good);
    });
}

#[test]
fn disturbances_with_bad_hashes() {
    for_each_seed(8, |seed| {
        let chaos = Chaos {
            happens: 50,
            busy: 20,
            no_memory: 20,
            no_split: 100,
        };
        anything_can_happen(seed, chaos, Hashes::Few(7));
    });
}
