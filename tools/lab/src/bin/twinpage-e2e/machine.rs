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
use twinpage_lab::oracle::{
    Judgement,
    Snapshot, //
};
use twinpage_lab::qemu::{
    Kind,
    Machine, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome,
    Test, //
};
use twinpage_lab::{
    ensure,
    module,
    place,
    wait, //
};

use crate::host::{
    hurry,
    Host, //
};

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
        name: "the_tool_attaches_shows_and_verifies",
        seconds: 1500,
        run: the_tool_attaches_shows_and_verifies,
    },
];

/// The longest that a guest of this size may take to converge.
const CONVERGE: Duration = Duration::from_secs(400);

/// A small guest with pages that repeat inside and zero pages.
fn guest(name: &str, balloon: bool) -> Result<Machine, Failure> {
    let mut machine = Machine::start(&Kind {
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
    })?;
    if let Err(error) = machine.ready() {
        return Err(Failure::Failed(format!("{error}\n{}", machine.console())));
    }
    Ok(machine)
}

/// Runs the tool; its standard output.
fn tool(arguments: &[&str]) -> Result<String, Failure> {
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
fn attach(machine: &Machine) -> Outcome {
    let pid = machine.pid().to_string();
    tool(&["attach", "--pid", &pid, "--domain", "e2e"]).map(|_| ())
}

fn judge(machine: &mut Machine) -> Result<Judgement, Failure> {
    let range = machine.ram()?;
    machine.control("stop", json!({}))?;
    let snapshot = Snapshot::of(&[range]);
    machine.control("cont", json!({}))?;
    Ok(snapshot?.judge())
}

/// Waits until nearly everything that can be merged is.
fn converge(machine: &mut Machine) -> Result<Judgement, Failure> {
    let mut judgement = Judgement::default();
    let result: Result<_, Failure> = wait::until("converging", CONVERGE, || {
        std::thread::sleep(Duration::from_secs(2));
        judgement = judge(machine)?;
        Ok(judgement.permille() >= 980)
    });
    println!("{judgement:?}");
    result.map(|_| judgement)
}

fn a_guest_reboots_while_it_is_merged() -> Outcome {
    let _host = Host::new()?;
    module::set("thp_split_threshold", 1)?;
    let mut machine = guest("reboots", false)?;
    let sum = machine.sum()?;
    attach(&machine)?;
    let before = converge(&mut machine)?;
    machine.tell(Request::Reboot)?;
    // The firmware writes over merged pages, the kernel unpacks itself over others.
    machine.ready()?;
    let after = machine.sum()?;
    ensure!(sum == after, "the checksum was {sum} and is {after}");
    machine.fine(Request::Verify)?;
    let again = converge(&mut machine)?;
    ensure!(again.merged > before.merged / 2, "{again:?}");
    machine.fine(Request::Verify)?;
    ensure!(machine.sum()? == sum, "the checksum changed");
    Ok(())
}

fn a_balloon_inflates_and_deflates() -> Outcome {
    let _host = Host::new()?;
    module::set("thp_split_threshold", 1)?;
    let mut machine = guest("balloon", true)?;
    let sum = machine.sum()?;
    attach(&machine)?;
    let full = converge(&mut machine)?;
    // The guest gives pages away that QEMU discards under the scanner, and takes them back.
    for mib in [160_u64, 192, 168, 192] {
        machine.control("balloon", json!({ "value": mib << 20 }))?;
        let mut actual = 0;
        let result: Result<_, Failure> = wait::until("the balloon", CONVERGE, || {
            let answer = machine.control("query-balloon", json!({}))?;
            let bytes = answer.get("actual").and_then(Value::as_u64);
            actual = bytes.unwrap_or_default() >> 20;
            Ok(actual == mib)
        });
        ensure!(
            result.is_ok(),
            "the balloon stays at {actual} MiB\n{}",
            machine.console()
        );
        machine.fine(Request::Write(500))?;
        let now = judge(&mut machine)?;
        println!(
            "{mib} MiB: {} pages mapped, {} merged",
            now.mapped, now.merged
        );
        machine.fine(Request::Verify)?;
    }
    ensure!(machine.sum()? == sum, "the checksum changed");
    let again = converge(&mut machine)?;
    println!("before {full:?}, after {again:?}");
    machine.fine(Request::Verify)?;
    Ok(())
}

fn the_tool_attaches_shows_and_verifies() -> Outcome {
    module::load()?;
    hurry()?;
    module::set("thp_split_threshold", 1)?;
    let mut machine = guest("tool", false)?;
    tool(&["attach", "--all", "--domain", "e2e"])?;
    converge(&mut machine)?;
    let status = tool(&["status", "--json"])?;
    let status: Value = serde_json::from_str(&status)?;
    let pid = machine.pid();
    let named = status.to_string().contains(&format!("\"pid\":{pid}"));
    ensure!(named, "status does not name process {pid}: {status}");
    println!("{}", tool(&["status"])?);
    machine.fine(Request::Stop)?;
    let pid = pid.to_string();
    let text = tool(&["digests", "--pid", &pid, "--verify"])?;
    let tail: Vec<_> = text.lines().rev().take(5).collect();
    println!("{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    machine.fine(Request::Go)?;
    tool(&["set", "pages_to_scan=2000"])?;
    ensure!(module::knob("pages_to_scan")? == "2000", "set did not set");
    tool(&["detach", "--pid", &pid, "--unmerge"])?;
    let judgement = judge(&mut machine)?;
    let ordinary = judgement.merged - judgement.zero_merged;
    ensure!(ordinary == 0, "{ordinary} pages are still merged");
    machine.fine(Request::Verify)?;
    Ok(())
}
