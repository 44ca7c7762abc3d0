// SPDX-License-Identifier: GPL-2.0

//! Damage on the disk gives an error and never another page.

use std::fs::{
    self,
    OpenOptions, //
};
use std::os::unix::fs::FileExt;
use std::path::{
    Path,
    PathBuf, //
};

use twinpage_store::{
    Admit,
    Error,
    Mode,
    PageSource,
    Sources,
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

/// The file of the store at `path` whose name begins so.
fn part(path: &Path, name: &str) -> PathBuf {
    let mut entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries
        .find(|entry| entry.file_name().to_str().unwrap().starts_with(name))
        .unwrap()
        .path()
}

/// Changes one bit of a file.
fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).unwrap();
}

/// A store with pages and candidates, closed.
fn some(directory: &Path, pages: u64) -> PathBuf {
    let mut store = pages::store(directory, 2);
    publish(&mut store, 0..pages);
    let mut load = store.load().unwrap();
    offer(&mut load, "a", Trust::Counted, 1 << 40);
    load.finish().unwrap();
    directory.join("store")
}

#[test]
fn a_bad_page_is_found_never_given_and_dropped() {
    let directory = pages::directory();
    let path = some(directory.path(), 300);
    let store = Store::open(&path, Mode::Read).unwrap();
    for slot in [0, 7, 299] {
        flip(&part(&path, "pages-"), slot * 4096 + 1234);
    }
    let verified = store.verify(&mut go_on).unwrap();
    assert_eq!(
        (verified.pages, verified.bad, verified.dropped),
        (300, 3, 0)
    );
    let mut sources = Sources::new();
    sources.push(Box::new(store));
    let mut bad = 0;
    for number in 0..300 {
        let mut into = [0; 4096];
        match sources.fetch(&digest(number), &mut into) {
            Some(_) => assert_eq!(into, page(number)),
            None => bad += 1,
        }
    }
    assert_eq!((bad, sources.counts()[0].errors), (3, 3));
    let mut store = Store::open(&path, Mode::Write).unwrap();
    let verified = store.repair(&mut go_on).unwrap();
    assert_eq!(
        (verified.pages, verified.bad, verified.dropped),
        (300, 3, 3)
    );
    let verified = store.verify(&mut go_on).unwrap();
    assert_eq!((verified.pages, verified.bad), (297, 0));
}

#[test]
fn a_swapped_page_is_bad() {
    let directory = pages::directory();
    let path = some(directory.path(), 10);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(part(&path, "pages-"))
        .unwrap();
    let mut two = [0; 8192];
    file.read_exact_at(&mut two, 4096).unwrap();
    two.rotate_left(4096);
    file.write_all_at(&two, 4096).unwrap();
    let store = Store::open(&path, Mode::Read).unwrap();
    assert_eq!(store.verify(&mut go_on).unwrap().bad, 2);
    assert!(matches!(
        store.fetch(&digest(1), &mut [0; 4096]),
        Err(Error::Damaged { .. })
    ));
}

#[test]
fn pages_that_cannot_be_read_are_bad_and_dropped() {
    let directory = pages::directory();
    let path = some(directory.path(), 300);
    let mut store = Store::open(&path, Mode::Write).unwrap();
    let file = OpenOptions::new().write(true).open(part(&path, "pages-"));
    // Reading them fails, as on a disk that lost some.
    file.unwrap().set_len(298 * 4096 + 7).unwrap();
    let verified = store.repair(&mut go_on).unwrap();
    assert_eq!((verified.bad, verified.dropped), (2, 2));
    let verified = store.verify(&mut go_on).unwrap();
    assert_eq!((verified.pages, verified.bad), (298, 0));
}

#[test]
fn a_damaged_page_stops_no_build() {
    let directory = pages::directory();
    let path = some(directory.path(), 300);
    flip(&part(&path, "pages-"), 5);
    let mut store = Store::open(&path, Mode::Write).unwrap();
    publish(&mut store, 300..600);
    assert_eq!(store.pages(), 600);
    assert_eq!(store.verify(&mut go_on).unwrap().bad, 1);
    assert_eq!(store.stat().unwrap().segments, 2);
    store.repair(&mut go_on).unwrap();
    publish(&mut store, 600..900);
    assert_eq!((store.pages(), store.stat().unwrap().segments), (899, 1));
}

#[test]
fn damage_of_other_files_is_named_when_a_store_is_opened() {
    let mut random = Random(77);
    for name in ["index-", "manifest"] {
        let directory = pages::directory();
        let path = some(directory.path(), 300);
        let file = part(&path, name);
        let bytes = fs::read(&file).unwrap();
        for _ in 0..50 {
            let at = random.below(bytes.len() as u64);
            flip(&file, at);
            let error = Store::open(&path, Mode::Read).err().unwrap();
            assert!(
                matches!(error, Error::Damaged { .. }),
                "{name} byte {at}: {error}"
            );
            assert!(error.to_string().contains(name), "{error}");
            fs::write(&file, &bytes).unwrap();
        }
        for keep in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&file, &bytes[..keep]).unwrap();
            assert!(
                Store::open(&path, Mode::Read).is_err(),
                "{name} cut to {keep}"
            );
        }
        fs::write(&file, &bytes).unwrap();
        assert_eq!(Store::open(&path, Mode::Read).unwrap().pages(), 300);
    }
}

#[test]
fn lengths_are_checked() {
    let directory = pages::directory();
    let path = some(directory.path(), 300);
    let pages = part(&path, "pages-");
    let file = OpenOptions::new().write(true).open(&pages).unwrap();
    for len in [0, 299 * 4096, 300 * 4096 - 1, 301 * 4096] {
        file.set_len(len).unwrap();
        let error = Store::open(&path, Mode::Read).err().unwrap();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
    fs::remove_file(&pages).unwrap();
    assert!(matches!(
        Store::open(&path, Mode::Read),
        Err(Error::File { .. })
    ));
}

#[test]
fn days_of_use_may_be_lost() {
    let directory = pages::directory();
    let path = some(directory.path(), 30);
    let used = part(&path, "used-");
    fs::write(&used, b"x").unwrap();
    let store = Store::open(&path, Mode::Read).unwrap();
    assert!(store.fetch(&digest(3), &mut [0; 4096]).unwrap());
    assert!(store.stat().unwrap().oldest_use_days > Some(365));
    fs::remove_file(&used).unwrap();
    let store = Store::open(&path, Mode::Read).unwrap();
    assert!(store.fetch(&digest(3), &mut [0; 4096]).unwrap());
}

#[test]
fn damaged_candidates_stop_what_needs_them_only() {
    let directory = pages::directory();
    let path = some(directory.path(), 30);
    flip(&part(&path, "candidates-"), 5000);
    let mut store = Store::open(&path, Mode::Write).unwrap();
    assert!(store.fetch(&digest(3), &mut [0; 4096]).unwrap());
    publish(&mut store, 30..60);
    let mut load = store.load().unwrap();
    let source = twinpage_store::SourceId::new("b");
    let error = load
        .offer(&source, Trust::Counted, &digest(99), &page(99))
        .err()
        .unwrap();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    drop(load);
    assert_eq!(store.pages(), 60);
}
