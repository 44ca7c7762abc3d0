// SPDX-License-Identifier: GPL-2.0

//! `twinpage migrate` between two real QEMUs, whose guest writes to its memory meanwhile.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{
    json,
    Value, //
};
use twinpage_rig::{
    Build,
    Guest,
    Migration,
    Options,
    Qemu, //
};

use crate::machine::Machine;
use crate::qemu::appears;

/// How long a migration may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A host of each side, and their QEMUs.
struct Pair {
    /// The host of the source.
    here: Machine,
    /// The host of the destination.
    there: Machine,
    /// The QEMU with the VM.
    from: Qemu,
    /// The QEMU that waits.
    to: Qemu,
}

impl Pair {
    /// A VM of 24 MiB that writes to its memory, and a QEMU that waits as `incoming` says.
    fn new(incoming: &str) -> Self {
        let (here, there) = (Machine::new(), Machine::new());
        let options = Options::new(Build::Trixie, "pc", &Guest::writing_slowly(24));
        let waiting = options.clone().incoming(incoming).with(["-S"]);
        let to = Qemu::start(&waiting, "to", &there.path("/")).unwrap();
        let mut from = Qemu::start(&options, "from", &here.path("/")).unwrap();
        from.wait_filled().unwrap();
        from.wait_progress(LIMIT).unwrap();
        Self {
            here,
            there,
            from,
            to,
        }
    }

    /// Where the proxies meet.
    fn link(&self) -> PathBuf {
        self.there.path("/link.sock")
    }

    /// Checks that the VM is at the destination, whole, and goes on writing.
    fn check_arrived(&mut self) {
        assert_eq!(self.from.state().unwrap(), "postmigrate");
        let memory = self.to.save_memory().unwrap();
        twinpage_rig::compare(&self.from.save_memory().unwrap(), &memory).unwrap();
        self.to.check_memory().unwrap();
        if self.to.state().unwrap() != "running" {
            self.to.qmp().run("cont", json!({})).unwrap();
        }
        self.to.wait_progress(LIMIT).unwrap();
        self.to.check_memory().unwrap();
    }
}

#[test]
fn run_migrates_from_beginning_to_end() {
    let mut pair = Pair::new("defer");
    let incoming = pair.there.path("/incoming.sock");
    let (link, key) = (pair.link(), pair.here.path("/key"));
    let made = pair.here.run(&format!("migrate keygen {}", key.display()));
    assert_eq!(made.code, 0, "{made:?}");
    let receive = format!(
        "migrate receive --listen unix:{} --connect unix:{} --key {} --quiet",
        link.display(),
        incoming.display(),
        key.display(),
    );
    let run = format!(
        "migrate run --from {} --to unix:{} --to-qmp {} --incoming unix:{} --key {} --json",
        pair.from.qmp_socket().display(),
        link.display(),
        pair.to.qmp_socket().display(),
        incoming.display(),
        key.display(),
    );
    let (ran, received) = thread::scope(|scope| {
        let received = scope.spawn(|| pair.there.live(&receive));
        appears(&link);
        let ran = pair.here.live(&run);
        // Only a migration that failed leaves the receiver waiting.
        pair.there.state.lock().unwrap().interrupted |= ran.code != 0;
        (ran, received.join().unwrap())
    });
    assert_eq!((ran.code, received.code), (0, 0), "{ran:?} {received:?}");
    let report: Value = serde_json::from_str(&ran.text()).unwrap();
    assert_eq!(report["role"], "run");
    assert_eq!(report["completed"], true);
    assert_eq!(report["outcome"]["ending"]["result"], "completed");
    assert_eq!(report["outcome"]["guest"]["place"], "destination");
    assert_eq!(report["outcome"]["guest"]["running"], true);
    assert!(report["downtime_ms"].is_u64() && report["total_ms"].is_u64());
    assert!(report["rounds"].as_u64().unwrap() >= 1);
    let sent = report["totals"]["pages_sent"].as_u64().unwrap();
    assert!(sent > 1000, "{report}");
    assert!(ran.err.contains(" of RAM, "), "{}", ran.err);
    assert!(received.text().contains("sent before"), "{received:?}");
    pair.to.qmp().run("stop", json!({})).unwrap();
    pair.to.check_memory().unwrap();
    pair.to.qmp().run("cont", json!({})).unwrap();
    pair.to.wait_progress(LIMIT).unwrap();
}

#[test]
fn exec_migrates_over_standard_input_and_output() {
    let directory = tempfile::tempdir().unwrap();
    let incoming = directory.path().join("incoming.sock");
    let mut pair = Pair::new(&format!("unix:{}", incoming.display()));
    let link = pair.link();
    let receive = format!(
        "migrate receive --listen unix:{} --connect unix:{} --insecure --quiet",
        link.display(),
        incoming.display(),
    );
    let uri = format!(
        "exec:{} migrate send --stdio --quiet --to unix:{} --insecure",
        env!("CARGO_BIN_EXE_twinpage"),
        link.display(),
    );
    let received = thread::scope(|scope| {
        let received = scope.spawn(|| pair.there.live(&receive));
        appears(&link);
        let settings = json!({ "max-bandwidth": 0 });
        Migration::new(&["return-path"], settings)
            .set_up(&mut pair.from)
            .unwrap();
        pair.from.migrate(&uri).unwrap();
        let ended = pair.from.wait_migration(&["completed"], LIMIT);
        pair.there.state.lock().unwrap().interrupted |= ended.is_err();
        ended.unwrap();
        received.join().unwrap()
    });
    assert_eq!(received.code, 0, "{received:?}");
    pair.check_arrived();
}

#[test]
fn failed_run_says_where_the_vm_is() {
    let mut pair = Pair::new("defer");
    let run = format!(
        "migrate run --from {} --to unix:/nowhere.sock --insecure --quiet",
        pair.from.qmp_socket().display(),
    );
    let ran = pair.here.live(&run);
    let err = ran.bad(1);
    assert!(err.contains("the source runs the guest"), "{err}");
    assert!(err.contains("/nowhere.sock"), "{err}");
    assert!(ran.out.is_empty(), "{ran:?}");
    pair.from.wait_progress(LIMIT).unwrap();
    pair.from.check_memory().unwrap();
}

#[test]
fn run_needs_a_monitor() {
    let ran = Machine::new().run("migrate run --from /nowhere.qmp --to b --insecure");
    assert!(ran.bad(1).contains("/nowhere.qmp"), "{ran:?}");
}
