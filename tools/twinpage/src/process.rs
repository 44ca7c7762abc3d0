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

/// Longest command line that is looked at, in bytes.
const CMDLINE_BYTES: usize = 1 << 20;

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

/// The name of a process for people: what QEMU was told with `-name`, else the command.
pub fn name(host: &Host, pid: Pid) -> String {
    let cmdline = host.read_text(pid.file("cmdline"), CMDLINE_BYTES);
    cmdline
        .ok()
        .and_then(|cmdline| guest_name(&cmdline))
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
    let mut fds: Vec<_> = names
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .map(ForeignFd)
        .filter(|fd| {
            // A descriptor may be closed between listing and looking.
            let target = host.read_link(directory.join(fd.0.to_string()));
            target.is_ok_and(|target| target.as_os_str() == KVM_VM)
        })
        .collect();
    fds.sort_unstable();
    Ok(fds)
}

/// Every process that has a VM, in ascending order.
///
/// # Errors
///
/// `/proc` cannot be listed.
pub fn with_vms(host: &Host) -> Result<Vec<Pid>, Error> {
    let mut pids: Vec<Pid> = host
        .list("/proc")?
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        // A process may end between listing and looking.
        .filter(|&pid| vm_fds(host, pid).is_ok_and(|fds| !fds.is_empty()))
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The value of QEMU's `-name` in a command line: `NAME,...` or `guest=NAME,...`.
fn guest_name(cmdline: &str) -> Option<String> {
    let mut arguments = cmdline.split('\0');
    arguments.find(|argument| matches!(*argument, "-name" | "--name"))?;
    let value = arguments.next()?;
    let named = value
        .split(',')
        .find_map(|part| part.strip_prefix("guest="));
    let name = named.or_else(|| value.split(',').next())?;
    (!name.is_empty()).then(|| name.to_owned())
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
