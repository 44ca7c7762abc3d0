// SPDX-License-Identifier: GPL-2.0

//! Who has the guest: what each side says (`query-status`), and what follows from that.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::qmp::{
    Client,
    Error, //
};

use super::{
    Ending,
    Monitors, //
};

/// What one QEMU says about its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// It runs it.
    Runs,
    /// It has it, and does not run it; QEMU's name for the state.
    Stands(String),
    /// It has none: it gave it away, or waits for one.
    Empty(String),
    /// Its process has ended, or at least its monitor.
    Gone(String),
    /// It was not asked.
    Unasked,
    /// It does not answer; why.
    Mute(String),
}

impl Side {
    /// Asks a QEMU.
    pub(super) fn ask(client: Option<&mut Client>) -> Self {
        let Some(client) = client else {
            return Self::Unasked;
        };
        let answer = match client.execute("query-status", Value::Null) {
            Ok(answer) => answer,
            Err(error @ Error::Closed(_)) => return Self::Gone(error.to_string()),
            Err(error) => return Self::Mute(error.to_string()),
        };
        let state = answer["status"].as_str().unwrap_or("unknown").to_owned();
        match (answer["running"].as_bool(), state.as_str()) {
            (Some(true), _) => Self::Runs,
            (Some(false), "inmigrate" | "postmigrate") => Self::Empty(state),
            (Some(false), _) => Self::Stands(state),
            (None, _) => Self::Mute("its answer to query-status makes no sense".to_owned()),
        }
    }

    /// Asks the destination.
    pub(super) fn ask_there(monitors: &mut Monitors) -> Self {
        Self::ask(monitors.destination.as_mut())
    }

    /// Whether it may have the guest.
    fn may_have(&self) -> bool {
        !matches!(self, Self::Empty(_) | Self::Gone(_))
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs => f.write_str("runs the guest"),
            Self::Stands(state) => write!(f, "has the guest, which stands still ({state})"),
            Self::Empty(state) => write!(f, "has no guest ({state})"),
            Self::Gone(reason) => write!(f, "is gone ({reason})"),
            Self::Unasked => f.write_str("could not be asked (no monitor was given)"),
            Self::Mute(reason) => write!(f, "does not answer ({reason})"),
        }
    }
}

/// Where a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// At the source.
    Source,
    /// At the destination.
    Destination,
    /// It runs at both sides, which destroys its disks: one must be ended at once.
    Both,
    /// Neither side has it.
    Nowhere,
    /// That cannot be known from here.
    Unknown,
}

/// Who has the guest now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Guest {
    /// Where it is.
    pub place: Place,
    /// Whether it runs there, if that is known.
    pub running: Option<bool>,
    /// What each side says, in a sentence.
    pub evidence: String,
}

impl Guest {
    /// What follows from what the sides say, after a migration that ended like `ending`.
    pub(super) fn judge(source: &Side, destination: &Side, ending: &Ending) -> Self {
        let (place, running) = place(source, destination, *ending == Ending::Completed);
        Self {
            place,
            running,
            evidence: format!("the source {source}; the destination {destination}"),
        }
    }

    /// Says that it cannot be known where it is.
    pub(super) fn doubt(&mut self) {
        self.place = Place::Unknown;
        self.running = None;
    }
}

/// Where the guest is, and whether it runs there.
fn place(source: &Side, destination: &Side, completed: bool) -> (Place, Option<bool>) {
    use Side::{
        Empty,
        Gone,
        Mute,
        Runs,
        Stands,
        Unasked, //
    };
    match (source, destination) {
        (Runs, Runs) => (Place::Both, Some(true)),
        (Runs, Mute(_)) if completed => (Place::Unknown, None),
        // A guest that arrived and stands still is a copy, as long as nobody starts it.
        (Runs, _) => (Place::Source, Some(true)),
        (_, Runs) => (Place::Destination, Some(true)),
        (Stands(_), Stands(_)) if completed => (Place::Destination, Some(false)),
        (Stands(_), Empty(_) | Gone(_) | Stands(_)) => (Place::Source, Some(false)),
        (Stands(_), Unasked | Mute(_)) if !completed => (Place::Source, Some(false)),
        (Empty(_) | Gone(_), Stands(_)) => (Place::Destination, Some(false)),
        // The source says so only if the destination told it.
        (Empty(_), Unasked | Mute(_)) if completed => (Place::Destination, None),
        (source, destination) if !source.may_have() && !destination.may_have() => {
            (Place::Nowhere, None)
        }
        _ => (Place::Unknown, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(text: &str) -> Side {
        let state = "state".to_owned();
        match text {
            "runs" => Side::Runs,
            "stands" => Side::Stands(state),
            "empty" => Side::Empty(state),
            "gone" => Side::Gone(state),
            "unasked" => Side::Unasked,
            "mute" => Side::Mute(state),
            _ => unreachable!("{text}"),
        }
    }

    #[test]
    fn the_guest_is_where_the_sides_say() {
        use Place::{
            Both,
            Destination,
            Nowhere,
            Source,
            Unknown, //
        };
        for (source, destination, completed, place_of, running) in [
            ("runs", "runs", false, Both, Some(true)),
            ("runs", "runs", true, Both, Some(true)),
            ("runs", "stands", false, Source, Some(true)),
            ("runs", "gone", false, Source, Some(true)),
            ("runs", "empty", false, Source, Some(true)),
            ("runs", "unasked", false, Source, Some(true)),
            ("runs", "mute", false, Source, Some(true)),
            ("runs", "mute", true, Unknown, None),
            ("empty", "runs", true, Destination, Some(true)),
            ("empty", "stands", true, Destination, Some(false)),
            ("empty", "unasked", true, Destination, None),
            ("empty", "mute", true, Destination, None),
            ("empty", "unasked", false, Unknown, None),
            ("empty", "gone", true, Nowhere, None),
            ("empty", "empty", false, Nowhere, None),
            ("stands", "stands", true, Destination, Some(false)),
            ("stands", "stands", false, Source, Some(false)),
            ("stands", "runs", false, Destination, Some(true)),
            ("stands", "unasked", false, Source, Some(false)),
            ("stands", "unasked", true, Unknown, None),
            ("stands", "gone", false, Source, Some(false)),
            ("gone", "runs", false, Destination, Some(true)),
            ("gone", "stands", false, Destination, Some(false)),
            ("gone", "gone", false, Nowhere, None),
            ("gone", "unasked", false, Unknown, None),
            ("mute", "empty", false, Unknown, None),
            ("mute", "runs", false, Destination, Some(true)),
        ] {
            let found = place(&side(source), &side(destination), completed);
            assert_eq!(
                found,
                (place_of, running),
                "{source} {destination} {completed}"
            );
        }
    }
}
