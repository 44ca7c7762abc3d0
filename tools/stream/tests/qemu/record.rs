// SPDX-License-Identifier: GPL-2.0

//! Migrates a guest between two real QEMUs and keeps what the source sends.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{
    json,
    Value, //
};
use twinpage_rig::{
    Error,
    Migration,
    Options,
    Qemu,
    Recorder, //
};

/// How long a step of a migration may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A migration.
pub struct Scenario {
    /// The machine, of both sides.
    pub options: Options,
    /// Capabilities and parameters, of both sides.
    pub migration: Migration,
    /// How it comes to its end.
    pub finish: Finish,
}

/// How a migration comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By itself.
    Completed,
    /// It is slow until so many rounds have passed.
    AfterRounds(u64),
    /// By postcopy, after the first round has begun.
    Postcopy,
    /// By itself, with a bitmap of the disk `disk`.
    WithBitmap,
    /// By itself, without a destination: what `exec:` is given goes to a file.
    IntoFile,
}

/// What came of it.
pub struct Recorded {
    /// What was said on each connection, in the order in which they were made.
    pub streams: Vec<Vec<u8>>,
    /// What QEMU says of it.
    pub info: Value,
    /// Are there pages that are not in the streams as they are?
    pub compressed: bool,
    /// How many pages may be in the streams that QEMU does not count.
    pub sent_twice: u64,
}

/// Migrates.
///
/// # Panics
///
/// Something does not go as it should.
pub fn record(scenario: &Scenario) -> Recorded {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let recorded = match scenario.finish {
        Finish::IntoFile => into_file(scenario, dir.path()),
        _ => between(scenario, dir.path()),
    };
    recorded.unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

/// A source whose guest is ready.
fn source(scenario: &Scenario, dir: &Path) -> Result<Qemu, Error> {
    let mut source = Qemu::start(&scenario.options, "source", dir)?;
    source.wait_filled()?;
    scenario.migration.set_up(&mut source)?;
    Ok(source)
}

/// Into a file.
fn into_file(scenario: &Scenario, dir: &Path) -> Result<Recorded, Error> {
    let mut source = source(scenario, dir)?;
    let file = dir.join("stream");
    source.migrate(&format!("exec:cat >{}", file.display()))?;
    let info = source.wait_migration(&["completed"], LIMIT)?;
    Ok(Recorded {
        streams: vec![fs::read(file).expect("the stream")],
        info,
        compressed: false,
        sent_twice: 0,
    })
}

/// From a source to a destination.
fn between(scenario: &Scenario, dir: &Path) -> Result<Recorded, Error> {
    let (here, there) = (dir.join("here.sock"), dir.join("there.sock"));
    let incoming = scenario.options.clone().incoming("defer");
    let mut destination = Qemu::start(&incoming, "destination", dir)?;
    scenario.migration.set_up(&mut destination)?;
    let uri = json!({ "uri": format!("unix:{}", there.display()) });
    destination.qmp().run("migrate-incoming", uri)?;
    let recorder = Recorder::start(&here, Some(&there), dir)?;
    let mut source = source(scenario, dir)?;
    if scenario.finish == Finish::WithBitmap {
        let bitmap = json!({ "node": "disk", "name": "changes" });
        source.qmp().run("block-dirty-bitmap-add", bitmap)?;
    }
    source.migrate(&format!("unix:{}", here.display()))?;
    hurry(&mut source, scenario.finish)?;
    let info = source.wait_migration(&["completed"], LIMIT)?;
    destination.wait_migration(&["completed"], LIMIT)?;
    let recordings = recorder.finish(LIMIT)?;
    let read = |path: &Path| fs::read(path).expect("a recorded stream");
    let streams = recordings
        .iter()
        .map(|recording| read(&recording.stream))
        .collect();
    Ok(Recorded {
        streams,
        info,
        compressed: false,
        sent_twice: 0,
    })
}

/// Brings a slow migration to its end.
fn hurry(source: &mut Qemu, finish: Finish) -> Result<(), Error> {
    match finish {
        Finish::AfterRounds(rounds) => source.wait_rounds(rounds, LIMIT)?,
        Finish::Postcopy => {
            source.wait_rounds(1, LIMIT)?;
            source.qmp().run("migrate-start-postcopy", json!({}))?;
            source.wait_migration(&["postcopy-active", "completed"], LIMIT)?;
        }
        _ => return Ok(()),
    }
    let fast = json!({ "max-bandwidth": 0, "max-postcopy-bandwidth": 0, "downtime-limit": 2000 });
    source.qmp().run("migrate-set-parameters", fast).map(|_| ())
}
