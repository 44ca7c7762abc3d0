// SPDX-License-Identifier: GPL-2.0

//! Kills what takes part in a migration, cuts the link, or cancels, at random moments: each time the
//! guest must run on just one side, with its memory right. While it runs at the source, the
//! destination must not even have a whole copy of it, unless the sender said that it is in doubt, or
//! was killed and could say nothing. Some links are slow, so that there is a backlog, some encrypt,
//! some sources use several connections (multifd), and some destinations start the guest by
//! themselves.
//!
//! Half of the migrations are driven by `run`, in one process with the sender, which is killed with
//! it. Then no two guests may ever run, and the guest must be where `run` said that it is; if that was
//! killed, the test does what `Documentation/migrating.rst` tells to do.
//!
//! `TWINPAGE_CHAOS_RUNS` is the number of runs (20 if not set), `TWINPAGE_CHAOS_SEED` the first seed,
//! which is printed. Proxies and `run` are processes of their own here (`part.rs`).

use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{
    Duration,
    Instant,
    SystemTime, //
};

use serde_json::json;
use twinpage_migrate::net::write_key;
use twinpage_rig::{
    compare,
    Build,
    Guest,
    Options,
    Process,
    Qemu, //
};

use crate::common::relay::{
    Harm,
    Relay,
    Way, //
};
use crate::common::synth::Dice;
use crate::part::{
    self,
    Link,
    Role, //
};

/// Nothing may take longer, be the link slow and the machine busy.
const LIMIT: Duration = Duration::from_secs(180);
/// The guest's memory.
const MEMORY_MIB: u32 = 24;
/// How many pages of it the guest writes over and over.
const WRITTEN: u32 = MEMORY_MIB * 32;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    KillSender,
    KillReceiver,
    KillDestination,
    KillSource,
    CutLink,
    CutForth,
    CutBack,
    Cancel,
    Nothing,
}

const BLOWS: [Blow; 9] = [
    Blow::KillSender,
    Blow::KillReceiver,
    Blow::KillDestination,
    Blow::KillSource,
    Blow::CutLink,
    Blow::CutForth,
    Blow::CutBack,
    Blow::Cancel,
    Blow::Nothing,
];

/// Where the guest is in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Source,
    Destination,
    /// The QEMU that had it was killed.
    Nowhere,
}

fn options() -> Options {
    let guest = Guest::idle(MEMORY_MIB).writing(WRITTEN, twinpage_rig::Write::FirstWord, 20_000);
    Options::new(Build::Trixie, "q35", &guest)
}

/// How a migration goes.
#[derive(Clone, Copy, Debug)]
struct Kind {
    /// `run` drives it, and not the test.
    driven: bool,
    /// The proxies encrypt.
    secret: bool,
    /// The source uses several connections.
    multifd: bool,
    /// The destination waits to be told to run (`-S`).
    stands: bool,
    /// Bytes a second of the link (0: no limit).
    rate: u64,
}

impl Kind {
    fn draw(dice: &mut Dice) -> Self {
        let mut coin = || dice.below(2) == 0;
        let (driven, secret, multifd) = (coin(), coin(), coin() && coin());
        // `run` has to hold back one that would start the guest by itself.
        let stands = !driven && coin();
        let slow = (2 << 20) + dice.below(8 << 20);
        Self {
            driven,
            secret,
            multifd,
            stands,
            // QEMU's own limit is off then.
            rate: if driven || dice.below(2) == 0 {
                slow
            } else {
                0
            },
        }
    }

    /// Sets up a QEMU, which may have been set up for another kind before.
    fn set_up(self, qemu: &mut Qemu) {
        let capability = |name, state| json!({ "capability": name, "state": state });
        let capabilities = [
            capability("return-path", true),
            capability("multifd", self.multifd),
        ];
        let capabilities = json!({ "capabilities": capabilities });
        let parameters = json!({ "max-bandwidth": 24 << 20 });
        let qmp = qemu.qmp();
        qmp.run("migrate-set-capabilities", capabilities).unwrap();
        qmp.run("migrate-set-parameters", parameters).unwrap();
    }
}

/// How long the guest may stand still for a migration over a link of so many bytes a second: all that
/// it writes over and over must go in half of that, or the migration may have no end.
fn downtime_ms(rate: u64) -> u64 {
    let written = u64::from(WRITTEN) * 4096;
    300 + (2 * 1000 * written).checked_div(rate).unwrap_or(0)
}

/// What the threads of a process are and wait for.
fn threads(pid: u32) -> String {
    let mut text = String::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for file in ["comm", "syscall", "stack"] {
            text += &std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        }
    }
    text
}

/// Waits until `path` is there.
fn await_path(path: &Path) {
    let end = Instant::now() + LIMIT;
    while !path.exists() {
        assert!(Instant::now() < end, "{} does not come", path.display());
        thread::sleep(Duration::from_millis(2));
    }
}

/// A QEMU in which the guest lives, and the directory of its files.
struct Alive {
    qemu: Qemu,
    home: tempfile::TempDir,
}

/// All that takes part in one run.
struct Run {
    here: Qemu,
    home: tempfile::TempDir,
    there: Qemu,
    sender: Process,
    receiver: Process,
    relay: Relay,
    dir: tempfile::TempDir,
    kind: Kind,
    /// The destination's QEMU hung.
    hung: bool,
}

/// A source that runs.
fn first() -> Alive {
    let home = tempfile::tempdir().unwrap();
    let mut qemu = Qemu::start(&options(), "here", home.path()).unwrap();
    qemu.wait_filled().unwrap();
    Alive { qemu, home }
}

/// Starts a run and its migration; `here` is a source that already runs.
fn start(here: Option<Alive>, harm: Harm, kind: Kind) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let unix = |path: &Path| format!("unix:{}", path.display());
    let Alive {
        qemu: mut here,
        home,
    } = here.unwrap_or_else(first);
    let incoming = options().incoming("defer");
    let incoming = incoming.with(kind.stands.then_some("-S"));
    let mut there = Qemu::start(&incoming, "there", dir.path()).unwrap();
    for qemu in [&mut here, &mut there] {
        kind.set_up(qemu);
    }
    let key = kind.secret.then(|| at("key"));
    if let Some(path) = &key {
        write_key(path).unwrap();
    }
    let qemu = at("qemu.sock");
    let listen = unix(&at("link.sock"));
    let receive = Role::Receive {
        listen: listen.clone(),
        qemu: qemu.clone(),
        key: key.clone(),
    };
    let receiver = part::start(&receive, "receiver", dir.path());
    await_path(&part::ready_file("receiver", dir.path()));
    let relay = Relay::start(dir.path(), &listen, harm);
    let link = Link {
        to: unix(&relay.path),
        key,
        rate: kind.rate,
    };
    let downtime_ms = downtime_ms(kind.rate);
    let from = at("send.sock");
    let role = match kind.driven {
        true => Role::Run {
            from: here.qmp_socket(),
            to: there.qmp_socket(),
            incoming: unix(&qemu),
            downtime_ms,
            link,
        },
        false => Role::Send {
            listen: from.clone(),
            link,
        },
    };
    if !kind.driven {
        let uri = json!({ "uri": unix(&qemu) });
        there.qmp().run("migrate-incoming", uri).unwrap();
    }
    let sender = part::start(&role, "sender", dir.path());
    await_path(&part::ready_file("sender", dir.path()));
    if !kind.driven {
        let limit = json!({ "downtime-limit": downtime_ms });
        here.qmp().run("migrate-set-parameters", limit).unwrap();
        here.migrate(&unix(&from)).unwrap();
    }
    Run {
        here,
        home,
        there,
        sender,
        receiver,
        relay,
        dir,
        kind,
        hung: false,
    }
}

impl Run {
    /// Waits for the moment, and strikes.
    fn strike(&mut self, blow: Blow, dice: &mut Dice) {
        if dice.below(3) == 0 {
            // In the last moments.
            let end = Instant::now() + LIMIT;
            loop {
                let info = self.here.migration().unwrap();
                let status = info["status"].as_str().unwrap_or("none");
                if matches!(status, "device" | "completed" | "failed") {
                    break;
                }
                assert!(Instant::now() < end, "{info}");
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_micros(
                [0, dice.below(10_000)][dice.below(2) as usize],
            ));
        } else {
            thread::sleep(Duration::from_millis(dice.below(1200)));
        }
        match blow {
            Blow::KillSender => self.sender.kill(),
            Blow::KillReceiver => self.receiver.kill(),
            Blow::KillDestination => self.there.process().kill(),
            Blow::KillSource => self.here.process().kill(),
            Blow::CutLink => self.relay.cut.store(true, Ordering::SeqCst),
            Blow::Cancel => {
                // It may have ended.
                let _ = self.here.qmp().run("migrate_cancel", json!({}));
            }
            Blow::CutForth | Blow::CutBack | Blow::Nothing => (),
        }
    }

    /// Sees that no two guests run until both the source and `run` have come to their end.
    fn watch(&mut self, blow: Blow) {
        let end = Instant::now() + LIMIT;
        loop {
            let over = match blow {
                Blow::KillSource => true,
                _ => self.here.migration().is_ok_and(|info| {
                    let status = info["status"].as_str().unwrap_or("none");
                    matches!(status, "completed" | "failed" | "cancelled")
                }),
            };
            let over = over && self.sender.ended().unwrap().is_some();
            // A guest that has begun to run there never stops by itself.
            let there = self.state_there();
            let both = there.is_some_and(|state| state == "running")
                && self.here.state().is_ok_and(|state| state == "running");
            assert!(!both, "{blow:?}: the guest runs at both sides");
            if over {
                return;
            }
            assert!(Instant::now() < end, "{blow:?}: run does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sees where the guest is, and that it is there alone and unharmed.
    fn judge(mut self, blow: Blow) -> (Where, Option<Alive>) {
        if !self.kind.driven {
            return self.find(blow);
        }
        self.watch(blow);
        let said = part::place(&self.sender);
        let log = self.sender.log_end();
        let hung = self.hung;
        let (place, lives) = self.find(blow);
        match said {
            // Whom nobody answers does not know.
            Some(said) if hung && said == "Unknown" => assert_eq!(place, Where::Nowhere, "{log}"),
            Some(said) => assert_eq!(said, format!("{place:?}"), "{blow:?}: {log}"),
            None => assert_eq!(blow, Blow::KillSender, "run says no place: {log}"),
        }
        (place, lives)
    }

    /// Sees where the guest is in the end.
    fn find(mut self, blow: Blow) -> (Where, Option<Alive>) {
        let source = match blow {
            Blow::KillSource => "killed".to_owned(),
            _ => {
                let ends = ["completed", "failed", "cancelled"];
                let info = self.here.wait_migration(&ends, LIMIT).unwrap();
                info["status"].as_str().unwrap().to_owned()
            }
        };
        if source != "completed" && !self.has_begun_there() {
            // It never knew its sender, and waits for one that may come yet.
            self.receiver.kill();
        }
        for (name, proxy) in [
            ("sender", &mut self.sender),
            ("receiver", &mut self.receiver),
        ] {
            if let Err(error) = proxy.wait(Duration::from_secs(30)) {
                println!("{}", threads(proxy.pid()));
                panic!("{blow:?}, source {source}: the {name} does not end: {error}");
            }
        }
        match source.as_str() {
            "completed" => {
                assert_eq!(self.here.state().unwrap(), "postmigrate");
                if blow == Blow::KillDestination {
                    return (Where::Nowhere, None);
                }
                self.there.wait_migration(&["completed"], LIMIT).unwrap();
                // Nobody has started it yet.
                if self.there.state().unwrap() == "paused" {
                    let ours = self.here.save_memory().unwrap();
                    compare(&ours, &self.there.save_memory().unwrap()).unwrap();
                }
                self.goes_on_there();
                (Where::Destination, Some(self.moved()))
            }
            "killed" => {
                if !self.is_whole_there() {
                    return (Where::Nowhere, None);
                }
                self.goes_on_there();
                (Where::Destination, Some(self.moved()))
            }
            _ => {
                let said = self.sender.log_end();
                assert!(!said.contains(part::WELL), "{blow:?}: {said}");
                if let Some(state) = self.copy_there() {
                    println!("    a copy ({state}) is left at the destination");
                    let doubt = blow == Blow::KillSender || said.contains("Unsure");
                    assert!(
                        doubt || self.kind.driven,
                        "{blow:?}: the guest is there too ({state}): {said}"
                    );
                    assert!(!self.kind.driven || state == "paused", "{blow:?}: {state}");
                    self.there.process().kill();
                }
                self.runs_on_here();
                self.here.wait_progress(LIMIT).unwrap();
                self.here.check_memory().unwrap();
                self.here.qmp().run("cont", json!({})).unwrap();
                let stayed = Alive {
                    qemu: self.here,
                    home: self.home,
                };
                (Where::Source, Some(stayed))
            }
        }
    }

    /// Waits until the source's QEMU runs the guest again, which it does only after it has said how
    /// the migration ended.
    fn runs_on_here(&mut self) {
        let end = Instant::now() + LIMIT;
        loop {
            let state = self.here.state().unwrap();
            if state == "running" {
                return;
            }
            assert!(Instant::now() < end, "the source's guest is left {state}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the receiver has connected to its QEMU, which it does once it knows its sender. It
    /// would have by now: the source has ended since.
    fn has_begun_there(&mut self) -> bool {
        // A QEMU to which somebody came in vain ends.
        !matches!(self.status_there().as_deref(), Some("none" | "setup"))
    }

    /// Whether all of the guest has come to the destination, whose QEMU ends if only a part has.
    fn is_whole_there(&mut self) -> bool {
        let end = Instant::now() + LIMIT;
        loop {
            match self.status_there().as_deref() {
                Some("completed") => return true,
                Some("none" | "setup") => return false,
                _ if self.there.process().ended().unwrap().is_some() => return false,
                status => assert!(Instant::now() < end, "it does not end: {status:?}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the destination's QEMU says of the migration; nothing if it ends at this moment.
    fn status_there(&mut self) -> Option<String> {
        self.state_there()?;
        let info = self.there.migration().ok()?;
        Some(info["status"].as_str().unwrap_or("none").to_owned())
    }

    /// The state of the destination's QEMU; nothing if it has ended. One that does not answer for a
    /// minute is ended, too: a QEMU 10.0 hangs if it is in the middle of several connections when
    /// they end (`multifd`).
    fn state_there(&mut self) -> Option<String> {
        let state = self.there.state().ok();
        if state.is_none() {
            self.hung |= self.there.process().ended().unwrap().is_none();
            self.there.process().kill();
        }
        state
    }

    /// The state of a whole copy of the guest at the destination, which has time to notice that its
    /// connection has ended.
    fn copy_there(&mut self) -> Option<String> {
        let end = Instant::now() + Duration::from_secs(1);
        loop {
            // It may end at any moment.
            let state = self.state_there().filter(|state| state != "inmigrate");
            if state.is_some() || Instant::now() >= end {
                return state;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is left when the guest has moved.
    fn moved(self) -> Alive {
        Alive {
            qemu: self.there,
            home: self.dir,
        }
    }

    /// Lets the guest run at the destination, and judges it.
    fn goes_on_there(&mut self) {
        self.there.wait_migration(&["completed"], LIMIT).unwrap();
        // Its memory is whole before it runs, and after.
        self.there.check_memory().unwrap();
        self.there.qmp().run("cont", json!({})).unwrap();
        self.there.wait_progress(LIMIT).unwrap();
        self.there.check_memory().unwrap();
        self.there.qmp().run("cont", json!({})).unwrap();
        self.there.wait_progress(LIMIT).unwrap();
    }
}

/// One run. Gives the QEMU in which the guest lives on.
fn run(seed: u64, here: Option<Alive>) -> (bool, Blow, Where, Option<Alive>) {
    let mut dice = Dice(seed);
    let blow = BLOWS[dice.below(BLOWS.len() as u64) as usize];
    let harm = match blow {
        Blow::CutForth => Harm::Cut(Way::Forth, dice.below(14 << 20)),
        Blow::CutBack => Harm::Cut(Way::Back, dice.below(6000)),
        _ => Harm::None,
    };
    let kind = Kind::draw(&mut dice);
    println!("    {kind:?}");
    let mut run = start(here, harm, kind);
    run.strike(blow, &mut dice);
    let (place, lives) = run.judge(blow);
    (kind.driven, blow, place, lives)
}

#[test]
fn the_guest_runs_on_exactly_one_side_whatever_breaks() {
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let runs = number("TWINPAGE_CHAOS_RUNS").unwrap_or(20);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let first = number("TWINPAGE_CHAOS_SEED").unwrap_or(now.unwrap().subsec_nanos().into());
    println!("{runs} runs from seed {first}");
    let mut lives = None;
    let mut counts: BTreeMap<(bool, Blow, Where), u32> = BTreeMap::new();
    for seed in first..first + runs {
        println!("seed {seed}");
        let (driven, blow, place, next) = run(seed, lives);
        println!("    {blow:?}: {place:?}");
        *counts.entry((driven, blow, place)).or_default() += 1;
        lives = next;
    }
    for ((driven, blow, place), count) in counts {
        let by = if driven { "by run" } else { "by hand" };
        println!("{by}, {blow:?} -> {place:?}: {count}");
    }
}
