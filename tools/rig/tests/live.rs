// SPDX-License-Identifier: GPL-2.0

//! The rig with real QEMUs: the guest does what it says, and migration keeps its memory.

use std::time::Duration;

use twinpage_rig::{
    compare,
    Boot,
    Build,
    Guest,
    Options,
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
fn memory_is_the_same_after_migration() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::writing_slowly(16);
    let options = Options::new(Build::Trixie, "pc", &guest);
    let uri = format!("unix:{}", dir.path().join("migrate.sock").display());
    let mut there = Qemu::start(
        &options.clone().incoming(&uri).with(["-S"]),
        "there",
        dir.path(),
    )
    .unwrap();
    let mut here = Qemu::start(&options, "here", dir.path()).unwrap();
    here.wait_filled().unwrap();
    here.wait_progress(LIMIT).unwrap();
    here.migrate(&uri).unwrap();
    here.wait_migration(&["completed"], LIMIT).unwrap();
    assert_eq!(here.state().unwrap(), "postmigrate");
    there.wait_migration(&["completed"], LIMIT).unwrap();
    compare(&here.save_memory().unwrap(), &there.save_memory().unwrap()).unwrap();
    there
        .guest()
        .clone()
        .check(&std::fs::read(there.save_memory().unwrap()).unwrap())
        .unwrap();
    there.qmp().run("cont", serde_json::json!({})).unwrap();
    there.wait_progress(LIMIT).unwrap();
    there.check_memory().unwrap();
}
