// SPDX-License-Identifier: GPL-2.0

//! `twinpage migrate keygen`: makes the key that both hosts need.

use twinpage_migrate::net;

use crate::cli::migrate::Keygen;
use crate::console::Console;
use crate::error::Error;

/// Runs the command.
pub fn run(arguments: &Keygen, console: &mut Console<'_>) -> Result<(), Error> {
    let key = net::write_key(&arguments.path)?;
    writeln!(
        console.out,
        "{}: key {}",
        arguments.path.display(),
        key.fingerprint()
    )?;
    Ok(())
}
