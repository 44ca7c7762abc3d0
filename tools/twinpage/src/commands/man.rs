// SPDX-License-Identifier: GPL-2.0

//! `twinpage man`: the manual pages, one for each subcommand.

use clap::CommandFactory;
use clap_mangen::generate_to;

use crate::cli::{
    Cli,
    Man, //
};
use crate::error::Error;

/// Runs the command.
pub fn run(arguments: &Man) -> Result<(), Error> {
    let written = generate_to(Cli::command(), &arguments.dir);
    let action = || format!("write manual pages to {}", arguments.dir.display());
    written.map_err(|source| Error::call(action(), source))
}
