// SPDX-License-Identifier: GPL-2.0

//! A connection to a QEMU's monitor (QMP).

use std::collections::VecDeque;
use std::io::{
    self,
    BufRead,
    BufReader,
    Write, //
};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use serde_json::{
    json,
    Value, //
};

use crate::error::Error;

/// How long QEMU may take to answer: it may stand still for a while under emulation.
const ANSWER: Duration = Duration::from_secs(60);
/// How many events are kept.
const EVENTS: usize = 1000;

/// A connection.
pub struct Qmp {
    /// What QEMU says.
    reader: BufReader<UnixStream>,
    /// What we say.
    writer: UnixStream,
    /// What has come of the next line.
    line: Vec<u8>,
    /// Events that nobody has asked for yet.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects to the monitor at `path`.
    ///
    /// # Errors
    ///
    /// There is none, or it does not speak QMP.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let failed = |what: &str| Error::io(format!("Cannot {what} {}", path.display()));
        let writer = UnixStream::connect(path).map_err(failed("connect to"))?;
        let reader = writer.try_clone().map_err(failed("share"))?;
        let mut qmp = Self {
            reader: BufReader::new(reader),
            writer,
            line: Vec::new(),
            events: VecDeque::new(),
        };
        let hello = qmp.receive(ANSWER)?;
        if !hello.as_ref().is_some_and(|hello| hello["QMP"].is_object()) {
            return Err(Error::NotQmp(format!("{hello:?}")));
        }
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs `command` and gives what it returns.
    ///
    /// # Errors
    ///
    /// QEMU refuses it, is gone, or does not answer.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let request = json!({ "execute": command, "arguments": arguments });
        let failed = Error::io(format!("Cannot send {command} to QEMU"));
        self.writer
            .write_all(format!("{request}\n").as_bytes())
            .map_err(failed)?;
        let start = Instant::now();
        while let Some(answer) = self.receive(ANSWER.saturating_sub(start.elapsed()))? {
            if answer["event"].is_string() {
                self.keep(answer);
            } else if answer["error"].is_object() {
                return Err(Error::Refused {
                    command: command.into(),
                    answer: answer["error"]["desc"].to_string(),
                });
            } else {
                return Ok(answer["return"].clone());
            }
        }
        Err(Error::TooLate {
            what: format!("The answer to {command}"),
            limit: ANSWER,
            seen: "nothing".into(),
        })
    }

    /// Runs a command for people and gives the text that it prints.
    ///
    /// # Errors
    ///
    /// As of [`Qmp::run`].
    pub fn human(&mut self, command: &str) -> Result<String, Error> {
        let text = self.run("human-monitor-command", json!({ "command-line": command }))?;
        Ok(text.as_str().unwrap_or_default().into())
    }

    /// Takes the next event called `name`; other events are kept.
    ///
    /// # Errors
    ///
    /// It does not come within `limit`, or QEMU is gone.
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Value, Error> {
        let start = Instant::now();
        loop {
            let place = self.events.iter().position(|event| event["event"] == name);
            if let Some(event) = place.and_then(|place| self.events.remove(place)) {
                return Ok(event);
            }
            match self.receive(limit.saturating_sub(start.elapsed()))? {
                Some(event) => self.keep(event),
                None => {
                    return Err(Error::TooLate {
                        what: format!("The event {name}"),
                        limit,
                        seen: format!("{:?}", self.events.back()),
                    })
                }
            }
        }
    }

    /// Keeps an event; the oldest goes when there are too many.
    fn keep(&mut self, event: Value) {
        self.events.push_back(event);
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    /// The next line; [`None`] if none comes within `limit`.
    fn receive(&mut self, limit: Duration) -> Result<Option<Value>, Error> {
        // A limit of 0 would mean none at all.
        let limit = limit.max(Duration::from_millis(1));
        let failed = |error| Error::io("Cannot read from QEMU's monitor")(error);
        self.writer.set_read_timeout(Some(limit)).map_err(failed)?;
        match self.reader.read_until(b'\n', &mut self.line) {
            Ok(0) => Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {
                let line = std::mem::take(&mut self.line);
                let text = || String::from_utf8_lossy(&line).into_owned();
                serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|_| Error::NotQmp(text()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

/// Asks `ask` again and again until it has an answer.
///
/// # Errors
///
/// [`Error::TooLate`] with what `ask` saw last, or its error.
pub(crate) fn poll<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Result<T, String>, Error>,
) -> Result<T, Error> {
    let start = Instant::now();
    loop {
        match ask()? {
            Ok(answer) => return Ok(answer),
            Err(seen) if start.elapsed() > limit => {
                return Err(Error::TooLate {
                    what: what.into(),
                    limit,
                    seen,
                })
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
