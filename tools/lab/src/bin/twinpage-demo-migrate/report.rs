// SPDX-License-Identifier: GPL-2.0

//! What was measured and checked, as it is written to `migrate.json`.

use serde::Serialize;
use serde_json::Value;
use twinpage_lab::checks::{
    Check,
    Verdict, //
};
use twinpage_lab::place;

use crate::host::Failure;

/// Everything that is written to `migrate.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether everything held.
    pub verdict: Verdict,
    /// Release of the kernel of both hosts.
    pub kernel_release: String,
    /// Whether both memories had the same bytes.
    pub ram_equal: bool,
    /// Pages that were compared for that.
    pub ram_pages: u64,
    /// Bytes that QEMU sent.
    pub stream_bytes: u64,
    /// Bytes that went from host to host.
    pub wire_bytes: u64,
    /// Pages sent as they are.
    pub pages_sent: u64,
    /// Pages of which only a digest or a number was sent.
    pub pages_referenced: u64,
    /// Pages of zeroes.
    pub pages_zero: u64,
    /// How long the migration took.
    pub seconds: f64,
    /// How long the guest stood still, by QEMU's count.
    pub downtime_ms: u64,
    /// How often QEMU went over the memory.
    pub rounds: u64,
    /// How long the whole demonstration took.
    pub demo_seconds: u64,
    /// What `twinpage plan` said.
    pub plan: Value,
    /// What `twinpage migrate receive` said at its end.
    pub receiver: Value,
    /// The checks of both hosts.
    pub checks: Vec<Check>,
}

impl Default for Report {
    fn default() -> Report {
        Report {
            verdict: Verdict::Fail,
            kernel_release: String::new(),
            ram_equal: false,
            ram_pages: 0,
            stream_bytes: 0,
            wire_bytes: 0,
            pages_sent: 0,
            pages_referenced: 0,
            pages_zero: 0,
            seconds: 0.0,
            downtime_ms: 0,
            rounds: 0,
            demo_seconds: 0,
            plan: Value::Null,
            receiver: Value::Null,
            checks: Vec::new(),
        }
    }
}

impl Report {
    /// Writes it to where results go.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn write(&self) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::create_dir_all(place::out())?;
        std::fs::write(place::out().join("migrate.json"), text + "\n")?;
        Ok(())
    }
}
