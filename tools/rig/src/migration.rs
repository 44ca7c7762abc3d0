// SPDX-License-Identifier: GPL-2.0

//! Migrating, as the monitor of the source sees it.

use std::time::Duration;

use serde_json::{
    json,
    Value, //
};

use crate::error::Error;
use crate::qemu::Qemu;
use crate::qmp::poll;

/// A capability of a migration, by QEMU's name.
pub type Capability = &'static str;

/// What a migration is to be like.
#[derive(Clone, Debug, Default)]
pub struct Migration {
    /// Capabilities that are turned on.
    pub capabilities: Vec<Capability>,
    /// Parameters, by QEMU's names.
    pub parameters: Value,
}

impl Migration {
    /// With these capabilities turned on and these parameters (a JSON object).
    pub fn new(capabilities: &[Capability], parameters: Value) -> Self {
        Self {
            capabilities: capabilities.into(),
            parameters,
        }
    }

    /// Sets a QEMU up for it.
    ///
    /// # Errors
    ///
    /// It does not know one of the names.
    pub fn set_up(&self, qemu: &mut Qemu) -> Result<(), Error> {
        let on = |name: &Capability| json!({ "capability": name, "state": true });
        let capabilities: Vec<Value> = self.capabilities.iter().map(on).collect();
        let arguments = json!({ "capabilities": capabilities });
        qemu.qmp().run("migrate-set-capabilities", arguments)?;
        if self.parameters.is_object() {
            qemu.qmp()
                .run("migrate-set-parameters", self.parameters.clone())?;
        }
        Ok(())
    }
}

impl Qemu {
    /// Starts to migrate to `uri`.
    ///
    /// # Errors
    ///
    /// QEMU refuses.
    pub fn migrate(&mut self, uri: &str) -> Result<(), Error> {
        self.qmp().run("migrate", json!({ "uri": uri })).map(|_| ())
    }

    /// What `query-migrate` says.
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn migration(&mut self) -> Result<Value, Error> {
        self.qmp().run("query-migrate", json!({}))
    }

    /// Waits until the migration's status is one of `wanted` and gives all that is said of it.
    ///
    /// # Errors
    ///
    /// It is not in time, or becomes `failed` or `completed` when that is not wanted.
    pub fn wait_migration(&mut self, wanted: &[&str], limit: Duration) -> Result<Value, Error> {
        poll(&format!("Migration {}", wanted.join(" or ")), limit, || {
            self.process().must_run()?;
            let info = self.migration()?;
            let status = info["status"].as_str().unwrap_or("none").to_owned();
            if wanted.contains(&status.as_str()) {
                return Ok(Ok(info));
            }
            match status.as_str() {
                "failed" | "completed" | "cancelled" => Err(Error::Refused {
                    command: "migrate".into(),
                    answer: info.to_string(),
                }),
                _ => Ok(Err(info.to_string())),
            }
        })
    }

    /// Waits until so many rounds over memory have begun, or the migration is complete.
    ///
    /// # Errors
    ///
    /// They have not in time, or the migration has failed.
    pub fn wait_rounds(&mut self, rounds: u64, limit: Duration) -> Result<(), Error> {
        self.wait_until(&format!("Round {rounds}"), limit, |info| {
            info["ram"]["dirty-sync-count"].as_u64() >= Some(rounds)
        })
    }

    /// Waits until what is said of the migration is as wanted, or the migration is complete.
    ///
    /// # Errors
    ///
    /// It is not in time, or the migration has failed.
    pub fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<(), Error> {
        poll(&format!("{what} of the migration"), limit, || {
            self.process().must_run()?;
            let info = self.migration()?;
            let status = info["status"].as_str().unwrap_or("none");
            if wanted(&info) || status == "completed" {
                return Ok(Ok(()));
            }
            if matches!(status, "failed" | "cancelled") {
                return Err(Error::Refused {
                    command: "migrate".into(),
                    answer: info.to_string(),
                });
            }
            Ok(Err(info.to_string()))
        })
    }
}
