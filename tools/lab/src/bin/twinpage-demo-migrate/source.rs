// SPDX-License-Identifier: GPL-2.0

//! The host that the guest leaves. It leads the demonstration and writes the report.

use std::fs::File;
use std::io::BufReader;
use std::net::{
    IpAddr,
    SocketAddr, //
};
use std::process::{
    Command,
    Stdio, //
};
use std::time::{
    Duration,
    Instant, //
};

use serde_json::{
    json,
    Value, //
};
use twinpage_guest::protocol::Request;
use twinpage_lab::checks::Verdict;
use twinpage_lab::told::Told;
use twinpage_lab::vmm::Vmm;
use twinpage_lab::{
    listen,
    place,
    wait, //
};

use crate::host::{
    save_ram,
    tool,
    Failure,
    Host,
    DOMAIN,
    KEY,
    RECEIVER,
    SOURCE,
    TALK, //
};
use crate::ram;
use crate::report::Report;
use crate::talk::{
    Ask,
    Talk, //
};
use crate::MIGRANT;

/// Where a receiver listens that has no pages at all.
const EMPTY: SocketAddr = SocketAddr::new(IpAddr::V4(SOURCE), 7003);

/// How often a plan is asked for at most.
const PLANS: usize = 3;

/// How long it may take to listen.
const SOON: Duration = Duration::from_secs(60);

/// Runs the source's part and writes the report; whether all held on both hosts.
///
/// # Errors
///
/// The host cannot be set up, or the report cannot be written.
pub fn run() -> Result<Verdict, Failure> {
    let mut source = Source {
        host: Host::new(SOURCE)?,
        report: Report::default(),
    };
    if let Err(error) = source.demonstrate() {
        let name = "the demonstration ran to its end";
        source.host.checks.check(name, false, error);
    }
    let Source { host, mut report } = source;
    let mut checks = host.checks;
    report.demo_seconds = checks.seconds();
    report.verdict = checks.verdict();
    let (held, all) = checks.tally();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    release.trim().clone_into(&mut report.kernel_release);
    report.checks = checks.take();
    report.write()?;
    let passed = report.verdict == Verdict::Pass;
    println!(
        "\nVERDICT: {} ({held} of {all} checks held, {} s)",
        if passed { "pass" } else { "FAIL" },
        report.demo_seconds
    );
    Ok(report.verdict)
}

/// The source.
struct Source {
    host: Host,
    report: Report,
}

impl Source {
    fn demonstrate(&mut self) -> Result<(), Failure> {
        let (name, content) = MIGRANT;
        self.host.checks.step(format!("starting {name}: {content}"));
        let mut guest = self.host.guest(name, &content, &[])?;
        guest.ready()?;
        self.host.checks.step("it has filled its memory");
        self.host
            .merge("pages that the guest has twice are merged")?;
        let sum = guest.sum()?;

        let mut talk = Talk::connect(TALK)?;
        self.ask(&mut talk, Ask::Neighbours)?;
        self.ask(&mut talk, Ask::Receive)?;
        self.plan(&guest)?;
        self.migrate(&mut guest)?;
        self.compare(&mut guest, &mut talk)?;
        guest.end();
        let seen = self.ask(&mut talk, Ask::Run)?;
        let now = seen["sum"].as_str().unwrap_or("none").to_owned();
        let detail = format!("{sum} before, {now} after");
        self.host
            .checks
            .check("the guest's checksum is as before", now == sum, detail);
        self.ask(&mut talk, Ask::Merge)?;
        self.ask(&mut talk, Ask::End)?;
        self.host.close()?;
        self.host.judge_log()
    }

    /// Lets the destination do something, and takes over what it checked.
    fn ask(&mut self, talk: &mut Talk, ask: Ask) -> Result<Value, Failure> {
        let answer = talk.ask(ask)?;
        self.host.checks.add("destination", answer.checks);
        match answer.error {
            Some(error) => Err(format!("the destination says: {error}").into()),
            None => Ok(answer.seen),
        }
    }

    /// Asks which host holds most of the guest already: the destination, or one that has nothing,
    /// which is another receiver on this host.
    fn plan(&mut self, guest: &Vmm) -> Result<(), Failure> {
        let empty = EMPTY.to_string();
        let mut nobody = Command::new(place::tool())
            .args([
                "migrate",
                "receive",
                "--listen",
                &empty,
                "--no-module",
                "--quiet",
            ])
            .args(["--domain", DOMAIN, "--key", KEY])
            .stdin(Stdio::null())
            .spawn()?;
        let planned = self.plan_between(guest, &empty);
        nobody.kill()?;
        nobody.wait()?;
        planned
    }

    fn plan_between(&mut self, guest: &Vmm, empty: &str) -> Result<(), Failure> {
        wait::until("the receiver listens", SOON, || {
            Ok::<_, Failure>(listen::heard(EMPTY.port()))
        })?;
        let (pid, receiver) = (guest.pid().to_string(), RECEIVER.to_string());
        let arguments = [
            "plan",
            "--pid",
            &pid,
            "--candidates",
            empty,
            &receiver,
            "--domain",
            DOMAIN,
            "--key",
            KEY,
        ];
        // An emulated host may be late for a handshake: then it is asked again.
        for _ in 0..PLANS {
            let output = Command::new(place::tool())
                .args(arguments)
                .arg("--json")
                .stdin(Stdio::null())
                .output()?;
            self.report.plan = serde_json::from_slice(&output.stdout)?;
            let candidates = self.report.plan["candidates"].as_array();
            let silent = |candidate: &Value| candidate["held_percent"].is_null();
            if candidates.is_some_and(|all| !all.iter().any(silent)) {
                break;
            }
        }
        let status = tool(&arguments)?;
        let first = &self.report.plan["candidates"][0];
        let holds = status.success()
            && first["address"] == receiver.as_str()
            && first["held_percent"].as_u64() > Some(0);
        let detail = format!("{}: {} %", first["address"], first["held_percent"]);
        self.host.checks.check(
            "the plan prefers who holds most of the guest",
            holds,
            detail,
        );
        Ok(())
    }

    /// Moves the guest while it writes.
    fn migrate(&mut self, guest: &mut Vmm) -> Result<(), Failure> {
        let before = guest.fine(Request::Verify)?;
        let receiver = RECEIVER.to_string();
        let monitor = guest.spare_qmp().display().to_string();
        let start = Instant::now();
        let arguments = [
            "migrate", "run", "--from", &monitor, "--to", &receiver, "--domain", DOMAIN, "--key",
            KEY,
        ];
        let status = tool(&arguments)?;
        self.report.seconds = start.elapsed().as_secs_f64();
        self.host.checks.check(
            "the guest migrates while it writes",
            status.success(),
            format!("{status}; pages, pages written until then: {before}"),
        );
        let seen = guest.qmp.run("query-migrate", json!({}))?;
        let ended = seen["status"] == "completed";
        let detail = format!(
            "{}: {} s, {} ms of downtime, {} rounds",
            seen["status"].as_str().unwrap_or("unknown"),
            seen["total-time"].as_u64().unwrap_or_default() as f64 / 1000.0,
            seen["downtime"],
            seen["ram"]["dirty-sync-count"]
        );
        self.host
            .checks
            .check("QEMU says that it is complete", ended, detail);
        self.report.downtime_ms = seen["downtime"].as_u64().unwrap_or_default();
        self.report.rounds = seen["ram"]["dirty-sync-count"].as_u64().unwrap_or_default();
        let status = guest.qmp.status()?;
        let rests = status == "postmigrate";
        self.host
            .checks
            .check("the guest does not run here any more", rests, status);
        Ok(())
    }

    /// Takes over what the receiver counted.
    fn received(&mut self, received: &Value) -> Result<(), Failure> {
        let told: Told = serde_json::from_value(received.clone())?;
        let totals = told.totals;
        self.report.receiver = received.clone();
        self.report.stream_bytes = totals.stream_bytes;
        self.report.wire_bytes = totals.wire_bytes;
        self.report.pages_sent = totals.pages_sent;
        self.report.pages_referenced = totals.pages_referenced + totals.pages_back;
        self.report.pages_zero = totals.pages_zero + totals.pages_zero_body;
        let ratios: Vec<_> = told
            .hit_ratios()
            .into_iter()
            .map(|(name, ratio)| format!("{name} {:.1} %", 100.0 * ratio))
            .collect();
        let module = told.sources.iter().find(|source| source.name == "module");
        let hits = module.map_or(0, |source| source.hits);
        let detail = format!(
            "{hits} pages; of those that are not zero: {}",
            ratios.join(", ")
        );
        self.host
            .checks
            .check("merged pages of the destination are used", hits > 0, detail);
        let less = totals.wire_bytes < totals.stream_bytes / 2;
        let detail = format!("{} of {}", totals.wire_bytes, totals.stream_bytes);
        self.host
            .checks
            .check("less than half of QEMU's bytes travel", less, detail);
        Ok(())
    }

    /// Compares the memory that is left here with the one that arrived.
    fn compare(&mut self, guest: &mut Vmm, talk: &mut Talk) -> Result<(), Failure> {
        let file = self.host.file("ram");
        save_ram(guest, &file)?;
        let seen = self.ask(talk, Ask::Ram)?;
        self.received(&seen["received"])?;
        let there = seen["bytes"].as_u64().unwrap_or_default();
        let here = std::fs::metadata(&file)?.len();
        let difference = ram::compare(BufReader::new(File::open(&file)?), talk.bytes(), there)?;
        std::fs::remove_file(&file)?;
        self.report.ram_pages = difference.pages;
        self.report.ram_equal = here == there && there > 0 && difference.is_none();
        let detail = match difference.first {
            None => format!("{there} of {here} bytes compared"),
            Some(first) if difference.is_wall_clock() => format!(
                "{there} of {here} bytes compared; all but kvmclock's wall clock, which KVM itself \
                 wrote at the destination, {first}"
            ),
            Some(first) => format!(
                "{} of {} pages differ, first at {first}",
                difference.different, difference.pages
            ),
        };
        self.host.checks.check(
            "both memories are equal, byte by byte",
            self.report.ram_equal,
            detail,
        );
        Ok(())
    }
}
