// SPDX-License-Identifier: GPL-2.0

//! Lets the kernel's allocations fail, one at a time (`Documentation/fault-injection` of the kernel).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env;
use std::fs::{
    File,
    OpenOptions, //
};
use std::io;
use std::os::unix::fs::FileExt;

use twinpage_lab::dmesg::Log;
use twinpage_lab::ensure;
use twinpage_lab::faults::{
    self,
    Changed, //
};
use twinpage_lab::tap::{
    Failure,
    Outcome, //
};

/// More allocations than any operation makes.
pub const MANY: u64 = 1 << 30;

/// The allocations of one thread.
pub struct Faults {
    nth: File,
    sites: Option<RefCell<Sites>>,
}

/// Where the module asked for memory and got none.
struct Sites {
    log: Log,
    known: BTreeSet<String>,
}

/// What came of an operation while an allocation was to fail.
pub struct Attempt<T> {
    /// What it returned.
    pub result: io::Result<T>,
    /// Whether an allocation failed.
    pub failed: bool,
}

/// Makes sure that pages for the stack are there: to get one is an allocation as well.
#[inline(never)]
fn touch_stack() {
    std::hint::black_box([1_u8; 1 << 16]);
}

impl Sites {
    /// None, if the environment says that somebody wants to know (`scripts/coverage.sh`).
    fn if_wanted() -> io::Result<Option<RefCell<Sites>>> {
        if env::var_os("TWINPAGE_SITES").is_none() {
            return Ok(None);
        }
        Changed::to([("failslab/verbose", "2"), ("fail_page_alloc/verbose", "2")])?.keep();
        let log = Log::from_now()?;
        let known = BTreeSet::new();
        Ok(Some(RefCell::new(Sites { log, known })))
    }

    /// Prints where allocations have failed since the last call, if that is new.
    fn look(&mut self) -> io::Result<()> {
        let lines = self.log.lines()?;
        let traces = lines.split(|line| line.starts_with("FAULT_INJECTION"));
        let sites = traces
            .skip(1)
            .filter_map(|trace| trace.iter().find_map(|line| of_module(line)));
        for site in sites {
            if self.known.insert(site.to_owned()) {
                println!("site {site}");
            }
        }
        Ok(())
    }
}

/// The function and the offset that a line of a call trace names, if that is the module's.
fn of_module(line: &str) -> Option<&str> {
    let place = line.trim().strip_suffix(" [twinpage]")?;
    let (site, _length) = place.split_once('/')?;
    (!site.starts_with('?')).then_some(site)
}

impl Faults {
    /// Those of this thread.
    pub fn own() -> Result<Faults, Failure> {
        Faults::at("/proc/thread-self/fail-nth")
    }

    /// Those of another thread.
    pub fn of(pid: u32) -> Result<Faults, Failure> {
        Faults::at(&format!("/proc/{pid}/task/{pid}/fail-nth"))
    }

    fn at(path: &str) -> Result<Faults, Failure> {
        if !faults::possible() {
            let text = "this kernel cannot let allocations fail";
            return Err(Failure::Skipped(text.into()));
        }
        Changed::to(faults::EVERY_KIND.iter().copied())?.keep();
        let nth = OpenOptions::new().read(true).write(true).open(path)?;
        let sites = Sites::if_wanted()?;
        Ok(Faults { nth, sites })
    }

    /// Lets the `n`-th allocation from now on fail; 0: none.
    pub fn arm(&self, n: u64) -> io::Result<()> {
        let text = n.to_string();
        self.nth.write_all_at(text.as_bytes(), 0)
    }

    /// How many allocations are left before the one that fails; 0: it has failed.
    pub fn left(&self) -> Result<u64, Failure> {
        let mut text = [0; 24];
        let length = self.nth.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        let number = text.trim_end_matches('\0').trim().parse();
        number.map_err(|_| Failure::Failed(format!("fail-nth reads '{text}'")))
    }

    /// Notes where allocations have failed, if somebody wants to know.
    pub fn note_sites(&self) -> io::Result<()> {
        match &self.sites {
            Some(sites) => sites.borrow_mut().look(),
            None => Ok(()),
        }
    }

    /// Does something while the `n`-th allocation is to fail.
    ///
    /// `work` should not allocate: this program ends when it gets no memory.
    pub fn attempt<T>(
        &self,
        n: u64,
        work: impl FnOnce() -> io::Result<T>,
    ) -> Result<Attempt<T>, Failure> {
        touch_stack();
        self.arm(n)?;
        let result = work();
        let left = self.left();
        self.arm(0)?;
        self.note_sites()?;
        Ok(Attempt {
            result,
            failed: left? == 0,
        })
    }

    /// How many allocations something makes.
    pub fn count<T>(&self, work: impl FnOnce() -> T) -> Result<(u64, T), Failure> {
        self.arm(MANY)?;
        let result = work();
        let left = self.left();
        self.arm(0)?;
        Ok((MANY - left?, result))
    }

    /// Does something with its first allocation failing, then with its second, until none is left
    /// to fail. Each time it must go well, or fail with `ENOMEM`: `then` gets what it returned, or
    /// nothing, and compares the rest of the world with that.
    pub fn each<T>(
        &self,
        what: &str,
        mut work: impl FnMut() -> io::Result<T>,
        mut then: impl FnMut(Option<T>) -> Outcome,
    ) -> Outcome {
        let mut refused = 0;
        for n in 1.. {
            let Attempt { result, failed } = self.attempt(n, &mut work)?;
            let code = result.as_ref().err().and_then(io::Error::raw_os_error);
            ensure!(
                code.is_none() || (failed && code == Some(libc::ENOMEM)),
                "{what} with allocation {n} failing: {failed}, {code:?}"
            );
            refused += usize::from(code.is_some());
            then(result.ok()).map_err(|failure| {
                Failure::Failed(format!("{what} after allocation {n} failed: {failure}"))
            })?;
            if !failed {
                println!("{what}: {} allocations, {refused} times ENOMEM", n - 1);
                break;
            }
        }
        Ok(())
    }
}
