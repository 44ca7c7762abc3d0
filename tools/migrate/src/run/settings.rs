// SPDX-License-Identifier: GPL-2.0

//! Capabilities and parameters that a migration through the proxies needs.

use serde_json::{
    json,
    Map,
    Value, //
};

use crate::qmp::{
    Client,
    Error, //
};

use super::checks::Found;
use super::Plan;

/// What the source had before.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// Parameters that were changed, with the values from before.
    parameters: Map<String, Value>,
    /// Whether the return path was off.
    no_return_path: bool,
}

/// Switches a capability.
fn set_capability(client: &mut Client, name: &str, state: bool) -> Result<(), Error> {
    let capability = json!({"capability": name, "state": state});
    client.execute(
        "migrate-set-capabilities",
        json!({"capabilities": [capability]}),
    )?;
    Ok(())
}

impl Settings {
    /// Sets up the source.
    ///
    /// # Errors
    ///
    /// What QEMU refuses; the source is then as it was.
    pub(super) fn apply(client: &mut Client, plan: &Plan, found: &Found) -> Result<Self, Error> {
        let mut settings = Self::default();
        match settings.change(client, plan, found) {
            Ok(()) => Ok(settings),
            Err(error) => {
                settings.restore(client);
                Err(error)
            }
        }
    }

    /// Changes what must change, and remembers it.
    fn change(&mut self, client: &mut Client, plan: &Plan, found: &Found) -> Result<(), Error> {
        if !found.has("return-path") {
            set_capability(client, "return-path", true)?;
            self.no_return_path = true;
        }
        let downtime = u64::try_from(plan.downtime.as_millis()).unwrap_or(u64::MAX);
        let mut wanted = vec![("max-bandwidth", 0), ("downtime-limit", downtime)];
        // QEMU sees the speed of the proxy, which is not that of the network.
        wanted.extend(
            plan.link_rate
                .map(|rate| ("avail-switchover-bandwidth", rate)),
        );
        let mut parameters = Map::new();
        for (name, value) in wanted {
            let before = &found.parameters[name];
            // What an old QEMU does not list it does not know.
            if before.is_u64() && before.as_u64() != Some(value) {
                parameters.insert(name.to_owned(), value.into());
                self.parameters.insert(name.to_owned(), before.clone());
            }
        }
        if !parameters.is_empty() {
            client.execute("migrate-set-parameters", Value::Object(parameters))?;
        }
        Ok(())
    }

    /// Puts the source back to what it was; gives what could not be.
    pub(super) fn restore(self, client: &mut Client) -> Option<String> {
        let mut failed = None;
        if !self.parameters.is_empty() {
            let parameters = Value::Object(self.parameters);
            failed = client.execute("migrate-set-parameters", parameters).err();
        }
        if self.no_return_path {
            let result = set_capability(client, "return-path", false);
            failed = failed.or(result.err());
        }
        failed.map(|error| format!("the source's migration parameters are not as before: {error}"))
    }
}

/// Sets up the destination, which goes on without what it refuses; gives notes then. Whether the
/// guest is `running` says whether it will be started there.
pub(super) fn destination(client: &mut Client, found: &Found, running: bool) -> Vec<String> {
    let mut wanted = vec!["return-path"];
    // A copy that is never started leaves the images to the source then, which may run the guest
    // again. QEMU 10.0 does so by itself; an older one may crash if it is to send on a guest that was
    // never started.
    if running && found.capabilities.contains_key("late-block-activate") {
        wanted.push("late-block-activate");
    }
    wanted.retain(|name| !found.has(name));
    let set = |name| {
        let error = set_capability(client, name, true).err()?;
        Some(format!("the destination keeps {name} off: {error}"))
    };
    wanted.into_iter().filter_map(set).collect()
}
