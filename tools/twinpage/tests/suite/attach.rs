// SPDX-License-Identifier: GPL-2.0

//! `twinpage attach`.

use std::fs;
use std::os::unix::fs::{
    symlink,
    PermissionsExt, //
};

use rustix::io::Errno;

use crate::golden;
use crate::machine::Machine;

/// The number of domain `web`.
const WEB: u64 = 0x8318_6719_cca8_44b2;

#[test]
fn attach_names_what_it_attached() {
    let machine = Machine::new();
    machine.process(812, "qemu-system-x86", 1);
    machine.process(900, "qemu-system-x86", 1);
    machine.file(
        "/proc/900/cmdline",
        "qemu-system-x86_64\0-name\0guest=db,debug-threads=on\0",
    );
    let ran = machine.run("attach --pid 812 900 --domain web");
    golden::check("attach", &ran.good());
    let expected = [format!("attach 812 {WEB}"), format!("attach 900 {WEB}")];
    assert_eq!(machine.log(), expected);
}

#[test]
fn json_has_the_same() {
    let machine = Machine::new();
    machine.process(812, "qemu-system-x86", 1);
    golden::check(
        "attach-json",
        &machine.run("attach --pid 812 --domain web --json").good(),
    );
}

/// A machine with a VM, where the directory for names of domains is there with this mode.
fn with_names(mode: u32) -> Machine {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    fs::create_dir_all(machine.path("/run/twinpage/domains")).unwrap();
    for (path, mode) in [
        ("/run", 0o755),
        ("/run/twinpage", 0o700),
        ("/run/twinpage/domains", mode),
    ] {
        fs::set_permissions(machine.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    machine
}

#[test]
fn names_of_domains_are_kept_for_root() {
    let new = Machine::new();
    new.process(812, "vmm", 1);
    for machine in [new, with_names(0o700)] {
        machine.run("attach --pid 812 --domain web").good();
        let path = machine.path(&format!("/run/twinpage/domains/{WEB:x}"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "web");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}

#[test]
fn a_link_in_place_of_a_name_is_not_followed() {
    let machine = with_names(0o700);
    machine.file("/victim", "as before");
    let link = machine.path(&format!("/run/twinpage/domains/{WEB:x}"));
    symlink(machine.path("/victim"), link).unwrap();
    machine.run("attach --pid 812 --domain web").good();
    let victim = fs::read_to_string(machine.path("/victim")).unwrap();
    assert_eq!(victim, "as before");
}

#[test]
fn no_name_is_left_where_others_may_write() {
    let machine = with_names(0o777);
    machine.run("attach --pid 812 --domain web").good();
    let names = fs::read_dir(machine.path("/run/twinpage/domains")).unwrap();
    assert_eq!(names.count(), 0);
}

#[test]
fn domain_is_private_unless_named() {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    machine.run("attach --pid 812").good();
    assert_eq!(machine.log(), ["attach 812 0"]);
}

#[test]
fn all_finds_every_vm_once() {
    let machine = Machine::new();
    machine.process(1, "init", 0);
    machine.process(812, "vmm", 2);
    machine.process(900, "vmm", 1);
    machine.process(901, "vmm", 1);
    machine.vm(1, 900, 0, &[]);
    let ran = machine.run("attach --all --domain 7");
    let note = "twinpage: processes whose VMs were attached already: 1\n";
    assert_eq!((ran.code, ran.err.as_str()), (0, note));
    assert_eq!(machine.log(), ["attach 812 7", "attach 901 7"]);
}

#[test]
fn all_needs_one() {
    let machine = Machine::new();
    machine.process(1, "init", 0);
    let ran = machine.run("attach --all");
    assert!(ran
        .bad(4)
        .starts_with("twinpage: No process has a KVM VM\n  Remedy: "));
}

#[test]
fn causes_are_named() {
    let table = [
        (
            Errno::OPNOTSUPP,
            1,
            "The memory of the VM of process 812 is encrypted",
        ),
        (Errno::SRCH, 1, "Process 812 is exiting"),
        (Errno::NOSPC, 1, "Domain private has no room"),
        (
            Errno::NOMEM,
            1,
            "Cannot attach the VM of process 812: Cannot allocate memory",
        ),
        (
            Errno::EXIST,
            1,
            "The VM of process 812 (vmm) is attached already",
        ),
        (
            Errno::PERM,
            3,
            "Not permitted to attach the VM of process 812",
        ),
    ];
    for (errno, code, message) in table {
        let machine = Machine::new();
        machine.process(812, "vmm", 1);
        machine
            .state
            .lock()
            .unwrap()
            .attach_errors
            .insert(812, errno);
        let ran = machine.run("attach --pid 812");
        assert!(
            ran.bad(code).starts_with(&format!("twinpage: {message}")),
            "{ran:?}"
        );
    }
}

#[test]
fn causes_of_not_getting_the_descriptor_are_named() {
    let table = [
        (
            Errno::NOSYS,
            1,
            "This kernel cannot hand out file descriptors",
        ),
        (
            Errno::PERM,
            3,
            "Not permitted to take the VM out of process 812",
        ),
        (Errno::SRCH, 4, "There is no process 812"),
        (Errno::BADF, 4, "Process 812 (vmm) has no KVM VM"),
    ];
    for (errno, code, message) in table {
        let machine = Machine::new();
        machine.process(812, "vmm", 1);
        machine.state.lock().unwrap().take_errors.insert(812, errno);
        let ran = machine.run("attach --pid 812");
        assert!(
            ran.bad(code).starts_with(&format!("twinpage: {message}")),
            "{ran:?}"
        );
    }
}

#[test]
fn other_processes_are_attached_when_one_fails() {
    let machine = Machine::new();
    machine.process(5, "sh", 0);
    machine.process(812, "vmm", 1);
    let ran = machine.run("attach --pid 5 6 812");
    let err = ran.bad(4);
    assert!(err.contains("Process 5 (sh) has no KVM VM"));
    assert!(err.contains("There is no process 6"));
    assert!(err.ends_with("twinpage: 2 of 3 failed\n"), "{err}");
    assert_eq!(machine.log(), ["attach 812 0"]);
}

#[test]
fn module_must_be_there() {
    let machine = Machine::without_module();
    let ran = machine.run("attach --pid 1");
    assert!(ran
        .bad(3)
        .starts_with("twinpage: The module twinpage is not loaded\n"));

    let machine = Machine::new();
    fs::remove_file(machine.path("/dev/twinpage")).unwrap();
    assert!(machine
        .run("attach --pid 1")
        .bad(3)
        .contains("there is no /dev/twinpage"));

    let machine = Machine::new();
    machine.state.lock().unwrap().open_error = Some(Errno::ACCESS);
    let ran = machine.run("attach --pid 1");
    assert!(ran
        .bad(3)
        .ends_with("Permission denied (os error 13)\n  Remedy: run as root\n"));

    let machine = Machine::new();
    machine.state.lock().unwrap().uapi = 0;
    assert!(machine
        .run("attach --pid 1")
        .bad(3)
        .contains("speaks version 0"));
}

#[test]
fn newer_modules_are_fine() {
    let machine = Machine::new();
    machine.state.lock().unwrap().uapi = 2;
    machine.process(812, "vmm", 1);
    machine.run("attach --pid 812").good();
}

#[test]
fn memory_that_cannot_be_merged_is_told() {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    machine.file("/sys/kernel/mm/ksm/run", "1\n");
    machine.file(
        "/proc/812/smaps",
        "100000-180000 rw-s 00000000 00:01 4 /memfd:ram (deleted)\nVmFlags: rd wr sh\n\
         180000-1c0000 rw-p 00000000 00:00 0\nVmFlags: rd wr mg lo\n\
         1c0000-200000 rw-p 00000000 00:0f 7 /huge/a\nVmFlags: rd wr ht\n",
    );
    let ran = machine.run("attach --pid 812");
    assert_eq!(ran.code, 0);
    golden::check("attach-warnings", &ran.err);
}

#[test]
fn unknown_memory_is_no_failure() {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    machine.file("/proc/mounts", "");
    let ran = machine.run("attach --pid 812");
    assert_eq!(ran.code, 0);
    assert!(ran
        .err
        .contains("cannot tell what memory it has: debugfs is not mounted"));
}
