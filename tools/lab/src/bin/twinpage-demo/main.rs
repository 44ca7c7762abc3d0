// SPDX-License-Identifier: GPL-2.0

//! The demonstration: three guests, their memory comes together, and nobody but the host notices.
//!
//! Everything that decides is seen from outside the module: page tables, guest checksums, the
//! host's MemAvailable, the kernel's log. The exit status is 0 only when every check held.

mod guests;
mod report;

use std::process::{
    Child,
    Command,
    ExitCode,
    ExitStatus,
    Stdio, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::time::Instant;

use twinpage_guest::protocol::Request;
use twinpage_lab::oracle::Judgement;
use twinpage_lab::process::available_kib;
use twinpage_lab::{
    dmesg,
    module,
    place, //
};

use guests::{
    all_fine,
    line,
    Guests, //
};
use report::{
    Report,
    Verdict, //
};

type Failure = Box<dyn std::error::Error>;

/// Saved pages of a thousand possible ones that a run must reach.
const GOAL_PERMILLE: usize = 980;

/// Of what is saved, this part must show in MemAvailable; guests go on using memory meanwhile.
const GAIN_PERCENT: i64 = 80;

/// Knobs for a machine whose processors are emulated and much slower than real ones.
const KNOBS: [&str; 4] = [
    "advisor_mode=none",
    "pages_to_scan=16384",
    "sleep_millisecs=10",
    "thp_split_threshold=1",
];

/// Seconds that the table is shown at most.
const CONVERGE_SECONDS: &str = "240";

fn main() -> ExitCode {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut report = Report::new(release.trim().to_owned());
    if let Err(error) = run(&mut report) {
        report.check("the demonstration ran to its end", false, error);
    }
    report.close();
    if let Err(error) = write(&report) {
        eprintln!("cannot write the report: {error}");
        return ExitCode::FAILURE;
    }
    let passed = report.verdict == Verdict::Pass;
    println!(
        "\nVERDICT: {} ({} of {} checks held, {} s)",
        if passed { "pass" } else { "FAIL" },
        report
            .checks
            .iter()
            .filter(|check| check.result == Verdict::Pass)
            .count(),
        report.checks.len(),
        report.seconds
    );
    ExitCode::from(u8::from(!passed))
}

fn write(report: &Report) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::create_dir_all(place::out())?;
    std::fs::write(place::out().join("demo.json"), text + "\n")?;
    Ok(())
}

fn run(report: &mut Report) -> Result<(), Failure> {
    let mut log = dmesg::Log::from_now()?;
    report.step(format!("kernel {}, unpatched", report.kernel_release));
    module::load()?;
    let features = module::knob("features")?.replace('\n', ", ");
    report.step(format!("twinpage.ko is loaded ({features})"));
    report.step("starting three unmodified QEMU/KVM guests");
    let mut guests = Guests::start()?;
    report.step("all guests have filled their memory");
    let sums = guests.sums();
    report.check("every guest gives a checksum", all_fine(&sums), line(&sums));

    let before = guests.snapshot()?.judge();
    report.possible_pages_before = before.possible;
    report.step(format!(
        "by their content {} of {} pages could be saved ({} MiB), {} are",
        before.possible,
        before.mapped,
        before.possible / 256,
        before.merged
    ));
    let available = available_kib()?;
    merge(report, &mut guests)?;
    let merged = judge_merged(report, &mut guests, before, available)?;
    judge_guests(report, &mut guests, &sums);
    unmerge(report, &mut guests, merged)?;
    judge_guests(report, &mut guests, &sums);

    module::unload()?;
    report.check("the module unloads", !module::is_loaded(), "rmmod twinpage");
    let after = guests.verify();
    report.check(
        "the guests live on without it",
        all_fine(&after),
        line(&after),
    );
    drop(guests);
    let lines = log.lines()?;
    let alarms = dmesg::alarms(&lines);
    for alarm in alarms {
        println!("        {alarm}");
    }
    let detail = format!("{} lines, no BUG, WARNING, Oops or Bad page", lines.len());
    report.check("the kernel's log is clean", alarms.is_empty(), detail);
    Ok(())
}

/// Attaches the guests and shows how they converge, while they verify themselves.
fn merge(report: &mut Report, guests: &mut Guests) -> Result<(), Failure> {
    tool(&[&["set"], &KNOBS[..]].concat())?.wait()?;
    let start = Instant::now();
    let attached = tool(&["attach", "--all", "--domain", "demo"])?.wait()?;
    let count = guests.count();
    report.check(
        "the tool attaches all guests",
        attached.success(),
        format!("{count} guests"),
    );
    let (status, rounds, bad) = show(guests)?;
    report.converged_seconds = start.elapsed().as_secs();
    report.scanner_cpu_ms = module::counter("cpu_ns")?.unsigned_abs() / 1_000_000;
    let detail = format!(
        "{} s, {} ms of scanner time",
        report.converged_seconds, report.scanner_cpu_ms
    );
    report.check("the guests converge", status.success(), detail);
    let detail = bad
        .clone()
        .unwrap_or(format!("{rounds} times by each guest, no byte differs"));
    report.check(
        "pages are verified while they merge",
        bad.is_none() && rounds > 0,
        detail,
    );
    Ok(())
}

/// Shows the table until nothing changes any more, while the guests verify themselves. How the
/// table ended, how often each guest verified, and what was wrong if something was.
fn show(guests: &mut Guests) -> Result<(ExitStatus, u32, Option<String>), Failure> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<_, Failure> {
        let watcher = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Acquire) {
                let said = guests.verify();
                if !all_fine(&said) {
                    return (rounds, Some(line(&said)));
                }
                rounds += 1;
            }
            (rounds, None)
        });
        let arguments = [
            "status",
            "--watch",
            "3",
            "--until-stable",
            "--timeout",
            CONVERGE_SECONDS,
        ];
        let status = tool(&arguments).and_then(|mut table| Ok(table.wait()?));
        done.store(true, Ordering::Release);
        let (rounds, bad) = watcher.join().map_err(|_| "the watcher panicked")?;
        Ok((status?, rounds, bad))
    })
}

/// Compares what is merged with what could be.
fn judge_merged(
    report: &mut Report,
    guests: &mut Guests,
    before: Judgement,
    available: u64,
) -> Result<Judgement, Failure> {
    let gain_kib = available_kib()? as i64 - available as i64;
    let snapshot = guests.snapshot()?;
    let judgement = snapshot.judge();
    report.possible_pages = judgement.possible;
    report.merged_pages = judgement.merged;
    report.merged_permille = judgement.permille();
    report.mem_available_gain_mib = gain_kib / 1024;
    let detail = format!(
        "{} of {} pages, {}.{} % ({} of {} zero pages; missed: {} in huge pages)",
        judgement.merged,
        judgement.possible,
        judgement.permille() / 10,
        judgement.permille() % 10,
        judgement.zero_merged,
        judgement.zero_possible,
        judgement.missed_huge
    );
    let reached = judgement.permille() >= GOAL_PERMILLE && judgement.possible > 0;
    report.check("duplicates by content share a frame", reached, detail);
    let saved_kib = (judgement.merged as i64 - before.merged as i64) * 4;
    let detail = format!("{} MiB of {} MiB merged", gain_kib / 1024, saved_kib / 1024);
    let enough = gain_kib * 100 >= saved_kib * GAIN_PERCENT && saved_kib > 0;
    report.check("MemAvailable of the host rises", enough, detail);
    let (shared, wrong) = snapshot.shared_frames();
    let detail = format!("{shared} shared frames, {wrong} with fewer mappings than seen");
    report.check(
        "the kernel counts the same mappings",
        wrong == 0 && shared > 0,
        detail,
    );
    Ok(judgement)
}

fn judge_guests(report: &mut Report, guests: &mut Guests, sums: &[guests::Said]) {
    let now = guests.sums();
    report.check(
        "every guest's checksum is as before",
        now == sums,
        line(&now),
    );
    let verified = guests.verify();
    let detail = line(&verified);
    report.check(
        "every page of every guest verifies",
        all_fine(&verified),
        detail,
    );
    let written = guests.ask(|guest| guest.fine(Request::Write(1000)));
    let detail = line(&written);
    report.check("guests write to merged pages", all_fine(&written), detail);
}

/// Detaches the guests and looks whether each page is its own again.
fn unmerge(report: &mut Report, guests: &mut Guests, merged: Judgement) -> Result<(), Failure> {
    report.step("giving every page its own copy back");
    let detached = tool(&["detach", "--all", "--unmerge"])?.wait()?;
    let detail = format!("{} pages were saved", merged.merged);
    report.check("the tool detaches all guests", detached.success(), detail);
    let now = guests.snapshot()?.judge();
    let ordinary = now.merged - now.zero_merged;
    let detail = format!("{ordinary} of {} mapped pages share a frame", now.mapped);
    report.check("every page has its own frame again", ordinary == 0, detail);
    Ok(())
}

/// Runs the tool; what it prints is part of the demonstration.
fn tool(arguments: &[&str]) -> Result<Child, Failure> {
    println!("\n# twinpage {}", arguments.join(" "));
    let child = Command::new(place::tool())
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()?;
    Ok(child)
}
