// SPDX-License-Identifier: GPL-2.0

//! The host that the guest leaves. It leads the demonstration and writes the report.

use std::fs::File;
use std::io::BufReader;
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
use twinpage_lab::vmm::Vmm;

use crate::host::{
    filled,
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
        filled(&mut guest)?;
        self.host.checks.step("it has filled its memory");
        self.host
            .merge("pages that the guest has twice are merged")?;
        let sum = guest.sum()?;

        let mut talk = Talk::connect(TALK)?;
        self.ask(&mut talk, Ask::Neighbours)?;
        self.ask(&mut talk, Ask::Receive)?;
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
        let _ = guest
            .qmp
            .event(&["STOP"], Duration::from_secs(1))
            .map(|event| event.at);
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

    /// Compares the memory that is left here with the one that arrived.
    fn compare(&mut self, guest: &mut Vmm, talk: &mut Talk) -> Result<(), Failure> {
        let file = self.host.file("ram");
        save_ram(guest, &file)?;
        let seen = self.ask(talk, Ask::Ram)?;
        let there = seen["bytes"].as_u64().unwrap_or_default();
        let here = std::fs::metadata(&file)?.len();
        let difference = ram::compare(BufReader::new(File::open(&file)?), talk.bytes(), there)?;
        std::fs::remove_file(&file)?;
        self.report.ram_pages = difference.pages;
        self.report.ram_equal = here == there && there > 0 && difference.different == 0;
        let detail = match difference.first {
            None => format!("{there} of {here} bytes compared"),
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
