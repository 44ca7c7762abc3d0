// SPDX-License-Identifier: GPL-2.0

//! `twinpage migrate receive`: the end at the destination.

use std::sync::Arc;

use twinpage_migrate::proxy::receive;

use crate::cli::migrate::{
    Receive,
    SourceName, //
};
use crate::console::Console;
use crate::error::Error;
use crate::host::Host;
use crate::notices::Notices;
use crate::page_sources::Opener;
use crate::report::{
    printable,
    Role, //
};
use crate::security;
use crate::session;
use crate::units::Size;

/// Runs the command.
pub fn run(arguments: &Receive, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let (speaker, notices) = Notices::new();
    let opener = Opener::new(&arguments.pages, &arguments.domains, host, speaker.clone())?;
    let mut options = options(arguments, opener)?;
    options.notice = Arc::new(move |text| speaker.say(printable(text)));
    let handle = receive::start(options)?;
    if !arguments.show.quiet {
        writeln!(console.err, "twinpage: listening on {}", handle.address())?;
        console.err.flush()?;
    }
    let finished = session::follow(handle, arguments.show, &notices, host, console);
    session::tell(Role::Receive, finished, arguments.show, console)
}

/// What the proxy is to do.
fn options(arguments: &Receive, opener: Opener) -> Result<receive::Options, Error> {
    let security = security::load(&arguments.security)?;
    let sources = Arc::new(move |domain: &str| opener.open(domain));
    let qemu = arguments.connect.clone();
    let mut options = receive::Options::new(arguments.listen.clone(), security, qemu, sources);
    options.limits = session::limits(
        arguments.window,
        arguments.wire_window,
        dictionary(arguments),
        arguments.threads,
    )?;
    Ok(options)
}

/// How much memory pages of the same migration may take.
fn dictionary(arguments: &Receive) -> Size {
    let pages = &arguments.pages;
    let named = |names: &Vec<SourceName>| names.contains(&SourceName::Stream);
    match !pages.no_stream && pages.sources.as_ref().is_none_or(named) {
        true => pages.dictionary,
        false => Size(0),
    }
}
