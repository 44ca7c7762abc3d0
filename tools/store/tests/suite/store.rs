// SPDX-License-Identifier: GPL-2.0

//! The database gives back what was loaded, and nothing else.

use std::collections::{
    HashMap,
    HashSet, //
};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{
    symlink,
    FileExt,
    PermissionsExt, //
};

use twinpage_store::{
    Admit,
    Digest,
    Error,
    Limits,
    Mode,
    Offered,
    PageSource,
    Settings,
    SourceId,
    Store,
    Trust, //
};

use crate::pages::{
    self,
    digest,
    go_on,
    offer,
    page,
    publish,
    Random, //
};

#[test]
fn random_fetches_equal_the_oracle() {
    let seed =
        std::env::var("TWINPAGE_SEED").map_or(0x1234_5678_9abc, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut random = Random(seed);
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    let mut oracle = HashMap::new();
    for _ in 0..12 {
        let numbers: Vec<_> = (0..random.below(3000))
            .map(|_| random.below(20_000))
            .collect();
        publish(&mut store, numbers.iter().copied());
        oracle.extend(numbers.iter().map(|number| (*number, page(*number))));
        let mut into = [0; 4096];
        for _ in 0..500 {
            let number = random.below(20_000);
            let found = store.fetch(&digest(number), &mut into).unwrap();
            assert_eq!(
                found.then_some(into),
                oracle.get(&number).copied(),
                "page {number}"
            );
        }
    }
    drop(store);
    let store = Store::open(&directory.path().join("store"), Mode::Read).unwrap();
    let mut listed = Vec::new();
    store.digests(&mut |digest| listed.push(digest)).unwrap();
    let set: HashSet<_> = listed.iter().copied().collect();
    assert_eq!(set.len(), listed.len());
    assert_eq!(set, oracle.values().map(Digest::of).collect());
    let stat = store.stat().unwrap();
    assert_eq!(stat.pages, oracle.len() as u64);
    assert_eq!(
        (stat.version, stat.sources_needed, stat.oldest_use_days),
        (1, 2, Some(0))
    );
    // Each segment is at least twice as large as the next.
    assert!(stat.segments <= 14, "{stat:?}");
    let verified = store.verify(&mut go_on).unwrap();
    assert_eq!((verified.pages, verified.bad), (stat.pages, 0));
}

#[test]
fn zeros_are_never_stored() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    let mut load = store.load().unwrap();
    let source = SourceId::new("a");
    let offered = load
        .offer(&source, Trust::Public, &Digest::ZERO_PAGE, &[0; 4096])
        .unwrap();
    assert_eq!(offered, Offered::Zero);
    load.finish().unwrap();
    drop(load);
    assert!(!store.fetch(&Digest::ZERO_PAGE, &mut [0; 4096]).unwrap());
    assert_eq!(store.stat().unwrap().pages, 0);
}

#[test]
fn what_is_not_finished_leaves_no_trace() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    publish(&mut store, 0..10);
    let before = names(directory.path());
    let mut load = store.load().unwrap();
    (100..5000).for_each(|number| {
        offer(&mut load, "a", Trust::Public, number);
        offer(&mut load, "a", Trust::Counted, 10_000 + number);
    });
    drop(load);
    assert_eq!(names(directory.path()), before);
    assert_eq!(store.pages(), 10);
}

fn names(directory: &std::path::Path) -> HashSet<String> {
    let entries = fs::read_dir(directory.join("store")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn files_are_for_their_owner_only() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    let mut load = store.load().unwrap();
    offer(&mut load, "a", Trust::Counted, 1);
    offer(&mut load, "a", Trust::Public, 2);
    load.finish().unwrap();
    drop(load);
    drop(store);
    let path = directory.path().join("store");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o700
    );
    let mut files = 0;
    for entry in fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        files += 1;
    }
    assert_eq!(
        files, 7,
        "key, lock, manifest, index, pages, used, candidates"
    );
    fs::set_permissions(path.join("key"), fs::Permissions::from_mode(0o640)).unwrap();
    let error = Store::open(&path, Mode::Read).err().unwrap();
    assert!(
        matches!(error, Error::Permissions { mode: 0o640, .. }),
        "{error}"
    );
}

#[test]
fn lock_that_is_a_link_makes_no_file_elsewhere() {
    let directory = pages::directory();
    let [path, elsewhere] = ["store", "elsewhere"].map(|name| directory.path().join(name));
    drop(pages::store(directory.path(), 2));
    fs::remove_file(path.join("lock")).unwrap();
    symlink(&elsewhere, path.join("lock")).unwrap();
    assert!(Store::open(&path, Mode::Write).is_err());
    assert!(!elsewhere.exists());
}

#[test]
fn only_a_store_is_opened_and_only_a_new_one_made() {
    let directory = pages::directory();
    let path = directory.path().join("store");
    assert!(matches!(
        Store::open(&path, Mode::Read),
        Err(Error::NoStore(_))
    ));
    drop(pages::store(directory.path(), 2));
    let again = Store::create(&path, &Settings::default());
    assert!(matches!(again, Err(Error::Exists(_))));
    for sources_needed in [0, 1, 17] {
        let made = Store::create(&directory.path().join("x"), &Settings { sources_needed });
        assert!(matches!(made, Err(Error::Setting { .. })));
    }
    // What somebody left who was killed while he made one.
    let begun = directory.path().join("begun");
    fs::create_dir(&begun).unwrap();
    fs::write(begun.join("key"), "another's").unwrap();
    let foreign = Store::create(&begun, &Settings::default());
    assert!(matches!(foreign, Err(Error::Exists(_))));
    for name in ["lock", "key", "manifest.new"] {
        fs::write(begun.join(name), "").unwrap();
    }
    drop(Store::create(&begun, &Settings::default()).unwrap());
    assert_eq!(fs::read(begun.join("key")).unwrap().len(), 32);
    let mut reader = Store::open(&path, Mode::Read).unwrap();
    assert!(matches!(reader.load().err(), Some(Error::ReadOnly(_))));
    assert!(matches!(
        reader.gc(&Limits::default(), &mut go_on),
        Err(Error::ReadOnly(_))
    ));
    assert!(matches!(reader.repair(&mut go_on), Err(Error::ReadOnly(_))));
}

#[test]
fn a_page_under_another_digest_is_refused() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    let mut load = store.load().unwrap();
    let wrong = load.offer(&SourceId::new("a"), Trust::Public, &digest(1), &page(2));
    assert!(matches!(wrong, Err(Error::WrongDigest { .. })));
    load.finish().unwrap();
    drop(load);
    assert_eq!(store.pages(), 0);
}

/// Makes the pages of a store look as if they were used on the days that `day` gives.
fn age(path: &std::path::Path, day: impl Fn(u64) -> u16) {
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap().starts_with("used-") {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(entry.path())
                .unwrap();
            for slot in 0..entry.metadata().unwrap().len() / 2 {
                file.write_all_at(&day(slot).to_le_bytes(), slot * 2)
                    .unwrap();
            }
        }
    }
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    publish(&mut store, 0..1000);
    age(&directory.path().join("store"), |slot| {
        10_000 + (slot / 100) as u16
    });
    // Fetching makes a page new again.
    for number in 0..50 {
        assert!(store.fetch(&digest(number), &mut [0; 4096]).unwrap());
    }
    let limits = Limits {
        max_bytes: Some(150 * 4096 + 4095),
        ..Limits::default()
    };
    let collected = store.gc(&limits, &mut go_on).unwrap();
    assert_eq!((collected.pages_kept, collected.pages_dropped), (150, 850));
    assert!(collected.bytes_after < collected.bytes_before);
    for number in 0..1000 {
        let kept = !(50..900).contains(&number);
        assert_eq!(
            store.fetch(&digest(number), &mut [0; 4096]).unwrap(),
            kept,
            "{number}"
        );
    }
    // All were used today now.
    let limits = Limits {
        max_unused_days: Some(1),
        ..Limits::default()
    };
    assert_eq!(store.gc(&limits, &mut go_on).unwrap().pages_dropped, 0);
    age(&directory.path().join("store"), |slot| {
        if slot < 149 {
            10_000
        } else {
            u16::MAX
        }
    });
    assert_eq!(store.gc(&limits, &mut go_on).unwrap().pages_kept, 1);
    assert_eq!(store.stat().unwrap().oldest_use_days, Some(0));
    let limits = Limits {
        max_bytes: Some(0),
        ..Limits::default()
    };
    assert_eq!(store.gc(&limits, &mut go_on).unwrap().pages_kept, 0);
    assert_eq!(store.stat().unwrap().segments, 0);
}

#[test]
fn candidates_are_forgotten_by_age() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    let mut load = store.load().unwrap();
    (0..100).for_each(|number| {
        assert_eq!(
            offer(&mut load, "a", Trust::Counted, number),
            Offered::Counted
        )
    });
    load.finish().unwrap();
    drop(load);
    let days = |days| Limits {
        max_candidate_days: Some(days),
        ..Limits::default()
    };
    let collected = store.gc(&days(1), &mut go_on).unwrap();
    assert_eq!(
        (collected.candidates_kept, collected.candidates_dropped),
        (100, 0)
    );
    assert_eq!(store.stat().unwrap().candidates, 100);
}

#[test]
fn long_work_can_be_stopped() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    publish(&mut store, 0..5000);
    let mut stop = |_| ControlFlow::Break(());
    assert!(matches!(store.verify(&mut stop), Err(Error::Stopped)));
    let limits = Limits {
        max_bytes: Some(0),
        ..Limits::default()
    };
    assert!(matches!(store.gc(&limits, &mut stop), Err(Error::Stopped)));
    assert_eq!(store.pages(), 5000);
    let verified = store.verify(&mut go_on).unwrap();
    assert_eq!((verified.pages, verified.bad), (5000, 0));
    assert_eq!(names(directory.path()).len(), 6);
}

#[test]
fn a_merge_that_was_stopped_is_made_up_for() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    pages::load(&mut store, 0..100);
    pages::load(&mut store, 100..200);
    let mut stop = |_| ControlFlow::Break(());
    assert!(matches!(store.merge(&mut stop), Err(Error::Stopped)));
    assert_eq!((store.pages(), store.stat().unwrap().segments), (200, 2));
    // A small part after them does not hide that they are to be one.
    publish(&mut store, 200..210);
    assert_eq!((store.pages(), store.stat().unwrap().segments), (210, 1));
    assert_eq!(store.verify(&mut go_on).unwrap().bad, 0);
    assert_eq!(names(directory.path()).len(), 6);
}
