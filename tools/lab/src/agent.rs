// SPDX-License-Identifier: GPL-2.0

//! The agent of a Debian guest (`scripts/prepare/debian.sh`): says when it is ready, runs commands.

use std::time::Duration;

use crate::error::Error;
use crate::vmm::Vmm;

/// What it says when it can take commands.
const READY: &str = "ready";

/// Waits until a guest that boots takes commands.
///
/// # Errors
///
/// It says nothing for `limit`.
pub fn booted(guest: &mut Vmm, limit: Duration) -> Result<(), Error> {
    // What comes before, such as the end of a command that rebooted it, is of no interest.
    while guest.line(limit)? != READY {}
    Ok(())
}

/// Runs one command in a guest.
///
/// # Errors
///
/// It fails there, or takes longer than `limit`.
pub fn run(guest: &mut Vmm, command: &str, limit: Duration) -> Result<(), Error> {
    guest.say(command)?;
    match guest.line(limit)?.as_str() {
        "done 0" => Ok(()),
        said => Err(Error::Said {
            who: guest.name().to_owned(),
            said: format!("{said}' to '{command}"),
        }),
    }
}
