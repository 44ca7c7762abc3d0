// SPDX-License-Identifier: GPL-2.0

//! A monitor that answers as the test wants, on a unix socket.

use std::collections::{
    BTreeMap,
    VecDeque, //
};
use std::io::{
    BufRead,
    BufReader,
    Write, //
};
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::thread;
use std::time::Duration;

use serde_json::{
    json,
    Map,
    Value, //
};
use tempfile::TempDir;
use twinpage_migrate::net::Address;

/// What QEMU 10.0 sends first.
pub const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 3, "minor": 0, "major": 10},
 "package": "Debian"}, "capabilities": ["oob"]}}"#;

/// What a fake does with a command.
pub enum Reply {
    /// It answers.
    Return(Value),
    /// It refuses, with this description.
    Refuse(&'static str),
    /// It sends these bytes, with `ID` replaced by the command's id.
    Raw(Vec<u8>),
    /// It never answers.
    Hang,
    /// It closes the connection.
    Close,
}

/// Serves one connection: what comes first, and what answers each command.
pub fn serve(
    mut stream: UnixStream,
    greeting: &[u8],
    mut answer: impl FnMut(&str, &Value) -> Reply,
) {
    if stream.write_all(greeting).is_err() {
        return;
    }
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        let command = request["execute"].as_str().unwrap();
        let id = &request["id"];
        let bytes = match answer(command, &request["arguments"]) {
            Reply::Return(value) => format!("{}\n", json!({"return": value, "id": id})).into(),
            Reply::Refuse(desc) => {
                let error = json!({"class": "GenericError", "desc": desc});
                format!("{}\n", json!({"error": error, "id": id})).into_bytes()
            }
            Reply::Raw(bytes) => {
                let text = String::from_utf8_lossy(&bytes).replace("ID", &id.to_string());
                text.into_bytes()
            }
            Reply::Hang => continue,
            Reply::Close => return,
        };
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// A socket at which a fake listens, for one connection after the other.
pub struct Fake {
    _dir: TempDir,
    address: Address,
}

impl Fake {
    /// A fake that greets with `greeting` and answers with `answer`.
    pub fn new(
        greeting: impl Into<Vec<u8>>,
        mut answer: impl FnMut(&str, &Value) -> Reply + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let greeting = greeting.into();
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                serve(stream, &greeting, &mut answer);
            }
        });
        Self {
            _dir: dir,
            address: Address::unix(path).unwrap(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

/// An answer behind an event.
fn told(event: &str, value: &Value) -> Reply {
    let event = json!({"event": event, "data": {}});
    Reply::Raw(format!("{event}\n{{\"return\": {value}, \"id\": ID}}\n").into_bytes())
}

/// One moment in the life of a fake QEMU.
#[derive(Clone, Debug)]
pub struct Step {
    /// The status of the migration.
    pub migration: &'static str,
    /// The state of the guest.
    pub state: &'static str,
}

/// The moment with these two.
pub fn step(migration: &'static str, state: &'static str) -> Step {
    Step { migration, state }
}

/// A QEMU, as far as a migration needs it.
pub struct Qemu {
    /// What it is now.
    pub now: Step,
    /// What follows: a step is taken with each `query-migrate` (at the source) or `query-status`
    /// (at the destination) after the beginning of the migration.
    pub steps: VecDeque<Step>,
    /// Which command takes the next step.
    pub clock: &'static str,
    /// Which command begins the steps.
    pub begin: &'static str,
    /// Whether they have begun.
    pub begun: bool,
    /// Whether a guest that arrives is not started.
    pub held: bool,
    /// Steps for after a cancellation.
    pub cancelled: Option<Vec<Step>>,
    /// Capabilities.
    pub capabilities: BTreeMap<String, bool>,
    /// Parameters.
    pub parameters: Map<String, Value>,
    /// More of what `query-migrate` says.
    pub more: Map<String, Value>,
    /// Commands that are refused.
    pub refuse: BTreeMap<&'static str, &'static str>,
    /// In which step how many questions stay without an answer, as while QEMU's big lock is held;
    /// what comes then is done nevertheless.
    pub mute: Option<(&'static str, u32)>,
    /// After which step the process ends.
    pub dies_at: Option<&'static str>,
    /// All commands, without those that only ask.
    pub log: Vec<(String, Value)>,
}

impl Qemu {
    /// A QEMU 10.0 with a guest that runs.
    pub fn source(steps: &[Step]) -> Self {
        let parameters = json!({
            "max-bandwidth": 134_217_728, "downtime-limit": 300,
            "avail-switchover-bandwidth": 0, "tls-creds": "", "mode": "normal",
            "multifd-channels": 2, "multifd-compression": "none",
        });
        let Value::Object(parameters) = parameters else {
            unreachable!("an object");
        };
        let names = [
            "return-path",
            "multifd",
            "xbzrle",
            "postcopy-ram",
            "postcopy-preempt",
            "x-colo",
            "mapped-ram",
            "background-snapshot",
            "zero-copy-send",
            "x-ignore-shared",
        ];
        Self {
            now: step("none", "running"),
            steps: steps.iter().cloned().collect(),
            clock: "query-migrate",
            begin: "migrate",
            begun: false,
            held: false,
            cancelled: None,
            capabilities: names.map(|name| (name.to_owned(), false)).into(),
            parameters,
            more: Map::new(),
            refuse: BTreeMap::new(),
            mute: None,
            dies_at: None,
            log: Vec::new(),
        }
    }

    /// A QEMU 10.0 that waits for a guest with `-incoming defer`.
    pub fn destination(steps: &[Step]) -> Self {
        Self {
            now: step("none", "inmigrate"),
            clock: "query-status",
            begin: "migrate-incoming",
            ..Self::source(steps)
        }
    }

    /// Answers a command, unless it is mute.
    fn hear(&mut self, command: &str, arguments: &Value) -> Reply {
        match &mut self.mute {
            Some((at, left)) if self.begun && *at == self.now.migration && *left > 0 => {
                if command == self.clock {
                    *left -= 1;
                } else {
                    self.answer(command, arguments);
                }
                Reply::Hang
            }
            _ => {
                let ran = self.now.state == "running";
                let reply = self.answer(command, arguments);
                match (ran, self.now.state == "running", reply) {
                    (true, false, Reply::Return(value)) => told("STOP", &value),
                    (false, true, Reply::Return(value)) => told("RESUME", &value),
                    (_, _, reply) => reply,
                }
            }
        }
    }

    /// Answers a command.
    fn answer(&mut self, command: &str, arguments: &Value) -> Reply {
        if self.begun && command == self.clock {
            self.now = self.steps.pop_front().unwrap_or(self.now.clone());
            if self.held && self.now.state == "running" {
                self.now.state = "paused";
            }
        }
        if self.dies_at == Some(self.now.migration) {
            return Reply::Close;
        }
        if !command.starts_with("query-") && command != "qmp_capabilities" {
            self.log.push((command.to_owned(), arguments.clone()));
        }
        if let Some(desc) = self.refuse.get(command) {
            return Reply::Refuse(desc);
        }
        self.begun |= command == self.begin;
        Reply::Return(match command {
            "query-status" => {
                json!({"running": self.now.state == "running", "status": self.now.state})
            }
            "query-migrate" => self.migration(),
            "query-migrate-parameters" => Value::Object(self.parameters.clone()),
            "query-migrate-capabilities" => self
                .capabilities
                .iter()
                .map(|(name, state)| json!({"capability": name, "state": state}))
                .collect(),
            "migrate-set-parameters" => {
                self.parameters
                    .extend(arguments.as_object().unwrap().clone());
                json!({})
            }
            "migrate-set-capabilities" => {
                for entry in arguments["capabilities"].as_array().unwrap() {
                    let name = entry["capability"].as_str().unwrap().to_owned();
                    self.capabilities.insert(name, entry["state"] == true);
                }
                json!({})
            }
            "migrate_cancel" => {
                self.steps = self.cancelled.take().unwrap_or_default().into();
                json!({})
            }
            "stop" if self.now.state == "inmigrate" => {
                self.held = true;
                json!({})
            }
            "cont" => {
                self.held = false;
                if self.now.state != "inmigrate" {
                    self.now.state = "running";
                }
                json!({})
            }
            _ => json!({}),
        })
    }

    /// What `query-migrate` says.
    fn migration(&self) -> Value {
        let mut answer = self.more.clone();
        if self.now.migration != "none" {
            answer.insert("status".to_owned(), self.now.migration.into());
            answer.insert("downtime".to_owned(), 42.into());
            answer.insert("total-time".to_owned(), 1234.into());
            let ram = json!({"total": 1000, "remaining": 10, "dirty-sync-count": 3});
            answer.insert("ram".to_owned(), ram);
        }
        Value::Object(answer)
    }

    /// Does something to `qemu` as soon as its steps have begun.
    pub fn once_begun(qemu: &Arc<Mutex<Self>>, change: impl FnOnce(&mut Self) + Send + 'static) {
        let qemu = qemu.clone();
        thread::spawn(move || loop {
            let mut now = qemu.lock().unwrap();
            if now.begun {
                return change(&mut now);
            }
            drop(now);
            thread::sleep(Duration::from_millis(1));
        });
    }

    /// Lets it listen; the QEMU stays in view of the test.
    pub fn listen(self) -> (Fake, Arc<Mutex<Self>>) {
        let shared = Arc::new(Mutex::new(self));
        let qemu = shared.clone();
        let fake = Fake::new(
            format!("{}\n", GREETING.replace('\n', "")),
            move |name, args| qemu.lock().unwrap().hear(name, args),
        );
        (fake, shared)
    }
}
