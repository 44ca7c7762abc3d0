// SPDX-License-Identifier: GPL-2.0

//! `twinpage completions`: what a shell completes the command line by.

use clap::CommandFactory;
use clap_complete::generate;

use crate::cli::{
    Cli,
    Completions, //
};
use crate::console::Console;
use crate::error::Error;

/// Runs the command.
pub fn run(arguments: &Completions, console: &mut Console<'_>) -> Result<(), Error> {
    // The generator panics where it cannot write.
    let mut text = Vec::new();
    generate(arguments.shell, &mut Cli::command(), "twinpage", &mut text);
    Ok(console.out.write_all(&text)?)
}
