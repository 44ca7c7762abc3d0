// SPDX-License-Identifier: GPL-2.0

//! `twinpage status`.

use std::fs;
use std::path::Path;

use twinpage::console::Screen;

use crate::golden;
use crate::machine::Machine;

/// Statistics of a VM that differ from the usual ones.
type Changes<'a> = &'a [(&'a str, u64)];

/// Two VMs that share, and one that cannot.
fn busy() -> Machine {
    let machine = Machine::new();
    machine.process(812, "qemu-system-x86", 1);
    machine.process(900, "qemu-system-x86", 1);
    machine.file("/proc/900/cmdline", "qemu\0-name\0guest=db\0");
    machine.process(901, "vmm", 1);
    let sharing = [
        ("pages_merged", 150),
        ("zero_pages", 40),
        ("pages_unshared", 50),
        ("pages_volatile", 6),
        ("pages_absent", 10),
        ("merges", 200),
        ("breaks", 10),
    ];
    machine.vm(3, 812, 7, &sharing);
    machine.vm(4, 900, 7, &sharing);
    let skipped = [
        ("pages_unshared", 0),
        ("skip_shared", 200),
        ("skip_locked", 40),
        ("skip_pinned", 16),
    ];
    machine.vm(12, 901, 0, &skipped);
    for (name, value) in [
        ("pages_shared", "150"),
        ("pages_sharing", "150"),
        ("zero_pages", "80"),
        ("pages_scanned", "1536"),
        ("full_scans", "2"),
        ("general_profit", "930000"),
        ("cpu_ns", "150000000"),
        ("metadata_bytes", "12080"),
    ] {
        machine.sysfs(name, value);
    }
    machine
}

#[test]
fn status_shows_every_vm() {
    golden::check("status", &busy().run("status").good());
}

#[test]
fn json_has_everything() {
    golden::check("status-json", &busy().run("status --json").good());
}

#[test]
fn narrow_screens_wrap_cells() {
    let screen = Screen {
        columns: 100,
        rows: 40,
    };
    let ran = busy().run_on(Some(screen), "status");
    let text = ran.good();
    let table = text.split("\n\n").next().unwrap();
    assert!(
        table.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
}

#[test]
fn parts_of_the_savings_add_up() {
    let json: serde_json::Value =
        serde_json::from_str(&busy().run("status --json").good()).unwrap();
    let parts: u64 = json["vms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| vm["pages_saved"].as_u64().unwrap())
        .sum();
    assert_eq!(parts, json["totals"]["pages_saved"].as_u64().unwrap());
}

#[test]
fn domains_get_their_names_back() {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    machine.run("attach --pid 812 --domain web").good();
    machine.vm(3, 812, 0x8318_6719_cca8_44b2, &[]);
    assert!(machine.run("status").good().contains(" web "));
    // A name that does not give the number is not believed.
    machine.file("/run/twinpage/domains/83186719cca844b2", "bank");
    assert!(machine
        .run("status")
        .good()
        .contains(" 9446413578915038386 "));
}

#[test]
fn reasons_for_nothing_are_told() {
    let unshared = [("pages_unshared", 256)];
    let unseen = [("pages_unshared", 64), ("pages_unseen", 192)];
    let volatile = [("pages_unshared", 56), ("pages_volatile", 200)];
    let locked = [("pages_unshared", 0), ("skip_locked", 256)];
    let absent = [("pages_unshared", 0), ("pages_absent", 256)];
    let restless = [
        ("pages_unshared", 56),
        ("pages_volatile", 200),
        ("break_rate", 20_000),
        ("backed_off_ms", 4000),
    ];
    let table: [(&str, Changes<'_>, &str); 7] = [
        ("1", &unshared, "is merged: no two pages that may share"),
        ("1", &unseen, "is merged yet: the first pass has seen 25 %"),
        ("1", &volatile, "is merged: 78 % of the pages change"),
        ("1", &absent, "is merged: the VMs have not touched"),
        (
            "1",
            &restless,
            "VM 3 (vmm): nothing merges for 4 s: 20000 of",
        ),
        ("1", &locked, "VM 3 (vmm): 100 % of its pages cannot be "),
        ("0", &unshared, "The scanner is stopped (run=0)"),
    ];
    for (run, changes, note) in table {
        let machine = Machine::new();
        machine.process(812, "vmm", 1);
        machine.vm(3, 812, 0, changes);
        machine.sysfs("run", run);
        machine.sysfs("full_scans", "2");
        let text = machine.run("status").good();
        assert!(text.contains(note), "{note}: {text}");
    }
}

#[test]
fn private_vms_are_told_that_they_are_alone() {
    let machine = Machine::new();
    machine.vm(3, 812, 0, &[]);
    machine.vm(4, 900, 0, &[]);
    assert!(machine
        .run("status")
        .good()
        .contains("No two VMs are in one domain"));
    machine.vm(3, 812, 7, &[]);
    machine.vm(4, 900, 7, &[]);
    assert!(!machine
        .run("status")
        .good()
        .contains("No two VMs are in one domain"));
}

#[test]
fn no_vm_is_told() {
    golden::check("status-empty", &Machine::new().run("status").good());
}

#[test]
fn watch_ends_with_a_signal() {
    let machine = busy();
    machine.later(|_| ());
    let text = machine.run("status --watch").good();
    assert_eq!(text.matches("Saved:").count(), 2);
}

#[test]
fn watch_ends_with_its_count() {
    let machine = busy();
    (0..9).for_each(|_| machine.later(|_| ()));
    let text = machine.run("status --count 3").good();
    assert_eq!(text.matches("Saved:").count(), 3);
}

#[test]
fn watch_tells_the_scanner_share() {
    let machine = busy();
    machine.later(|root| sysfs(root, "cpu_ns", 250_000_000));
    let text = machine.run("status --watch 2 --count 2").good();
    assert_eq!(text.matches(" of a CPU now").count(), 1);
    assert!(text.contains("0.2 s (5.0 % of a CPU now)"), "{text}");
}

#[test]
fn watch_draws_over_itself_on_a_screen() {
    let machine = busy();
    machine.later(|_| ());
    let screen = Screen {
        columns: 200,
        rows: 40,
    };
    let text = machine.run_on(Some(screen), "status --count 2").good();
    let first = text.split("\x1b[").next().unwrap();
    let up = format!("{first}\x1b[{}A\x1b[J", first.lines().count());
    assert!(text.starts_with(&up), "{text:?}");
}

#[test]
fn watched_json_is_one_object_a_line() {
    let machine = busy();
    machine.later(|_| ());
    let text = machine.run("status --count 2 --json").good();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
}

#[test]
fn waiting_ends_when_passes_bring_nothing() {
    let machine = busy();
    // Saved: 230, then many more, then only a few more.
    machine.later(|root| counters(root, 4, 5_000));
    machine.later(|root| counters(root, 5, 5_010));
    machine.later(|root| counters(root, 6, 5_020));
    machine.later(|_| panic!("it had settled"));
    let text = machine.run("status --until-stable").good();
    assert_eq!(text.matches("Saved:").count(), 4);
}

#[test]
fn waiting_needs_something_to_wait_for() {
    let machine = Machine::new();
    assert!(machine
        .run("status --until-stable")
        .bad(1)
        .contains("no VM is attached"));
    let machine = busy();
    machine.sysfs("run", "0");
    assert!(machine
        .run("status --until-stable")
        .bad(1)
        .contains("the scanner is stopped"));
}

#[test]
fn waiting_ends_with_its_timeout() {
    let machine = busy();
    (0..9).for_each(|_| machine.later(|_| ()));
    let ran = machine.run("status --until-stable --timeout 6 --watch 2");
    assert!(ran.bad(1).contains("did not settle within 6 s"));
    assert_eq!(ran.text().matches("Saved:").count(), 4);
}

#[test]
fn vms_that_go_meanwhile_are_left_out() {
    let machine = busy();
    fs::remove_file(machine.path("/sys/kernel/debug/twinpage/4/stats")).unwrap();
    machine.file("/sys/kernel/debug/twinpage/12/stats", "");
    let text = machine.run("status").good();
    assert!(text.contains(" 812 ") && !text.contains(" 900 ") && !text.contains(" 901 "));
}

#[test]
fn debugfs_must_be_there() {
    let machine = busy();
    machine.file("/proc/mounts", "proc /proc proc rw 0 0\n");
    assert!(machine
        .run("status")
        .bad(3)
        .contains("mount -t debugfs none /sys/kernel/debug"));
    let machine = busy();
    fs::remove_dir_all(machine.path("/sys/kernel/debug/twinpage")).unwrap();
    assert!(machine
        .run("status")
        .bad(3)
        .contains("shows nothing in debugfs"));
    let machine = Machine::without_module();
    assert!(machine
        .run("status")
        .bad(3)
        .contains("The module twinpage is not loaded"));
}

/// Sets a counter of the machine at `root`.
fn sysfs(root: &Path, name: &str, value: u64) {
    fs::write(
        root.join("sys/kernel/mm/twinpage").join(name),
        format!("{value}\n"),
    )
    .unwrap();
}

/// Sets the number of passes and of saved pages of the machine at `root`.
fn counters(root: &Path, full_scans: u64, pages_sharing: u64) {
    sysfs(root, "full_scans", full_scans);
    sysfs(root, "pages_sharing", pages_sharing);
}

#[test]
fn what_is_watched_fits_its_screen() {
    let machine = Machine::new();
    for id in 1..=60 {
        machine.vm(id, 800 + id, 7, &[("pages_merged", u64::from(id) * 100)]);
    }
    let screen = Screen {
        columns: 250,
        rows: 24,
    };
    let text = machine
        .run_on(Some(screen), "status --watch --count 1")
        .good();
    assert!(text.lines().count() < 24, "{text}");
    assert!(text.contains("more that save less"), "{text}");
    // Those that save most are left, the totals, too.
    assert!(text.contains(" 860 ") && !text.contains(" 801 "), "{text}");
    assert!(text.contains("Saved:"), "{text}");
    assert_eq!(machine.run("status").good().lines().count(), 60 + 6);
}
