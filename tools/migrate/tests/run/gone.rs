// SPDX-License-Identifier: GPL-2.0

//! Sources that say no more where the guest is, or not yet.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_migrate::qmp::Client;
use twinpage_migrate::run::{
    drive,
    Ending,
    Monitors,
    Place, //
};
use twinpage_rig::Process;

use crate::fake::{
    step,
    Qemu, //
};
use crate::{
    completing,
    receiving,
    Scene,
    IN_TIME,
    LONG, //
};

/// Tells this program to be a source, and in which file to say where its monitor is.
const READY: &str = "TWINPAGE_RUN_READY";
/// Tells it to live on when it has closed its monitor.
const LIVES: &str = "TWINPAGE_RUN_LIVES";
/// Tells it to start the guest again before.
const RESUMES: &str = "TWINPAGE_RUN_RESUMES";

#[test]
#[ignore = "a process of its own, started by a test"]
fn source_process() {
    let Some(ready) = env::var_os(READY).map(PathBuf::from) else {
        return;
    };
    let mut source = Qemu::source(&[step("device", "finish-migrate")]);
    if env::var_os(RESUMES).is_some() {
        source.steps.push_back(step("device", "running"));
    }
    source.steps.push_back(step("dead", "paused"));
    source.dies_at = Some("dead");
    let (fake, source) = source.listen();
    let written = ready.with_extension("new");
    fs::write(&written, fake.address().to_string()).unwrap();
    fs::rename(&written, &ready).unwrap();
    let lives = env::var_os(LIVES).is_some();
    let end = Instant::now() + LONG;
    while (lives || source.lock().unwrap().now.migration != "dead") && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_is_started_if_its_source_has_ended() {
    for (name, does, place) in [
        ("qemu-fake", None, Place::Destination),
        ("qemu-fake", Some(LIVES), Place::Unknown),
        ("qemu-fake", Some(RESUMES), Place::Unknown),
        // It may be somebody who only forwards the monitor.
        ("fake", None, Place::Unknown),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (program, ready) = (dir.path().join(name), dir.path().join("ready"));
        fs::copy(env::current_exe().unwrap(), &program).unwrap();
        let mut command = Command::new(&program);
        command
            .args(["--exact", "gone::source_process", "--ignored"])
            .env(READY, &ready);
        if let Some(variable) = does {
            command.env(variable, "");
        }
        let _process = Process::start(&mut command, name, &dir.path().join("log")).unwrap();
        let end = Instant::now() + IN_TIME;
        while !ready.exists() {
            assert!(Instant::now() < end, "it does not start");
            thread::sleep(Duration::from_millis(1));
        }
        let mut scene = Scene::new(completing(), Some(receiving()));
        scene.proxy.handed_over = AtomicBool::new(true);
        scene.proxy.finished = AtomicBool::new(true);
        if does != Some(LIVES) {
            scene.plan.pace.notice = LONG;
        }
        let from = fs::read_to_string(&ready).unwrap().parse().unwrap();
        let to = scene.destination.as_ref().unwrap().0.address();
        let mut monitors = Monitors {
            source: Client::connect(&from).unwrap(),
            destination: Some(Client::connect(to).unwrap()),
        };
        let ended = drive(&mut monitors, &scene.plan, &scene.proxy, &scene.watcher);
        let outcome = ended.unwrap();
        let started = place == Place::Destination;
        assert!(
            matches!(outcome.ending, Ending::Failed { .. }),
            "{outcome:?}"
        );
        assert_eq!(
            (outcome.guest.place, outcome.guest.running),
            (place, started.then_some(true)),
            "{name} {does:?}: {outcome:?}"
        );
        assert_eq!(outcome.start_ms.is_some(), started);
        let last = if started { "cont" } else { "stop" };
        assert_eq!(scene.commands_there().last().unwrap(), last);
        let notes = outcome.notes.join("\n");
        let told = notes.contains("start the guest at the destination");
        assert_eq!(told, !started && does != Some(RESUMES), "{notes}");
    }
}

#[test]
fn a_source_that_answers_no_more_is_taken_at_its_last_word() {
    for (ends, place, running, last) in [
        ("completed", Place::Destination, Some(true), "cont"),
        ("failed", Place::Unknown, None, "stop"),
    ] {
        let source = Qemu::source(&[step("active", "running")]);
        let mut scene = Scene::new(source, Some(receiving()));
        scene.plan.pace.notice = LONG;
        scene.proxy.handed_over = AtomicBool::new(true);
        scene.proxy.finished = AtomicBool::new(true);
        Qemu::once_begun(&scene.source.1, move |qemu| {
            qemu.refuse.insert("query-status", "no more");
            // It does not end before that.
            qemu.steps.push_back(step(ends, "postmigrate"));
        });
        let outcome = scene.drive().unwrap();
        assert_eq!(
            (outcome.guest.place, outcome.guest.running),
            (place, running),
            "{ends}"
        );
        assert_eq!(scene.commands_there().last().unwrap(), last);
        let notes = outcome.notes.join("\n");
        assert_eq!(notes.contains("never start"), running.is_none(), "{notes}");
    }
}

#[test]
fn a_source_that_may_still_give_the_guest_away_leaves_the_place_open() {
    let source = Qemu::source(&[step("device", "finish-migrate")]);
    let mut scene = Scene::new(source, Some(receiving()));
    scene.proxy.handed_over = AtomicBool::new(true);
    scene.proxy.finished = AtomicBool::new(true);
    scene.plan.pace.end = Duration::from_millis(200);
    scene.plan.pace.settle = Duration::from_secs(1);
    let outcome = scene.drive().unwrap();
    assert!(
        matches!(outcome.ending, Ending::Failed { .. }),
        "{outcome:?}"
    );
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Unknown, None)
    );
    let notes = outcome.notes.join("\n");
    assert!(!notes.contains("a copy of the guest"), "{notes}");
    assert_eq!(scene.commands_there().last().unwrap(), "stop");
}
