// SPDX-License-Identifier: GPL-2.0

//! The program: arguments in, output and exit code out.

#![forbid(unsafe_code)]

use std::io::{
    self,
    BufWriter,
    Write, //
};
use std::process::ExitCode;

use clap::Parser;

use twinpage::cli::Cli;
use twinpage::commands;
use twinpage::console::{
    lines,
    Console,
    Live,
    Screen, //
};
use twinpage::error::Error;
use twinpage::host::Host;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut console = Console {
        out: &mut out,
        err: &mut io::stderr(),
        screen: Screen::of_stdout(),
        live: Live::of_stderr(),
    };
    let result = commands::run(&cli.command, &Host::running(), &mut console);
    // What was found until then is shown before the error that ended it.
    let flushed = console.out.flush().map_err(Error::Output);
    match result.and(flushed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(&error),
    }
}

/// Reports `error` and gives its exit code.
fn failure(error: &Error) -> ExitCode {
    if !error.is_broken_pipe() {
        // The code counts also where nobody reads the words.
        let _unread = writeln!(io::stderr(), "twinpage: {}", lines(&error.report()));
    }
    ExitCode::from(error.exit() as u8)
}
