// SPDX-License-Identifier: GPL-2.0

//! `twinpage migrate`: the ends of a migration by digest.

use crate::cli::migrate::Migrate;
use crate::console::Console;
use crate::domain::{
    Domain,
    DomainName, //
};
use crate::error::Error;
use crate::host::Host;

mod keygen;
mod receive;
mod run;

mod send;

/// Does what `command` says.
pub fn run(command: &Migrate, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    match command {
        Migrate::Send(arguments) => send::run(arguments, host, console),
        Migrate::Receive(arguments) => receive::run(arguments, host, console),
        Migrate::Run(arguments) => run::run(arguments, host, console),
        Migrate::Keygen(arguments) => keygen::run(arguments, console),
    }
}

/// How a domain is named to a receiver: by its number. The private one is not.
pub fn domain_text(name: Option<&DomainName>) -> String {
    name.map(|name| name.domain)
        .filter(|&domain| domain != Domain::PRIVATE)
        .map_or_else(String::new, |domain| domain.0.to_string())
}
