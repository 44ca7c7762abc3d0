// SPDX-License-Identifier: GPL-2.0

//! QEMU's monitor: commands, answers, and events with the time at which they happened.

use std::collections::VecDeque;
use std::io::{
    BufReader,
    Write, //
};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{
    Duration,
    Instant, //
};

use serde_json::{
    json,
    Value, //
};

use crate::error::Error;
use crate::lines::{
    connect,
    read_line, //
};

/// The longest QEMU may take to answer a command.
const ANSWER: Duration = Duration::from_secs(120);

/// Something QEMU said unasked.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, such as `STOP`.
    pub name: String,
    /// When it happened, since 1970.
    pub at: Duration,
    /// What belongs to it.
    pub data: Value,
}

/// A connection to the monitor of one QEMU.
pub struct Qmp {
    who: String,
    stream: BufReader<UnixStream>,
    events: VecDeque<Event>,
}

impl Qmp {
    /// Connects, as soon as the socket is there.
    ///
    /// # Errors
    ///
    /// Nobody listens, or who listens is not QEMU.
    pub fn connect(who: &str, path: &Path) -> Result<Qmp, Error> {
        let mut qmp = Qmp {
            who: who.to_owned(),
            stream: BufReader::new(connect(path)?),
            events: VecDeque::new(),
        };
        qmp.message(Instant::now() + ANSWER)?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Gives a command.
    ///
    /// # Errors
    ///
    /// QEMU refuses or is gone.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let request = json!({ "execute": command, "arguments": arguments });
        let what = format!("give QEMU of {} the command {command}", self.who);
        writeln!(self.stream.get_mut(), "{request}").map_err(Error::of(what))?;
        let end = Instant::now() + ANSWER;
        loop {
            let message = self.message(end)?;
            if let Some(result) = message.get("return") {
                return Ok(result.clone());
            }
            if message.get("error").is_some() {
                return Err(Error::Said {
                    who: format!("QEMU of {}", self.who),
                    said: format!("{message} to {command}"),
                });
            }
            self.events.extend(event(&message));
        }
    }

    /// The next event of one of these names; what came before it is forgotten.
    ///
    /// # Errors
    ///
    /// It does not come in time, or QEMU is gone.
    pub fn event(&mut self, names: &[&str], limit: Duration) -> Result<Event, Error> {
        let end = Instant::now() + limit;
        loop {
            while let Some(event) = self.events.pop_front() {
                if names.contains(&event.name.as_str()) {
                    return Ok(event);
                }
            }
            let message = self.message(end)?;
            self.events.extend(event(&message));
        }
    }

    /// Takes the events that have come so far, after asking for `query-status` so that none is
    /// still on its way.
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn events(&mut self) -> Result<Vec<Event>, Error> {
        self.run("query-status", json!({}))?;
        Ok(self.events.drain(..).collect())
    }

    /// What the virtual machine does: `running`, `paused`, `postmigrate`, ...
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn status(&mut self) -> Result<String, Error> {
        let answer = self.run("query-status", json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// One line of the monitor for people.
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn human(&mut self, line: &str) -> Result<String, Error> {
        let answer = self.run("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Turns capabilities of migration on.
    ///
    /// # Errors
    ///
    /// QEMU does not have one of them.
    pub fn capabilities(&mut self, names: &[&str]) -> Result<(), Error> {
        let list: Vec<_> = names
            .iter()
            .map(|name| json!({ "capability": name, "state": true }))
            .collect();
        let arguments = json!({ "capabilities": list });
        self.run("migrate-set-capabilities", arguments)?;
        Ok(())
    }

    fn message(&mut self, end: Instant) -> Result<Value, Error> {
        let what = format!("QEMU of {} did not answer", self.who);
        let line = read_line(&mut self.stream, end).map_err(Error::of(what))?;
        serde_json::from_str(&line).map_err(|_| Error::Said {
            who: format!("QEMU of {}", self.who),
            said: line.trim_end().to_owned(),
        })
    }
}

/// The event in a message, when it is one.
fn event(message: &Value) -> Option<Event> {
    let name = message.get("event")?.as_str()?.to_owned();
    let time = message.get("timestamp")?;
    let seconds = time.get("seconds")?.as_u64()?;
    let micros = time.get("microseconds")?.as_u64()?;
    Some(Event {
        name,
        at: Duration::from_secs(seconds) + Duration::from_micros(micros),
        data: message.get("data").cloned().unwrap_or(Value::Null),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_name_and_a_time() {
        let message = json!({
            "event": "STOP", "timestamp": { "seconds": 7, "microseconds": 250_000 }
        });
        let event = event(&message).unwrap();
        assert_eq!(event.name, "STOP");
        assert_eq!(event.at, Duration::from_millis(7250));
    }

    #[test]
    fn an_answer_is_no_event() {
        assert_eq!(event(&json!({ "return": {} })), None);
        assert_eq!(event(&json!({ "event": "STOP" })), None);
    }
}
