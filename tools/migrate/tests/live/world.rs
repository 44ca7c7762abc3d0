// SPDX-License-Identifier: GPL-2.0

//! Two QEMUs with the proxies between them.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
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
    Migration,
    Options,
    Qemu, //
};

use crate::common::{
    finish,
    Pair,
    Setup,
    Shelf, //
};

/// Nothing may take longer.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Two QEMUs with proxies between them.
pub struct World {
    /// The source.
    pub here: Qemu,
    /// The destination, which waits for a guest.
    pub there: Qemu,
    /// The proxies.
    pub pair: Pair,
    /// Where all of it is.
    pub dir: tempfile::TempDir,
}

/// What came of a migration.
pub struct Outcome {
    /// The sender's report.
    pub sent: Report,
    /// The receiver's.
    pub received: Report,
    /// What the source said.
    pub info: Value,
    /// The pages of the guest.
    pub memory: Vec<u8>,
}

impl World {
    /// Starts all of it; the guest has filled its memory.
    pub fn start(options: &Options, migration: &Migration, setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, options, options, migration, |place, socket| {
            let path = place.join("send.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let input = send::Input::Listener(listener, path.clone());
            setup.start_with(place, socket, input, path)
        })
    }

    /// The same with other proxies and another destination.
    pub fn start_in(
        dir: tempfile::TempDir,
        from: &Options,
        to: &Options,
        migration: &Migration,
        proxies: impl FnOnce(&Path, &Path) -> Pair,
    ) -> Self {
        let incoming = to.clone().incoming("defer").with(["-S"]);
        let mut there = Qemu::start(&incoming, "there", dir.path()).unwrap();
        let mut here = Qemu::start(from, "here", dir.path()).unwrap();
        migration.set_up(&mut here).unwrap();
        migration.set_up(&mut there).unwrap();
        let socket = dir.path().join("qemu.sock");
        let uri = format!("unix:{}", socket.display());
        let listen = json!({ "uri": uri });
        there.qmp().run("migrate-incoming", listen).unwrap();
        let pair = proxies(dir.path(), &socket);
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
    pub fn migrate(&mut self) {
        let uri = format!("unix:{}", self.pair.path.display());
        self.here.migrate(&uri).unwrap();
    }

    /// Waits for the end of a migration that succeeds, and compares everything.
    pub fn succeed(mut self) -> Outcome {
        let info = match self.here.wait_migration(&["completed"], LIMIT) {
            Ok(info) => info,
            Err(error) => {
                let sent = finish(self.pair.sender).map(drop);
                eprintln!("{sent:?}");
                self.pair.receiver.cancel();
                let received = finish(self.pair.receiver).map(drop);
                panic!("{error}\n{sent:?}\n{received:?}");
            }
        };
        assert_eq!(self.here.state().unwrap(), "postmigrate");
        self.there.wait_migration(&["completed"], LIMIT).unwrap();
        let ours = self.here.save_memory().unwrap();
        compare(&ours, &self.there.save_memory().unwrap()).unwrap();
        let memory = std::fs::read(ours).unwrap();
        self.there.guest().check(&memory).unwrap();
        self.runs_there();
        self.end(info, memory)
    }

    /// Lets the guest run at the destination and judges it there.
    pub fn runs_there(&mut self) {
        self.there.qmp().run("cont", json!({})).unwrap();
        if self.there.guest().writes.is_some() {
            self.there.wait_progress(LIMIT).unwrap();
        }
        self.there.check_memory().unwrap();
    }

    /// Takes the proxies' reports.
    pub fn end(self, info: Value, memory: Vec<u8>) -> Outcome {
        let sent = finish(self.pair.sender).unwrap();
        let received = finish(self.pair.receiver).unwrap();
        assert!(sent.completed && received.completed);
        assert_eq!(sent.totals.stream_bytes, received.totals.stream_bytes);
        drop(self.dir);
        Outcome {
            sent,
            received,
            info,
            memory,
        }
    }

    /// Checks that the guest runs on at the source, with its memory right, and the proxies have
    /// ended.
    pub fn stays(mut self) {
        self.here
            .wait_migration(&["failed", "cancelled"], LIMIT)
            .unwrap();
        assert_eq!(self.here.state().unwrap(), "running");
        if self.here.guest().writes.is_some() {
            self.here.wait_progress(LIMIT).unwrap();
        }
        self.here.check_memory().unwrap();
        finish(self.pair.sender).unwrap_err();
        finish(self.pair.receiver).unwrap_err();
    }
}

impl Outcome {
    /// A setup whose receiver holds the pages of this guest.
    pub fn known(&self) -> Setup {
        let pages = self.memory.chunks_exact(4096);
        let held = pages.filter(|page| page.iter().any(|byte| *byte != 0));
        let setup = Setup::default().holding(Shelf::of(held));
        assert!(Arc::strong_count(&setup.sources) == 1);
        setup
    }
}

/// What every migration needs, and more.
pub fn with(capabilities: &[&'static str]) -> Migration {
    with_parameters(capabilities, json!({ "max-bandwidth": 0 }))
}

/// The same with parameters.
pub fn with_parameters(capabilities: &[&'static str], parameters: Value) -> Migration {
    let capabilities = [&["return-path"], capabilities].concat();
    Migration::new(&capabilities, parameters)
}
