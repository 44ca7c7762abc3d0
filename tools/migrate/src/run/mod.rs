// SPDX-License-Identifier: GPL-2.0

//! A whole migration, driven through the monitors (QMP) of the source and the destination.
//!
//! [`start`] does everything: it connects to the monitors, starts the sending proxy on a private
//! socket, and runs the migration in a thread. [`drive()`] is that thread's work, for whoever has a
//! proxy of another kind:
//!
//! 1. It looks at both QEMUs and refuses what cannot go well, with all reasons at once.
//! 2. It sets capabilities and parameters, and remembers what they were.
//! 3. It tells the destination to listen, if it waits for that, and not to start the guest by
//!    itself; then it tells the source to migrate.
//! 4. It watches until the source says how it ended; on request it cancels, but not while the
//!    guest is being handed over.
//! 5. It waits for the destination's end, asks both sides who has the guest, starts it at the
//!    destination if the source gave it away, and puts the source's parameters back.
//!
//! So the guest never runs at both sides, whatever breaks, if the destination can be told.
//!
//! What it says in the end is what the two QEMUs say, never what it thinks they should have done.

mod checks;
mod drive;
mod error;
mod guest;
mod handle;
mod settings;
mod status;

use std::time::Duration;

use serde::Serialize;

pub use drive::drive;
pub use error::Error;
pub use guest::{
    Guest,
    Place, //
};
pub use handle::{
    start,
    Handle,
    Options,
    Report,
    Snapshot, //
};
pub use status::{
    Migration,
    Status, //
};

use crate::qmp::Client;

/// The two monitors.
pub struct Monitors {
    /// The source's.
    pub source: Client,
    /// The destination's, if it can be reached from here.
    pub destination: Option<Client>,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the source sends its stream, such as `unix:/run/twinpage/source.sock`.
    pub uri: String,
    /// Where the destination should listen, if it was started with `-incoming defer`.
    pub incoming: Option<String>,
    /// For how long the guest may stand still.
    pub downtime: Duration,
    /// Bytes per second of the network between the proxies, if known.
    pub link_rate: Option<u64>,
    /// Whether the guest is started at the destination.
    pub resume: Resume,
    /// After how long the migration is cancelled.
    pub timeout: Option<Duration>,
    /// The times of the monitors.
    pub pace: Pace,
}

/// What happens to a guest that the source gave away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It is started at the destination, if it ran at the source.
    Start,
    /// It stands still there until somebody else starts it.
    Leave,
}

/// How often is asked, and how long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two questions to the source while the guest runs there.
    pub poll: Duration,
    /// Between two questions while the guest stands still, or may.
    pub handover: Duration,
    /// How long the source may take to see for itself that the proxy has gone.
    pub notice: Duration,
    /// How long the source may take to end after it was cancelled or the proxy ended.
    pub end: Duration,
    /// How long the destination may take to end after the source did.
    pub settle: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(100),
            handover: Duration::from_millis(5),
            notice: Duration::from_secs(5),
            end: Duration::from_secs(60),
            settle: Duration::from_secs(30),
        }
    }
}

/// The sending proxy, as a migration sees it.
pub trait Proxy {
    /// Whether its work is over, well or not.
    fn finished(&self) -> bool;
    /// Whether everything that the destination needs to run the guest may have arrived there.
    fn handed_over(&self) -> bool;
    /// Breaks its connections.
    fn cancel(&self);
    /// Breaks its connections unless the guest may have been handed over; says whether they are
    /// broken. What the destination would still need does not get there then.
    fn cancel_early(&self) -> bool;
    /// Is told the number of the round.
    fn set_round(&self, round: u64);
}

/// Whoever watches a migration.
pub trait Watcher {
    /// Whether the migration shall be cancelled.
    fn cancelled(&self) -> bool;
    /// Whether it shall be even if that may leave the guest at both sides.
    fn forced(&self) -> bool;
    /// Is told that it should be cancelled, and cannot be now without that danger.
    fn cannot_cancel(&self);
    /// Is told what the source says, several times a second.
    fn update(&self, migration: &Migration);
}

/// How a migration ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Ending {
    /// The source says that the destination has the guest.
    Completed,
    /// It was cancelled.
    Cancelled,
    /// It failed.
    Failed {
        /// Why, as far as is known.
        reason: String,
    },
}

/// What came of a migration.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// Who has the guest now.
    pub guest: Guest,
    /// The last that the source said.
    pub migration: Migration,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Why the guest does not run at the destination although it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// How long it took to start the guest at the destination, from the moment the source was
    /// seen to have ended; not in QEMU's downtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<u64>,
}
