// SPDX-License-Identifier: GPL-2.0

//! The host that the guest goes to: two guests that share memory, and one that is waited for.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::process::{
    Child,
    Command,
    Stdio, //
};
use std::time::Duration;

use serde_json::{
    json,
    Value, //
};
use twinpage_guest::config::Config;
use twinpage_guest::protocol::Request;
use twinpage_lab::checks::Verdict;
use twinpage_lab::vmm::Vmm;
use twinpage_lab::{
    listen,
    place,
    wait, //
};

use crate::host::{
    save_ram,
    tool,
    Failure,
    Host,
    DESTINATION,
    DOMAIN,
    KEY,
    RECEIVER,
    TALK, //
};
use crate::talk::{
    Answer,
    Ask,
    Talk, //
};
use crate::{
    content,
    MIGRANT, //
};

/// Names and seeds of the guests that are here already.
const NEIGHBOURS: [(&str, u64); 2] = [("web-1", 1), ("web-2", 2)];

/// How long the receiver may take to listen, and to end after its migration.
const SOON: Duration = Duration::from_secs(60);

/// The destination.
pub struct Destination {
    host: Host,
    neighbours: Vec<Vmm>,
    receiver: Option<Child>,
    arrived: Option<Vmm>,
}

/// Runs the destination's part; whether all held.
///
/// # Errors
///
/// The source is gone.
pub fn run() -> Result<Verdict, Failure> {
    let mut destination = Destination {
        host: Host::new(DESTINATION)?,
        neighbours: Vec::new(),
        receiver: None,
        arrived: None,
    };
    let listener = TcpListener::bind(TALK)?;
    let prepared = destination.prepare();
    let mut talk = Talk::accept(&listener)?;
    let mut problem = prepared.err();
    let mut verdict = Verdict::Pass;
    loop {
        let ask: Ask = talk.hear()?;
        let seen = match problem.take() {
            Some(error) => Err(error),
            None => destination.answer(ask),
        };
        let failed = seen.is_err()
            || destination.host.checks.tally().1 > 0
                && destination.host.checks.verdict() == Verdict::Fail;
        if failed {
            verdict = Verdict::Fail;
        }
        let mut answer = Answer {
            checks: destination.host.checks.take(),
            ..Answer::default()
        };
        match seen {
            Ok(seen) => answer.seen = seen,
            Err(error) => answer.error = Some(error.to_string()),
        }
        talk.tell(&answer)?;
        if ask == Ask::Ram && answer.error.is_none() {
            let file = destination.host.file("ram");
            io::copy(&mut File::open(&file)?, talk.bytes().get_mut())?;
            std::fs::remove_file(file)?;
        }
        if ask == Ask::End {
            return Ok(verdict);
        }
    }
}

impl Destination {
    fn prepare(&mut self) -> Result<(), Failure> {
        self.host.checks.step("starting two guests of the image");
        for (name, seed) in NEIGHBOURS {
            let content = content(seed);
            println!("         {name}: {content}");
            self.neighbours.push(self.host.guest(name, &content, &[])?);
        }
        for guest in &mut self.neighbours {
            guest.ready()?;
        }
        self.host.checks.step("they have filled their memory");
        self.host.merge("guests of one image share memory")
    }

    fn answer(&mut self, ask: Ask) -> Result<Value, Failure> {
        match ask {
            // That was done before anybody could ask.
            Ask::Neighbours => Ok(Value::Null),
            Ask::Receive => self.receive(),
            Ask::Ram => self.ram(),
            Ask::Run => self.go(),
            Ask::Merge => self.merge(),
            Ask::End => self.end(),
        }
    }

    /// Starts a QEMU that waits for the guest, and the receiver in front of it.
    fn receive(&mut self) -> Result<Value, Failure> {
        let socket = format!("unix:{}", self.host.file("incoming").display());
        let (name, config): (_, Config) = MIGRANT;
        // Started with -S it rests after its arrival, so that its memory can be looked at.
        let more = ["-incoming", &socket, "-S"];
        let mut arrived = self.host.guest(name, &config, &more)?;
        arrived.qmp.capabilities(&["return-path"])?;
        self.arrived = Some(arrived);
        let listen = RECEIVER.to_string();
        let arguments = [
            "migrate",
            "receive",
            "--listen",
            &listen,
            "--connect",
            &socket,
            "--domain",
            DOMAIN,
            "--key",
            KEY,
            "--quiet",
            "--json",
        ];
        println!("\n# twinpage {}", arguments.join(" "));
        let receiver = Command::new(place::tool())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(self.host.file("received.json"))?)
            .spawn()?;
        self.receiver = Some(receiver);
        wait::until("the receiver listens", SOON, || {
            Ok::<_, Failure>(listen::heard(RECEIVER.port()))
        })?;
        Ok(Value::Null)
    }

    /// Takes the memory of the guest that came.
    fn ram(&mut self) -> Result<Value, Failure> {
        let mut received = Value::Null;
        if let Some(mut receiver) = self.receiver.take() {
            wait::until("the receiver ends", SOON, || {
                Ok::<_, Failure>(receiver.try_wait()?.is_some())
            })?;
            let status = receiver.wait()?;
            self.host
                .checks
                .check("the receiver ends well", status.success(), status);
            let text = std::fs::read_to_string(self.host.file("received.json"))?;
            received = serde_json::from_str(&text)?;
        }
        let guest = self.arrived.as_mut().ok_or("nobody was waited for")?;
        let status = guest.qmp.status()?;
        let rests = status == "paused";
        self.host
            .checks
            .check("the guest has arrived, and rests", rests, status);
        let file = self.host.file("ram");
        save_ram(guest, &file)?;
        let bytes = std::fs::metadata(file)?.len();
        Ok(json!({ "bytes": bytes, "received": received }))
    }

    /// Lets the guest run, and asks it whether it still has what it had.
    fn go(&mut self) -> Result<Value, Failure> {
        let guest = self.arrived.as_mut().ok_or("nobody was waited for")?;
        guest.qmp.run("cont", json!({}))?;
        let sum = guest.sum()?;
        let first = guest.fine(Request::Verify);
        let second = guest.fine(Request::Verify);
        let (holds, detail) = match (&first, &second) {
            (Ok(first), Ok(second)) => (
                first != second,
                format!("pages, pages written so far: {first}, then {second}"),
            ),
            (Err(error), _) | (_, Err(error)) => (false, error.to_string()),
        };
        self.host.checks.check(
            "every page of the guest verifies, and it goes on writing",
            holds,
            detail,
        );
        Ok(json!({ "sum": sum }))
    }

    /// Lets the guest share memory with its new neighbours.
    fn merge(&mut self) -> Result<Value, Failure> {
        let what = "the guest shares memory with its new neighbours";
        self.host.merge(what)?;
        tool(&["shared", "--all", "--top", "3"])?;
        let guest = self.arrived.as_mut().ok_or("nobody was waited for")?;
        let verified = guest.fine(Request::Verify)?;
        Ok(json!({ "verified": verified }))
    }

    /// Stops everything.
    fn end(&mut self) -> Result<Value, Failure> {
        if let Some(mut receiver) = self.receiver.take() {
            receiver.kill()?;
            receiver.wait()?;
        }
        self.host.close()?;
        let guests = self.neighbours.iter_mut().chain(&mut self.arrived);
        let mut said = Vec::new();
        let mut fine = true;
        for guest in guests {
            let answer = guest.fine(Request::Verify);
            fine &= answer.is_ok();
            let answer = answer.unwrap_or_else(|error| error.to_string());
            said.push(format!("{} {answer}", guest.name()));
        }
        self.host.checks.check(
            "all guests verify without the module",
            fine,
            said.join(", "),
        );
        self.neighbours.clear();
        self.arrived = None;
        self.host.judge_log()?;
        Ok(Value::Null)
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            // It may have ended by itself.
            let _ = receiver.kill();
            let _ = receiver.wait();
        }
    }
}
