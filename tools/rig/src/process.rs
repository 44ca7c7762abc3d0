// SPDX-License-Identifier: GPL-2.0

//! A process that does not outlive the test.

use std::fs::File;
use std::io;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Child,
    Command,
    ExitStatus,
    Stdio, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

use crate::error::Error;

/// How much of a log an error shows.
const SHOWN_BYTES: usize = 600;

/// A child that is killed when this is dropped, and also when the test itself is killed: a guardian
/// (a shell) holds the other end of a pipe and kills the child once the pipe is closed.
pub struct Process {
    /// The child.
    child: Child,
    /// Its guardian.
    guardian: Child,
    /// What it is called in messages.
    name: String,
    /// What it writes to standard output and error.
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `log`.
    ///
    /// # Errors
    ///
    /// The program cannot be started, or `log` not written.
    pub fn start(command: &mut Command, name: &str, log: &Path) -> Result<Self, Error> {
        let failed = |what: &str| Error::io(format!("Cannot {what} {name}"));
        let file = File::create(log).map_err(failed("write the log of"))?;
        let copy = file.try_clone().map_err(failed("write the log of"))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(file)
            .spawn()
            .map_err(failed("start"))?;
        let guardian = Command::new("sh")
            .args(["-c", "read -r line; kill -9 \"$1\"", "sh"])
            .arg(child.id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match guardian {
            Ok(guardian) => Ok(Self {
                child,
                guardian,
                name: name.into(),
                log: log.into(),
            }),
            Err(error) => {
                end(&mut child);
                Err(failed("guard")(error))
            }
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kills it (signal 9) and waits for it.
    pub fn kill(&mut self) {
        // The guardian first, so that it never kills somebody who has got the same number.
        end(&mut self.guardian);
        end(&mut self.child);
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        let failed = Error::io(format!("Cannot look at {}", self.name));
        self.child.try_wait().map_err(failed)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// [`Error::TooLate`] if it does not end within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                return Err(Error::TooLate {
                    what: format!("The end of {}", self.name),
                    limit,
                    seen: self.log_end(),
                });
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The end of what it wrote.
    pub fn log_end(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let shown = bytes.len().saturating_sub(SHOWN_BYTES);
        String::from_utf8_lossy(&bytes[shown..]).trim().into()
    }

    /// An error if it has ended.
    pub(crate) fn must_run(&mut self) -> Result<(), Error> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(Error::Ended {
                name: self.name.clone(),
                log: format!("{} ({status})", self.log_end()),
            }),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills `child` and waits for it; it may have ended before.
fn end(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        let _: io::Result<()> = child.kill();
        let _: io::Result<ExitStatus> = child.wait();
    }
}
