// SPDX-License-Identifier: GPL-2.0

//! Many read while one writes.

use std::fs;
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::thread;

use twinpage_store::{
    Error,
    Limits,
    Mode,
    PageSource,
    Store, //
};

use crate::pages::{
    self,
    digest,
    go_on,
    page,
    publish, //
};

#[test]
fn a_second_writer_is_told_of_the_first() {
    let directory = pages::directory();
    let path = directory.path().join("store");
    let store = pages::store(directory.path(), 2);
    let error = Store::open(&path, Mode::Write).err().unwrap();
    assert!(matches!(error, Error::Locked(_)), "{error}");
    drop(store);
    Store::open(&path, Mode::Write).unwrap();
}

#[test]
fn a_reader_keeps_the_state_that_it_opened() {
    let directory = pages::directory();
    let path = directory.path().join("store");
    let mut store = pages::store(directory.path(), 2);
    publish(&mut store, 0..100);
    let reader = Store::open(&path, Mode::Read).unwrap();
    publish(&mut store, 100..300);
    let limits = Limits {
        max_bytes: Some(0),
        ..Limits::default()
    };
    store.gc(&limits, &mut go_on).unwrap();
    let mut into = [0; 4096];
    for number in 0..100 {
        assert!(reader.fetch(&digest(number), &mut into).unwrap());
        assert_eq!(into, page(number));
    }
    assert!(!reader.fetch(&digest(100), &mut into).unwrap());
    assert_eq!(Store::open(&path, Mode::Read).unwrap().pages(), 0);
}

#[test]
fn a_store_opened_again_reads_only_indexes_that_are_new() {
    let directory = pages::directory();
    let path = directory.path().join("store");
    let mut store = pages::store(directory.path(), 2);
    publish(&mut store, 0..100);
    let reader = Store::open(&path, Mode::Read).unwrap();
    publish(&mut store, 100..110);
    drop(store);
    // The first index cannot be read again.
    fs::remove_file(path.join("index-1")).unwrap();
    assert!(Store::open(&path, Mode::Read).is_err());
    let now = reader.reopen().unwrap();
    let mut into = [0; 4096];
    for number in 0..110 {
        assert!(now.fetch(&digest(number), &mut into).unwrap());
        assert_eq!(into, page(number));
    }
    assert_eq!((reader.pages(), now.pages()), (100, 110));
}

#[test]
fn readers_open_at_any_moment_of_a_build() {
    let directory = pages::directory();
    let path = directory.path().join("store");
    let mut store = pages::store(directory.path(), 2);
    publish(&mut store, 0..64);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = || {
            let mut opened = 0;
            let mut into = [0; 4096];
            while !done.load(Ordering::Relaxed) {
                let store = Store::open(&path, Mode::Read).unwrap();
                let pages = store.pages();
                for number in 0..pages {
                    assert!(
                        store.fetch(&digest(number), &mut into).unwrap(),
                        "{number} of {pages}"
                    );
                    assert_eq!(into, page(number));
                }
                opened += 1;
            }
            opened
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for round in 1..40 {
            publish(&mut store, round * 64..(round + 1) * 64);
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
}
