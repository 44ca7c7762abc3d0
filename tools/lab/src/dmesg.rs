// SPDX-License-Identifier: GPL-2.0

//! The kernel's log from a moment on, and what in it means that something broke.

use std::fs::{
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Read,
    Seek,
    SeekFrom, //
};
use std::os::unix::fs::OpenOptionsExt;

/// Texts that no healthy kernel prints. A call trace alone is none: an injected failure may have one.
const ALARMS: &[&str] = &[
    "BUG",
    "WARNING:",
    "Oops",
    "Bad page",
    "Bad rss-counter",
    "Bad swap",
    "Kernel panic",
    "general protection fault",
    "invalid opcode",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
    "possible circular locking",
    "possible recursive locking",
    "possible irq lock inversion",
    "inconsistent lock state",
    "suspicious RCU usage",
    "sleeping function called",
    "scheduling while atomic",
    "UBSAN",
    "pagealloc: ",
    "KASAN",
    "new suspected memory leaks",
    "blocked for more than",
    "rust_kernel: panicked",
    "panicked at",
];

/// The log from one moment on.
pub struct Log(File);

impl Log {
    /// The log from now on.
    ///
    /// # Errors
    ///
    /// No `/dev/kmsg`.
    pub fn from_now() -> io::Result<Log> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Log(file))
    }

    /// The lines that came since the last call.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn lines(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => return Ok(lines),
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    // `priority,sequence,time,flags;text`, then indented dictionary lines.
                    let text = text.split_once(';').map_or(&*text, |(_, text)| text);
                    lines.extend(text.lines().next().map(str::to_owned));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
                // The record was overwritten before it was read; the next one is there.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The lines from the first alarm on; empty when there is none.
pub fn alarms(lines: &[String]) -> &[String] {
    let first = lines
        .iter()
        .position(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
    first.map_or(&[], |first| &lines[first..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_comes_with_what_follows_it() {
        let lines = ["fine", "BUG: Bad rss-counter state", "mm: 1"].map(str::to_owned);
        assert_eq!(alarms(&lines), &lines[1..]);
        assert!(alarms(&lines[..1]).is_empty());
    }
}
