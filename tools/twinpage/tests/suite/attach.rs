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
    machine.vm(1, 900, 7, &[]);
    let ran = machine.run("attach --all --domain 7");
    let note = "twinpage: VMs that were attached already: 1\n";
    assert_eq!((ran.code, ran.err.as_str()), (0, note));
    assert_eq!(machine.log(), ["attach 812 7", "attach 901 7"]);
}

#[test]
fn what_is_attached_to_another_domain_is_a_failure() {
    for line in ["attach --all --domain 7", "attach --pid 900 --domain 7"] {
        let machine = Machine::new();
        machine.process(900, "vmm", 1);
        machine.vm(1, 900, 8, &[]);
        let ran = machine.run(line);
        let message = "twinpage: VM 1 of process 900 (vmm) is attached already, to domain 8";
        assert!(ran.bad(1).starts_with(message), "{ran:?}");
        assert_eq!(machine.run("attach --pid 900 --domain 8").code, 0);
        // Every other one: private.
        assert_eq!(machine.run("attach --all").code, 0);
    }
}

#[test]
fn json_tells_what_was_attached_before_and_what_failed() {
    let machine = Machine::new();
    for pid in [812, 900, 901, 902] {
        machine.process(pid, "vmm", 1);
    }
    machine.vm(1, 900, 7, &[]);
    machine.vm(2, 901, 8, &[]);
    // One that ends just then is none of all.
    let errors = [(902, Errno::SRCH)];
    machine.state.lock().unwrap().take_errors.extend(errors);
    let ran = machine.run("attach --all --domain 7 --json");
    assert_eq!(ran.code, 1);
    let said: serde_json::Value = serde_json::from_slice(&ran.out).unwrap();
    assert_eq!(said["attached"][0]["pid"], 812);
    assert_eq!(
        said["already"],
        serde_json::json!([{"pid": 900, "name": "vmm", "id": 1}])
    );
    assert_eq!(said["failed"][0]["pid"], 901);
    assert_eq!(said["failed"][0]["code"], 1);
    assert_eq!(said["failed"].as_array().unwrap().len(), 1);
}

/// A machine on which two guests run that a file names, one whose VM is attached, and a third one.
fn with_guests(file: &str) -> Machine {
    let machine = Machine::new();
    for (pid, name) in [(812, "web-1"), (900, "web-10"), (901, "a guest")] {
        machine.process(pid, "qemu-system-x86", 1);
        let cmdline = format!("qemu\0-name\0guest={name},debug-threads=on\0");
        machine.file(&format!("/proc/{pid}/cmdline"), cmdline);
    }
    machine.file("/etc/domains", file);
    machine
}

/// How the file of [`with_guests`] is named on its machine.
const DOMAINS: &str = "attach --domains /etc/domains";

#[test]
fn guests_are_attached_to_the_domains_that_a_file_says() {
    let file = "# who shares\n\nweb-1 web\n  a guest\t7\nweb-01 9\ngone 7\n";
    let machine = with_guests(file);
    machine.run(DOMAINS).good();
    let expected = [format!("attach 812 {WEB}"), "attach 901 7".to_owned()];
    assert_eq!(machine.log(), expected);
    machine.vm(3, 812, WEB, &[]);
    machine.vm(4, 901, 7, &[]);
    // Again, as after a reload.
    let ran = machine.run(DOMAINS);
    let note = "twinpage: VMs that were attached already: 2\n";
    assert_eq!((ran.code, ran.err.as_str()), (0, note));
    // None of them runs.
    let machine = Machine::new();
    machine.file("/etc/domains", file);
    assert_eq!(machine.run(DOMAINS).good(), "");
}

#[test]
fn a_wrong_line_attaches_nobody() {
    let table = [
        ("web-1 web\nweb-10\n", "/etc/domains:2"),
        ("web-1 web\nweb-1 db\n", "the guest was named before"),
        ("web-1 Private\n", "is written `private`"),
    ];
    for (file, message) in table {
        let machine = with_guests(file);
        let err = machine.run(DOMAINS);
        assert!(err.bad(2).contains(message), "{err:?}");
        assert!(machine.log().is_empty());
    }
    assert_eq!(with_guests("").run("attach --domains /nowhere").code, 1);
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
