// SPDX-License-Identifier: GPL-2.0

//! Pages are admitted when enough sources have them, and nothing is kept of others.

use std::fs;
use std::os::unix::fs::{
    FileTypeExt,
    MetadataExt, //
};
use std::path::Path;

use twinpage_store::{
    Admit,
    Mode,
    Offered,
    PageSource,
    SourceId,
    Store,
    Trust, //
};

use crate::pages::{
    self,
    digest,
    offer,
    page, //
};

#[test]
fn as_many_sources_as_were_set_admit_a_page() {
    for needed in [2, 3, 16] {
        let directory = pages::directory();
        let mut store = pages::store(directory.path(), needed);
        for source in 1..needed {
            let mut load = store.load().unwrap();
            let name = source.to_string();
            assert_eq!(offer(&mut load, &name, Trust::Counted, 1), Offered::Counted);
            // The same source again, now and in another build, is no further one.
            assert_eq!(offer(&mut load, &name, Trust::Counted, 1), Offered::Counted);
            load.finish().unwrap();
            assert_eq!(offer(&mut load, &name, Trust::Counted, 1), Offered::Counted);
            load.finish().unwrap();
            drop(load);
            assert!(!store.fetch(&digest(1), &mut [0; 4096]).unwrap());
        }
        assert_eq!(store.stat().unwrap().candidates, 1);
        let mut load = store.load().unwrap();
        assert_eq!(
            offer(&mut load, "the last", Trust::Counted, 1),
            Offered::Admitted
        );
        assert_eq!(
            offer(&mut load, "another", Trust::Counted, 1),
            Offered::Present
        );
        load.finish().unwrap();
        let loaded = load.loaded();
        assert_eq!((loaded.offered, loaded.admitted, loaded.present), (2, 1, 1));
        drop(load);
        let mut into = [0; 4096];
        assert!(store.fetch(&digest(1), &mut into).unwrap());
        assert_eq!(into, page(1));
        assert_eq!(store.stat().unwrap().candidates, 0);
    }
}

#[test]
fn a_public_source_admits_at_once() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    let mut load = store.load().unwrap();
    assert_eq!(offer(&mut load, "a", Trust::Counted, 1), Offered::Counted);
    assert_eq!(offer(&mut load, "b", Trust::Public, 1), Offered::Admitted);
    assert_eq!(offer(&mut load, "b", Trust::Public, 1), Offered::Present);
    load.finish().unwrap();
    drop(load);
    assert_eq!(store.pages(), 1);
}

/// Whether any file below `path` contains `bytes`.
fn is_on_disk(path: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(path).unwrap().any(|entry| {
        let content = fs::read(entry.unwrap().path()).unwrap();
        content.windows(bytes.len()).any(|window| window == bytes)
    })
}

#[test]
fn neither_content_nor_digest_of_other_pages_is_on_disk() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    let mut load = store.load().unwrap();
    for number in 0..20 {
        offer(&mut load, "tenant one", Trust::Counted, number);
    }
    offer(&mut load, "tenant two", Trust::Counted, 19);
    load.finish().unwrap();
    drop(load);
    let path = directory.path().join("store");
    for number in 0..19 {
        assert!(
            !is_on_disk(&path, &page(number)[8..40]),
            "content of {number}"
        );
        assert!(
            !is_on_disk(&path, &digest(number).0[..8]),
            "digest of {number}"
        );
    }
    assert!(is_on_disk(&path, &page(19)[8..40]));
    assert!(is_on_disk(&path, &digest(19).0));
    assert!(!is_on_disk(&path, b"tenant"));
}

#[test]
fn many_candidates_survive_a_build() {
    let directory = pages::directory();
    let mut store = pages::store(directory.path(), 2);
    let path = directory.path().join("store");
    for (source, from, to) in [("a", 0, 20_000), ("b", 10_000, 30_000)] {
        let mut load = store.load().unwrap();
        for number in from..to {
            // The bytes matter only when a page is admitted.
            offer(&mut load, source, Trust::Counted, number);
        }
        load.finish().unwrap();
        drop(load);
        drop(store);
        store = Store::open(&path, Mode::Write).unwrap();
    }
    let stat = store.stat().unwrap();
    assert_eq!((stat.pages, stat.candidates), (10_000, 20_000));
    assert!(stat.candidate_bytes < 20_000 * 256, "{stat:?}");
}

#[test]
fn a_file_stays_the_same_source_when_it_is_mounted_again() {
    let directory = pages::directory();
    let path = directory.path().join("image");
    fs::write(&path, "").unwrap();
    // The number of the device may be another after each boot.
    let number = fs::metadata(&path).unwrap().ino();
    let known = SourceId::new(format!("file {number}"));
    assert_eq!(SourceId::of_file(&path).unwrap(), known);
}

#[test]
fn block_devices_are_one_source() {
    let devices = fs::read_dir("/dev").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let meta = fs::metadata(&path).ok()?;
        meta.file_type().is_block_device().then_some(path)
    });
    let known = SourceId::new("block device");
    for path in devices {
        assert_eq!(
            SourceId::of_file(&path).unwrap(),
            known,
            "{}",
            path.display()
        );
    }
}
