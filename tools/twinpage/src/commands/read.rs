// SPDX-License-Identifier: GPL-2.0

//! `twinpage read`: the content of a merged page, asked for by digest.

use std::io;

use rustix::io::Errno;

use crate::cli::Read;
use crate::console::Console;
use crate::digest::Digest;
use crate::domain::Domain;
use crate::error::Error;
use crate::host::Host;
use crate::module;

/// Runs the command.
pub fn run(arguments: &Read, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    if console.screen.is_some() {
        return Err(Error::Terminal);
    }
    let domain = arguments.domain.domain;
    if domain == Domain::PRIVATE {
        return Err(Error::PrivateDomain);
    }
    let device = module::open(host)?;
    let page = device
        .read_page(domain, &arguments.digest)
        .map_err(|error| failure(arguments, error))?;
    let found = Digest::of(&page);
    if found != arguments.digest {
        return Err(Error::WrongPage {
            asked: Box::new(arguments.digest),
            found: Box::new(found),
        });
    }
    console.out.write_all(page.as_slice())?;
    Ok(())
}

/// Why the module did not hand out the page.
fn failure(arguments: &Read, error: io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => Error::NoSuchPage {
            domain: arguments.domain.text.clone(),
            digest: Box::new(arguments.digest),
        },
        _ => Error::call("read a merged page", error),
    }
}
