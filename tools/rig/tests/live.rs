// SPDX-License-Identifier: GPL-2.0

//! The rig with real QEMUs: the guest does what it says, and migration keeps its memory.

use std::time::Duration;

use serde_json::json;
use twinpage_rig::{
    compare,
    Boot,
    Build,
    Guest,
    Migration,
    Options,
    Progress,
    Qemu,
    Write, //
};

const LIMIT: Duration = Duration::from_secs(60);

fn runs(build: Build, machine: &str, boot: Boot, guest: &Guest) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(build, machine, guest).boot(boot);
    let mut qemu = Qemu::start(&options, "vm", dir.path()).unwrap();
    qemu.wait_filled().unwrap();
    if guest.writes.is_some() {
        qemu.wait_progress(LIMIT).unwrap();
    }
    let progress = qemu.check_memory().unwrap();
    assert_eq!(progress.pass > 0, guest.writes.is_some(), "{progress:?}");
}

#[test]
fn guest_fills_its_memory_on_every_machine() {
    for build in Build::ALL {
        for machine in ["pc", "q35", "microvm"] {
            runs(build, machine, Boot::Firmware, &Guest::idle(16));
        }
    }
}

#[test]
fn guest_starts_from_a_boot_sector() {
    for build in Build::ALL {
        for machine in ["pc", "q35"] {
            runs(build, machine, Boot::Sector, &Guest::idle(16));
        }
    }
}

#[test]
fn guest_writes_what_it_says() {
    for write in [Write::FirstWord, Write::WholePage] {
        let guest = Guest::idle(16).writing(500, write, 100);
        runs(Build::Trixie, "pc", Boot::Firmware, &guest);
    }
}

#[test]
fn memory_is_the_same_after_some_rounds() {
    for build in Build::ALL {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::idle(16).writing(512, Write::FirstWord, 1000);
        let options = Options::new(build, "pc", &guest);
        let uri = format!("unix:{}", dir.path().join("migrate.sock").display());
        let incoming = options.clone().incoming(&uri).with(["-S"]);
        let mut there = Qemu::start(&incoming, "there", dir.path()).unwrap();
        let mut here = Qemu::start(&options, "here", dir.path()).unwrap();
        here.wait_filled().unwrap();
        here.wait_progress(LIMIT).unwrap();
        let slow = json!({ "max-bandwidth": 8 << 20, "downtime-limit": 1 });
        Migration::new(&[], slow).set_up(&mut here).unwrap();
        here.migrate(&uri).unwrap();
        here.wait_rounds(3, LIMIT).unwrap();
        let fast = json!({ "max-bandwidth": 0, "downtime-limit": 2000 });
        here.qmp().run("migrate-set-parameters", fast).unwrap();
        here.wait_migration(&["completed"], LIMIT).unwrap();
        assert_eq!(here.state().unwrap(), "postmigrate");
        there.wait_migration(&["completed"], LIMIT).unwrap();
        let memory = there.save_memory().unwrap();
        compare(&here.save_memory().unwrap(), &memory).unwrap();
        assert!(guest.check(&std::fs::read(memory).unwrap()).unwrap().pass > 0);
        there.qmp().run("cont", json!({})).unwrap();
        there.wait_progress(LIMIT).unwrap();
        there.check_memory().unwrap();
    }
}

#[test]
fn wrong_memory_is_noticed() {
    let guest = Guest::idle(16).writing(4, Write::FirstWord, 0);
    let mut memory = vec![0; 16 << 20];
    for number in 0x100..0x100 + 16 * 160 {
        memory[number * 4096..][..4096].copy_from_slice(&guest.page(number as u32).unwrap());
    }
    assert_eq!(
        guest.check(&memory).unwrap(),
        Progress { pass: 0, pages: 4 }
    );
    // The status word: pass 2 has begun; two pages are of it and two of pass 1.
    memory[0x5004] = 2;
    for (number, pass) in [(0x100, 2), (0x101, 2), (0x102, 1), (0x103, 1)] {
        memory[number * 4096..][..4].copy_from_slice(&u32::to_le_bytes(pass));
    }
    assert_eq!(
        guest.check(&memory).unwrap(),
        Progress { pass: 2, pages: 2 }
    );
    for place in [
        0x100_000, 0x100_fff, 0x102_000, 0x103_004, 0x104_000, 0xaff_fff,
    ] {
        memory[place] ^= 1;
        assert!(guest.check(&memory).is_err(), "{place:#x}");
        memory[place] ^= 1;
    }
    assert!(guest.check(&memory[..1 << 20]).is_err());
}

#[test]
fn nothing_is_left_when_a_qemu_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(Build::Trixie, "microvm", &Guest::idle(16));
    let mut qemu = Qemu::start(&options, "vm", dir.path()).unwrap();
    let process = format!("/proc/{}", qemu.process().pid());
    assert!(std::path::Path::new(&process).exists());
    drop(qemu);
    assert!(!std::path::Path::new(&process).exists());
}
