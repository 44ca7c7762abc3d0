// SPDX-License-Identifier: GPL-2.0

//! Where the module shows itself: device node, sysfs, debugfs. And whether it does.

use std::io;
use std::path::{
    Path,
    PathBuf, //
};

use crate::device::Device;
use crate::error::Error;
use crate::host::{
    FileError,
    Host, //
};
use crate::uapi::TWINPAGE_UAPI_VERSION;

/// The device node.
const DEVICE: &str = "/dev/twinpage";

/// Knobs and counters.
const SYSFS: &str = "/sys/kernel/mm/twinpage";

/// What is mounted where.
const MOUNTS: &str = "/proc/mounts";

/// Longest list of mounts that is read, in bytes.
const MOUNTS_BYTES: usize = 16 << 20;

/// Longest sysfs file: one page.
const SYSFS_BYTES: usize = 4096;

/// Opens the device node of a module that this program understands.
///
/// # Errors
///
/// The module is not loaded, is older than this program, or the caller may not use it.
pub fn open(host: &Host) -> Result<Box<dyn Device>, Error> {
    let device = host
        .open_device(Path::new(DEVICE))
        .map_err(|error| explained(host, error))?;
    let version = device
        .version()
        .map_err(|source| Error::call(format!("ask {DEVICE} for its version"), source))?;
    // A newer module still speaks everything that older ones did.
    if version.uapi < TWINPAGE_UAPI_VERSION {
        return Err(Error::Interface {
            module: version.uapi,
        });
    }
    Ok(device)
}

/// The path of the sysfs file `name`.
pub fn sysfs_file(name: &str) -> PathBuf {
    Path::new(SYSFS).join(name)
}

/// Reads the sysfs file `name`, without the newline at its end.
///
/// # Errors
///
/// The module is not loaded, or the caller may not use it.
pub fn read_sysfs(host: &Host, name: &str) -> Result<String, Error> {
    let text = host.read_text(sysfs_file(name), SYSFS_BYTES);
    let text = text.map_err(|error| explained(host, error))?;
    Ok(text.trim_end().to_owned())
}

/// The module's directory in debugfs.
///
/// # Errors
///
/// debugfs is not mounted, the module is not loaded or shows nothing there, or the caller may not
/// look.
pub fn debugfs(host: &Host) -> Result<PathBuf, Error> {
    if !host.exists(SYSFS) {
        return Err(Error::NotLoaded);
    }
    let mounts = host.read_text(MOUNTS, MOUNTS_BYTES)?;
    let directory = mount_point(&mounts)
        .ok_or(Error::NoDebugfs)?
        .join("twinpage");
    match host.list(&directory) {
        Ok(_) => Ok(directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::EmptyDebugfs),
        Err(error) => Err(error.into()),
    }
}

/// Why `error` came: a missing file has a reason behind it.
fn explained(host: &Host, error: FileError) -> Error {
    let missing = error.kind() == io::ErrorKind::NotFound || error.is_gone();
    match (missing, host.exists(SYSFS)) {
        (true, false) => Error::NotLoaded,
        (true, true) if !host.exists(DEVICE) => Error::NoDevice,
        _ => error.into(),
    }
}

/// Where debugfs is mounted, according to the text of `/proc/mounts`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (directory, kind) = (words.next()?, words.next()?);
        (kind == "debugfs").then(|| PathBuf::from(unescaped(directory)))
    })
}

/// `text` with the escapes that the kernel writes for blanks and backslashes undone.
fn unescaped(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debugfs_is_found_where_it_is_mounted() {
        let table = [
            ("", None),
            ("proc /proc proc rw 0 0\n", None),
            ("debugfs", None),
            (
                "proc /proc proc rw 0 0\nnone /sys/kernel/debug debugfs rw 0 0\n",
                Some("/sys/kernel/debug"),
            ),
            ("none /my\\040debug debugfs rw 0 0\n", Some("/my debug")),
            ("debugfs /proc proc rw 0 0\n", None),
        ];
        for (mounts, expected) in table {
            assert_eq!(
                mount_point(mounts),
                expected.map(PathBuf::from),
                "{mounts:?}"
            );
        }
    }
}
