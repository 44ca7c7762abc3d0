// SPDX-License-Identifier: GPL-2.0

//! What must be so before a migration begins. Everything is asked, nothing is changed.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::qmp::{
    Client,
    Error as QmpError, //
};

use super::status::{
    Migration,
    Status, //
};
use super::{
    Error,
    Monitors,
    Plan, //
};

/// Capabilities with which no migration through the proxies works, and why.
const REFUSED: [(&str, &str); 4] = [
    (
        "x-colo",
        "the capability x-colo is on (COLO sends checkpoints for ever)",
    ),
    (
        "mapped-ram",
        "the capability mapped-ram is on (it needs a file, not a socket)",
    ),
    (
        "background-snapshot",
        "the capability background-snapshot is on (it is no migration)",
    ),
    (
        "zero-copy-send",
        "the capability zero-copy-send is on (unix sockets do not support it)",
    ),
];

/// Capabilities with which it works, but not as well.
const NOTED: [(&str, &str); 3] = [
    (
        "xbzrle",
        "xbzrle is on: changed pages travel as QEMU encodes them, not as digests",
    ),
    (
        "compress",
        "compress is on: pages travel as QEMU compresses them, not as digests",
    ),
    (
        "x-ignore-shared",
        "x-ignore-shared is on: shared memory must be at the destination already",
    ),
];

/// Capabilities that both sides must have or not have.
const SAME: [&str; 4] = [
    "multifd",
    "postcopy-preempt",
    "postcopy-ram",
    "x-ignore-shared",
];

/// What was found out about one side.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Whether its guest runs.
    pub(super) running: bool,
    /// Whether it listens for a migration already.
    pub(super) listens: bool,
    /// Its capabilities.
    pub(super) capabilities: BTreeMap<String, bool>,
    /// Its parameters, as it says them.
    pub(super) parameters: Value,
    /// What status its migration has.
    migration: Migration,
    /// What `query-status` calls its state.
    state: String,
}

impl Found {
    /// Asks one side.
    fn ask(client: &mut Client) -> Result<Self, QmpError> {
        let status = client.execute("query-status", Value::Null)?;
        let migration = Migration::query(client)?;
        let listed = client.execute("query-migrate-capabilities", Value::Null)?;
        let capability = |entry: &Value| {
            let name = entry["capability"].as_str()?.to_owned();
            Some((name, entry["state"].as_bool()?))
        };
        let listed = listed.as_array().into_iter().flatten();
        Ok(Self {
            running: status["running"] == true,
            listens: migration.listens,
            capabilities: listed.filter_map(capability).collect(),
            parameters: client.execute("query-migrate-parameters", Value::Null)?,
            migration,
            state: status["status"].as_str().unwrap_or("unknown").to_owned(),
        })
    }

    /// Whether a capability is on.
    pub(super) fn has(&self, capability: &str) -> bool {
        self.capabilities.get(capability) == Some(&true)
    }

    /// A parameter that is a text, empty if QEMU does not know it.
    fn text(&self, parameter: &str) -> &str {
        self.parameters[parameter].as_str().unwrap_or_default()
    }
}

/// Both sides, fit for a migration.
#[derive(Debug, Default)]
pub(super) struct Fit {
    /// The source.
    pub(super) source: Found,
    /// The destination, if it could be asked.
    pub(super) destination: Option<Found>,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

/// Looks at both sides.
///
/// # Errors
///
/// [`Error::Unfit`] with everything that speaks against it; [`Error::Qmp`].
pub(super) fn check(monitors: &mut Monitors, plan: &Plan) -> Result<Fit, Error> {
    let mut against = Vec::new();
    let mut fit = Fit {
        source: Found::ask(&mut monitors.source)?,
        ..Fit::default()
    };
    source(&fit.source, &mut against, &mut fit.notes);
    if let Some(client) = &mut monitors.destination {
        let found = Found::ask(client)?;
        destination(&found, plan, &mut against, &mut fit.notes);
        both(&fit.source, &found, &mut against);
        fit.destination = Some(found);
    }
    if plan.downtime.as_millis() == 0 || plan.downtime.as_secs() > 2000 {
        // With 0, QEMU sends what is dirty after one round while the guest stands still.
        against.push("the downtime must be from 1 ms to 2000 s".to_owned());
    }
    match against.is_empty() {
        true => Ok(fit),
        false => Err(Error::Unfit(against)),
    }
}

/// What speaks against the source.
fn source(found: &Found, against: &mut Vec<String>, notes: &mut Vec<String>) {
    match found.state.as_str() {
        "inmigrate" => against.push("the source itself waits for a migration".to_owned()),
        "postmigrate" => against.push("the source gave its guest away already".to_owned()),
        "colo" => against.push("the source runs COLO".to_owned()),
        _ => {}
    }
    let status = &found.migration.status;
    if !status.is_idle() {
        let name = status.name();
        against.push(format!("a migration is going on at the source ({name})"));
    }
    let blocked = found.migration.blocked.iter();
    against.extend(blocked.map(|reason| format!("QEMU says: {reason}")));
    if !found.capabilities.contains_key("return-path") {
        against.push("the source is too old to have a return path".to_owned());
    }
    for (name, reason) in REFUSED {
        if found.has(name) {
            against.push(reason.to_owned());
        }
    }
    for (name, note) in NOTED {
        if found.has(name) {
            notes.push(note.to_owned());
        }
    }
    let compression = found.text("multifd-compression");
    if found.has("multifd") && !matches!(compression, "" | "none") {
        notes.push(format!(
            "multifd compresses ({compression}): pages travel as QEMU compresses them"
        ));
    }
    let mode = found.text("mode");
    if !matches!(mode, "" | "normal") {
        against.push(format!("the migration mode is {mode}, not normal"));
    }
    if !found.text("tls-creds").is_empty() {
        let reason = "tls-creds is set at the source (encrypted pages cannot be recognised)";
        against.push(reason.to_owned());
    }
}

/// What speaks against the destination.
fn destination(found: &Found, plan: &Plan, against: &mut Vec<String>, notes: &mut Vec<String>) {
    if found.state != "inmigrate" {
        let state = &found.state;
        against.push(format!(
            "the destination does not wait for a migration ({state})"
        ));
    } else if !matches!(found.migration.status, Status::None | Status::Setup) {
        let name = found.migration.status.name();
        against.push(format!(
            "a migration came to the destination before ({name})"
        ));
    } else if !found.listens && plan.incoming.is_none() {
        let note = "the destination seems to listen nowhere: it may need migrate-incoming";
        notes.push(note.to_owned());
    }
    if !found.text("tls-creds").is_empty() {
        against.push("tls-creds is set at the destination".to_owned());
    }
}

/// What the sides differ in.
fn both(source: &Found, destination: &Found, against: &mut Vec<String>) {
    for name in SAME {
        let (here, there) = (source.has(name), destination.has(name));
        if here != there {
            let side = if here { "source" } else { "destination" };
            against.push(format!("the capability {name} is on at the {side} only"));
        }
    }
    if !source.has("multifd") {
        return;
    }
    for name in ["multifd-channels", "multifd-compression"] {
        let (here, there) = (&source.parameters[name], &destination.parameters[name]);
        if here != there {
            against.push(format!(
                "{name} is {here} at the source, {there} at the destination"
            ));
        }
    }
}
