// SPDX-License-Identifier: GPL-2.0

//! Merged copies whose memory breaks: nobody reads them, nor gets them.

mod host;

use host::{
    driver::{
        span,
        Driver, //
    },
    Pte, //
};
use twinpage_engine::engine::{
    stats::Gauge,
    world::{
        Shared,
        Skip, //
    }, //
};

#[test]
fn a_broken_copy_is_not_handed_out_again() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64);
    for page in 0..4 {
        driver.host.write(0, page, 5);
    }
    driver.round();
    for info in driver.host.frames.borrow_mut().used.values_mut() {
        info.poisoned = true;
    }
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Skip(Skip::Poison)), 4);
    // The host panics if the broken one is read again.
    for page in 10..14 {
        driver.host.write(0, page, 5);
    }
    driver.round();
    assert_eq!(driver.host.broken_shares, 0);
    assert_eq!(driver.gauge(0, Gauge::Merged), 4);
    for page in 0..4 {
        driver.host.discard(0, page);
    }
    driver.round();
    assert_eq!(driver.index(0).copies(), 1);
    driver.finish();
}

#[test]
fn a_copy_that_turns_out_to_be_broken_is_tried_once() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64);
    for page in 0..4 {
        driver.host.write(0, page, 5);
    }
    driver.round();
    // Nobody that maps it is looked at before the others want it.
    driver.ranges.insert(0, vec![span(4..64)]);
    driver.refresh(0);
    for info in driver.host.frames.borrow_mut().used.values_mut() {
        info.poisoned = true;
    }
    for page in (10..30).step_by(2) {
        driver.host.write(0, page, 5);
    }
    for _ in 0..3 {
        driver.round();
    }
    assert_eq!(driver.host.broken_shares, 1);
    assert_eq!(driver.gauge(0, Gauge::Merged), 10);
    driver.finish();
}

#[test]
fn a_copy_that_breaks_while_it_is_full_is_not_listed_again() {
    let mut driver = Driver::new(1);
    driver.host.alike = 2;
    driver.knobs.max_page_sharing = 4;
    driver.add_guest(0, 0, 64);
    for page in 0..5 {
        driver.host.write(0, page, 4);
    }
    driver.round();
    // Others of its class, so that only its hash tells what it is.
    for page in 10..20 {
        driver.host.write(0, page, 5);
    }
    for _ in 0..3 {
        driver.round();
    }
    for page in 0..3 {
        driver.host.discard(0, page);
    }
    for info in driver.host.frames.borrow_mut().used.values_mut() {
        info.poisoned = true;
    }
    driver.sweep();
    driver.finish();
}

#[test]
fn a_copy_that_breaks_when_a_page_differs_is_not_read() {
    let mut driver = Driver::new(1);
    driver.host.alike = 2;
    driver.add_guest(0, 0, 64);
    for page in 0..2 {
        driver.host.write(0, page, 4);
    }
    driver.round();
    driver.host.breaks_after = Some(Shared::Differs);
    for page in 10..12 {
        driver.host.write(0, page, 5);
    }
    for _ in 0..3 {
        driver.round();
    }
    assert_eq!(driver.gauge(0, Gauge::Skip(Skip::Poison)), 2);
    assert_eq!(driver.gauge(0, Gauge::Merged), 2);
    driver.finish();
}

#[test]
fn a_copy_that_breaks_when_its_only_page_took_it_is_not_read() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 64);
    for page in 0..2 {
        driver.host.write(0, page, 5);
    }
    let Pte::Frame(pfn) = driver.host.pte(0, 1) else {
        panic!("it is private")
    };
    driver.host.frames.borrow_mut().get_mut(pfn).pinned = true;
    driver.host.breaks_after = Some(Shared::Done);
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Merged), 1);
    driver.host.breaks_after = None;
    driver.round();
    assert_eq!(driver.gauge(0, Gauge::Skip(Skip::Poison)), 1);
    // The next page does not get the broken one.
    driver.host.write(0, 2, 5);
    driver.host.write(0, 3, 5);
    for _ in 0..3 {
        driver.round();
    }
    assert_eq!(driver.gauge(0, Gauge::Merged), 2);
    driver.finish();
}
