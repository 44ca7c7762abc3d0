// SPDX-License-Identifier: GPL-2.0

//! Running `qemu-img`.

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

/// More bytes than this of what it says are not kept.
pub(super) const SAID: u64 = 16 << 20;

/// Runs `qemu-img` with `arguments` about the image at `path`: what it wrote.
///
/// # Errors
///
/// When there is no such program, or it failed.
pub(super) fn run(arguments: &[OsString], path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |said: String| Error::Program {
        program: PROGRAM,
        path: path.to_owned(),
        said,
    };
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
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
