// SPDX-License-Identifier: GPL-2.0

//! `twinpage plan`, asked of receivers that are threads.

use std::path::PathBuf;
use std::thread;

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

/// A machine with a VM of domain 7 that maps merged copies of these contents, and one page of each
/// other state.
fn machine(contents: std::ops::Range<u64>) -> Machine {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    machine.vm(3, 812, 7, &[]);
    let mut states: Vec<PageState> = contents
        .map(|n| PageState::Merged {
            serial: n,
            digest: Digest::of(&qemu::content(n)).0,
        })
        .collect();
    states.extend([
        PageState::Unmerged {
            digest: Digest::of(&qemu::content(1)).0,
        },
        PageState::Zero,
        PageState::Absent,
        PageState::Skipped,
    ]);
    let records: Vec<Record> = (0..)
        .zip(states)
        .map(|(gfn, state)| Record { gfn, state })
        .collect();
    machine.file("/sys/kernel/debug/twinpage/3/digests", file(3, 7, &records));
    machine
}

/// What `plan` says on `machine` while the others receive.
fn plan(machine: &Machine, candidates: &[&Machine], more: &str, options: &str) -> Ran {
    let links: Vec<PathBuf> = candidates.iter().map(|one| one.path("/l.sock")).collect();
    thread::scope(|scope| {
        let receivers: Vec<_> = (candidates.iter().zip(&links))
            .map(|(candidate, link)| {
                let link = link.display();
                let line = format!("migrate receive --listen unix:{link} --insecure --domain 7");
                scope.spawn(move || candidate.live(&line))
            })
            .collect();
        let mut list = String::new();
        for link in &links {
            qemu::appears(link);
            list += &format!(" unix:{}", link.display());
        }
        let ran = machine.run(&format!(
            "plan --pid 812 {options} --candidates{list} {more}"
        ));
        for (candidate, receiver) in candidates.iter().zip(receivers) {
            candidate.state.lock().unwrap().interrupted = true;
            let ended = receiver.join().unwrap();
            assert!(ended.bad(1).contains("cancelled"), "{ended:?}");
        }
        ran
    })
}

/// `text` with the directories of machines replaced by their numbers, and one blank for many, since
/// columns are as wide as directories are long.
fn settled(text: &str, machines: &[&Machine]) -> String {
    let mut text = text.to_owned();
    for (number, machine) in machines.iter().enumerate() {
        let directory = machine.path("/").display().to_string();
        text = text.replace(&directory, &format!("/{number}/"));
    }
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n")
        .collect()
}

#[test]
fn candidates_are_sorted_by_what_they_spare() {
    let vm = machine(0..100);
    let (half, most) = (machine(50..200), machine(10..200));
    let options = "--insecure --domain 7";
    let ran = plan(&vm, &[&half, &most], "unix:/nowhere.sock", options);
    assert_eq!(ran.code, 0, "{ran:?}");
    let text = settled(&ran.text(), &[&half, &most]);
    golden::check("plan", &text);
    assert!(
        ran.err.contains("VM 3: 1 pages have no digest"),
        "{}",
        ran.err
    );
}

#[test]
fn plan_is_json_too() {
    let vm = machine(0..100);
    let most = machine(10..200);
    let options = "--insecure --domain 7 --json";
    let ran = plan(&vm, &[&most], "unix:/nowhere.sock", options);
    let found: Value = serde_json::from_str(&ran.good()).unwrap();
    assert_eq!(found["schema"], 1);
    assert_eq!(found["vm"]["pages"], 104);
    assert_eq!(found["vm"]["non_zero"], 102);
    assert_eq!(found["vm"]["distinct"], 100);
    let one = &found["candidates"][0];
    assert_eq!(one["held_pages"], 90);
    assert_eq!(one["held_percent"], 88);
    // 90 digests, 10 pages, a page that was sent before, and one without a digest.
    assert_eq!(one["send_bytes"], 90 * 33 + 10 * 4097 + 3 + 4097);
    assert!(one["error"].is_null());
    let other = &found["candidates"][1];
    assert_eq!(other["address"], "unix:/nowhere.sock");
    assert!(
        other["error"].as_str().unwrap().contains("/nowhere.sock"),
        "{other}"
    );
    assert!(other["held_pages"].is_null());
}

#[test]
fn domain_that_is_not_served_is_a_reason() {
    let (vm, other) = (machine(0..100), machine(0..100));
    let ran = plan(&vm, &[&other], "", "--insecure --domain 8");
    assert!(ran.text().contains("does not serve that domain"), "{ran:?}");
    assert!(ran.bad(1).contains("No candidate answered"), "{ran:?}");
}

#[test]
fn without_a_domain_merged_pages_do_not_count() {
    let (vm, other) = (machine(0..100), machine(0..100));
    let ran = plan(&vm, &[&other], "", "--insecure --json");
    let found: Value = serde_json::from_str(&ran.good()).unwrap();
    assert_eq!(found["candidates"][0]["held_pages"], 0);
    assert_eq!(found["candidates"][0]["offers_pages"], 0);
}

#[test]
fn plan_needs_an_attached_vm() {
    let machine = Machine::new();
    machine.process(812, "vmm", 1);
    let ran = machine.run("plan --pid 812 --insecure --candidates unix:/nowhere.sock");
    assert!(
        ran.bad(4).contains("No VM of process 812 is attached"),
        "{ran:?}"
    );
}
