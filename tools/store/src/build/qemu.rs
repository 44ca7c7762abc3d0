// SPDX-License-Identifier: GPL-2.0

//! Running `qemu-img`, which reads what nobody has checked, with limits.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::{
    Command,
    Stdio, //
};
use std::thread;

use crate::error::Error;

/// The program.
const PROGRAM: &str = "qemu-img";

/// What sets the limits: it is a part of util-linux, and needs no unsafe code here.
const LIMITER: &str = "prlimit";

/// More bytes than this of what it says are not kept.
pub(super) const SAID: u64 = 16 << 20;

/// What a program may use.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of address space.
    memory: u64,
    /// Seconds of a processor.
    seconds: u64,
}

/// For a look at a header: what OpenStack gives `qemu-img info`.
pub(super) const LOOK: Limits = Limits {
    memory: 1 << 30,
    seconds: 30,
};

/// For tables and data, which threads read, and each takes address space.
pub(super) const WORK: Limits = Limits {
    memory: 4 << 30,
    seconds: 600,
};

/// A command that runs `program` within `limits`.
fn limited(program: &str, limits: Limits) -> Command {
    let mut command = Command::new(LIMITER);
    command
        .arg(format!("--as={}:", limits.memory))
        .arg(format!("--cpu={}:", limits.seconds))
        .arg(program);
    command
}

/// Runs `qemu-img` with `arguments` about the image at `path`, within `limits`: what it wrote.
///
/// # Errors
///
/// When there is no such program, or it failed.
pub(super) fn run(arguments: &[OsString], limits: Limits, path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |said: String| Error::Program {
        program: PROGRAM,
        path: path.to_owned(),
        said,
    };
    let mut child = limited(PROGRAM, limits)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot be run by {LIMITER}: {error}")))?;
    let complaints = child.stderr.take();
    let listener = thread::spawn(move || complaints.map_or_else(Vec::new, drain));
    let said = child.stdout.take().map_or_else(Vec::new, drain);
    let ended = child.wait().map_err(|error| failed(error.to_string()))?;
    let complaints = listener.join().unwrap_or_default();
    if !ended.success() {
        let text = String::from_utf8_lossy(&complaints);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        return Err(failed(last.map_or_else(|| ended.to_string(), printable)));
    }
    Ok(said)
}

/// Reads a pipe to its end and keeps what is bounded.
fn drain(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A pipe that breaks has ended.
    let _ = pipe.by_ref().take(SAID).read_to_end(&mut bytes);
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    bytes
}

/// A line without what would change a terminal.
fn printable(line: &str) -> String {
    line.chars()
        .filter(|char| !char.is_control())
        .take(500)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_program() {
        let ran = limited("cat", LOOK).arg("/proc/self/limits").output();
        let said = String::from_utf8(ran.unwrap().stdout).unwrap();
        for (name, limit) in [("Max cpu time", "30"), ("Max address space", "1073741824")] {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            let soft = line.and_then(|line| line.split_whitespace().next());
            assert_eq!(soft, Some(limit), "{name}");
        }
    }
}
