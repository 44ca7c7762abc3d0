// SPDX-License-Identifier: GPL-2.0

//! `twinpage store`.

use std::fs;
use std::io::{
    self,
    Write, //
};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;
use twinpage::digest::Digest;
use twinpage_engine::engine::wire::{
    PageState,
    Record, //
};

use crate::digests::file;
use crate::golden;
use crate::machine::{
    Machine,
    Ran, //
};
use crate::qemu;

/// Writes the file `name` with these contents and a page of zeroes.
fn image(machine: &Machine, name: &str, contents: std::ops::Range<u64>) -> String {
    let mut bytes: Vec<u8> = contents.flat_map(qemu::content).collect();
    bytes.extend([0; 4096]);
    machine.file(name, bytes);
    machine.path(name).display().to_string()
}

/// Runs `store COMMAND --store DIR`.
fn store(machine: &Machine, command: &str) -> Ran {
    let (command, rest) = command.split_once(' ').unwrap_or((command, ""));
    let path = machine.path("/store");
    machine.run(&format!(
        "store {command} --store {} {rest}",
        path.display()
    ))
}

/// The number of pages in the store.
fn pages(machine: &Machine) -> u64 {
    let stat: Value = serde_json::from_str(&store(machine, "stat --json").good()).unwrap();
    assert_eq!(stat["schema"], 1);
    stat["store"]["pages"].as_u64().unwrap()
}

/// `text` without the directory of the machine and without what depends on the file system.
fn settled(text: &str, machine: &Machine) -> String {
    let directory = machine.path("/").display().to_string();
    text.replace(&directory, "DIR/")
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n")
        .collect()
}

#[test]
fn pages_are_admitted_when_two_sources_have_them() {
    let machine = Machine::new();
    let (a, b) = (image(&machine, "/a", 0..30), image(&machine, "/b", 20..50));
    let built = store(&machine, &format!("build --raw-image {a} {b}")).good();
    golden::check("store-build", &settled(&built, &machine));
    assert_eq!(pages(&machine), 10);
    // The same images again are no further sources.
    store(&machine, &format!("build --raw-image {a} {b}")).good();
    assert_eq!(pages(&machine), 10);
    let c = image(&machine, "/c", 0..5);
    store(&machine, &format!("build --dump {c}")).good();
    assert_eq!(pages(&machine), 15);
}

#[test]
fn things_of_one_owner_are_one_source() {
    let machine = Machine::new();
    let (a, b) = (image(&machine, "/a", 0..30), image(&machine, "/b", 20..50));
    store(
        &machine,
        &format!("build --as tenant --raw-image {a} --dump {b}"),
    )
    .good();
    assert_eq!(pages(&machine), 0);
    store(&machine, &format!("build --as other --raw-image {a}")).good();
    assert_eq!(pages(&machine), 30);
}

#[test]
fn public_images_are_admitted_at_once() {
    let machine = Machine::new();
    let a = image(&machine, "/a", 0..30);
    let built = store(&machine, &format!("build --public --json --raw-image {a}")).good();
    let built: Value = serde_json::from_str(&built).unwrap();
    assert_eq!(built["schema"], 1);
    assert_eq!(built["inputs"][0]["pages"], 30);
    assert_eq!(built["inputs"][0]["zero"], 1);
    assert_eq!(built["store"]["admitted"], 30);
    assert!(built["fleet"].is_null());
    assert_eq!(pages(&machine), 30);
}

/// A machine with two VMs in these domains, which have 29 pages in common, and a private one.
fn with_vms(domains: [u64; 2]) -> Machine {
    let machine = Machine::new();
    let [first, second] = domains;
    for (id, domain, name) in [(3, first, "web-1"), (4, second, "web-2"), (5, 0, "own")] {
        machine.process(800 + id, name, 1);
        machine.vm(id, 800 + id, domain, &[]);
        let records: Vec<Record> = (0..40)
            .map(|n| Record {
                gfn: n,
                state: PageState::Merged {
                    serial: n,
                    digest: Digest::of(&qemu::content(n)).0,
                },
            })
            .collect();
        let path = format!("/sys/kernel/debug/twinpage/{id}/digests");
        machine.file(&path, file(id, domain, &records));
    }
    for n in 0..40 {
        // The module has given up the last 10, and one is not what it should be.
        let bytes = if n == 7 {
            qemu::content(99)
        } else {
            qemu::content(n)
        };
        for domain in domains.into_iter().filter(|_| n < 30) {
            let key = (domain, Digest::of(&qemu::content(n)));
            machine
                .state
                .lock()
                .unwrap()
                .pages
                .insert(key, bytes.to_vec());
        }
    }
    machine
}

/// What is said where all VMs are of one domain.
const ONE_DOMAIN: &str = "warning: the VMs are of one domain, and each domain is one source";

#[test]
fn domains_are_sources_and_private_vms_are_none() {
    let machine = with_vms([7, 8]);
    let ran = store(&machine, "build --pid 803");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains(ONE_DOMAIN), "{ran:?}");
    assert_eq!(pages(&machine), 0);
    let ran = store(&machine, "build --all");
    assert_eq!(ran.code, 0, "{ran:?}");
    let private = "twinpage: warning: VM 5 (own) is private: it gives no pages\n";
    assert_eq!(ran.err, private);
    assert_eq!(pages(&machine), 29);
}

#[test]
fn what_one_domain_has_is_not_admitted_for_its_vms_alone() {
    let machine = with_vms([7, 7]);
    for line in ["build --pid 803 804", "build --pid 804", "build --all"] {
        let ran = store(&machine, line);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(ran.err.matches(ONE_DOMAIN).count(), 1, "{ran:?}");
        assert_eq!(pages(&machine), 0, "{line}");
    }
    // Something else that has one of them is another source.
    let a = image(&machine, "/a", 3..4);
    store(&machine, &format!("build --pid 803 804 --raw-image {a}")).good();
    assert_eq!(pages(&machine), 1);
    store(&machine, "build --pid 804 --as other").good();
    assert_eq!(pages(&machine), 29);
}

#[test]
fn too_few_domains_are_said_as_the_rule_of_the_store_is() {
    let machine = with_vms([7, 8]);
    let ran = store(&machine, "build --min-sources 3 --pid 803 804");
    assert!(ran.err.contains("the VMs are of 2 domains"), "{ran:?}");
    assert!(ran.err.contains("needs 3 sources"), "{ran:?}");
    let ran = store(&machine, "build --pid 803 804");
    assert!(ran.err.contains("needs 3 sources"), "{ran:?}");
    assert_eq!(pages(&machine), 0);
}

/// Output that brings a signal.
struct Interrupts<'a>(&'a Machine);

impl Write for Interrupts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.state.lock().unwrap().interrupted = true;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_signal_stops_what_follows_when_all_is_in_the_store() {
    let machine = Machine::new();
    let (a, b) = (image(&machine, "/a", 0..30), image(&machine, "/b", 30..60));
    store(&machine, &format!("build --public --raw-image {a}")).good();
    let path = machine.path("/store").display().to_string();
    let line = format!("store build --public --store {path} --raw-image {b}");
    let mut err = Vec::new();
    assert_eq!(
        machine.live_into(&line, &mut Interrupts(&machine), &mut err),
        1
    );
    assert!(String::from_utf8(err).unwrap().contains("Stopped"));
    let segments = || {
        let stat: Value = serde_json::from_str(&store(&machine, "stat --json").good()).unwrap();
        stat["store"]["segments"].clone()
    };
    assert_eq!((pages(&machine), segments()), (60, 2.into()));
    machine.state.lock().unwrap().interrupted = false;
    let c = image(&machine, "/c", 60..62);
    store(&machine, &format!("build --public --raw-image {c}")).good();
    assert_eq!((pages(&machine), segments()), (62, 1.into()));
}

#[test]
fn stat_verify_and_gc_say_what_they_found() {
    let machine = Machine::new();
    let a = image(&machine, "/a", 0..30);
    let b = image(&machine, "/b", 100..110);
    store(&machine, &format!("build --public --raw-image {a}")).good();
    store(&machine, &format!("build --raw-image {b}")).good();
    let stat = store(&machine, "stat").good();
    assert!(stat.contains("Pages:       30 (0.1 MiB), "), "{stat}");
    assert!(
        stat.contains("Candidates:  10 digests seen in fewer than 2 sources"),
        "{stat}"
    );
    assert_eq!(
        store(&machine, "verify").good(),
        "30 pages, 0 wrong, 0 removed\n"
    );
    let gone = store(&machine, "gc --max-size 0 --json").good();
    let gone: Value = serde_json::from_str(&gone).unwrap();
    assert_eq!(gone["pages_dropped"], 30);
    assert_eq!(pages(&machine), 0);
}

#[test]
fn long_work_says_how_far_it_is() {
    let machine = Machine::new();
    machine.state.lock().unwrap().look = Duration::from_secs(6);
    let a = image(&machine, "/a", 0..30);
    let build = format!("build --public --raw-image {a}");
    for (command, line) in [
        (build.as_str(), format!(" s] {a}, 100 %\n")),
        ("verify", " s] verifying, 100 %\n".to_owned()),
        ("gc --max-size 0", " s] collecting, 100 %\n".to_owned()),
    ] {
        let ran = store(&machine, command);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.err.contains(&line), "{command}: {ran:?}");
        store(&machine, &format!("{command} --quiet")).good();
    }
}

#[test]
fn pages_that_rotted_are_found_and_removed() {
    let machine = Machine::new();
    let a = image(&machine, "/a", 0..30);
    store(&machine, &format!("build --public --raw-image {a}")).good();
    let wanted = qemu::content(12);
    let mut hit = 0;
    for entry in fs::read_dir(machine.path("/store")).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        let found = bytes.windows(wanted.len()).position(|part| part == wanted);
        if let Some(at) = found {
            bytes[at + 100] ^= 1;
            fs::write(&path, bytes).unwrap();
            hit += 1;
        }
    }
    assert_eq!(hit, 1, "the page must be found in the store's files");
    let ran = store(&machine, "verify");
    assert_eq!(ran.text(), "30 pages, 1 wrong, 0 removed\n");
    assert!(ran.bad(1).contains("store verify --repair"), "{ran:?}");
    assert_eq!(
        store(&machine, "verify --repair").good(),
        "30 pages, 1 wrong, 1 removed\n"
    );
    assert_eq!(
        store(&machine, "verify").good(),
        "29 pages, 0 wrong, 0 removed\n"
    );
}

#[test]
fn rule_of_a_store_stays_what_it_was() {
    let machine = Machine::new();
    let a = image(&machine, "/a", 0..3);
    store(&machine, &format!("build --min-sources 3 --raw-image {a}")).good();
    let ran = store(&machine, &format!("build --min-sources 2 --raw-image {a}"));
    assert!(
        ran.bad(2)
            .contains("admits pages that 3 sources have, not 2"),
        "{ran:?}"
    );
}

#[test]
fn store_that_is_not_there_is_an_error() {
    let machine = Machine::new();
    for command in ["stat", "verify", "gc --max-age 1d"] {
        let ran = store(&machine, command);
        assert!(ran.bad(1).contains("/store"), "{command}: {ran:?}");
    }
}

#[test]
fn fleet_secret_has_a_form() {
    let machine = Machine::new();
    machine.file("/secret", "not hexadecimal");
    fs::set_permissions(machine.path("/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let a = image(&machine, "/a", 0..3);
    let line =
        format!("store build --fleet redis://127.0.0.1:1 --fleet-key /secret --raw-image {a}");
    let ran = machine.run(&line);
    assert!(
        ran.bad(1).contains("/secret is no secret of a fleet"),
        "{ran:?}"
    );
}

#[test]
fn fleet_secret_that_others_can_read_is_refused() {
    let machine = Machine::new();
    machine.file("/secret", "ab".repeat(32));
    fs::set_permissions(machine.path("/secret"), fs::Permissions::from_mode(0o640)).unwrap();
    let a = image(&machine, "/a", 0..3);
    let line =
        format!("store build --fleet redis://127.0.0.1:1 --fleet-key /secret --raw-image {a}");
    let ran = machine.run(&line);
    assert!(ran.bad(1).contains("may be read by others"), "{ran:?}");
}
