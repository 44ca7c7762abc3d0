// SPDX-License-Identifier: GPL-2.0

//! `--progress`: what programs are told of a migration while it goes on.

use std::io::{
    self,
    Write, //
};
use std::thread;

use serde_json::Value;

use crate::machine::Machine;
use crate::qemu;

/// What only a line on progress has.
const EXTRA: [&str; 5] = [
    "expected_downtime_ms",
    "remaining_bytes",
    "ram_bytes_per_second",
    "eta_seconds",
    "ratio",
];

/// A migration of which sender and receiver write to `out`. Gives their exit codes and what they
/// say on standard error.
fn migrate<W: Write + Send>(out: &mut [W; 2]) -> [(u8, String); 2] {
    let (source, destination) = (Machine::new(), Machine::new());
    let link = destination.path("/link.sock");
    let (from, to) = (source.path("/from.sock"), destination.path("/to.sock"));
    let stream = qemu::stream(3);
    let qemu_to = qemu::destination(to.clone());
    let qemu_from = qemu::source(from.clone(), stream.clone());
    let options = "--insecure --json --progress";
    let (link_name, from, to) = (link.display(), from.display(), to.display());
    let receive =
        format!("migrate receive --listen unix:{link_name} --connect unix:{to} {options}");
    let send = format!("migrate send --listen unix:{from} --to unix:{link_name} {options}");
    let [sends, receives] = out;
    let (mut wrote, mut read) = (Vec::new(), Vec::new());
    let codes = thread::scope(|scope| {
        let received = scope.spawn(|| destination.live_into(&receive, receives, &mut read));
        qemu::appears(&link);
        let sent = source.live_into(&send, sends, &mut wrote);
        [sent, received.join().unwrap()]
    });
    assert!(qemu::is_good(&qemu_from.join().unwrap()));
    assert!(qemu_to.join().unwrap() == stream);
    let [wrote, read] = [wrote, read].map(|err| String::from_utf8(err).unwrap());
    [(codes[0], wrote), (codes[1], read)]
}

/// The objects that are one a line of `text`.
fn objects(text: &[u8]) -> Vec<Value> {
    let lines = std::str::from_utf8(text).unwrap().lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The names in `object`.
fn names(object: &Value) -> Vec<&String> {
    object.as_object().unwrap().keys().collect()
}

#[test]
fn progress_and_end_are_one_object_a_line() {
    let mut out = [Vec::new(), Vec::new()];
    let ends = migrate(&mut out);
    let [sent, received] = out.map(|text| objects(&text));
    for (lines, (code, err)) in [&sent, &received].into_iter().zip(ends) {
        assert_eq!(code, 0, "{err}");
        assert!(!err.contains(" on the wire"), "{err}");
        let (end, progress) = lines.split_last().unwrap();
        assert_eq!(end["event"], "end");
        assert_eq!(end["completed"], true);
        assert!(!progress.is_empty());
        for line in progress {
            assert_eq!(line["event"], "progress");
            assert_eq!(line["schema"], end["schema"]);
            for name in names(line) {
                let extra = EXTRA.contains(&name.as_str());
                assert!(extra != names(end).contains(&name), "{name}");
            }
            for name in names(&line["totals"]) {
                assert!(names(&end["totals"]).contains(&name), "{name}");
            }
        }
    }
    let of_ram = |line: &Value| line["remaining_bytes"].is_u64();
    assert!(sent.iter().any(of_ram), "{sent:?}");
    assert!(!received.iter().any(of_ram), "{received:?}");
}

/// Output that nobody reads.
struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn progress_that_nobody_reads_ends_no_migration() {
    for (code, err) in migrate(&mut [Broken, Broken]) {
        assert_eq!(code, 0, "{err}");
        assert!(err.contains("The migration is complete"), "{err}");
    }
}
