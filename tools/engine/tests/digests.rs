// SPDX-License-Identifier: GPL-2.0

//! What pages are said to be, and finding copies by their digest.

mod host;

use host::{
    digest_of,
    driver::{
        Driver,
        BLOCK, //
    },
    Pte, //
};
use twinpage_engine::engine::{
    digests::{
        Asked,
        Search, //
    },
    index::{
        Found,
        Untold, //
    },
    stats::Gauge,
    wire::{
        Header,
        PageState,
        Record,
        RECORD_BYTES,
        ZERO_DIGEST, //
    },
    world::{
        Away,
        GuestId,
        Skip,
        DIGEST_BYTES,
        PAGE_BYTES, //
    },
};

/// The states of pages of a guest, all in one block, as far as they can be told if `digests`
/// digests may be computed.
fn states_within(
    driver: &mut Driver,
    guest: u32,
    first: u64,
    pages: usize,
    digests: usize,
) -> Vec<PageState> {
    let mut states = Vec::new();
    let number = driver.index_of(guest);
    let index = driver.indexes.get_mut(&number).expect("an index");
    let asked = Asked {
        guest: GuestId(guest),
        addr: first * PAGE_BYTES,
        pages,
        digests,
    };
    let told = index.page_states(&mut driver.host, &mut driver.scratch, asked, |state| {
        states.push(state)
    });
    assert_eq!(told, Ok(states.len()));
    driver.check(number);
    states
}

/// The states of pages of a guest, all in one block.
fn states(driver: &mut Driver, guest: u32, first: u64, pages: usize) -> Vec<PageState> {
    let states = states_within(driver, guest, first, pages, pages);
    assert_eq!(states.len(), pages);
    states
}

/// The content of the copy of that digest.
fn find(driver: &mut Driver, number: u32, digest: [u8; DIGEST_BYTES]) -> Option<u64> {
    let frames = driver.host.frames.clone();
    let index = driver.indexes.get_mut(&number).expect("an index");
    let mut search = Search::new(digest);
    let found = loop {
        match index.find_digest(&mut driver.host, &mut search, 5) {
            Ok(Found::More) => {}
            Ok(Found::Copy(frame)) => break Some(frame.pfn),
            Ok(Found::None) => break None,
            Err(error) => panic!("{error:?}"),
        }
    };
    driver.check(number);
    found.map(|pfn| frames.borrow().read(pfn))
}

/// A guest that has pages of each kind.
fn one_of_each() -> Driver {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 2 * BLOCK);
    driver.host.write(0, 1, 5);
    driver.host.write(0, 2, 5);
    driver.host.write(0, 3, 6);
    driver.host.write(0, 4, 0);
    driver.host.write(0, 5, 7);
    driver.host.mm(0).special.insert(5, Skip::Pinned);
    driver.round();
    driver
}

#[test]
fn every_kind_of_page_is_told() {
    let mut driver = one_of_each();
    let told = states(&mut driver, 0, 0, 6);
    let digest = digest_of(5);
    let PageState::Merged { serial, .. } = told[1] else {
        panic!("{told:?}")
    };
    let expected = [
        PageState::Absent,
        PageState::Merged { serial, digest },
        PageState::Merged { serial, digest },
        PageState::Unmerged {
            digest: digest_of(6),
        },
        PageState::Zero,
        PageState::Skipped,
    ];
    assert_eq!(told, expected);
    assert!(serial > 0);
    // Asking changes nothing.
    assert_eq!(states(&mut driver, 0, 0, 6), expected);
    assert_eq!(driver.gauge(0, Gauge::Merged), 2);
    driver.finish();
}

#[test]
fn no_more_digests_are_computed_than_allowed() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, BLOCK);
    // Three merged pages of each content, then zeroes, pages of their own, and none.
    for page in 0..30 {
        driver.host.write(0, page, 1 + page / 3);
        driver.host.write(0, 40 + page, 100 + page);
    }
    for page in 30..40 {
        driver.host.write(0, page, 0);
    }
    driver.round();
    for (first, digests, told) in [
        (0, 0, 0),
        (0, 4, 12),
        // These are known by now.
        (0, 0, 12),
        (0, 6, 40),
        (0, 5, 45),
        (0, 29, 69),
        (0, 30, 80),
        // What is private is read again each time.
        (39, 0, 1),
        (70, 0, 10),
    ] {
        let pages = 80 - first as usize;
        let states = states_within(&mut driver, 0, first, pages, digests);
        assert_eq!(states.len(), told, "from {first} on, with {digests}");
        for (page, state) in (first..).zip(states) {
            let right = match state {
                PageState::Merged { digest, .. } => page < 30 && digest == digest_of(1 + page / 3),
                PageState::Zero => (30..40).contains(&page),
                PageState::Unmerged { digest } => page < 70 && digest == digest_of(60 + page),
                PageState::Absent => page >= 70,
                PageState::Skipped => false,
            };
            assert!(right, "page {page}: {state:?}");
        }
    }
    driver.finish();
}

#[test]
fn a_written_page_is_not_said_to_be_merged() {
    let mut driver = one_of_each();
    driver.host.write(0, 1, 8);
    let told = states(&mut driver, 0, 1, 2);
    let digest = digest_of(8);
    assert_eq!(told[0], PageState::Unmerged { digest });
    assert!(matches!(told[1], PageState::Merged { .. }));
    driver.finish();
}

#[test]
fn serial_numbers_are_not_used_again() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, BLOCK);
    driver.add_guest(1, 1, BLOCK);
    let mut seen = std::collections::HashSet::new();
    for round in 0..20 {
        for guest in 0..2 {
            driver.host.write(guest, 0, 100 + round);
            driver.host.write(guest, 1, 100 + round);
        }
        for _ in 0..20 {
            driver.round();
        }
        for guest in 0..2 {
            match states(&mut driver, guest, 0, 1)[0] {
                PageState::Merged { serial, digest } => {
                    assert_eq!(digest, digest_of(100 + round));
                    assert!(seen.insert(serial));
                }
                state => panic!("{state:?}"),
            }
        }
    }
    driver.finish();
}

#[test]
fn copies_are_found_by_digest() {
    let mut driver = Driver::new(1);
    driver.add_guest(0, 0, 2 * BLOCK);
    for page in 0..600 {
        driver.host.write(0, page, 1 + page / 2);
    }
    driver.round();
    for content in [1, 77, 300] {
        assert_eq!(find(&mut driver, 0, digest_of(content)), Some(content));
    }
    assert_eq!(find(&mut driver, 0, digest_of(999)), None);
    assert_eq!(find(&mut driver, 0, [0; DIGEST_BYTES]), None);
    // Neither the same first bytes nor the zero page, which is no copy.
    let mut near = digest_of(77);
    near[31] ^= 1;
    assert_eq!(find(&mut driver, 0, near), None);
    assert_eq!(find(&mut driver, 0, digest_of(0)), None);
    // New ones are found, those that are gone are not.
    for page in 0..2 {
        driver.host.discard(0, page);
    }
    driver.round();
    driver.host.write(0, 700, 999);
    driver.host.write(0, 701, 999);
    driver.round();
    assert_eq!(find(&mut driver, 0, digest_of(999)), Some(999));
    assert_eq!(find(&mut driver, 0, digest_of(1)), None);
    driver.finish();
}

/// Three copies lose their pages in that order.
fn find_while_copies_go(order: impl Iterator<Item = u64>) {
    let mut driver = Driver::new(1);
    driver.knobs.max_page_sharing = 2;
    driver.add_guest(0, 0, BLOCK);
    for page in 0..6 {
        driver.host.write(0, page, 5);
    }
    driver.round();
    assert_eq!(driver.index(0).copies(), 3);
    for page in 0..6 {
        assert_eq!(find(&mut driver, 0, digest_of(5)), Some(5));
        assert!(matches!(
            states(&mut driver, 0, page, 1)[0],
            PageState::Merged { .. }
        ));
    }
    for page in order {
        assert_eq!(find(&mut driver, 0, digest_of(5)), Some(5));
        driver.host.discard(0, page);
        driver.sweep();
    }
    assert_eq!(find(&mut driver, 0, digest_of(5)), None);
    driver.finish();
}

#[test]
fn of_equal_copies_one_is_found_as_long_as_there_is_one() {
    // First the one that is found, or first those that are behind it.
    find_while_copies_go(0..6);
    find_while_copies_go((0..6).rev());
}

/// An index whose digests are all known, with 200 copies that are found by theirs and one that
/// another has the place of.
fn many_copies() -> Driver {
    let mut driver = Driver::new(1);
    driver.knobs.max_page_sharing = 2;
    driver.add_guest(0, 0, BLOCK);
    for page in 0..400 {
        driver.host.write(0, page, 100 + page / 2);
    }
    for page in 400..404 {
        driver.host.write(0, page, 5);
    }
    driver.round();
    assert_eq!(driver.index(0).copies(), 202);
    assert_eq!(find(&mut driver, 0, digest_of(99)), None);
    driver
}

#[test]
fn a_search_ends_while_copies_come_and_go() {
    let mut driver = many_copies();
    // A new one, which the search is to find.
    for page in 404..406 {
        driver.host.write(0, page, 6);
    }
    driver.round();
    let mut gone = 0;
    for (wanted, found) in [(99, false), (6, true)] {
        let mut calls = 0;
        let mut search = Search::new(digest_of(wanted));
        loop {
            // One that is found by its digest goes, and a new one gets its number.
            driver.host.discard(0, gone);
            driver.host.discard(0, gone + 1);
            gone += 2;
            driver.round();
            for page in 500..502 {
                driver.host.write(0, page, 1000 + gone);
            }
            driver.round();
            calls += 1;
            let index = driver.indexes.get_mut(&0).expect("an index");
            match index.find_digest(&mut driver.host, &mut search, 1) {
                Ok(Found::More) => assert!(calls < 10, "the search does not end"),
                Ok(Found::Copy(_)) => break assert!(found),
                Ok(Found::None) => break assert!(!found),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    driver.finish();
}

#[test]
fn a_broken_copy_is_not_read() {
    let mut driver = one_of_each();
    assert!(find(&mut driver, 0, digest_of(5)).is_some());
    for info in driver.host.frames.borrow_mut().used.values_mut() {
        info.poisoned |= info.content == 5;
    }
    // The scanner notices, or somebody says so; reading it would kill the host.
    driver.round();
    assert_eq!(find(&mut driver, 0, digest_of(5)), None);
    assert_eq!(states(&mut driver, 0, 1, 1), [PageState::Skipped]);
    driver.finish();
}

#[test]
fn a_copy_that_the_scanner_has_not_seen_broken_is_not_read() {
    for is_known in [false, true] {
        let mut driver = Driver::new(1);
        driver.knobs.max_page_sharing = 2;
        driver.add_guest(0, 0, BLOCK);
        for page in 0..6 {
            driver.host.write(0, page, 5);
        }
        driver.round();
        assert_eq!(driver.index(0).copies(), 3);
        if is_known {
            states(&mut driver, 0, 0, 6);
        }
        // The others are found as long as there is one.
        for page in [0, 5, 2] {
            assert_eq!(find(&mut driver, 0, digest_of(5)), Some(5));
            let Pte::Frame(pfn) = driver.host.pte(0, page) else {
                panic!("it is merged")
            };
            driver.host.frames.borrow_mut().get_mut(pfn).poisoned = true;
        }
        assert_eq!(find(&mut driver, 0, digest_of(5)), None);
        driver.finish();
    }
}

#[test]
fn another_domains_copy_is_not_told() {
    let mut driver = one_of_each();
    let ranges = driver.ranges[&0].clone();
    driver.detach(0);
    driver.host.mm(0).moved = true;
    driver.add_index(1);
    driver.attach(0, 1, ranges);
    assert_eq!(states(&mut driver, 0, 1, 1), [PageState::Skipped]);
    assert_eq!(find(&mut driver, 1, digest_of(5)), None);
    driver.finish();
}

/// The bytes of a file with one record of each kind, as version 1 has them for ever.
#[test]
fn the_file_is_what_it_was() {
    let header = Header {
        id: 3,
        domain: 0xfeed,
        records: 5,
        layout: 7,
    };
    let digest = digest_of(1);
    let serial = 0x1234_5678_9abc;
    let states = [
        PageState::Absent,
        PageState::Unmerged { digest },
        PageState::Merged { serial, digest },
        PageState::Zero,
        PageState::Skipped,
    ];
    let golden: Vec<u8> = include_str!("data/digests-v1.hex")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .map(|byte| u8::from_str_radix(byte, 16).expect("two digits"))
        .collect();
    let mut file = header.encode().to_vec();
    for (gfn, state) in (0x10_0000..).zip(states) {
        file.extend(Record { gfn, state }.encode());
    }
    assert_eq!(file, golden);
    let (first, rest) = golden.split_first_chunk().expect("a header");
    assert_eq!(Header::decode(first), Ok(header));
    for (bytes, (gfn, state)) in rest
        .chunks_exact(RECORD_BYTES)
        .zip((0x10_0000..).zip(states))
    {
        let bytes = bytes.try_into().expect("a record");
        assert_eq!(Record::decode(bytes), Ok(Record { gfn, state }));
    }
}

#[test]
fn the_digest_of_a_page_of_zeroes_is_right() {
    use sha2::{
        Digest,
        Sha256, //
    };
    assert_eq!(ZERO_DIGEST[..], Sha256::digest([0; 4096])[..]);
}

#[test]
fn errors_are_told_apart() {
    let mut driver = one_of_each();
    let index = driver.indexes.get_mut(&0).expect("an index");
    let (host, scratch) = (&mut driver.host, &mut driver.scratch);
    let mut tell = |host: &mut host::Host, guest| {
        let asked = Asked {
            guest: GuestId(guest),
            addr: 3 * PAGE_BYTES,
            pages: 1,
            digests: 1,
        };
        index.page_states(host, scratch, asked, |_| {})
    };
    assert_eq!(tell(host, 9), Err(Untold::NoGuest));
    host.chaos.no_memory = 1000;
    assert_eq!(tell(host, 0), Err(Untold::NoMemory));
    host.chaos.busy = 1000;
    assert_eq!(tell(host, 0), Err(Untold::Away(Away::Busy)));
    host.exit(0);
    assert_eq!(tell(host, 0), Err(Untold::Away(Away::Gone)));
    driver.host.calm();
    driver.finish();
}
