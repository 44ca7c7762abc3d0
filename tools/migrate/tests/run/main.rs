// SPDX-License-Identifier: GPL-2.0

//! Whole migrations between QEMUs that only pretend.

mod arrival;
mod fake;
mod gone;
mod qmp;

use std::sync::atomic::{
    AtomicBool,
    AtomicU64,
    Ordering, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use serde_json::{
    json,
    Value, //
};
use twinpage_migrate::qmp::{
    Client,
    PATIENCE, //
};
use twinpage_migrate::run::{
    drive,
    Ending,
    Error,
    Migration,
    Monitors,
    Outcome,
    Pace,
    Place,
    Plan,
    Proxy,
    Resume,
    Watcher, //
};

use fake::{
    step,
    Fake,
    Qemu,
    Step, //
};

/// A time that no test waits for: what lasts shorter came to its end in another way.
const LONG: Duration = Duration::from_secs(60);

/// Within this time all that does not wait for [`LONG`] is over, however busy the machine is.
const IN_TIME: Duration = Duration::from_secs(30);

/// A proxy that only notes what it is told.
#[derive(Default)]
struct Dummy {
    finished: AtomicBool,
    handed_over: AtomicBool,
    /// It hands over just when it is to be cancelled.
    races: bool,
    cancelled: AtomicBool,
    /// It was to be cancelled when it could not be any more.
    too_late: AtomicBool,
    round: AtomicU64,
}

impl Proxy for Dummy {
    fn finished(&self) -> bool {
        self.finished.load(Ordering::Relaxed)
    }

    fn handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Relaxed)
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    fn cancel_early(&self) -> bool {
        let early = !self.races && !self.handed_over();
        self.cancelled.fetch_or(early, Ordering::Relaxed);
        self.too_late.fetch_or(!early, Ordering::Relaxed);
        early
    }

    fn set_round(&self, round: u64) {
        self.round.store(round, Ordering::Relaxed);
    }
}

/// Cancels as soon as the source has a certain status.
#[derive(Default)]
struct Impatient {
    at: Option<&'static str>,
    reached: AtomicBool,
    /// Insists as soon as it is refused.
    insists: bool,
    refused: AtomicBool,
    seen: Mutex<Vec<String>>,
}

impl Watcher for Impatient {
    fn cancelled(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }

    fn forced(&self) -> bool {
        self.insists && self.refused.load(Ordering::Relaxed)
    }

    fn cannot_cancel(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    fn update(&self, migration: &Migration) {
        let name = migration.status.name();
        if self.at == Some(name) {
            self.reached.store(true, Ordering::Relaxed);
        }
        self.seen.lock().unwrap().push(name.to_owned());
    }
}

/// Everything around a migration.
struct Scene {
    source: (Fake, Arc<Mutex<Qemu>>),
    destination: Option<(Fake, Arc<Mutex<Qemu>>)>,
    plan: Plan,
    proxy: Dummy,
    watcher: Impatient,
    /// How long the source may take to answer.
    patience: Duration,
}

impl Scene {
    fn new(source: Qemu, destination: Option<Qemu>) -> Self {
        Self {
            source: source.listen(),
            destination: destination.map(Qemu::listen),
            plan: Plan {
                uri: "unix:/run/source.sock".to_owned(),
                incoming: Some("unix:/run/incoming.sock".to_owned()),
                downtime: Duration::from_millis(100),
                link_rate: Some(12_500_000),
                resume: Resume::Start,
                timeout: None,
                pace: Pace {
                    poll: Duration::from_millis(5),
                    handover: Duration::from_millis(2),
                    notice: Duration::from_millis(100),
                    end: LONG,
                    settle: LONG,
                },
            },
            proxy: Dummy::default(),
            watcher: Impatient::default(),
            patience: PATIENCE,
        }
    }

    fn drive(&self) -> Result<Outcome, Error> {
        let destination = self.destination.as_ref();
        let mut monitors = Monitors {
            source: Client::connect_within(self.source.0.address(), self.patience).unwrap(),
            destination: destination.map(|(fake, _)| Client::connect(fake.address()).unwrap()),
        };
        drive(&mut monitors, &self.plan, &self.proxy, &self.watcher)
    }

    /// What the source was told.
    fn told(&self) -> Vec<(String, Value)> {
        self.source.1.lock().unwrap().log.clone()
    }

    /// The names of what the source was told.
    fn commands(&self) -> Vec<String> {
        self.told().into_iter().map(|(name, _)| name).collect()
    }

    /// What the destination was told.
    fn told_there(&self) -> Vec<(String, Value)> {
        self.destination
            .as_ref()
            .unwrap()
            .1
            .lock()
            .unwrap()
            .log
            .clone()
    }

    /// The names of what the destination was told.
    fn commands_there(&self) -> Vec<String> {
        self.told_there()
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }

    /// Whether the source has the capabilities and parameters of the beginning.
    fn assert_restored(&self) {
        let qemu = self.source.1.lock().unwrap();
        let fresh = Qemu::source(&[]);
        for name in [
            "max-bandwidth",
            "downtime-limit",
            "avail-switchover-bandwidth",
        ] {
            assert_eq!(
                qemu.parameters.get(name),
                fresh.parameters.get(name),
                "{name}"
            );
        }
        assert_eq!(
            qemu.capabilities["return-path"],
            fresh.capabilities["return-path"]
        );
    }
}

/// A source that goes through a whole migration.
fn completing() -> Qemu {
    Qemu::source(&[
        step("setup", "running"),
        step("active", "running"),
        step("device", "finish-migrate"),
        step("completed", "postmigrate"),
    ])
}

/// A source whose guest stands still all the time.
fn standing() -> Qemu {
    let mut source = completing();
    source.now.state = "paused";
    let states = source
        .steps
        .iter_mut()
        .filter(|step| step.state == "running");
    states.for_each(|step| step.state = "paused");
    source
}

/// A source whose migration fails, after which its guest runs.
fn failing(before: Step) -> Qemu {
    let mut qemu = Qemu::source(&[step("active", "running"), before, step("failed", "running")]);
    qemu.more
        .insert("error-desc".to_owned(), "Unable to write to socket".into());
    qemu
}

/// A destination that gets a guest.
fn receiving() -> Qemu {
    Qemu::destination(&[step("active", "inmigrate"), step("completed", "running")])
}

/// A destination that waits for ever.
fn waiting() -> Qemu {
    Qemu::destination(&[])
}

#[test]
fn a_migration_completes_and_leaves_no_trace_at_the_source() {
    let scene = Scene::new(completing(), Some(receiving()));
    let outcome = scene.drive().unwrap();
    assert_eq!(outcome.ending, Ending::Completed);
    assert_eq!(outcome.guest.place, Place::Destination);
    assert_eq!(outcome.guest.running, Some(true));
    assert_eq!(outcome.migration.downtime_ms, Some(42));
    assert_eq!(outcome.migration.rounds, 3);
    assert!(outcome.notes.is_empty(), "{:?}", outcome.notes);
    let capability =
        |state| json!({"capabilities": [{"capability": "return-path", "state": state}]});
    let expected = [
        ("migrate-set-capabilities", capability(true)),
        (
            "migrate-set-parameters",
            json!({"max-bandwidth": 0, "downtime-limit": 100, "avail-switchover-bandwidth": 12_500_000}),
        ),
        ("migrate", json!({"uri": "unix:/run/source.sock"})),
        (
            "migrate-set-parameters",
            json!({"max-bandwidth": 134_217_728, "downtime-limit": 300, "avail-switchover-bandwidth": 0}),
        ),
        ("migrate-set-capabilities", capability(false)),
    ];
    let expected = expected.map(|(name, arguments)| (name.to_owned(), arguments));
    assert_eq!(scene.told(), expected);
    let expected = [
        ("migrate-set-capabilities".to_owned(), capability(true)),
        (
            "migrate-incoming".to_owned(),
            json!({"uri": "unix:/run/incoming.sock"}),
        ),
        ("stop".to_owned(), Value::Null),
        ("cont".to_owned(), Value::Null),
    ];
    assert_eq!(scene.told_there(), expected);
    assert_eq!(scene.proxy.round.load(Ordering::Relaxed), 3);
    assert!(!scene.proxy.cancelled.load(Ordering::Relaxed));
    let seen = scene.watcher.seen.lock().unwrap().join(" ");
    assert_eq!(seen, "setup active device completed");
}

#[test]
fn without_a_monitor_there_the_source_is_believed() {
    let outcome = Scene::new(completing(), None).drive().unwrap();
    assert_eq!(outcome.ending, Ending::Completed);
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Destination, None)
    );
    assert!(outcome.guest.evidence.contains("no monitor was given"));
    assert!(outcome.notes[0].contains("starts the guest by itself"));
}

#[test]
fn an_old_source_is_not_told_what_it_does_not_know() {
    let mut source = completing();
    source.parameters.remove("avail-switchover-bandwidth");
    let scene = Scene::new(source, Some(receiving()));
    scene.drive().unwrap();
    let (_, parameters) = &scene.told()[1];
    assert_eq!(
        *parameters,
        json!({"max-bandwidth": 0, "downtime-limit": 100})
    );
}

#[test]
fn what_is_set_already_stays() {
    let mut source = completing();
    source.capabilities.insert("return-path".to_owned(), true);
    source
        .parameters
        .insert("max-bandwidth".to_owned(), 0.into());
    source
        .parameters
        .insert("downtime-limit".to_owned(), 100.into());
    let mut scene = Scene::new(source, None);
    scene.plan.link_rate = None;
    scene.drive().unwrap();
    assert_eq!(scene.commands(), ["migrate"]);
}

#[test]
fn what_speaks_against_it_is_said_before_anything_changes() {
    type Change = fn(&mut Qemu, &mut Qemu, &mut Plan);
    let changes: [(Change, &str); 20] = [
        (
            |here, _, _| here.now.state = "inmigrate",
            "source itself waits",
        ),
        (
            |here, _, _| here.now.state = "postmigrate",
            "gave its guest away already",
        ),
        (
            |here, _, _| here.now.migration = "active",
            "going on at the source (active)",
        ),
        (
            |here, _, _| here.now.migration = "postcopy-paused",
            "going on at the source",
        ),
        (
            |here, _, _| {
                here.more
                    .insert("blocked-reasons".to_owned(), json!(["disk is local"]));
            },
            "QEMU says: disk is local",
        ),
        (
            |here, _, _| here.capabilities.retain(|name, _| name != "return-path"),
            "too old",
        ),
        (|here, _, _| turn_on(here, "x-colo"), "x-colo is on"),
        (|here, _, _| turn_on(here, "mapped-ram"), "mapped-ram is on"),
        (
            |here, _, _| turn_on(here, "background-snapshot"),
            "background-snapshot is on",
        ),
        (
            |here, _, _| turn_on(here, "zero-copy-send"),
            "zero-copy-send is on",
        ),
        (
            |here, _, _| set(here, "mode", "cpr-reboot"),
            "mode is cpr-reboot",
        ),
        (
            |here, _, _| set(here, "tls-creds", "tls0"),
            "tls-creds is set at the source",
        ),
        (
            |_, there, _| set(there, "tls-creds", "tls0"),
            "tls-creds is set at the destination",
        ),
        (
            |_, there, _| there.now.state = "running",
            "does not wait for a migration (running)",
        ),
        (
            |_, there, _| there.now.migration = "failed",
            "came to the destination before (failed)",
        ),
        (
            |here, _, _| turn_on(here, "multifd"),
            "multifd is on at the source only",
        ),
        (
            |_, there, _| turn_on(there, "postcopy-ram"),
            "postcopy-ram is on at the destination only",
        ),
        (
            |here, there, _| {
                turn_on(here, "multifd");
                turn_on(there, "multifd");
                there
                    .parameters
                    .insert("multifd-channels".to_owned(), 4.into());
            },
            "multifd-channels is 2 at the source, 4 at the destination",
        ),
        (
            |_, _, plan| plan.downtime = Duration::ZERO,
            "downtime must be",
        ),
        (
            |_, _, plan| plan.downtime = Duration::from_secs(2001),
            "downtime must be",
        ),
    ];
    for (change, reason) in changes {
        let (mut here, mut there) = (completing(), receiving());
        let mut plan = Scene::new(completing(), None).plan;
        change(&mut here, &mut there, &mut plan);
        let mut scene = Scene::new(here, Some(there));
        scene.plan = plan;
        match scene.drive() {
            Err(Error::Unfit(reasons)) => {
                assert!(
                    reasons.iter().any(|found| found.contains(reason)),
                    "{reasons:?}"
                );
            }
            other => panic!("{reason}: {other:?}"),
        }
        assert!(
            scene.told().is_empty() && scene.told_there().is_empty(),
            "{reason}"
        );
    }
}

fn turn_on(qemu: &mut Qemu, capability: &str) {
    qemu.capabilities.insert(capability.to_owned(), true);
}

fn set(qemu: &mut Qemu, parameter: &str, value: &str) {
    qemu.parameters.insert(parameter.to_owned(), value.into());
}

#[test]
fn all_reasons_are_said_at_once() {
    let mut source = completing();
    turn_on(&mut source, "x-colo");
    set(&mut source, "tls-creds", "tls0");
    let error = Scene::new(source, Some(Qemu::source(&[])))
        .drive()
        .unwrap_err();
    let text = error.to_string();
    for reason in ["x-colo", "tls-creds", "does not wait"] {
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn what_makes_it_slower_is_noted() {
    let mut source = completing();
    turn_on(&mut source, "xbzrle");
    turn_on(&mut source, "multifd");
    set(&mut source, "multifd-compression", "zstd");
    let notes = Scene::new(source, None).drive().unwrap().notes.join("\n");
    assert!(
        notes.contains("xbzrle") && notes.contains("multifd compresses (zstd)"),
        "{notes}"
    );
}

#[test]
fn a_failure_leaves_the_guest_at_the_source_as_it_was() {
    let mut there = waiting();
    there.dies_at = Some("dead");
    there.steps = vec![step("dead", "inmigrate")].into();
    let scene = Scene::new(failing(step("active", "running")), Some(there));
    let outcome = scene.drive().unwrap();
    let reason = "Unable to write to socket".to_owned();
    assert_eq!(outcome.ending, Ending::Failed { reason });
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Source, Some(true))
    );
    assert!(outcome.guest.evidence.contains("the destination is gone"));
    assert!(scene.proxy.cancelled.load(Ordering::Relaxed));
    scene.assert_restored();
}

#[test]
fn a_destination_that_waits_on_does_not_hold_up_a_failure() {
    let scene = Scene::new(failing(step("active", "running")), Some(waiting()));
    let start = Instant::now();
    let outcome = scene.drive().unwrap();
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    assert_eq!(outcome.guest.place, Place::Source);
}

#[test]
fn a_request_cancels_and_both_sides_are_asked() {
    let mut source = Qemu::source(&[step("active", "running")]);
    source.cancelled = Some(vec![
        step("cancelling", "running"),
        step("cancelled", "running"),
    ]);
    let mut scene = Scene::new(source, Some(waiting()));
    scene.watcher.at = Some("active");
    let outcome = scene.drive().unwrap();
    assert_eq!(outcome.ending, Ending::Cancelled);
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Source, Some(true))
    );
    let cancels = scene
        .commands()
        .iter()
        .filter(|name| *name == "migrate_cancel")
        .count();
    assert_eq!(cancels, 1);
    scene.assert_restored();
}

#[test]
fn a_source_that_calls_its_cancellation_a_failure_was_cancelled() {
    let mut source = Qemu::source(&[step("active", "running")]);
    source.cancelled = Some(vec![step("failed", "running")]);
    let mut scene = Scene::new(source, Some(waiting()));
    scene.watcher.at = Some("active");
    assert_eq!(scene.drive().unwrap().ending, Ending::Cancelled);
}

#[test]
fn a_request_before_the_beginning_begins_nothing() {
    let mut scene = Scene::new(completing(), Some(receiving()));
    scene.watcher.reached = AtomicBool::new(true);
    assert!(matches!(scene.drive(), Err(Error::Cancelled)));
    assert!(scene.told().is_empty() && scene.told_there().is_empty());
}

#[test]
fn nothing_is_cancelled_while_the_guest_is_handed_over() {
    let mut scene = Scene::new(completing(), Some(receiving()));
    scene.watcher.at = Some("device");
    scene.proxy.handed_over = AtomicBool::new(true);
    let outcome = scene.drive().unwrap();
    assert_eq!(outcome.ending, Ending::Completed);
    assert!(!scene.commands().contains(&"migrate_cancel".to_owned()));

    // The proxy knows it earlier than the source's status shows it.
    let mut scene = Scene::new(completing(), Some(receiving()));
    scene.watcher.at = Some("active");
    scene.proxy.handed_over = AtomicBool::new(true);
    scene.drive().unwrap();
    assert!(!scene.commands().contains(&"migrate_cancel".to_owned()));
}

#[test]
fn a_guest_that_stands_still_is_cancelled_until_it_leaves() {
    for timeout in [None, Some(Duration::from_millis(50))] {
        // QEMU 10 says so as soon as its guest stands still.
        let mut source = Qemu::source(&[step("device", "finish-migrate")]);
        source.cancelled = Some(vec![step("cancelled", "running")]);
        let mut there = waiting();
        there.dies_at = Some("dead");
        there.steps = vec![step("dead", "inmigrate")].into();
        let mut scene = Scene::new(source, Some(there));
        scene.watcher.at = timeout.is_none().then_some("device");
        scene.plan.timeout = timeout;
        let outcome = scene.drive().unwrap();
        let expected = match timeout {
            None => Ending::Cancelled,
            Some(_) => Ending::Failed {
                reason: "it took longer than allowed".to_owned(),
            },
        };
        assert_eq!(outcome.ending, expected);
        assert_eq!(outcome.guest.place, Place::Source);
        assert!(!scene.watcher.refused.load(Ordering::Relaxed));
    }
}

#[test]
fn a_guest_in_postcopy_is_not_cancelled() {
    let source = Qemu::source(&[
        step("postcopy-active", "finish-migrate"),
        step("completed", "postmigrate"),
    ]);
    let mut scene = Scene::new(source, Some(receiving()));
    scene.watcher.at = Some("postcopy-active");
    assert_eq!(scene.drive().unwrap().ending, Ending::Completed);
    assert!(scene.watcher.refused.load(Ordering::Relaxed));
    assert!(!scene.proxy.cancelled.load(Ordering::Relaxed));
}

/// A migration that takes too long while its source gives no answers.
fn mute(then: &[Step]) -> Scene {
    let mut source = Qemu::source(&[&[step("active", "running")], then].concat());
    source.mute = Some(("active", 2));
    let mut scene = Scene::new(source, None);
    // It has taken too long after the second question without an answer, not after the first.
    scene.patience = Duration::from_secs(2);
    scene.plan.timeout = Some(Duration::from_secs(3));
    scene
}

#[test]
fn a_source_that_is_mute_is_cancelled_by_breaking_the_proxy() {
    let scene = mute(&[step("failed", "running")]);
    let outcome = scene.drive().unwrap();
    let reason = "it took longer than allowed".to_owned();
    assert_eq!(outcome.ending, Ending::Failed { reason });
    assert!(scene.proxy.cancelled.load(Ordering::Relaxed));
    assert!(!scene.commands().contains(&"migrate_cancel".to_owned()));
}

#[test]
fn a_source_that_is_mute_and_may_have_handed_over_is_left_alone() {
    let mut scene = mute(&[step("completed", "postmigrate")]);
    scene.proxy.handed_over = AtomicBool::new(true);
    assert_eq!(scene.drive().unwrap().ending, Ending::Completed);
    assert!(!scene.proxy.cancelled.load(Ordering::Relaxed));
    assert!(!scene.commands().contains(&"migrate_cancel".to_owned()));
}

#[test]
fn a_guest_that_is_handed_over_in_that_moment_is_not_cancelled() {
    let mut scene = Scene::new(completing(), Some(receiving()));
    scene.watcher.at = Some("active");
    scene.proxy.races = true;
    assert_eq!(scene.drive().unwrap().ending, Ending::Completed);
    assert!(!scene.commands().contains(&"migrate_cancel".to_owned()));
}

#[test]
fn a_guest_that_may_be_handed_over_is_cancelled_only_by_force() {
    for insists in [false, true] {
        let mut source = completing();
        source.steps = vec![step("active", "running"); 50].into();
        let ends = match insists {
            true => step("failed", "running"),
            false => step("completed", "postmigrate"),
        };
        source.steps.push_back(ends);
        let mut scene = Scene::new(source, None);
        scene.watcher.at = Some("active");
        scene.watcher.insists = insists;
        scene.proxy.handed_over = AtomicBool::new(true);
        let outcome = scene.drive().unwrap();
        assert!(scene.watcher.refused.load(Ordering::Relaxed));
        assert_eq!(scene.proxy.cancelled.load(Ordering::Relaxed), insists);
        let (ending, place) = match insists {
            true => (Ending::Cancelled, Place::Unknown),
            false => (Ending::Completed, Place::Destination),
        };
        assert_eq!((outcome.ending, outcome.guest.place), (ending, place));
        assert!(!scene.commands().contains(&"migrate_cancel".to_owned()));
    }
}

#[test]
fn a_source_that_waits_for_a_device_to_go_can_be_cancelled() {
    let mut source = Qemu::source(&[step("wait-unplug", "running")]);
    source.cancelled = Some(vec![step("cancelled", "running")]);
    let mut scene = Scene::new(source, None);
    scene.watcher.at = Some("wait-unplug");
    assert_eq!(scene.drive().unwrap().ending, Ending::Cancelled);
}

#[test]
fn a_source_that_does_not_notice_the_end_of_the_proxy_is_cancelled() {
    let mut source = Qemu::source(&[step("active", "running")]);
    source.cancelled = Some(vec![step("cancelled", "running")]);
    let mut scene = Scene::new(source, None);
    scene.proxy.finished = AtomicBool::new(true);
    let outcome = scene.drive().unwrap();
    let reason = "the proxies lost each other".to_owned();
    assert_eq!(outcome.ending, Ending::Failed { reason });
    assert_eq!(outcome.guest.place, Place::Source);
}

#[test]
fn a_migration_that_takes_too_long_is_cancelled() {
    let mut source = Qemu::source(&[step("active", "running")]);
    source.cancelled = Some(vec![step("cancelled", "running")]);
    let mut scene = Scene::new(source, None);
    scene.plan.timeout = Some(Duration::from_millis(50));
    let outcome = scene.drive().unwrap();
    let reason = "it took longer than allowed".to_owned();
    assert_eq!(outcome.ending, Ending::Failed { reason });
}

#[test]
fn a_source_that_never_ends_is_given_up() {
    let mut source = Qemu::source(&[step("active", "running")]);
    source.cancelled = Some(vec![step("cancelling", "running")]);
    let mut scene = Scene::new(source, None);
    scene.watcher.at = Some("active");
    // Time enough to be told, and to say that it cancels.
    scene.plan.pace.end = Duration::from_secs(2);
    let start = Instant::now();
    let outcome = scene.drive().unwrap();
    let reason = "the source does not end its migration (cancelling)".to_owned();
    assert_eq!(outcome.ending, Ending::Failed { reason });
    assert!(start.elapsed() < IN_TIME);
    assert!(scene.proxy.cancelled.load(Ordering::Relaxed));
}

#[test]
fn a_source_that_ends_is_not_asked_for_ever() {
    for (there, notice, place) in [
        (waiting(), Duration::from_millis(100), Place::Nowhere),
        (receiving(), LONG, Place::Unknown),
    ] {
        let mut source = Qemu::source(&[step("active", "running"), step("dead", "running")]);
        source.dies_at = Some("dead");
        let mut scene = Scene::new(source, Some(there));
        scene.plan.pace.notice = notice;
        let outcome = scene.drive().unwrap();
        match outcome.ending {
            Ending::Failed { reason } => assert!(reason.contains("closed its monitor"), "{reason}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(outcome.guest.place, place, "{}", outcome.guest.evidence);
    }
}

/// A source whose monitor closes while the guest is handed over.
fn lost() -> Scene {
    let mut source = Qemu::source(&[step("device", "finish-migrate"), step("dead", "paused")]);
    source.dies_at = Some("dead");
    let mut scene = Scene::new(source, Some(receiving()));
    scene.proxy.handed_over = AtomicBool::new(true);
    scene
}

#[test]
fn a_lost_monitor_does_not_break_what_may_be_handed_over() {
    let scene = lost();
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + IN_TIME;
            while !scene.proxy.too_late.load(Ordering::Relaxed) && Instant::now() < end {
                thread::sleep(Duration::from_millis(1));
            }
            // It is waited for from now on.
            thread::sleep(Duration::from_millis(150));
            assert!(!scene.proxy.cancelled.load(Ordering::Relaxed));
            scene.proxy.finished.store(true, Ordering::Relaxed);
        });
        scene.drive().unwrap()
    });
    let notes = outcome.notes.join("\n");
    assert!(notes.contains("was waited for"), "{notes}");
    // Its process goes on, so the guest may run there.
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Unknown, None)
    );
    assert!(notes.contains("start the guest at the"), "{notes}");
    assert!(!scene.commands_there().contains(&"cont".to_owned()));
}

#[test]
fn a_handover_that_the_monitor_did_not_show_leaves_the_place_open() {
    let mut scene = Scene::new(Qemu::source(&[step("active", "running")]), None);
    scene.plan.pace.notice = LONG;
    scene.proxy.finished.store(true, Ordering::Relaxed);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| loop {
            let mut qemu = scene.source.1.lock().unwrap();
            if qemu.begun {
                qemu.refuse.insert("query-migrate", "no more");
                scene.proxy.handed_over.store(true, Ordering::Relaxed);
                return;
            }
            drop(qemu);
            thread::sleep(Duration::from_millis(1));
        });
        scene.drive().unwrap()
    });
    assert_eq!(outcome.guest.place, Place::Unknown);
}

#[test]
fn what_may_be_handed_over_is_not_waited_for_without_end() {
    let mut scene = lost();
    scene.plan.pace.end = Duration::from_millis(500);
    let start = Instant::now();
    let outcome = scene.drive().unwrap();
    assert!(start.elapsed() >= scene.plan.pace.end);
    assert!(scene.proxy.cancelled.load(Ordering::Relaxed));
    let notes = outcome.notes.join("\n");
    assert!(notes.contains("it was broken"), "{notes}");
}

#[test]
fn what_cannot_be_known_is_said_plainly() {
    let scene = Scene::new(failing(step("device", "finish-migrate")), None);
    let outcome = scene.drive().unwrap();
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Unknown, None)
    );
    // When it failed earlier than that, the destination cannot have the guest.
    let outcome = Scene::new(failing(step("active", "running")), None)
        .drive()
        .unwrap();
    assert_eq!(
        (outcome.guest.place, outcome.guest.running),
        (Place::Source, Some(true))
    );
}

#[test]
fn a_source_that_asks_before_the_switchover_is_told_to_go_on() {
    let source = Qemu::source(&[
        step("active", "running"),
        step("pre-switchover", "finish-migrate"),
        step("device", "finish-migrate"),
        step("completed", "postmigrate"),
    ]);
    let scene = Scene::new(source, Some(receiving()));
    assert_eq!(scene.drive().unwrap().ending, Ending::Completed);
    let expected = (
        "migrate-continue".to_owned(),
        json!({"state": "pre-switchover"}),
    );
    assert!(scene.told().contains(&expected));
}

#[test]
fn a_source_that_refuses_is_put_back() {
    for command in ["migrate", "migrate-set-parameters"] {
        let mut source = completing();
        source.refuse.insert(command, "no");
        let scene = Scene::new(source, None);
        let error = scene.drive().unwrap_err().to_string();
        assert_eq!(error, format!("QEMU refuses {command}: no"));
        scene.assert_restored();
    }
}

#[test]
fn a_destination_that_refuses_to_listen_ends_it() {
    let mut there = receiving();
    there.refuse.insert(
        "migrate-incoming",
        "'-incoming' was not specified on the command line",
    );
    let scene = Scene::new(completing(), Some(there));
    let error = scene.drive().unwrap_err().to_string();
    assert!(error.contains("QEMU refuses migrate-incoming"), "{error}");
    assert!(scene.told().is_empty());
}

#[test]
fn a_destination_that_listens_is_not_told_to() {
    let mut there = receiving();
    there.more.insert(
        "socket-address".to_owned(),
        json!([{"type": "unix", "path": "/x"}]),
    );
    there.begin = "migrate-set-capabilities";
    let scene = Scene::new(completing(), Some(there));
    assert_eq!(scene.drive().unwrap().guest.place, Place::Destination);
    let told = ["migrate-set-capabilities", "stop", "cont"];
    assert_eq!(scene.commands_there(), told);

    // A QEMU that does not tell where it listens says so when it is told to.
    let mut there = receiving();
    there.refuse.insert(
        "migrate-incoming",
        "The incoming migration has already been started",
    );
    there.begin = "migrate-set-capabilities";
    let outcome = Scene::new(completing(), Some(there)).drive().unwrap();
    assert_eq!(outcome.guest.place, Place::Destination);
    assert!(
        outcome.notes.join("").contains("listens already"),
        "{:?}",
        outcome.notes
    );
}

#[test]
fn settings_that_cannot_be_put_back_are_noted() {
    let source = Qemu::source(&[step("active", "running")]);
    let scene = Scene::new(source, None);
    Qemu::once_begun(&scene.source.1, |qemu| {
        qemu.refuse.insert("migrate-set-parameters", "no more");
        // It does not end before that.
        qemu.steps.push_back(step("completed", "postmigrate"));
    });
    let notes = scene.drive().unwrap().notes.join("\n");
    assert!(
        notes.contains("not as before: QEMU refuses migrate-set-parameters"),
        "{notes}"
    );
}
