// SPDX-License-Identifier: GPL-2.0

//! The two mergers, with what a measurement asks of either. Their knobs and counters have the same
//! names, since those of Twinpage are KSM's.

use std::fs;
use std::os::fd::RawFd;
use std::time::{
    Duration,
    Instant, //
};

use twinpage_lab::module::{
    self,
    Device, //
};
use twinpage_lab::oracle::Range;
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

use crate::data::Guest;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// mm/ksm.c.
    Ksmd,
    /// The module.
    Twinpage,
}

/// Both, in the order in which rows have them.
pub const BOTH: [Which; 2] = [Which::Ksmd, Which::Twinpage];

/// How often a counter is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// The longest that a counter may take to get where it must.
const LIMIT: Duration = Duration::from_secs(1200);

/// How it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Without rest, every page looked at in each pass.
    Full,
    /// Without rest, pages that did not merge left out more and more.
    Smart,
    /// As it comes.
    Default,
    /// As it comes, with the advisor, which ksmd comes without.
    Advisor,
}

/// A guest that either of the two can take into its care.
pub trait Mergeable {
    /// Its VM.
    fn vm(&self) -> RawFd;

    /// Its memory.
    fn ram(&self) -> Range;

    /// Advises the kernel that ksmd may merge it.
    fn advise(&self) -> Outcome;
}

/// A merger that works on some guests.
pub struct Merger<G = Guest> {
    which: Which,
    thread: u32,
    guests: Vec<G>,
}

impl<G: Mergeable> Merger<G> {
    /// One that was never used, set so, with these guests in its care; it does not run yet.
    pub fn new(which: Which, setting: Setting, guests: Vec<G>) -> Result<Merger<G>, Failure> {
        let mut merger = Merger::idle(which, setting)?;
        for guest in guests {
            merger.adopt(guest)?;
        }
        Ok(merger)
    }

    /// The same without guests.
    pub fn idle(which: Which, setting: Setting) -> Result<Merger<G>, Failure> {
        if which == Which::Twinpage {
            module::load()?;
        }
        let merger = Merger {
            which,
            thread: thread(which.thread())?,
            guests: Vec::new(),
        };
        match (setting, which) {
            // The module was loaded just now.
            (Setting::Default | Setting::Advisor, Which::Twinpage) => {}
            (Setting::Default | Setting::Advisor, Which::Ksmd) => {
                merger.set("advisor_mode", "none")?;
                merger.set("sleep_millisecs", 20)?;
                merger.set("pages_to_scan", 100)?;
                merger.set("smart_scan", 1)?;
                merger.set("use_zero_pages", 0)?;
                if setting == Setting::Advisor {
                    merger.set("advisor_mode", "scan-time")?;
                }
            }
            (Setting::Full | Setting::Smart, _) => {
                merger.set("advisor_mode", "none")?;
                merger.set("sleep_millisecs", 0)?;
                merger.set("pages_to_scan", 2000)?;
                merger.set("smart_scan", u8::from(setting == Setting::Smart))?;
                merger.set("use_zero_pages", 1)?;
            }
        }
        merger.set("run", 0)?;
        Ok(merger)
    }

    /// Takes one more guest into its care.
    pub fn adopt(&mut self, guest: G) -> Outcome {
        match self.which {
            Which::Ksmd => guest.advise()?,
            Which::Twinpage => drop(Device::open()?.attach(guest.vm(), 1)?),
        }
        self.guests.push(guest);
        Ok(())
    }

    /// Which it is.
    pub fn which(&self) -> Which {
        self.which
    }

    /// Its thread.
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// Its guests.
    pub fn guests(&self) -> &[G] {
        &self.guests
    }

    /// Writes a knob.
    pub fn set(&self, name: &str, value: impl ToString) -> Outcome {
        let path = format!("{}/{name}", self.which.directory());
        fs::write(&path, value.to_string())
            .map_err(|error| Failure::Failed(format!("{path}: {error}")))
    }

    /// Reads a counter.
    pub fn counter(&self, name: &str) -> Result<i64, Failure> {
        let path = format!("{}/{name}", self.which.directory());
        let text = fs::read_to_string(&path)?;
        text.trim()
            .parse()
            .map_err(|_| Failure::Failed(format!("{path} is no number: {text}")))
    }

    /// Pages that need no frame of their own now.
    pub fn saved(&self) -> Result<usize, Failure> {
        let zero = match self.which {
            Which::Ksmd => "ksm_zero_pages",
            Which::Twinpage => "zero_pages",
        };
        let saved = self.counter("pages_sharing")? + self.counter(zero)?;
        Ok(usize::try_from(saved).unwrap_or(0))
    }

    /// Instructions that its thread has executed.
    pub fn spent(&self) -> Result<u64, Failure> {
        let path = format!("/proc/{}/schedstat", self.thread);
        let text = fs::read_to_string(&path)?;
        let run = text
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok());
        run.ok_or_else(|| Failure::Failed(format!("{path}: {text}")))
    }

    /// Lets it go over all pages so often; stops then. Instructions for each pass.
    pub fn passes(&self, passes: i64) -> Result<f64, Failure> {
        self.set("run", 1)?;
        self.boundary(1)?;
        let start = (self.counter("full_scans")?, self.spent()?);
        self.boundary(passes)?;
        let end = (self.counter("full_scans")?, self.spent()?);
        self.set("run", 0)?;
        Ok((end.1 - start.1) as f64 / (end.0 - start.0) as f64)
    }

    /// Waits until so many passes have ended.
    fn boundary(&self, passes: i64) -> Outcome {
        let end = self.counter("full_scans")? + passes;
        self.wait("the end of a pass", || {
            Ok(self.counter("full_scans")? >= end)
        })
    }

    /// Looks again and again until it holds.
    pub fn wait(&self, what: &str, mut holds: impl FnMut() -> Result<bool, Failure>) -> Outcome {
        let start = Instant::now();
        while !holds()? {
            if start.elapsed() > LIMIT {
                let which = self.which;
                return Err(Failure::Failed(format!(
                    "{what} did not come with {which:?}"
                )));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Ends the guests, and forgets all of it. Their pages go with them: a host may be too small for
    /// all of its guests' pages.
    pub fn end(mut self) -> Outcome {
        self.guests.clear();
        self.set("run", 2)?;
        match self.which {
            Which::Ksmd => Ok(()),
            Which::Twinpage => Ok(module::unload()?),
        }
    }
}

impl Which {
    fn directory(self) -> &'static str {
        match self {
            Which::Ksmd => "/sys/kernel/mm/ksm",
            Which::Twinpage => module::SYSFS,
        }
    }

    fn thread(self) -> &'static str {
        match self {
            Which::Ksmd => "ksmd",
            Which::Twinpage => "twinpaged",
        }
    }
}

/// The kernel's thread with this name.
fn thread(name: &str) -> Result<u32, Failure> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let (true, Some(pid)) = (comm.trim() == name, number) {
            return Ok(pid);
        }
    }
    Err(Failure::Failed(format!("there is no thread {name}")))
}
