// SPDX-License-Identifier: GPL-2.0

//! DAMON, which samples what a process accesses, and advises the kernel for it.
//!
//! Files: `Documentation/admin-guide/mm/damon/usage.rst` of the kernel.

use std::fs;
use std::io;
use std::ops::Range;

use crate::tap::Failure;

/// Where its threads are set up.
const KDAMONDS: &str = "/sys/kernel/mm/damon/admin/kdamonds";

/// Whether the kernel's own thread runs, beside which there may be no other.
const STAT: &str = "/sys/module/damon_stat/parameters/enabled";

/// One thread at most. A test that fails leaves none behind.
pub struct Damon {
    /// Whether the kernel's own ran before.
    stat: bool,
}

impl Damon {
    /// Stops the kernel's own thread.
    ///
    /// # Errors
    ///
    /// [`Failure::Skipped`] where there is no DAMON.
    pub fn new() -> Result<Damon, Failure> {
        if let Err(error) = fs::metadata(KDAMONDS) {
            return Err(Failure::Skipped(format!("no DAMON: {error}")));
        }
        let stat = fs::read_to_string(STAT).is_ok_and(|text| text.trim() == "Y");
        if stat {
            fs::write(STAT, "N")?;
        }
        Ok(Damon { stat })
    }

    /// Starts a thread that goes on advising about all of a process's memory in `range`, however
    /// often it is accessed.
    ///
    /// # Errors
    ///
    /// The kernel's; such as that the last one was not stopped.
    pub fn start(&self, pid: u32, range: &Range<u64>, action: &str) -> io::Result<()> {
        let [start, end] = [range.start, range.end].map(|address| address.to_string());
        let (pid, any) = (pid.to_string(), u32::MAX.to_string());
        set("nr_kdamonds", "1")?;
        set("0/contexts/nr_contexts", "1")?;
        for (file, value) in [
            ("operations", "fvaddr"),
            ("targets/nr_targets", "1"),
            ("targets/0/pid_target", pid.as_str()),
            ("targets/0/regions/nr_regions", "1"),
            ("targets/0/regions/0/start", start.as_str()),
            ("targets/0/regions/0/end", end.as_str()),
            ("schemes/nr_schemes", "1"),
            ("schemes/0/action", action),
            ("schemes/0/access_pattern/sz/max", any.as_str()),
            ("schemes/0/access_pattern/nr_accesses/max", any.as_str()),
            ("schemes/0/access_pattern/age/max", any.as_str()),
        ] {
            set(&format!("0/contexts/0/{file}"), value)?;
        }
        set("0/state", "on")
    }

    /// Bytes that it advised about; those of each time are added up.
    ///
    /// # Errors
    ///
    /// The kernel's, for example when the thread has ended.
    pub fn advised(&self) -> io::Result<u64> {
        set("0/state", "update_schemes_stats")?;
        let path = format!("{KDAMONDS}/0/contexts/0/schemes/0/stats/sz_applied");
        let text = fs::read_to_string(path)?;
        text.trim().parse::<u64>().map_err(io::Error::other)
    }

    /// Stops the thread.
    ///
    /// # Errors
    ///
    /// The kernel's; such as that none was started.
    pub fn stop(&self) -> io::Result<()> {
        set("0/state", "off")
    }
}

impl Drop for Damon {
    fn drop(&mut self) {
        // What went wrong before is what is told.
        let _ = self.stop();
        let _ = set("nr_kdamonds", "0");
        if self.stat {
            let _ = fs::write(STAT, "Y");
        }
    }
}

/// Writes one of the files.
fn set(file: &str, value: &str) -> io::Result<()> {
    let path = format!("{KDAMONDS}/{file}");
    fs::write(&path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}
