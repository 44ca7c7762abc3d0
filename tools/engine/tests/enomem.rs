// SPDX-License-Identifier: GPL-2.0

//! Every allocation fails once, in each scenario: nothing breaks, and a retry succeeds.

mod host;

use host::driver::{
    span,
    Driver,
    BLOCK, //
};
use twinpage_engine::{
    engine::{
        digests::{
            Asked,
            Search, //
        },
        index::{
            Found,
            Refused,
            Untold, //
        },
        scratch::Scratch,
        stats::Gauge,
        world::{
            Away,
            GuestId,
            PAGE_BYTES, //
        },
    },
    mem::{
        fail_after,
        never_fail, //
    },
};

/// Runs `act` with the allocation number `n` and all later ones failing, for each `n` until none
/// fails; then again with memory. `act` says whether it had what it needed.
fn each_allocation_fails(
    setup: impl Fn() -> Driver,
    act: impl Fn(&mut Driver) -> bool,
    settled: impl Fn(&mut Driver),
) -> u64 {
    for n in 0.. {
        let mut driver = setup();
        fail_after(n);
        let complete = act(&mut driver);
        let failed = never_fail();
        driver.host.verify();
        let indexes: Vec<u32> = driver.indexes.keys().copied().collect();
        for index in indexes {
            driver.check(index);
        }
        assert!(complete || failed, "allocation {n} was not needed");
        act(&mut driver);
        settled(&mut driver);
        driver.finish();
        if !failed {
            return n;
        }
    }
    unreachable!()
}

/// Scans until the pass ends, or memory was short too often.
fn scan_some(driver: &mut Driver, guest: u32) -> bool {
    let mut complete = true;
    for _ in 0..200 {
        match driver.scan(guest) {
            Ok(step) if step.pass_ended => return complete,
            Ok(_) => {}
            Err(Away::Busy) => complete = false,
            Err(Away::Gone) => return false,
        }
    }
    false
}

fn two_equal_guests(pages: u64) -> Driver {
    let mut driver = Driver::new(1);
    driver.strict = false;
    for guest in 0..2 {
        driver.add_guest(guest, 0, 3 * BLOCK);
        for page in 0..pages {
            driver.host.write(guest, page, 1000 + page);
        }
    }
    driver
}

#[test]
fn scratch() {
    for n in 0..5 {
        fail_after(n);
        let scratch = Scratch::new();
        assert_eq!(never_fail(), scratch.is_err());
        assert_eq!(scratch.is_ok(), n == 4);
    }
}

#[test]
fn attaching() {
    let failures = each_allocation_fails(
        || {
            let mut driver = Driver::new(1);
            driver.add_index(0);
            driver.host.add_guest(7, 0);
            driver.ranges.insert(7, vec![]);
            driver
        },
        |driver| match driver.index(0).attach(GuestId(7)) {
            Ok(()) | Err(Refused::Exists) => true,
            Err(error) => {
                assert_eq!(error, Refused::NoMemory);
                assert!(driver.index(0).is_empty());
                false
            }
        },
        |driver| assert!(driver.index(0).guest(GuestId(7)).is_some()),
    );
    assert_eq!(failures, 1);
}

#[test]
fn changing_ranges() {
    let failures = each_allocation_fails(
        || {
            let mut driver = two_equal_guests(2 * BLOCK);
            driver.round();
            driver
        },
        |driver| {
            let before = driver.stats(0).clone();
            let ranges = [span(5..9), span(100..7 * BLOCK)];
            match driver.index(0).set_ranges(GuestId(0), &ranges) {
                Ok(()) => true,
                Err(error) => {
                    assert_eq!(error, Refused::NoMemory);
                    assert_eq!(*driver.stats(0), before);
                    false
                }
            }
        },
        |driver| {
            assert_eq!(driver.stats(0).gauges.pages(), 7 * BLOCK - 96);
            driver
                .ranges
                .insert(0, vec![span(5..9), span(100..7 * BLOCK)]);
            driver.round();
            assert_eq!(driver.gauge(0, Gauge::Merged), 2 * BLOCK - 96);
        },
    );
    assert_eq!(failures, 2);
}

#[test]
fn merging() {
    let failures = each_allocation_fails(
        || two_equal_guests(2 * BLOCK),
        |driver| scan_some(driver, 0) && scan_some(driver, 1),
        |driver| {
            driver.round();
            assert_eq!(driver.gauge(0, Gauge::Merged), 2 * BLOCK);
            assert_eq!(driver.gauge(1, Gauge::Merged), 2 * BLOCK);
        },
    );
    println!("{failures} allocations failed");
    assert!(failures > 10);
}

#[test]
fn merging_huge_pages() {
    each_allocation_fails(
        || {
            let mut driver = two_equal_guests(BLOCK);
            for guest in 0..2 {
                driver.host.collapse(guest, 0, BLOCK);
            }
            driver
        },
        |driver| {
            let (a, b) = (scan_some(driver, 0), scan_some(driver, 1));
            a && b && driver.gauge(1, Gauge::Merged) == BLOCK
        },
        |driver| {
            for _ in 0..8 {
                driver.round();
            }
            assert_eq!(driver.gauge(0, Gauge::Merged), BLOCK);
            assert_eq!(driver.gauge(1, Gauge::Merged), BLOCK);
        },
    );
}

#[test]
fn frames_that_cannot_be_allocated() {
    for permille in [1, 100, 900, 1000] {
        let mut driver = two_equal_guests(BLOCK);
        driver.host.chaos.no_memory = permille;
        for _ in 0..3 {
            driver.round();
            driver.host.verify();
        }
        driver.host.calm();
        for _ in 0..10 {
            driver.round();
        }
        assert_eq!(driver.gauge(0, Gauge::Merged), BLOCK);
        driver.finish();
    }
}

#[test]
fn digests() {
    let failures = each_allocation_fails(
        || {
            let mut driver = two_equal_guests(400);
            driver.round();
            driver
        },
        |driver| {
            let index = driver.indexes.get_mut(&0).expect("an index");
            let asked = Asked {
                guest: GuestId(1),
                addr: 3 * PAGE_BYTES,
                pages: 300,
                digests: 300,
            };
            let told = index.page_states(&mut driver.host, &mut driver.scratch, asked, |_| {});
            assert!(matches!(told, Ok(300) | Err(Untold::NoMemory)));
            let mut search = Search::new(host::digest_of(1399));
            let found = loop {
                match index.find_digest(&mut driver.host, &mut search, 10) {
                    Ok(Found::More) => {}
                    Ok(Found::Copy(_)) => break true,
                    Ok(Found::None) => panic!("it is merged"),
                    Err(_) => break false,
                }
            };
            told.is_ok() && found
        },
        |driver| assert_eq!(driver.gauge(1, Gauge::Merged), 400),
    );
    assert_eq!(failures, 2);
}
