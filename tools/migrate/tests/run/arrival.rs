// SPDX-License-Identifier: GPL-2.0

//! Who starts the guest that has arrived at the destination, and when.

use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_migrate::run::{
    Ending,
    Place,
    Resume, //
};

use crate::fake::{
    step,
    Qemu, //
};
use crate::{
    completing,
    failing,
    receiving,
    standing,
    waiting,
    Scene,
    IN_TIME, //
};

#[test]
fn a_held_destination_that_is_mute_leaves_no_doubt() {
    for (held, place) in [(true, Place::Source), (false, Place::Unknown)] {
        let mut there = waiting();
        if !held {
            there.refuse.insert("stop", "no");
        }
        let scene = Scene::new(failing(step("device", "finish-migrate")), Some(there));
        let there = &scene.destination.as_ref().unwrap().1;
        Qemu::once_begun(there, |qemu| {
            qemu.refuse.insert("query-status", "no more");
        });
        assert_eq!(scene.drive().unwrap().guest.place, place);
    }
}

#[test]
fn a_destination_that_starts_the_guest_by_itself_is_said_plainly() {
    let mut there = receiving();
    there.refuse.insert("stop", "no");
    let scene = Scene::new(failing(step("device", "finish-migrate")), Some(there));
    let outcome = scene.drive().unwrap();
    let notes = outcome.notes.join("\n");
    assert!(
        notes.contains("by itself: QEMU refuses stop: no"),
        "{notes}"
    );
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Both, Some(true))
    );
    let evidence = "the source runs the guest; the destination runs the guest";
    assert_eq!(outcome.guest.evidence, evidence);
}

#[test]
fn a_guest_that_arrived_is_started_if_that_is_wanted() {
    for (resume, running) in [(Resume::Leave, false), (Resume::Start, true)] {
        let mut scene = Scene::new(completing(), Some(receiving()));
        scene.plan.resume = resume;
        let outcome = scene.drive().unwrap();
        let guest = outcome.guest;
        assert_eq!(
            (guest.place, guest.running),
            (Place::Destination, Some(running))
        );
        assert_eq!(outcome.start_ms.is_some(), running);
        let told = [
            "migrate-set-capabilities",
            "migrate-incoming",
            "stop",
            "cont",
        ];
        assert_eq!(scene.commands_there(), told[..3 + usize::from(running)]);
    }
}

#[test]
fn a_guest_is_started_there_in_postcopy() {
    let source = Qemu::source(&[
        step("active", "running"),
        step("postcopy-active", "finish-migrate"),
    ]);
    let scene = Scene::new(source, Some(receiving()));
    let started = thread::scope(|scope| {
        let started = scope.spawn(|| {
            let end = Instant::now() + IN_TIME;
            let mut started = false;
            while !started && Instant::now() < end {
                thread::sleep(Duration::from_millis(1));
                started = scene.commands_there().contains(&"cont".to_owned());
            }
            // It does not end before that.
            let mut source = scene.source.1.lock().unwrap();
            source.steps.push_back(step("completed", "postmigrate"));
            started
        });
        assert_eq!(scene.drive().unwrap().ending, Ending::Completed);
        started.join().unwrap()
    });
    assert!(started);
}

#[test]
fn a_guest_that_should_run_there_and_does_not_is_told() {
    for (resume, state, refuses, stopped) in [
        (Resume::Leave, "running", true, None),
        (Resume::Leave, "paused", true, None),
        (Resume::Start, "paused", false, None),
        (Resume::Start, "paused", true, Some("QEMU refuses cont: no")),
        (
            Resume::Start,
            "io-error",
            true,
            Some("its state is io-error"),
        ),
        (
            Resume::Leave,
            "internal-error",
            true,
            Some("its state is internal-error"),
        ),
    ] {
        let mut there = Qemu::destination(&[step("active", "inmigrate"), step("completed", state)]);
        if refuses {
            there.refuse.insert("cont", "no");
        }
        let mut scene = Scene::new(completing(), Some(there));
        scene.plan.resume = resume;
        let outcome = scene.drive().unwrap();
        assert_eq!(outcome.guest.place, Place::Destination);
        assert_eq!(outcome.stopped.as_deref(), stopped, "{state}");
    }
    // One that stood still at the source may stand still.
    let source = standing();
    let there = Qemu::destination(&[step("active", "inmigrate"), step("completed", "io-error")]);
    let scene = Scene::new(source, Some(there));
    assert_eq!(scene.drive().unwrap().stopped, None);
}

#[test]
fn a_copy_that_arrived_is_not_started_if_the_source_runs() {
    let scene = Scene::new(failing(step("device", "finish-migrate")), Some(receiving()));
    let outcome = scene.drive().unwrap();
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Source, Some(true))
    );
    let notes = outcome.notes.join("\n");
    assert!(notes.contains("a copy of the guest"), "{notes}");
    assert_eq!(scene.commands_there().last().unwrap(), "stop");
}

#[test]
fn a_guest_that_somebody_stops_or_starts_meanwhile_stays_so() {
    for (before, after) in [("running", "paused"), ("paused", "running")] {
        let last = match after {
            "running" => "finish-migrate",
            still => still,
        };
        let mut source = Qemu::source(&[
            step("active", before),
            step("active", after),
            step("active", after),
            step("device", last),
            step("completed", "postmigrate"),
        ]);
        source.now.state = before;
        let scene = Scene::new(source, Some(receiving()));
        let outcome = scene.drive().unwrap();
        assert_eq!(
            (outcome.guest.place, outcome.guest.running),
            (Place::Destination, Some(after == "running"))
        );
        assert_eq!(outcome.stopped, None);
    }
}

#[test]
fn a_guest_that_was_continued_before_it_left_is_no_stale_copy() {
    let mut source = Qemu::source(&[
        step("active", "paused"),
        step("active", "running"),
        // That it stops is told with the end only.
        step("completed", "postmigrate"),
    ]);
    source.now.state = "paused";
    let mut scene = Scene::new(source, Some(receiving()));
    scene.plan.resume = Resume::Leave;
    let outcome = scene.drive().unwrap();
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Destination, Some(false))
    );
    assert!(outcome.notes.is_empty(), "{:?}", outcome.notes);
}

#[test]
fn a_guest_that_stood_still_is_not_started() {
    let source = standing();
    let scene = Scene::new(source, Some(receiving()));
    let outcome = scene.drive().unwrap();
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Destination, Some(false))
    );
    assert_eq!(outcome.stopped, None);
    assert_eq!(scene.commands_there().last().unwrap(), "stop");
}

#[test]
fn a_copy_that_is_not_started_leaves_the_disks_to_the_source() {
    for state in ["running", "paused"] {
        let (mut source, mut there) = (completing(), receiving());
        source.now.state = state;
        let name = "late-block-activate".to_owned();
        there.capabilities.insert(name.clone(), false);
        let scene = Scene::new(source, Some(there));
        scene.drive().unwrap();
        let there = &scene.destination.as_ref().unwrap().1;
        // What will not be started may be migrated on, which an older QEMU does not survive then.
        let set = there.lock().unwrap().capabilities[&name];
        assert_eq!(set, state == "running");
    }
}
