// SPDX-License-Identifier: GPL-2.0

//! A client of QMP, the protocol by which QEMU is told what to do.
//!
//! QMP is lines of JSON. The client is one thread's: [`Client::execute`] sends a command and reads
//! until its answer; events that come in between are kept, the oldest dropped when they are many.
//! QEMU is not trusted more than anything else at the end of a socket: lines have a bound, and
//! every answer has a time limit. An answer that comes after its time limit is dropped by its id.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{
    self,
    IoSlice, //
};
use std::os::fd::OwnedFd;
use std::time::{
    Duration,
    Instant, //
};

use rustix::event::{
    poll,
    PollFd,
    PollFlags,
    Timespec, //
};
use rustix::net::sockopt::socket_peercred;
use rustix::net::UCred;
use rustix::process::{
    pidfd_open,
    PidfdFlags, //
};
use serde_json::{
    json,
    Value, //
};

use crate::net::connect::dial;
use crate::net::{
    Address,
    Socket, //
};

/// The longest line that is read. The longest that QEMU sends, its schema, is a tenth of it.
const MAX_LINE: usize = 4 << 20;

/// How many events are kept.
const MAX_EVENTS: usize = 256;

/// How much of a line without sense is shown.
const SHOWN: usize = 80;

/// How long an answer may take, if nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why a command has no answer, or not the one wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the address.
    #[error("Cannot connect to the QEMU monitor at {address}")]
    Connect {
        /// The address.
        address: Address,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("The connection to the QEMU monitor at {address} broke")]
    Broken {
        /// The address.
        address: Address,
        /// What the kernel said.
        source: io::Error,
    },
    /// QEMU closed the connection, as it does when it ends.
    #[error("QEMU closed its monitor at {0}; it may have ended")]
    Closed(Address),
    /// No answer in time.
    #[error(
        "The QEMU monitor at {address} did not answer {what} within {} s (is somebody else \
         connected to it?)",
        limit.as_secs_f32()
    )]
    Slow {
        /// The address.
        address: Address,
        /// What it was asked.
        what: String,
        /// For how long it was waited.
        limit: Duration,
    },
    /// What came is not QMP.
    #[error("What answers at {address} is no QEMU monitor (QMP): {reason}")]
    Garbage {
        /// The address.
        address: Address,
        /// What is wrong with it.
        reason: String,
    },
    /// QEMU refused the command.
    #[error("QEMU refuses {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// The class of the error, mostly `GenericError`.
        class: String,
        /// What QEMU says.
        desc: String,
    },
}

impl Error {
    /// Whether the connection is of no more use.
    pub fn is_gone(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Slow { .. })
    }
}

/// A version of QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u64,
    /// The second.
    pub minor: u64,
    /// The third.
    pub micro: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Something that QEMU told without being asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, such as `MIGRATION`.
    pub name: String,
    /// What it says.
    pub data: Value,
}

/// A connection to a monitor.
pub struct Client {
    socket: Socket,
    /// The process that listens, if that is QEMU itself.
    process: Option<OwnedFd>,
    address: Address,
    version: Version,
    /// Bytes that came and belong to no line yet.
    input: Vec<u8>,
    /// How many of them hold no end of a line.
    searched: usize,
    events: VecDeque<Event>,
    lost: u64,
    next_id: u64,
    patience: Duration,
}

impl Client {
    /// Connects to the monitor at `address`, which must not be in use by somebody else.
    ///
    /// # Errors
    ///
    /// Every variant of [`Error`].
    pub fn connect(address: &Address) -> Result<Self, Error> {
        Self::connect_within(address, PATIENCE)
    }

    /// As [`Self::connect`], with a limit for each answer.
    ///
    /// # Errors
    ///
    /// Every variant of [`Error`].
    pub fn connect_within(address: &Address, patience: Duration) -> Result<Self, Error> {
        let socket = dial(address, patience).map_err(|source| Error::Connect {
            address: address.clone(),
            source,
        })?;
        let mut client = Self {
            process: peer(&socket).and_then(|peer| qemu(&peer)),
            socket,
            address: address.clone(),
            version: Version::default(),
            input: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            lost: 0,
            next_id: 0,
            patience,
        };
        let greeting = client.line("with its greeting", Instant::now() + patience, patience)?;
        let version = &greeting["QMP"]["version"]["qemu"];
        let number = |name: &str| version[name].as_u64();
        let (Some(major), Some(minor), Some(micro)) =
            (number("major"), number("minor"), number("micro"))
        else {
            return Err(client.garbage("its first line is no greeting"));
        };
        client.version = Version {
            major,
            minor,
            micro,
        };
        client.execute("qmp_capabilities", Value::Null)?;
        Ok(client)
    }

    /// Which QEMU it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where the monitor is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The user that QEMU runs as, if the monitor is a unix socket.
    pub fn user(&self) -> Option<u32> {
        peer(&self.socket).map(|peer| peer.uid.as_raw())
    }

    /// Whether QEMU has ended, if that can be known: a monitor that is closed does not tell it, nor
    /// does the end of somebody who forwards the socket, such as ssh.
    pub fn has_ended(&self) -> Option<bool> {
        let process = self.process.as_ref()?;
        let mut state = [PollFd::new(process, PollFlags::IN)];
        Some(matches!(
            poll(&mut state, Some(&Timespec::default())),
            Ok(1)
        ))
    }

    /// Runs a command; `arguments` is an object, or null for none.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`]: QEMU does not want to; otherwise why there is no answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.execute_within(command, arguments, self.patience)
    }

    /// As [`Self::execute`], with a limit for this answer.
    ///
    /// # Errors
    ///
    /// As [`Self::execute`].
    pub fn execute_within(
        &mut self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, Error> {
        let deadline = Instant::now() + limit;
        self.next_id += 1;
        let id = Value::from(self.next_id);
        let mut request = json!({"execute": command, "id": id});
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        self.send(&request, command, limit)?;
        loop {
            let mut answer = self.line(command, deadline, limit)?;
            if answer["id"] != id && !answer["event"].is_string() {
                // The answer to a command that was given up, or an error without id.
                match answer.get("id") {
                    Some(_) => continue,
                    None => return Err(self.garbage("an answer has no id")),
                }
            }
            if answer["event"].is_string() {
                self.keep(answer);
            } else if let Some(error) = answer.get("error") {
                let text = |name: &str| error[name].as_str().unwrap_or("unknown").to_owned();
                return Err(Error::Refused {
                    command: command.to_owned(),
                    class: text("class"),
                    desc: text("desc"),
                });
            } else if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            } else {
                return Err(self.garbage("an answer has neither a return nor an error"));
            }
        }
    }

    /// The next event, or `None` if there is none within `limit`.
    ///
    /// # Errors
    ///
    /// Why nothing more can come.
    pub fn next_event(&mut self, limit: Duration) -> Result<Option<Event>, Error> {
        let deadline = Instant::now() + limit;
        while self.events.is_empty() {
            match self.line("with an event", deadline, limit) {
                Ok(line) if line["event"].is_string() => self.keep(line),
                Ok(_) => {}
                Err(Error::Slow { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(self.events.pop_front())
    }

    /// How many events were dropped because nobody asked for them.
    pub fn lost_events(&self) -> u64 {
        self.lost
    }

    /// Keeps an event, if need be in place of the oldest.
    fn keep(&mut self, mut line: Value) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
            self.lost += 1;
        }
        let name = line["event"].as_str().unwrap_or_default().to_owned();
        let data = line["data"].take();
        self.events.push_back(Event { name, data });
    }

    /// Sends one line.
    fn send(&mut self, request: &Value, command: &str, limit: Duration) -> Result<(), Error> {
        let line = format!("{request}\n");
        let mut rest = line.as_bytes();
        let broken = |address: &Address, source| Error::Broken {
            address: address.clone(),
            source,
        };
        self.socket
            .set_write_timeout(limit)
            .map_err(|source| broken(&self.address, source))?;
        while !rest.is_empty() {
            match self.socket.write(&[IoSlice::new(rest)]) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(self.slow(command, limit));
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(Error::Closed(self.address.clone()));
                }
                Err(error) => return Err(broken(&self.address, error)),
            }
        }
        Ok(())
    }

    /// The next line, which must come before `deadline`.
    fn line(&mut self, what: &str, deadline: Instant, limit: Duration) -> Result<Value, Error> {
        loop {
            let unsearched = self.input.get(self.searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
                let end = self.searched + at;
                let value = serde_json::from_slice(&self.input[..end]);
                let value = value.map_err(|_| self.garbage_line(end));
                self.input.drain(..=end);
                self.searched = 0;
                return value;
            }
            self.searched = self.input.len();
            if self.input.len() > MAX_LINE {
                return Err(self.garbage("a line is longer than 4 MiB"));
            }
            self.receive(what, deadline, limit)?;
        }
    }

    /// Waits for more bytes.
    fn receive(&mut self, what: &str, deadline: Instant, limit: Duration) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.slow(what, limit));
        }
        let mut buffer = [0; 16 << 10];
        let read = self.socket.set_read_timeout(left);
        match read.and_then(|()| self.socket.read(&mut buffer)) {
            Ok(0) => Err(Error::Closed(self.address.clone())),
            Ok(len) => {
                self.input.extend_from_slice(&buffer[..len]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(self.slow(what, limit)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(Error::Closed(self.address.clone()))
            }
            Err(source) => Err(Error::Broken {
                address: self.address.clone(),
                source,
            }),
        }
    }

    /// The error for no answer in time.
    fn slow(&self, what: &str, limit: Duration) -> Error {
        Error::Slow {
            address: self.address.clone(),
            what: what.to_owned(),
            limit,
        }
    }

    /// The error for something that is no QMP.
    fn garbage(&self, reason: impl Into<String>) -> Error {
        Error::Garbage {
            address: self.address.clone(),
            reason: reason.into(),
        }
    }

    /// The error for the line before `end`, which is no JSON.
    fn garbage_line(&self, end: usize) -> Error {
        let start = &self.input[..end.min(SHOWN)];
        self.garbage(format!("\"{}\" is no JSON", start.escape_ascii()))
    }
}

/// Who listens at a unix socket.
fn peer(socket: &Socket) -> Option<UCred> {
    match socket {
        Socket::Unix(stream) => socket_peercred(stream).ok(),
        Socket::Tcp(_) => None,
    }
}

/// The process of `peer`, if its program is called as QEMU's are.
fn qemu(peer: &UCred) -> Option<OwnedFd> {
    let process = pidfd_open(peer.pid, PidfdFlags::empty()).ok()?;
    let program = fs::read_link(format!("/proc/{}/exe", peer.pid.as_raw_nonzero())).ok()?;
    let name = program.file_name()?.to_str()?;
    name.starts_with("qemu-").then_some(process)
}
