// SPDX-License-Identifier: GPL-2.0

//! Kills what takes part in a migration, cuts the link, or cancels, at random moments: each time the
//! guest must run on just one side, with its memory right. While it runs at the source, the
//! destination must not even have a whole copy of it, unless the sender said that it is in doubt, or
//! was killed and could say nothing. Some links are slow, so that there is a backlog, and some
//! destinations start the guest by themselves.
//!
//! `TWINPAGE_CHAOS_RUNS` is the number of runs (20 if not set), `TWINPAGE_CHAOS_SEED` the first seed,
//! which is printed. The proxies are processes of their own here (this test's program, started
//! again), so that they can be killed.

use std::collections::BTreeMap;
use std::env;
use std::num::NonZeroU64;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread;
use std::time::{
    Duration,
    Instant,
    SystemTime, //
};

use serde_json::json;
use twinpage_migrate::net::{
    RateLimit,
    Security, //
};
use twinpage_migrate::proxy::{
    receive,
    send,
    Limits, //
};
use twinpage_rig::{
    compare,
    Build,
    Guest,
    Migration,
    Options,
    Process,
    Qemu, //
};
use twinpage_store::Sources;

use crate::common::relay::{
    Harm,
    Relay,
    Way, //
};
use crate::common::synth::Dice;
use crate::world::with_parameters;

/// Tells this program what to be.
const ROLE: &str = "TWINPAGE_CHAOS_ROLE";
/// Tells it which file to make when it is ready.
const READY: &str = "TWINPAGE_CHAOS_READY";
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

#[test]
#[ignore = "a part of the chaos tests, started by them"]
fn proxy_process() {
    let Ok(role) = env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    let limits = Limits {
        silence: Duration::from_secs(4),
        ping: Duration::from_secs(1),
        threads: 1,
        ..Limits::default()
    };
    let handle = match words[..] {
        ["send", path, to, rate] => {
            let listener = UnixListener::bind(path).unwrap();
            let input = send::Input::Listener(listener, path.into());
            let mut options = send::Options::new(input, to.parse().unwrap(), Security::Insecure);
            options.limits = limits;
            options.rate = NonZeroU64::new(rate.parse().unwrap()).map(RateLimit::new);
            send::start(options)
        }
        ["receive", listen, qemu] => {
            let mut options = receive::Options::new(
                listen.parse().unwrap(),
                Security::Insecure,
                Some(qemu.into()),
                Arc::new(|_| Ok(Arc::new(Sources::new()))),
            );
            options.limits = limits;
            receive::start(options)
        }
        _ => panic!("{role}"),
    };
    let handle = handle.unwrap();
    // A socket's file is there before anybody listens on it.
    std::fs::write(env::var(READY).unwrap(), "").unwrap();
    let ended = handle.wait();
    println!("{ended:?}");
    ended.unwrap();
}

fn proxy(role: &str, name: &str, dir: &Path) -> Process {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "chaos::proxy_process",
            "--ignored",
            "--nocapture",
        ])
        .env(ROLE, role)
        // What it says is read from the end of its log.
        .env("RUST_BACKTRACE", "0")
        .env(READY, dir.join(format!("{name}.ready")));
    Process::start(&mut command, name, &dir.join(format!("{name}.log"))).unwrap()
}

fn options() -> Options {
    let guest = Guest::idle(MEMORY_MIB).writing(WRITTEN, twinpage_rig::Write::FirstWord, 20_000);
    Options::new(Build::Trixie, "q35", &guest)
}

fn migration() -> Migration {
    with_parameters(&[], json!({ "max-bandwidth": 24 << 20 }))
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
    /// The destination waits to be told to run.
    stands: bool,
}

/// Starts a run; `here` is a source that already runs, `rate` the bytes a second of the link (0: no
/// limit), `stands` whether the destination waits to be told to run.
fn start(here: Option<Alive>, harm: Harm, rate: u64, stands: bool) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let there = {
        let incoming = options().incoming("defer");
        let incoming = incoming.with(stands.then_some("-S"));
        let mut there = Qemu::start(&incoming, "there", dir.path()).unwrap();
        migration().set_up(&mut there).unwrap();
        let uri = format!("unix:{}", dir.path().join("qemu.sock").display());
        there
            .qmp()
            .run("migrate-incoming", json!({ "uri": uri }))
            .unwrap();
        there
    };
    let link = dir.path().join("link.sock");
    let listen = format!("unix:{}", link.display());
    let qemu = dir.path().join("qemu.sock");
    let receiver = proxy(
        &format!("receive {listen} {}", qemu.display()),
        "receiver",
        dir.path(),
    );
    let relay = Relay::start(dir.path(), &listen, harm);
    let path = dir.path().join("send.sock");
    let to = format!("unix:{}", relay.path.display());
    let sender = proxy(
        &format!("send {} {to} {rate}", path.display()),
        "sender",
        dir.path(),
    );
    let Alive { qemu: here, home } = here.unwrap_or_else(|| {
        let home = tempfile::tempdir().unwrap();
        let mut qemu = Qemu::start(&options(), "here", home.path()).unwrap();
        migration().set_up(&mut qemu).unwrap();
        qemu.wait_filled().unwrap();
        Alive { qemu, home }
    });
    await_path(&dir.path().join("receiver.ready"));
    await_path(&dir.path().join("sender.ready"));
    Run {
        here,
        home,
        there,
        sender,
        receiver,
        relay,
        dir,
        stands,
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

    /// Sees where the guest is, and that it is there alone and unharmed.
    fn judge(mut self, blow: Blow) -> (Where, Option<Alive>) {
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
                if self.stands {
                    self.there.wait_migration(&["completed"], LIMIT).unwrap();
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
                assert!(!said.contains("Ok(Report"), "{blow:?}: {said}");
                if let Some(state) = self.copy_there() {
                    println!("    a copy ({state}) is left at the destination");
                    let doubt = blow == Blow::KillSender || said.contains("Unsure");
                    assert!(doubt, "{blow:?}: the guest is there too ({state}): {said}");
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
        let info = self.there.migration().ok()?;
        Some(info["status"].as_str().unwrap_or("none").to_owned())
    }

    /// The state of a whole copy of the guest at the destination, which has time to notice that its
    /// connection has ended.
    fn copy_there(&mut self) -> Option<String> {
        let end = Instant::now() + Duration::from_secs(1);
        loop {
            // It may end at any moment.
            let state = self.there.state().ok().filter(|state| state != "inmigrate");
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
fn run(seed: u64, here: Option<Alive>) -> (Blow, Where, Option<Alive>) {
    let mut dice = Dice(seed);
    let blow = BLOWS[dice.below(BLOWS.len() as u64) as usize];
    let harm = match blow {
        Blow::CutForth => Harm::Cut(Way::Forth, dice.below(14 << 20)),
        Blow::CutBack => Harm::Cut(Way::Back, dice.below(6000)),
        _ => Harm::None,
    };
    let rate = [0, (2 << 20) + dice.below(8 << 20)][dice.below(2) as usize];
    let stands = dice.below(2) == 0;
    let mut run = start(here, harm, rate, stands);
    let uri = format!("unix:{}", run.dir.path().join("send.sock").display());
    let limit = json!({ "downtime-limit": downtime_ms(rate) });
    run.here.qmp().run("migrate-set-parameters", limit).unwrap();
    run.here.migrate(&uri).unwrap();
    run.strike(blow, &mut dice);
    let (place, lives) = run.judge(blow);
    (blow, place, lives)
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
    let mut counts: BTreeMap<(Blow, Where), u32> = BTreeMap::new();
    for seed in first..first + runs {
        println!("seed {seed}");
        let (blow, place, next) = run(seed, lives);
        println!("    {blow:?}: {place:?}");
        *counts.entry((blow, place)).or_default() += 1;
        lives = next;
    }
    for ((blow, place), count) in counts {
        println!("{blow:?} -> {place:?}: {count}");
    }
}
