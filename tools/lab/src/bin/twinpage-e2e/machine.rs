// SPDX-License-Identifier: GPL-2.0

//! Unmodified QEMU guests: they boot, reboot, inflate balloons and never notice.

use std::process::Command;
use std::time::Duration;

use serde_json::{
    json,
    Value, //
};
use twinpage_guest::config::Config;
use twinpage_guest::protocol::Request;
use twinpage_lab::guest::Guest;
use twinpage_lab::oracle::{
    Judgement,
    Snapshot, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::vmm::Vmm;
use twinpage_lab::{
    ensure,
    module,
    place,
    wait, //
};

use crate::host::Host;

pub const TESTS: &[Test] = &[
    Test {
        name: "a_guest_reboots_while_it_is_merged",
        seconds: 1500,
        run: a_guest_reboots_while_it_is_merged,
    },
    Test {
        name: "a_balloon_inflates_and_deflates",
        seconds: 1500,
        run: a_balloon_inflates_and_deflates,
    },
    Test {
        name: "qemu_guests_of_two_domains_share_no_frame",
        seconds: 1800,
        run: qemu_guests_of_two_domains_share_no_frame,
    },
    Test {
        name: "the_tool_attaches_shows_and_verifies",
        seconds: 1500,
        run: the_tool_attaches_shows_and_verifies,
    },
];

/// The longest that a guest of this size may take to converge.
const CONVERGE: Duration = Duration::from_secs(400);

/// The longest that a balloon may take: the guest has to free each page first, on processors that it
/// may have to share.
const INFLATES: Duration = Duration::from_secs(900);

/// A host that merges everything, but rests: a scanner without rest takes back what a guest writes as
/// fast as an emulated processor writes it.
fn calm() -> Result<Host, Failure> {
    let host = Host::new()?;
    module::set("thp_split_threshold", 1)?;
    module::set("pages_to_scan", 4096)?;
    module::set("sleep_millisecs", 100)?;
    Ok(host)
}

/// A small guest with pages that repeat inside and zero pages.
fn start(name: &str, balloon: bool) -> Result<Vmm, Failure> {
    let kind = Guest {
        name: name.into(),
        memory_mib: if balloon { 192 } else { 160 },
        content: Config {
            common: 8,
            own: 2,
            dup: 8,
            zero: 8,
            churn: 1,
            ..Config::default()
        },
        balloon,
    };
    let mut guest = kind.start(&std::env::temp_dir(), &[])?;
    guest.ready()?;
    Ok(guest)
}

/// Runs the tool; its standard output.
pub fn tool(arguments: &[&str]) -> Result<String, Failure> {
    let output = Command::new(place::tool()).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "twinpage {arguments:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// Attaches a guest with the tool, as its user would.
fn attach(guest: &Vmm, domain: &str) -> Outcome {
    let pid = guest.pid().to_string();
    tool(&["attach", "--pid", &pid, "--domain", domain]).map(|_| ())
}

fn judge(guest: &mut Vmm) -> Result<Judgement, Failure> {
    let range = guest.ram()?;
    guest.qmp.run("stop", json!({}))?;
    let snapshot = Snapshot::of(&[range]);
    guest.qmp.run("cont", json!({}))?;
    Ok(snapshot?.judge())
}

/// Waits until nearly everything that can be merged is.
fn converge(guest: &mut Vmm) -> Result<Judgement, Failure> {
    let mut judgement = Judgement::default();
    let result: Result<_, Failure> = wait::until("converging", CONVERGE, || {
        std::thread::sleep(Duration::from_secs(2));
        judgement = judge(guest)?;
        Ok(judgement.permille() >= 980)
    });
    println!("{judgement:?}");
    result.map(|_| judgement)
}

fn a_guest_reboots_while_it_is_merged() -> Outcome {
    let _host = calm()?;
    let mut guest = start("reboots", false)?;
    let sum = guest.sum()?;
    attach(&guest, "e2e")?;
    let before = converge(&mut guest)?;
    // A host's ordinary advisor. The firmware writes over merged pages, the kernel unpacks itself over
    // others, and a scanner that may do as it likes takes each back at once: that boot takes minutes
    // where this one takes one.
    module::set("advisor_max_cpu", 20)?;
    module::set("advisor_mode", "cpu")?;
    guest.qmp.run("set-action", json!({ "reboot": "reset" }))?;
    guest.say(&Request::Reboot.to_string())?;
    guest.ready()?;
    module::set("advisor_mode", "none")?;
    let after = guest.sum()?;
    ensure!(sum == after, "the checksum was {sum} and is {after}");
    guest.fine(Request::Verify)?;
    let again = converge(&mut guest)?;
    ensure!(again.merged > before.merged / 2, "{again:?}");
    guest.fine(Request::Verify)?;
    ensure!(guest.sum()? == sum, "the checksum changed");
    Ok(())
}

fn a_balloon_inflates_and_deflates() -> Outcome {
    let _host = calm()?;
    let mut guest = start("balloon", true)?;
    let sum = guest.sum()?;
    attach(&guest, "e2e")?;
    let full = converge(&mut guest)?;
    // The guest gives pages away that QEMU discards under the scanner, and takes them back.
    for mib in [160_u64, 192, 168, 192] {
        guest.qmp.run("balloon", json!({ "value": mib << 20 }))?;
        let mut actual = 0;
        let result: Result<_, Failure> = wait::until("the balloon", INFLATES, || {
            let answer = guest.qmp.run("query-balloon", json!({}))?;
            let bytes = answer.get("actual").and_then(Value::as_u64);
            actual = bytes.unwrap_or_default() >> 20;
            Ok(actual == mib)
        });
        ensure!(
            result.is_ok(),
            "the balloon stays at {actual} MiB\n{}",
            guest.log()
        );
        guest.fine(Request::Write(500))?;
        let now = judge(&mut guest)?;
        println!(
            "{mib} MiB: {} pages mapped, {} merged",
            now.mapped, now.merged
        );
        guest.fine(Request::Verify)?;
    }
    ensure!(guest.sum()? == sum, "the checksum changed");
    let again = converge(&mut guest)?;
    println!("before {full:?}, after {again:?}");
    guest.fine(Request::Verify)?;
    Ok(())
}

fn the_tool_attaches_shows_and_verifies() -> Outcome {
    let _host = calm()?;
    let mut guest = start("tool", false)?;
    tool(&["attach", "--all", "--domain", "e2e"])?;
    converge(&mut guest)?;
    let status = tool(&["status", "--json"])?;
    let status: Value = serde_json::from_str(&status)?;
    let pid = guest.pid();
    let named = status.to_string().contains(&format!("\"pid\":{pid}"));
    ensure!(named, "status does not name process {pid}: {status}");
    println!("{}", tool(&["status"])?);
    guest.fine(Request::Stop)?;
    let pid = pid.to_string();
    let text = tool(&["digests", "--pid", &pid, "--verify"])?;
    let tail: Vec<_> = text.lines().rev().take(5).collect();
    println!("{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    guest.fine(Request::Go)?;
    tool(&["set", "pages_to_scan=2000"])?;
    ensure!(module::knob("pages_to_scan")? == "2000", "set did not set");
    tool(&["detach", "--pid", &pid, "--unmerge"])?;
    let judgement = judge(&mut guest)?;
    let ordinary = judgement.merged - judgement.zero_merged;
    ensure!(ordinary == 0, "{ordinary} pages are still merged");
    guest.fine(Request::Verify)?;
    Ok(())
}

/// Both guests at one moment, which the scanner does not disturb: what could be merged if they were
/// of one domain, and frames that both map.
fn together(guests: &mut [Vmm; 2]) -> Result<(Judgement, usize), Failure> {
    module::set("run", 0)?;
    let mut ranges = Vec::new();
    for guest in guests.iter_mut() {
        ranges.push(guest.ram()?);
        guest.qmp.run("stop", json!({}))?;
    }
    let snapshot = Snapshot::of(&ranges);
    for guest in guests.iter_mut() {
        guest.qmp.run("cont", json!({}))?;
    }
    module::set("run", 1)?;
    let snapshot = snapshot?;
    Ok((snapshot.judge(), snapshot.frames_across()))
}

/// Guests with the same pages share none of them across domains, and do once they are in one.
fn qemu_guests_of_two_domains_share_no_frame() -> Outcome {
    // Of the 8 MiB that guests of one image have in common.
    const COMMON: usize = 8 * 256 * 9 / 10;
    let _host = calm()?;
    let mut guests = [start("left", false)?, start("right", false)?];
    let sums = [guests[0].sum()?, guests[1].sum()?];
    attach(&guests[0], "e2e")?;
    attach(&guests[1], "other")?;
    for guest in &mut guests {
        converge(guest)?;
    }
    let (apart, across) = together(&mut guests)?;
    println!("two domains: {apart:?}, {across} frames across");
    ensure!(across == 0, "{across} frames are mapped in two domains");
    // What each has not merged of its own yet is among it.
    let kept = apart.possible - apart.merged;
    ensure!(kept >= COMMON, "only {kept} pages are kept apart");
    for guest in &mut guests {
        guest.fine(Request::Write(500))?;
        guest.fine(Request::Verify)?;
    }
    let (_, across) = together(&mut guests)?;
    ensure!(
        across == 0,
        "{across} frames are mapped in two domains after writes"
    );
    // Now into the same one: what was kept apart merges.
    let pid = guests[1].pid().to_string();
    tool(&["detach", "--pid", &pid, "--unmerge"])?;
    attach(&guests[1], "e2e")?;
    let mut shared = 0;
    let met: Result<_, Failure> = wait::until("sharing", CONVERGE, || {
        std::thread::sleep(Duration::from_secs(2));
        shared = together(&mut guests)?.1;
        Ok(shared >= COMMON)
    });
    println!("one domain: {shared} frames across");
    met?;
    for (guest, sum) in guests.iter_mut().zip(sums) {
        guest.fine(Request::Verify)?;
        ensure!(
            guest.sum()? == sum,
            "the checksum of {} changed",
            guest.name()
        );
    }
    Ok(())
}
