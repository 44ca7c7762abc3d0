// SPDX-License-Identifier: GPL-2.0

//! Whole migrations by `run` between real QEMUs, under software emulation.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{
    Duration,
    Instant, //
};

use serde_json::json;
use tempfile::TempDir;
use twinpage_migrate::net::{
    Address,
    Psk,
    RateLimit,
    Security, //
};
use twinpage_migrate::proxy::{
    receive,
    send,
    Handle, //
};
use twinpage_migrate::run::{
    self,
    Ending,
    Place,
    Report,
    Resume, //
};
use twinpage_rig::{
    Build,
    Guest,
    Options,
    Qemu, //
};
use twinpage_store::Sources;

/// Nothing may take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// Two QEMUs, of which one waits, and a receiver at the second.
struct World {
    dir: TempDir,
    here: Qemu,
    there: Qemu,
    receiver: Handle,
    security: Security,
}

impl World {
    fn start(build: Build, guest: &Guest) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(build, "pc", guest);
        let waiting = options.clone().incoming("defer");
        let there = Qemu::start(&waiting, "there", dir.path()).unwrap();
        let mut here = Qemu::start(&options, "here", dir.path()).unwrap();
        here.wait_filled().unwrap();
        let security = Security::Psk(Psk::generate().unwrap());
        let receiver = receive::Options::new(
            "127.0.0.1:0".parse().unwrap(),
            security.clone(),
            Some(dir.path().join("incoming.sock")),
            Arc::new(|_| Ok(Arc::new(Sources::new()))),
        );
        Self {
            here,
            there,
            receiver: receive::start(receiver).unwrap(),
            security,
            dir,
        }
    }

    fn incoming(&self) -> PathBuf {
        self.dir.path().join("incoming.sock")
    }

    /// Begins to migrate, no faster than `rate`.
    fn run(&self, rate: Option<u64>) -> run::Handle {
        let to = self.receiver.address().parse().unwrap();
        let security = self.security.clone();
        let monitor = |qemu: &Qemu| Address::unix(qemu.qmp_socket()).unwrap();
        let send = move |input| {
            let mut options = send::Options::new(input, to, security);
            options.rate = rate.and_then(NonZeroU64::new).map(RateLimit::new);
            options
        };
        let options = run::Options {
            from: monitor(&self.here),
            to: Some(monitor(&self.there)),
            incoming: Some(format!("unix:{}", self.incoming().display())),
            send: Box::new(send),
            downtime: Duration::from_millis(300),
            link_rate: rate,
            resume: Resume::Start,
            timeout: Some(LIMIT),
        };
        run::start(options).unwrap()
    }

    /// What the source was set to before, and is again.
    fn assert_restored(&mut self) {
        let parameters = self
            .here
            .qmp()
            .run("query-migrate-parameters", json!({}))
            .unwrap();
        assert_eq!(parameters["max-bandwidth"], 128 << 20);
        let capabilities = self
            .here
            .qmp()
            .run("query-migrate-capabilities", json!({}))
            .unwrap();
        let expected = json!({"capability": "return-path", "state": false});
        assert!(
            capabilities.as_array().unwrap().contains(&expected),
            "{capabilities}"
        );
    }

    /// Checks that the guest runs on at the source, and that this is what `report` says.
    fn stays(&mut self, report: &Report) {
        let guest = &report.outcome.guest;
        assert_eq!(
            (guest.place, guest.running),
            (Place::Source, Some(true)),
            "{guest:?}"
        );
        assert_eq!(self.here.state().unwrap(), "running");
        self.here.wait_progress(LIMIT).unwrap();
        self.here.check_memory().unwrap();
        self.assert_restored();
    }
}

/// Waits until the source copies memory.
fn wait_active(handle: &run::Handle) {
    let start = Instant::now();
    while handle.snapshot().migration.status.name() != "active"
        || handle.snapshot().proxy.wire_bytes < 1 << 20
    {
        assert!(!handle.finished() && start.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A guest moves while it writes, and runs at the destination with the right memory.
fn moves(build: Build) {
    let mut world = World::start(build, &Guest::writing_slowly(64));
    let report = world.run(None).wait().unwrap();
    assert_eq!(report.outcome.ending, Ending::Completed, "{report:?}");
    let guest = &report.outcome.guest;
    assert_eq!(
        (guest.place, guest.running),
        (Place::Destination, Some(true)),
        "{guest:?}"
    );
    assert_eq!(report.proxy_error, None);
    assert!(report.proxy.completed);
    assert!(report.outcome.migration.downtime_ms.is_some());
    assert!(report.outcome.start_ms.is_some());
    assert!(report.outcome.migration.rounds > 0 && report.proxy.totals.round > 0);
    assert_eq!(world.here.state().unwrap(), "postmigrate");
    world.there.wait_progress(LIMIT).unwrap();
    world.there.check_memory().unwrap();
    world.assert_restored();
    assert!(world.receiver.wait().unwrap().completed);
}

#[test]
fn a_guest_moves_by_one_call() {
    moves(Build::Trixie);
}

#[test]
fn a_guest_of_an_old_qemu_moves_by_one_call() {
    moves(Build::Bookworm);
}

#[test]
fn a_cancelled_guest_stays() {
    let mut world = World::start(Build::Trixie, &Guest::writing_all(64));
    let handle = world.run(Some(4_000_000));
    wait_active(&handle);
    handle.cancel();
    let report = handle.wait().unwrap();
    assert_eq!(report.outcome.ending, Ending::Cancelled, "{report:?}");
    assert!(report.proxy_error.is_some());
    world.stays(&report);
}

/// The report of a migration of which `blow` hits a part while it runs: it fails, the guest stays.
fn fails(blow: impl FnOnce(&mut World)) -> Report {
    let mut world = World::start(Build::Trixie, &Guest::writing_all(64));
    let handle = world.run(Some(4_000_000));
    wait_active(&handle);
    blow(&mut world);
    let report = handle.wait().unwrap();
    assert!(
        matches!(report.outcome.ending, Ending::Failed { .. }),
        "{report:?}"
    );
    world.stays(&report);
    report
}

#[test]
fn a_guest_stays_if_the_receiver_goes() {
    let report = fails(|world| world.receiver.cancel());
    assert!(report.proxy_error.is_some(), "{report:?}");
}

#[test]
fn a_guest_stays_if_the_destination_dies() {
    fails(|world| world.there.process().kill());
}

#[test]
fn a_guest_stays_if_there_is_no_receiver() {
    let mut world = World::start(Build::Trixie, &Guest::writing_slowly(64));
    let other = Security::Psk(Psk::generate().unwrap());
    world.security = other;
    let report = world.run(None).wait().unwrap();
    assert!(
        matches!(report.outcome.ending, Ending::Failed { .. }),
        "{report:?}"
    );
    let reason = report.proxy_error.clone().unwrap();
    assert!(reason.contains("does not have the same key"), "{reason}");
    world.stays(&report);
}
