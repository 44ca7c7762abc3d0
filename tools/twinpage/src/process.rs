// SPDX-License-Identifier: GPL-2.0

//! Processes: their names, and which of their file descriptors are KVM VMs.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

use crate::console;
use crate::error::Error;
use crate::host::Host;

/// What `/proc/PID/fd/N` points to for a VM.
const KVM_VM: &str = "anon_inode:kvm-vm";

/// Longest file of a process that is looked at, in bytes.
const FILE_BYTES: usize = 1 << 20;

/// Longest name that is shown, in characters.
const NAME_CHARS: usize = 24;

/// Number of a process (thread group).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Pid(pub u32);

/// Number of a file descriptor in another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignFd(pub i32);

/// What is wrong with the number of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A process is a number from 1 to {}", i32::MAX)]
pub struct PidError;

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Pid {
    type Err = PidError;

    fn from_str(text: &str) -> Result<Self, PidError> {
        let number = text.parse::<i32>().map_err(|_| PidError)?;
        match u32::try_from(number) {
            Ok(number @ 1..) => Ok(Self(number)),
            _ => Err(PidError),
        }
    }
}

impl Pid {
    /// The file `name` of this process in procfs.
    pub fn file(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{self}/{name}"))
    }
}

/// The name of the guest that a process says it runs: what QEMU was told with `-name`.
pub fn guest(host: &Host, pid: Pid) -> Option<String> {
    let cmdline = host.read_text(pid.file("cmdline"), FILE_BYTES);
    guest_name(&cmdline.ok()?)
}

/// The name of a process for people: that of its guest, else the command.
pub fn name(host: &Host, pid: Pid) -> String {
    guest(host, pid)
        .or_else(|| host.read_text(pid.file("comm"), 64).ok())
        .map(|name| printable(&name))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "?".to_owned())
}

/// The file descriptors of `pid` that are VMs, in ascending order.
///
/// # Errors
///
/// There is no such process, or its descriptors may not be listed.
pub fn vm_fds(host: &Host, pid: Pid) -> Result<Vec<ForeignFd>, Error> {
    let directory = pid.file("fd");
    let names = host.list(&directory).map_err(|error| match error {
        error if error.is_gone() => Error::NoProcess(pid),
        error => error.into(),
    })?;
    let mut fds = Vec::new();
    for fd in names.iter().filter_map(|name| name.to_str()?.parse().ok()) {
        match host.read_link(directory.join(i32::to_string(&fd))) {
            Ok(target) if target.as_os_str() == KVM_VM => fds.push(ForeignFd(fd)),
            // A descriptor may be closed between listing and looking.
            Err(error) if !error.is_gone() => return Err(error.into()),
            _ => (),
        }
    }
    fds.sort_unstable();
    Ok(fds)
}

/// Every process that has a VM, in ascending order.
///
/// # Errors
///
/// `/proc` cannot be listed; or there is none, but processes that may not be looked at.
pub fn with_vms(host: &Host) -> Result<Vec<Pid>, Error> {
    let mut pids = Vec::new();
    let mut hidden = None;
    let names = host.list("/proc")?;
    for pid in names.iter().filter_map(|name| name.to_str()?.parse().ok()) {
        match vm_fds(host, pid) {
            Ok(fds) if fds.is_empty() => (),
            Ok(_) => pids.push(pid),
            // A process may end between listing and looking.
            Err(Error::NoProcess(_)) => (),
            Err(error) => hidden = Some(error),
        }
    }
    pids.sort_unstable();
    match hidden {
        Some(error) if pids.is_empty() => Err(error),
        _ => Ok(pids),
    }
}

/// The name that QEMU's `-name` in a command line gives: `NAME,...` or `guest=NAME,...`, where a comma
/// of the name is written twice. The last one counts (util/qemu-option.c).
fn guest_name(cmdline: &str) -> Option<String> {
    let mut arguments = cmdline.split('\0');
    let mut name = None;
    while arguments.any(|argument| matches!(argument, "-name" | "--name")) {
        let parts = parts(arguments.next()?);
        for (number, part) in parts.into_iter().enumerate() {
            match part.split_once('=') {
                Some(("guest", value)) => name = Some(value.to_owned()),
                None if number == 0 => name = Some(part),
                _ => (),
            }
        }
    }
    name.filter(|name| !name.is_empty())
}

/// The parts of an option of QEMU's, with commas between them; two are one that belongs to a part.
fn parts(option: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = option.chars().peekable();
    while let Some(letter) = letters.next() {
        let twice = letter == ',' && letters.next_if_eq(&',').is_some();
        match (letter, parts.last_mut()) {
            (',', _) if !twice => parts.push(String::new()),
            (_, Some(part)) => part.push(letter),
            _ => (),
        }
    }
    parts
}

/// `name` on one line of bounded length.
fn printable(name: &str) -> String {
    console::printable(name.trim().chars().take(NAME_CHARS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_names_are_found() {
        let table = [
            ("qemu\0-name\0web,debug-threads=on\0-vga\0std", Some("web")),
            (
                "qemu\0-vga\0std\0-name\0guest=db,debug-threads=on",
                Some("db"),
            ),
            ("qemu\0-name\0debug-threads=on,guest=db", Some("db")),
            ("qemu\0-name\0guest=web-1,,x,process=q", Some("web-1,x")),
            ("qemu\0-name\0web\0-name\0guest=db", Some("db")),
            ("qemu\0-name\0guest=web\0-name\0process=q", Some("web")),
            ("qemu\0-name\0a=b", None),
            ("qemu\0-name\0", None),
            ("qemu\0-name", None),
            ("qemu\0-vga\0std", None),
            ("", None),
        ];
        for (cmdline, name) in table {
            assert_eq!(guest_name(cmdline).as_deref(), name, "{cmdline:?}");
        }
    }

    #[test]
    fn names_cannot_garble_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a?[2Jb");
        assert_eq!(printable(&"x".repeat(100)).len(), NAME_CHARS);
    }

    #[test]
    fn pids_have_a_range() {
        let table = [
            ("1", Ok(Pid(1))),
            ("2147483647", Ok(Pid(2_147_483_647))),
            ("0", Err(PidError)),
            ("-1", Err(PidError)),
            ("2147483648", Err(PidError)),
            ("self", Err(PidError)),
            ("", Err(PidError)),
        ];
        for (text, pid) in table {
            assert_eq!(text.parse::<Pid>(), pid, "{text:?}");
        }
    }
}
