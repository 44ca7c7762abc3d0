// SPDX-License-Identifier: GPL-2.0

//! `twinpage detach`.

use std::fs;

use rustix::io::Errno;

use crate::machine::Machine;

#[test]
fn detach_keeps_pages_merged_unless_told() {
    let machine = Machine::new();
    machine
        .state
        .lock()
        .unwrap()
        .detach_results
        .insert(3, (0, 70, None));
    let ran = machine.run("detach --id 3");
    assert_eq!(ran.good(), "VM 3 detached: 70 pages stay merged\n");
    assert_eq!(machine.log(), ["detach 3 Keep"]);
}

#[test]
fn unmerge_tells_how_much() {
    let machine = Machine::new();
    machine
        .state
        .lock()
        .unwrap()
        .detach_results
        .insert(3, (70, 0, None));
    let ran = machine.run("detach --id 3 --unmerge");
    assert_eq!(
        ran.good(),
        "VM 3 detached: 70 pages unmerged, 0 stay merged\n"
    );
    assert_eq!(machine.log(), ["detach 3 Unmerge"]);
}

#[test]
fn failed_unmerge_tells_how_far_it_got() {
    let table = [
        (Errno::NOMEM, "Cannot allocate memory", "free memory"),
        (Errno::INTR, "Interrupted system call", "detach again"),
        (Errno::BUSY, "Device or resource busy", "detach again"),
    ];
    for (errno, cause, remedy) in table {
        let machine = Machine::new();
        machine
            .state
            .lock()
            .unwrap()
            .detach_results
            .insert(3, (10, 60, Some(errno)));
        let ran = machine.run("detach --id 3 --unmerge");
        let message = format!(
            "twinpage: VM 3 is still attached: 10 pages have their own copy again, \
             60 are still merged: {cause}"
        );
        let err = ran.bad(1);
        assert!(err.starts_with(&message), "{err}");
        assert!(err.contains(&format!("Remedy: {remedy}")), "{err}");
    }
}

#[test]
fn all_means_every_attached_vm() {
    let machine = Machine::new();
    for (id, pid) in [(3, 812), (4, 900), (12, 900)] {
        machine.vm(id, pid, 0, &[]);
        machine
            .state
            .lock()
            .unwrap()
            .detach_results
            .insert(id, (0, 0, None));
    }
    machine.run("detach --all").good();
    assert_eq!(
        machine.log(),
        ["detach 3 Keep", "detach 4 Keep", "detach 12 Keep"]
    );
}

#[test]
fn pid_means_the_vms_of_that_process() {
    let machine = Machine::new();
    for (id, pid) in [(3, 812), (4, 900), (12, 900)] {
        machine.vm(id, pid, 0, &[]);
        machine
            .state
            .lock()
            .unwrap()
            .detach_results
            .insert(id, (0, 0, None));
    }
    machine.run("detach --pid 900").good();
    assert_eq!(machine.log(), ["detach 4 Keep", "detach 12 Keep"]);
}

#[test]
fn what_is_not_attached_is_told_apart() {
    let machine = Machine::new();
    machine.process(5, "sh", 0);
    machine.process(812, "vmm", 1);
    let table = [
        ("detach --id 9", "No VM is attached with id 9"),
        ("detach --pid 5", "Process 5 (sh) has no KVM VM"),
        ("detach --pid 6", "There is no process 6"),
        ("detach --pid 812", "No VM of process 812 is attached"),
    ];
    for (line, message) in table {
        let ran = machine.run(line);
        assert!(
            ran.bad(4).starts_with(&format!("twinpage: {message}")),
            "{ran:?}"
        );
    }
}

#[test]
fn signal_ends_the_rest_too() {
    let machine = Machine::new();
    for (id, pid) in [(3, 812), (4, 900), (5, 901), (6, 902)] {
        machine.vm(id, pid, 0, &[]);
        let done = (1, 2, (id == 3).then_some(Errno::INTR));
        let state = &machine.state;
        state.lock().unwrap().detach_results.insert(id, done);
    }
    let ran = machine.run("detach --all --unmerge");
    let err = ran.bad(1);
    for id in [4, 5, 6] {
        let message = format!("VM {id} is still attached: interrupted");
        assert!(err.contains(&message), "{err}");
    }
    assert_eq!(machine.log(), ["detach 3 Unmerge"]);
}

#[test]
fn all_includes_what_the_module_says_nothing_of_and_not_what_has_ended() {
    let machine = Machine::new();
    machine.vm(3, 812, 0, &[]);
    machine.vm(4, 900, 0, &[]);
    machine.vm(5, 901, 0, &[]);
    fs::remove_file(machine.path("/sys/kernel/debug/twinpage/4/stats")).unwrap();
    let state = &machine.state;
    for id in [3, 4] {
        state
            .lock()
            .unwrap()
            .detach_results
            .insert(id, (0, 1, None));
    }
    let ran = machine.run("detach --all");
    assert_eq!(
        ran.good(),
        "VM 3 detached: 1 pages stay merged\nVM 4 detached: 1 pages stay merged\n"
    );
    assert_eq!(
        machine.log(),
        ["detach 3 Keep", "detach 4 Keep", "detach 5 Keep"]
    );
}

#[test]
fn nothing_attached_is_no_failure() {
    assert_eq!(Machine::new().run("detach --all").good(), "");
}
