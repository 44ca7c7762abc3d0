// SPDX-License-Identifier: GPL-2.0

//! A part of a migration in a process of its own (this test's program, started again), so that it
//! can be killed.

use std::env;
use std::num::NonZeroU64;
use std::os::unix::net::UnixListener;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::{
    Deserialize,
    Serialize, //
};
use twinpage_migrate::net::{
    Address,
    Psk,
    RateLimit,
    Security, //
};
use twinpage_migrate::proxy::{
    receive,
    send,
    Limits, //
};
use twinpage_migrate::run;
use twinpage_rig::Process;
use twinpage_store::Sources;

/// Tells this program what to be.
const ROLE: &str = "TWINPAGE_CHAOS_ROLE";
/// Tells it which file to make when it is ready.
const READY: &str = "TWINPAGE_CHAOS_READY";
/// What a proxy says that did all of its work.
pub const WELL: &str = "it ended well";
/// What a process of `run` says in the end, before the place of the guest.
const PLACE: &str = "the guest is at: ";

/// What a process is.
#[derive(Debug, Deserialize, Serialize)]
pub enum Role {
    /// A sender, to which the source connects at `listen`.
    Send {
        /// A unix socket.
        listen: PathBuf,
        /// Where it finds the receiver, and how fast.
        link: Link,
    },
    /// A receiver.
    Receive {
        /// Where the sender connects to.
        listen: String,
        /// The socket of its QEMU.
        qemu: PathBuf,
        /// The key, if there is one.
        key: Option<PathBuf>,
    },
    /// A whole migration by `run`, with its sender.
    Run {
        /// The monitor of the source.
        from: PathBuf,
        /// That of the destination.
        to: PathBuf,
        /// Where the destination is to listen.
        incoming: String,
        /// For how long the guest may stand still.
        downtime_ms: u64,
        /// As of a sender.
        link: Link,
    },
}

/// How a sender reaches its receiver.
#[derive(Debug, Deserialize, Serialize)]
pub struct Link {
    /// Where it is.
    pub to: String,
    /// The key, if there is one.
    pub key: Option<PathBuf>,
    /// Bytes a second, 0 for no limit.
    pub rate: u64,
}

impl Link {
    /// How a proxy that takes `input` sends.
    fn options(&self, input: send::Input) -> send::Options {
        let to = self.to.parse().unwrap();
        let mut options = send::Options::new(input, to, security(self.key.as_deref()));
        options.limits = limits();
        options.rate = NonZeroU64::new(self.rate).map(RateLimit::new);
        options
    }
}

/// What the file of a key stands for.
fn security(key: Option<&Path>) -> Security {
    match key {
        Some(path) => Security::Psk(Psk::load(path).unwrap()),
        None => Security::Insecure,
    }
}

/// Limits of which none makes a test long.
fn limits() -> Limits {
    Limits {
        silence: Duration::from_secs(4),
        ping: Duration::from_secs(1),
        threads: 1,
        ..Limits::default()
    }
}

/// Says that a process is what it should be: a socket's file is there before anybody listens on it.
fn ready() {
    std::fs::write(env::var(READY).unwrap(), "").unwrap();
}

#[test]
#[ignore = "a part of the chaos tests, started by them"]
fn process() {
    let Ok(role) = env::var(ROLE) else {
        return;
    };
    let handle = match serde_json::from_str(&role).unwrap() {
        Role::Send { listen, link } => {
            let listener = UnixListener::bind(&listen).unwrap();
            send::start(link.options(send::Input::Listener(listener, listen)))
        }
        Role::Receive { listen, qemu, key } => {
            let mut options = receive::Options::new(
                listen.parse().unwrap(),
                security(key.as_deref()),
                Some(qemu),
                Arc::new(|_| Ok(Arc::new(Sources::new()))),
            );
            options.limits = limits();
            receive::start(options)
        }
        Role::Run {
            from,
            to,
            incoming,
            downtime_ms,
            link,
        } => {
            let options = run::Options {
                from: Address::unix(from).unwrap(),
                to: Some(Address::unix(to).unwrap()),
                incoming: Some(incoming),
                send: Box::new(move |input| link.options(input)),
                downtime: Duration::from_millis(downtime_ms),
                link_rate: None,
                resume: run::Resume::Start,
                timeout: None,
            };
            let handle = run::start(options).unwrap();
            // What is killed before it begins is no part of it.
            while handle.snapshot().migration.status == run::Status::None && !handle.finished() {
                thread::sleep(Duration::from_millis(1));
            }
            ready();
            let report = handle.wait().unwrap();
            println!("{:?}", report.outcome);
            println!("{PLACE}{:?}", report.outcome.guest.place);
            return;
        }
    };
    let handle = handle.unwrap();
    ready();
    let ended = handle.wait();
    println!("{ended:?}");
    if ended.is_ok() {
        println!("{WELL}");
    }
    ended.unwrap();
}

/// Starts a process; what it says goes to a file in `dir`.
pub fn start(role: &Role, name: &str, dir: &Path) -> Process {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "part::process", "--ignored", "--nocapture"])
        .env(ROLE, serde_json::to_string(role).unwrap())
        // What it says is read from the end of its log.
        .env("RUST_BACKTRACE", "0")
        .env(READY, ready_file(name, dir));
    Process::start(&mut command, name, &dir.join(format!("{name}.log"))).unwrap()
}

/// The file that is there when that process is ready.
pub fn ready_file(name: &str, dir: &Path) -> PathBuf {
    dir.join(format!("{name}.ready"))
}

/// Where the guest is, as a process of `run` said in the end.
pub fn place(run: &Process) -> Option<String> {
    let said = run.log_end();
    let (_, place) = said.split_once(PLACE)?;
    place.lines().next().map(str::to_owned)
}
