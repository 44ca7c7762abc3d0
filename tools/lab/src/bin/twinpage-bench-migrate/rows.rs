// SPDX-License-Identifier: GPL-2.0

//! What was measured: rows for programs, a table and the targets for people.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use serde::{
    Deserialize,
    Serialize, //
};
use twinpage_lab::place;

use crate::matrix::{
    Link,
    Method,
    Workload, //
};
use crate::Failure;

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What the guest held and did.
    pub workload: String,
    /// What was between the hosts.
    pub link: String,
    /// Who migrated.
    pub method: String,
    /// Whether it came to its end; if not, the rest is what it had cost until it was given up.
    pub completed: bool,
    /// From the order to migrate until the guest runs at the destination and the source is done.
    pub seconds: f64,
    /// From the guest's stop until it goes on.
    pub downtime_ms: f64,
    /// Bytes that went over the link towards the destination.
    pub wire_bytes: u64,
    /// Bytes that came back.
    pub wire_back_bytes: u64,
    /// Processor time of the proxies.
    pub cpu_seconds: f64,
    /// Processor time of both QEMUs, without what the guests use.
    pub qemu_cpu_seconds: f64,
    /// How often QEMU went over the memory.
    pub rounds: u64,
    /// Bytes that QEMU sent, by its own count.
    pub qemu_bytes: u64,
    /// Of the pages that are not zero, the part that each source had.
    pub hit_ratios: BTreeMap<String, f64>,
}

/// On what it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The commit of this project.
    pub commit: String,
    /// The processor, by its own name.
    pub processor: String,
    /// How many.
    pub processors: usize,
    /// The emulator.
    pub qemu: String,
}

/// All measurements.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// On what.
    pub machine: Machine,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Rows {
    /// The rows of the last run; none when there was none.
    ///
    /// # Errors
    ///
    /// What it left is not understood.
    pub fn read() -> Result<Rows, Failure> {
        match fs::read_to_string(path("json")) {
            Ok(text) => Ok(serde_json::from_str(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Rows::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes all of it to where results go.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn write(&self) -> Result<(), Failure> {
        fs::create_dir_all(place::out())?;
        fs::write(path("json"), serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(path("md"), format!("{}\n{}", self.table(), self.targets()))?;
        Ok(())
    }

    /// Adds a row; an older one of the same case goes.
    pub fn put(&mut self, row: Row) {
        let case = |row: &Row| (row.workload.clone(), row.link.clone(), row.method.clone());
        self.rows.retain(|old| case(old) != case(&row));
        self.rows.push(row);
    }

    fn row(&self, workload: Workload, link: Link, method: Method) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.workload == workload.name()
                && row.link == link.name()
                && row.method == method.name()
        })
    }

    /// A table in Markdown, each row against QEMU alone at the same link.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| workload | link | method | s | vs qemu | downtime ms | MiB on the wire | vs qemu \
             | CPU s proxies | CPU s QEMU | pages from |\n\
             | --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --- |\n",
        );
        for workload in Workload::ALL {
            for link in Link::ALL {
                let plain = self.row(workload, link, Method::Plain);
                for method in Method::ALL {
                    if let Some(row) = self.row(workload, link, method) {
                        text += &line(row, plain);
                    }
                }
            }
        }
        text
    }

    /// The targets, which are for limited links, and what was reached.
    pub fn targets(&self) -> String {
        let mut text = String::new();
        let limited = |link: &Link| link.bits_per_second().is_some();
        for link in Link::ALL.into_iter().filter(limited) {
            for (workload, saved_time, saved_bytes) in [
                (Workload::Ideal, 0.90, Some(0.95)),
                (Workload::Realistic, 0.60, None),
                (Workload::Random, -0.03, None),
                (Workload::Rewritten, -0.03, None),
            ] {
                let plain = self.row(workload, link, Method::Plain);
                let ours = self.row(workload, link, Method::Twinpage);
                let (Some(plain), Some(ours)) = (plain, ours) else {
                    continue;
                };
                let time = 1.0 - ours.seconds / plain.seconds;
                text += &target(workload, link, "time", time, saved_time);
                if let Some(goal) = saved_bytes {
                    let bytes = 1.0 - ours.wire_bytes as f64 / plain.wire_bytes as f64;
                    text += &target(workload, link, "bytes", bytes, goal);
                }
            }
        }
        text
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given_up = if self.completed {
            ""
        } else {
            "given up after "
        };
        write!(
            f,
            "{given_up}{:.1} s, {:.0} ms down, {:.1} MiB, proxies {:.1} s",
            self.seconds,
            self.downtime_ms,
            mib(self.wire_bytes),
            self.cpu_seconds
        )
    }
}

fn line(row: &Row, plain: Option<&Row>) -> String {
    let against = |ours: f64, theirs: fn(&Row) -> f64| {
        plain.map_or_else(
            || "-".into(),
            |plain| format!("{:.0} %", 100.0 * ours / theirs(plain)),
        )
    };
    let mut sources = row.hit_ratios.iter().collect::<Vec<_>>();
    sources.sort_by(|a, b| b.1.total_cmp(a.1));
    let sources: Vec<_> = sources
        .iter()
        .map(|(name, ratio)| format!("{name} {:.0} %", 100.0 * **ratio))
        .collect();
    format!(
        "| {} | {} | {} | {}{:.2} | {} | {:.0} | {:.1} | {} | {:.1} | {:.1} | {} |\n",
        row.workload,
        row.link,
        row.method,
        if row.completed { "" } else { "> " },
        row.seconds,
        against(row.seconds, |row| row.seconds),
        row.downtime_ms,
        mib(row.wire_bytes),
        against(row.wire_bytes as f64, |row| row.wire_bytes as f64),
        row.cpu_seconds,
        row.qemu_cpu_seconds,
        sources.join(", ")
    )
}

fn target(workload: Workload, link: Link, what: &str, saved: f64, goal: f64) -> String {
    let reached = if saved >= goal { "reached" } else { "MISSED" };
    let (saved, goal) = (100.0 * saved, 100.0 * goal);
    format!(
        "{workload}, {link}: {saved:.1} % less {what} than qemu (target {goal:.0} %): {reached}\n"
    )
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn path(extension: &str) -> PathBuf {
    place::out().join(format!("bench-migrate.{extension}"))
}

/// This machine.
///
/// # Errors
///
/// There is no QEMU.
pub fn machine() -> Result<Machine, Failure> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let processor = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let version = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    Ok(Machine {
        commit: std::env::var("TWINPAGE_COMMIT").unwrap_or_default(),
        processor: processor.to_owned(),
        processors: std::thread::available_parallelism()?.get(),
        qemu: version.lines().next().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: Method, seconds: f64, wire_bytes: u64) -> Row {
        Row {
            workload: Workload::Ideal.name().into(),
            link: Link::Slow.name().into(),
            method: method.name().into(),
            completed: true,
            seconds,
            downtime_ms: 1.0,
            wire_bytes,
            wire_back_bytes: 0,
            cpu_seconds: 0.0,
            qemu_cpu_seconds: 0.0,
            rounds: 1,
            qemu_bytes: 0,
            hit_ratios: BTreeMap::from([("store".into(), 0.5)]),
        }
    }

    #[test]
    fn a_case_has_one_row_and_is_held_against_its_target() {
        let mut rows = Rows::default();
        rows.put(row(Method::Plain, 10.0, 1000));
        rows.put(row(Method::Twinpage, 9.0, 10));
        rows.put(row(Method::Twinpage, 2.0, 10));
        assert_eq!(rows.rows.len(), 2);
        let targets = rows.targets();
        assert!(targets.contains("80.0 % less time than qemu (target 90 %): MISSED"));
        assert!(targets.contains("99.0 % less bytes than qemu (target 95 %): reached"));
        assert!(rows.table().contains("| 2.00 | 20 % |"));
        assert!(rows.table().contains("store 50 %"));
    }
}
