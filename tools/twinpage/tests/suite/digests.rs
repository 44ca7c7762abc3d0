// SPDX-License-Identifier: GPL-2.0

//! `twinpage digests` and `twinpage read`.

use std::fs;

use twinpage::digest::Digest;
use twinpage_engine::engine::wire::{
    Header,
    PageState,
    Record, //
};

use crate::golden;
use crate::machine::{
    Machine,
    SLOTS, //
};

/// Where the memory of a VM is in its process.
const ADDRESS: usize = 0x100000;

/// The content of the merged page.
const MERGED: [u8; 4096] = [0x4d; 4096];

/// The content of the private page.
const PRIVATE: [u8; 4096] = [0x50; 4096];

/// The file of VM `id` with a page of each state.
pub fn file(id: u32, domain: u64, records: &[Record]) -> Vec<u8> {
    let header = Header {
        id,
        domain,
        records: records.len() as u64,
        layout: 1,
    };
    let mut bytes = header.encode().to_vec();
    for record in records {
        bytes.extend(record.encode());
    }
    bytes
}

/// A page of each state.
fn each_state() -> [Record; 5] {
    let states = [
        PageState::Merged {
            serial: 41,
            digest: Digest::of(&MERGED).0,
        },
        PageState::Unmerged {
            digest: Digest::of(&PRIVATE).0,
        },
        PageState::Zero,
        PageState::Absent,
        PageState::Skipped,
    ];
    let mut gfn = 0;
    states.map(|state| {
        gfn += 1;
        Record {
            gfn: gfn - 1,
            state,
        }
    })
}

/// A machine with a VM whose memory has these pages.
fn with_memory(pages: [[u8; 4096]; 3]) -> Machine {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    machine.vm(3, 812, 7, &[]);
    let digests = file(3, 7, &each_state());
    machine.file("/sys/kernel/debug/twinpage/3/digests", digests);
    let mut memory = vec![0; ADDRESS];
    memory.extend(pages.concat());
    machine.file("/proc/812/mem", memory);
    machine
}

#[test]
fn records_are_listed() {
    let machine = with_memory([MERGED, PRIVATE, [0; 4096]]);
    golden::check("digests", &machine.run("digests --pid 812").good());
    golden::check("digests-json", &machine.run("digests --id 3 --json").good());
}

#[test]
fn summary_counts_states() {
    let machine = with_memory([MERGED, PRIVATE, [0; 4096]]);
    golden::check(
        "digests-summary",
        &machine.run("digests --id 3 --summary").good(),
    );
    golden::check(
        "digests-summary-json",
        &machine.run("digests --id 3 --summary --json").good(),
    );
}

#[test]
fn true_digests_verify() {
    let machine = with_memory([MERGED, PRIVATE, [0; 4096]]);
    golden::check("verify", &machine.run("digests --pid 812 --verify").good());
    golden::check(
        "verify-json",
        &machine.run("digests --id 3 --verify --json").good(),
    );
}

#[test]
fn private_pages_may_change_meanwhile() {
    let machine = with_memory([MERGED, [1; 4096], [0; 4096]]);
    let text = machine.run("digests --id 3 --verify").good();
    assert!(
        text.contains("2 match, 1 changed meanwhile, 0 unreadable, 0 wrong"),
        "{text}"
    );
}

#[test]
fn wrong_digests_of_merged_and_zero_pages_are_errors() {
    let mut one_bit = MERGED;
    one_bit[4095] ^= 1;
    let mut one_byte = [0; 4096];
    one_byte[0] = 1;
    let machine = with_memory([one_bit, PRIVATE, one_byte]);
    let ran = machine.run("digests --id 3 --verify");
    assert!(ran
        .text()
        .contains("1 match, 0 changed meanwhile, 0 unreadable, 2 wrong"));
    let err = ran.bad(1);
    assert!(
        err.contains("ERROR: gfn 0: merged copy 41 has digest "),
        "{err}"
    );
    assert!(err.contains("ERROR: gfn 2: zero page has digest "), "{err}");
    assert!(
        err.contains("twinpage: VM 3: 2 pages differ from their digests"),
        "{err}"
    );
}

#[test]
fn memory_that_cannot_be_read_is_no_success() {
    let machine = with_memory([MERGED, PRIVATE, [0; 4096]]);
    machine.file("/proc/812/mem", vec![0; ADDRESS]);
    let ran = machine.run("digests --id 3 --verify");
    assert!(ran
        .text()
        .contains("0 match, 0 changed meanwhile, 3 unreadable, 0 wrong"));
    assert!(ran
        .bad(1)
        .contains("VM 3: the memory of 3 pages cannot be read"));
}

#[test]
fn broken_files_are_named() {
    let whole = file(3, 7, &each_state());
    let change = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        bytes
    };
    let table = [
        (Vec::new(), "it ends early"),
        (whole[..100].to_vec(), "it ends early"),
        (change(0, 0), "it does not start with TWPDGST1"),
        (change(8, 2), "its version is 2 instead of 1"),
        (change(16, 65), "its header or records have another size"),
        (change(20, 4), "it is about another VM"),
        (change(39, 0x80), "it has too many records"),
        (change(64 + 8, 9), "a record has the unknown state 9"),
        (change(64, 4), "guest pages are out of order"),
    ];
    for (bytes, message) in table {
        let machine = Machine::new();
        machine.vm(3, 812, 7, &[]);
        machine.file("/sys/kernel/debug/twinpage/3/digests", bytes);
        let ran = machine.run("digests --id 3");
        let message = format!("/3/digests is malformed: {message}");
        assert!(ran.bad(1).contains(&message), "{message}: {ran:?}");
    }
}

#[test]
fn several_vms_of_a_process_need_an_id() {
    let machine = with_memory([MERGED, PRIVATE, [0; 4096]]);
    machine.vm(9, 812, 7, &[]);
    let ran = machine.run("digests --pid 812");
    assert!(ran
        .bad(2)
        .contains("Process 812 has several VMs attached: 3, 9\n"));
}

#[test]
fn slots_must_be_readable() {
    let machine = with_memory([MERGED, PRIVATE, [0; 4096]]);
    let broken = SLOTS.replace("0x100000", "1048576");
    machine.file("/sys/kernel/debug/twinpage/3/slots", broken);
    assert!(machine
        .run("digests --id 3 --verify")
        .bad(1)
        .contains("lacks its 0x"));
}

#[test]
fn page_is_read_by_digest() {
    let machine = Machine::new();
    let digest = Digest::of(&MERGED);
    machine
        .state
        .lock()
        .unwrap()
        .pages
        .insert((7, digest), MERGED.to_vec());
    let ran = machine.run(&format!("read --domain 7 --digest {digest}"));
    assert_eq!((ran.code, ran.out.as_slice()), (0, MERGED.as_slice()));
    let ran = machine.run(&format!("read --domain 8 --digest {digest}"));
    let message = format!("Domain 8 has no merged page with digest {digest}\n");
    assert!(ran.bad(4).contains(&message));
}

#[test]
fn page_must_have_the_digest() {
    let machine = Machine::new();
    let digest = Digest::of(&MERGED);
    machine
        .state
        .lock()
        .unwrap()
        .pages
        .insert((7, digest), PRIVATE.to_vec());
    let ran = machine.run(&format!("read --domain 7 --digest {digest}"));
    assert!(ran.bad(1).contains("returned a page with digest"));
    assert!(ran.out.is_empty());
}

#[test]
fn private_domain_has_no_pages_to_read() {
    let digest = Digest::of(&MERGED);
    let ran = Machine::new().run(&format!("read --domain private --digest {digest}"));
    assert!(ran.bad(2).contains("private VMs cannot be asked for"));
}

#[test]
fn terminal_gets_no_binary() {
    let screen = twinpage::console::Screen {
        columns: 80,
        rows: 24,
    };
    let digest = Digest::of(&MERGED);
    let line = format!("read --domain 7 --digest {digest}");
    assert!(Machine::new()
        .run_on(Some(screen), &line)
        .bad(2)
        .contains("> page.bin"));
}

#[test]
fn digests_vanish_with_their_vm() {
    let machine = with_memory([MERGED, PRIVATE, [0; 4096]]);
    fs::remove_file(machine.path("/sys/kernel/debug/twinpage/3/digests")).unwrap();
    assert!(machine
        .run("digests --id 3")
        .bad(4)
        .contains("No VM is attached with id 3"));
}
