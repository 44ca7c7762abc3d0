// SPDX-License-Identifier: GPL-2.0

//! Merged pages of this host as a source of pages.

use std::fs;

use rustix::io::Errno;
use twinpage::digest::Digest;
use twinpage::domain::Domain;
use twinpage::module_pages::ModulePages;
use twinpage_engine::engine::wire::{
    PageState,
    Record, //
};
use twinpage_store::PageSource;

use crate::digests::file;
use crate::machine::Machine;

/// Content number `n`.
fn content(n: u8) -> [u8; 4096] {
    [n; 4096]
}

/// The record of a page that maps copy `n`.
fn merged(gfn: u64, n: u8) -> Record {
    let digest = Digest::of(&content(n)).0;
    let serial = u64::from(n);
    let state = PageState::Merged { serial, digest };
    Record { gfn, state }
}

/// Adds a VM with these records.
fn add(machine: &Machine, id: u32, domain: u64, records: &[Record]) {
    machine.process(800 + id, "vmm", 1);
    machine.vm(id, 800 + id, domain, &[]);
    let path = format!("/sys/kernel/debug/twinpage/{id}/digests");
    machine.file(&path, file(id, domain, records));
}

/// Two VMs of domain 7, one of domain 8, one private.
fn machine() -> Machine {
    let machine = Machine::new();
    let private = Record {
        gfn: 9,
        state: PageState::Unmerged {
            digest: Digest::of(&content(9)).0,
        },
    };
    add(
        &machine,
        1,
        7,
        &[merged(0, 1), merged(1, 2), merged(2, 1), private],
    );
    add(&machine, 2, 7, &[merged(0, 2), merged(5, 3)]);
    add(&machine, 3, 8, &[merged(0, 4)]);
    add(&machine, 4, 0, &[merged(0, 5)]);
    for n in 1..=5 {
        let key = (7, Digest::of(&content(n)));
        machine
            .state
            .lock()
            .unwrap()
            .pages
            .insert(key, content(n).to_vec());
    }
    machine
}

/// What `pages` lists.
fn listed(pages: &ModulePages) -> Vec<Digest> {
    let mut digests = Vec::new();
    pages.digests(&mut |digest| digests.push(digest)).unwrap();
    digests
}

/// The digests of these contents.
fn digests(numbers: &[u8]) -> Vec<Digest> {
    numbers.iter().map(|&n| Digest::of(&content(n))).collect()
}

#[test]
fn merged_copies_of_one_domain_are_listed_once() {
    let machine = machine();
    let pages = ModulePages::open(&machine.host(), Domain(7)).unwrap();
    assert_eq!(listed(&pages), digests(&[1, 2, 3]));
    let pages = ModulePages::open(&machine.host(), Domain(8)).unwrap();
    assert_eq!(listed(&pages), digests(&[4]));
    let pages = ModulePages::open(&machine.host(), Domain(9)).unwrap();
    assert_eq!(listed(&pages), []);
}

#[test]
fn pages_are_fetched_by_digest() {
    let machine = machine();
    let pages = ModulePages::open(&machine.host(), Domain(7)).unwrap();
    let mut page = [0; 4096];
    assert!(pages.fetch(&Digest::of(&content(2)), &mut page).unwrap());
    assert_eq!(page, content(2));
    assert!(!pages.fetch(&Digest::of(&content(77)), &mut page).unwrap());
    // The same page, but of another domain.
    let pages = ModulePages::open(&machine.host(), Domain(8)).unwrap();
    assert!(!pages.fetch(&Digest::of(&content(2)), &mut page).unwrap());
}

#[test]
fn refusal_of_the_module_is_an_error() {
    let machine = machine();
    let pages = ModulePages::open(&machine.host(), Domain(7)).unwrap();
    machine.state.lock().unwrap().read_error = Some(Errno::PERM);
    let error = pages
        .fetch(&Digest::of(&content(2)), &mut [0; 4096])
        .unwrap_err();
    assert!(error.to_string().contains("read a merged page"), "{error}");
}

#[test]
fn private_pages_are_for_nobody() {
    let error = ModulePages::open(&machine().host(), Domain::PRIVATE);
    let text = error.err().unwrap().to_string();
    assert!(text.contains("private VMs cannot be asked for"), "{text}");
}

#[test]
fn vm_that_goes_meanwhile_is_no_error() {
    let machine = machine();
    let pages = ModulePages::open(&machine.host(), Domain(7)).unwrap();
    let path = machine.path("/sys/kernel/debug/twinpage/1");
    let mut seen = Vec::new();
    let result = pages.digests(&mut |digest| {
        // The other VM goes while the first is read.
        fs::remove_file(machine.path("/sys/kernel/debug/twinpage/2/digests")).unwrap_or_default();
        seen.push(digest);
    });
    result.unwrap();
    assert_eq!(seen, digests(&[1, 2]));
    fs::remove_dir_all(path).unwrap();
    assert_eq!(listed(&pages), []);
}

#[test]
fn malformed_files_are_errors() {
    let machine = machine();
    let path = "/sys/kernel/debug/twinpage/1/digests";
    let whole = fs::read(machine.path(path)).unwrap();
    // Not the format, and a header that promises more records than there are.
    for bytes in [b"nonsense".as_slice(), &whole[..128]] {
        machine.file(path, bytes);
        let pages = ModulePages::open(&machine.host(), Domain(7)).unwrap();
        let error = pages.digests(&mut |_| ()).unwrap_err();
        assert!(
            error.to_string().contains("digests of merged pages"),
            "{error}"
        );
    }
}

#[test]
fn missing_module_is_told_at_once() {
    let machine = Machine::without_module();
    let error = ModulePages::open(&machine.host(), Domain(7)).err().unwrap();
    assert!(error.to_string().contains("not loaded"), "{error}");
}

#[test]
fn source_serves_many_threads() {
    let machine = machine();
    let pages = ModulePages::open(&machine.host(), Domain(7)).unwrap();
    std::thread::scope(|scope| {
        for n in 1..=3 {
            let pages = &pages;
            scope.spawn(move || {
                for _ in 0..100 {
                    let mut page = [0; 4096];
                    assert!(pages.fetch(&Digest::of(&content(n)), &mut page).unwrap());
                    assert_eq!(page, content(n));
                }
            });
        }
    });
}
