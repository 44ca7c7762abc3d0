// SPDX-License-Identifier: GPL-2.0

//! What a QEMU says about its migration (`query-migrate`).

use serde::Serialize;
use serde_json::Value;

use crate::qmp::{
    Client,
    Error, //
};

/// How far a migration is; the names are QEMU's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// There was none yet.
    #[default]
    None,
    /// It connects.
    Setup,
    /// Memory is copied while the guest runs.
    Active,
    /// The guest stands still, and whoever asked for that must say go.
    PreSwitchover,
    /// The guest stands still and is handed over.
    Device,
    /// The guest runs at the destination, and the rest of its memory follows.
    PostcopyActive,
    /// As before, but the connection broke.
    PostcopyPaused,
    /// It is being cancelled.
    Cancelling,
    /// It was cancelled.
    Cancelled,
    /// It is done.
    Completed,
    /// It failed.
    Failed,
    /// Something else; QEMU's name for it.
    Other(String),
}

impl Status {
    /// The status of that name.
    fn of(name: &str) -> Self {
        match name {
            "none" => Self::None,
            "setup" => Self::Setup,
            "active" => Self::Active,
            "pre-switchover" => Self::PreSwitchover,
            "device" => Self::Device,
            "postcopy-active" => Self::PostcopyActive,
            "postcopy-paused" => Self::PostcopyPaused,
            "cancelling" => Self::Cancelling,
            "cancelled" => Self::Cancelled,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            other => Self::Other(other.to_owned()),
        }
    }

    /// QEMU's name for it.
    pub fn name(&self) -> &str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Other(name) => name,
        }
    }

    /// Whether nothing more comes.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Cancelled | Self::Completed | Self::Failed)
    }

    /// Whether a new migration can begin.
    pub fn is_idle(&self) -> bool {
        self.is_end() || *self == Self::None
    }

    /// Whether the guest may have been handed over already.
    pub fn is_late(&self) -> bool {
        *self == Self::Device || self.is_postcopy()
    }

    /// Whether the guest runs at the destination from now on, and nowhere else.
    pub fn has_left(&self) -> bool {
        matches!(self, Self::PostcopyActive | Self::PostcopyPaused)
    }

    /// Whether the source may not be able to run the guest again.
    pub fn is_postcopy(&self) -> bool {
        match self {
            Self::PostcopyActive | Self::PostcopyPaused => true,
            // Before RAM begins.
            Self::Other(name) => name != "wait-unplug",
            _ => false,
        }
    }
}

/// What `query-migrate` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Migration {
    /// How far it is.
    pub status: Status,
    /// Why it failed, in QEMU's words.
    pub error: Option<String>,
    /// Why the guest cannot be migrated, in QEMU's words.
    #[serde(skip)]
    pub blocked: Vec<String>,
    /// Whether it names sockets that it listens at for a migration to come.
    #[serde(skip)]
    pub listens: bool,
    /// How often the dirty pages were collected: the number of the round.
    pub rounds: u64,
    /// Bytes of guest memory.
    pub total_bytes: Option<u64>,
    /// Bytes of memory that are still to be sent.
    pub remaining_bytes: Option<u64>,
    /// Bytes that QEMU has sent to the proxy.
    pub transferred_bytes: Option<u64>,
    /// Pages that the guest writes in a second.
    pub dirty_pages_rate: Option<u64>,
    /// For how long the guest will stand still, as QEMU expects.
    pub expected_downtime_ms: Option<u64>,
    /// For how long it stood still.
    pub downtime_ms: Option<u64>,
    /// How long QEMU took to begin.
    pub setup_ms: Option<u64>,
    /// How long all of it took.
    pub total_ms: Option<u64>,
}

impl Migration {
    /// Asks a QEMU.
    ///
    /// # Errors
    ///
    /// Those of [`Client::execute`].
    pub fn query(client: &mut Client) -> Result<Self, Error> {
        Ok(Self::parse(&client.execute("query-migrate", Value::Null)?))
    }

    /// Reads the answer.
    fn parse(answer: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let ram = &answer["ram"];
        let blocked = answer["blocked-reasons"].as_array();
        let listens = answer["socket-address"].as_array();
        Self {
            status: answer["status"]
                .as_str()
                .map(Status::of)
                .unwrap_or_default(),
            error: text(&answer["error-desc"]),
            blocked: blocked.into_iter().flatten().filter_map(text).collect(),
            listens: listens.is_some_and(|addresses| !addresses.is_empty()),
            rounds: ram["dirty-sync-count"].as_u64().unwrap_or(0),
            total_bytes: ram["total"].as_u64(),
            remaining_bytes: ram["remaining"].as_u64(),
            transferred_bytes: ram["transferred"].as_u64(),
            dirty_pages_rate: ram["dirty-pages-rate"].as_u64(),
            expected_downtime_ms: answer["expected-downtime"].as_u64(),
            downtime_ms: answer["downtime"].as_u64(),
            setup_ms: answer["setup-time"].as_u64(),
            total_ms: answer["total-time"].as_u64(),
        }
    }
}
