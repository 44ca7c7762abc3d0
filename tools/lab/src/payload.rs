// SPDX-License-Identifier: GPL-2.0

//! The initramfs of a guest that runs the guest program and nothing else.

use std::fs;
use std::io;
use std::path::{
    Path,
    PathBuf, //
};

use twinpage_guest::config::Config;

use crate::initramfs::Archive;
use crate::place;

/// The libraries of the guest program: where it looks for each.
const LIBRARIES: [&str; 3] = [
    "lib64/ld-linux-x86-64.so.2",
    "lib/libc.so.6",
    "lib/libgcc_s.so.1",
];

/// Where Debian has libraries, and where the userland of the test host has them.
const PLACES: [&str; 3] = ["/lib64", "/lib/x86_64-linux-gnu", "/lib"];

/// The program and what it is linked with; and the driver of a balloon, for a guest that has one.
///
/// # Errors
///
/// A file is missing.
pub fn initramfs(balloon: bool) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default()
        .directory("dev")
        .device("dev/console", 5, 1)
        .device("dev/null", 1, 3)
        .directory("proc")
        .directory("lib")
        .directory("lib64")
        .file("init", &read(&place::guest())?);
    for library in LIBRARIES {
        archive = archive.file(library, &read(&find(library)?)?);
    }
    if balloon {
        let driver = place::stock_module("virtio_balloon")
            .ok_or_else(|| io::Error::other("there is no virtio_balloon.ko"))?;
        archive = archive.file("virtio_balloon.ko", &read(&driver)?);
    }
    Ok(archive.finish())
}

/// Reads a file, and names it if it cannot be read.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// The guest kernel's command line: quiet, since every character costs an exit.
pub fn command_line(content: &Config) -> String {
    format!("console=ttyS0 quiet loglevel=3 panic=-1 rdinit=/init {content}")
}

fn find(library: &str) -> io::Result<PathBuf> {
    let name = Path::new(library).file_name().unwrap_or_default();
    PLACES
        .iter()
        .map(|place| Path::new(place).join(name))
        .find(|path| path.exists())
        .ok_or_else(|| io::Error::other(format!("there is no {library}")))
}
