// SPDX-License-Identifier: GPL-2.0

//! `twinpage shared`.

use twinpage::digest::Digest;
use twinpage_engine::engine::wire::{
    PageState,
    Record, //
};

use crate::digests::file;
use crate::golden;
use crate::machine::Machine;

/// Pages that map the copies `serials`.
fn merged(serials: &[u64]) -> Vec<Record> {
    let digest = |serial: u64| {
        let mut page = [0; 4096];
        page[..8].copy_from_slice(&serial.to_le_bytes());
        Digest::of(&page).0
    };
    (0..)
        .zip(serials)
        .map(|(gfn, &serial)| Record {
            gfn,
            state: PageState::Merged {
                serial,
                digest: digest(serial),
            },
        })
        .collect()
}

/// Adds a VM that maps the copies `serials`.
fn add(machine: &Machine, id: u32, domain: u64, serials: &[u64]) {
    let pid = 800 + id;
    machine.process(pid, &format!("vm{id}"), 1);
    machine.vm(id, pid, domain, &[]);
    let path = format!("/sys/kernel/debug/twinpage/{id}/digests");
    machine.file(&path, file(id, domain, &merged(serials)));
}

/// Three VMs of one domain and two private ones.
fn machine() -> Machine {
    let machine = Machine::new();
    add(&machine, 1, 7, &[10, 11, 12, 12, 12]);
    add(&machine, 2, 7, &[10, 11, 13]);
    add(&machine, 3, 7, &[10, 13, 13]);
    add(&machine, 4, 0, &[20, 20]);
    add(&machine, 5, 0, &[21, 21]);
    machine
}

#[test]
fn sharing_is_shown_pair_by_pair() {
    golden::check("shared", &machine().run("shared --pid 802").good());
}

#[test]
fn private_vms_stand_alone() {
    golden::check("shared-all", &machine().run("shared --all --top 1").good());
}

#[test]
fn json_has_the_same() {
    golden::check(
        "shared-json",
        &machine().run("shared --id 3 --top 2 --json").good(),
    );
}

#[test]
fn one_copy_has_one_digest() {
    let machine = machine();
    let mut records = merged(&[10]);
    records[0].state = PageState::Merged {
        serial: 10,
        digest: [0; 32],
    };
    machine.file("/sys/kernel/debug/twinpage/2/digests", file(2, 7, &records));
    let ran = machine.run("shared --all");
    assert!(ran.bad(1).contains("Merged copy 10 has different digests"));
}

#[test]
fn a_vm_that_goes_meanwhile_is_told_and_keeps_nobody_from_his_turn() {
    let machine = machine();
    std::fs::remove_file(machine.path("/sys/kernel/debug/twinpage/2/digests")).unwrap();
    let ran = machine.run("shared --all --json");
    let said: serde_json::Value = serde_json::from_slice(&ran.out).unwrap();
    let domain = &said[2];
    assert_eq!(domain["vms"][0]["merged"], 5);
    assert!(domain["vms"][1]["note"].is_string(), "{said}");
    assert_eq!(
        domain["pairs"][1],
        serde_json::json!({"a": 1, "b": 3, "copies": 1})
    );
}

#[test]
fn many_vms_are_shown_by_pairs() {
    let machine = Machine::new();
    for id in 1..=30 {
        add(&machine, id, 7, &[10, 11 + u64::from(id / 29)]);
    }
    let ran = machine.run("shared --all --top 1");
    let text = ran.good();
    let lines: Vec<_> = text.lines().map(str::trim_start).collect();
    assert!(lines[1].starts_with("VM"), "{lines:?}");
    assert_eq!(lines[2].split_whitespace().last(), Some("2"));
    assert_eq!(lines[26], "");
}

#[test]
fn nothing_attached_shares_nothing() {
    assert_eq!(Machine::new().run("shared --all").good(), "");
}
