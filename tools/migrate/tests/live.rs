// SPDX-License-Identifier: GPL-2.0

//! Real QEMUs on both sides of the proxies.

mod common;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use serde_json::{
    json,
    Value, //
};
use twinpage_migrate::proxy::{
    send,
    Report, //
};
use twinpage_rig::{
    compare,
    Build,
    Guest,
    Migration,
    Options,
    Qemu, //
};

use common::{
    finish,
    Pair,
    Setup, //
};

/// Nothing may take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// Two QEMUs with proxies between them.
struct World {
    here: Qemu,
    there: Qemu,
    pair: Pair,
    dir: tempfile::TempDir,
}

impl World {
    /// Starts all of it; the guest has filled its memory. Without `-S` QEMU would run the guest
    /// before the source has given it up.
    fn start(options: &Options, migration: &Migration, setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let incoming = options.clone().incoming("defer").with(["-S"]);
        let mut there = Qemu::start(&incoming, "there", dir.path()).unwrap();
        let mut here = Qemu::start(options, "here", dir.path()).unwrap();
        migration.set_up(&mut here).unwrap();
        migration.set_up(&mut there).unwrap();
        let socket = dir.path().join("qemu.sock");
        let uri = format!("unix:{}", socket.display());
        there
            .qmp()
            .run("migrate-incoming", json!({ "uri": uri }))
            .unwrap();
        let pair = proxies(dir.path(), &socket, setup);
        here.wait_filled().unwrap();
        if here.guest().writes.is_some() {
            here.wait_progress(LIMIT).unwrap();
        }
        Self {
            here,
            there,
            pair,
            dir,
        }
    }

    /// Begins to migrate.
    fn migrate(&mut self) {
        let uri = format!("unix:{}", self.pair.path.display());
        self.here.migrate(&uri).unwrap();
    }

    /// Waits for the end of a migration that succeeds, and compares everything.
    fn succeed(mut self) -> Outcome {
        let info = self.here.wait_migration(&["completed"], LIMIT).unwrap();
        assert_eq!(self.here.state().unwrap(), "postmigrate");
        self.there.wait_migration(&["completed"], LIMIT).unwrap();
        let memory = self.here.save_memory().unwrap();
        compare(&memory, &self.there.save_memory().unwrap()).unwrap();
        let bytes = std::fs::read(memory).unwrap();
        self.there.guest().check(&bytes).unwrap();
        self.there.qmp().run("cont", json!({})).unwrap();
        if self.there.guest().writes.is_some() {
            self.there.wait_progress(LIMIT).unwrap();
        }
        self.there.check_memory().unwrap();
        let sent = finish(self.pair.sender).unwrap();
        let received = finish(self.pair.receiver).unwrap();
        assert!(sent.completed && received.completed);
        drop(self.dir);
        Outcome {
            sent,
            received,
            info,
        }
    }
}

/// What came of a migration.
struct Outcome {
    sent: Report,
    received: Report,
    info: Value,
}

fn proxies(dir: &Path, qemu: &Path, setup: Setup) -> Pair {
    let path = dir.join("send.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let input = send::Input::Listener(listener, path.clone());
    setup.start_with(dir, qemu, input, path)
}

/// What every migration needs, and more.
fn with(capabilities: &[&'static str]) -> Migration {
    let capabilities = [&["return-path"], capabilities].concat();
    Migration::new(&capabilities, json!({ "max-bandwidth": 0 }))
}

#[test]
fn an_idle_guest_arrives_whole() {
    let options = Options::new(Build::Trixie, "q35", &Guest::idle(64));
    let mut world = World::start(&options, &with(&[]), Setup::default());
    world.migrate();
    let outcome = world.succeed();
    let totals = &outcome.sent.totals;
    assert!(totals.pages_sent > 64 * 128, "{totals:?}");
    assert!(totals.pages_back > 64 * 31, "{totals:?}");
    assert!(outcome.sent.opaque.is_empty(), "{:?}", outcome.sent.opaque);
    assert_eq!(outcome.received.totals.stream_bytes, totals.stream_bytes);
    println!("{totals:#?} {}", outcome.info);
}
