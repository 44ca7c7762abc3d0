// SPDX-License-Identifier: GPL-2.0

//! Lets the kernel's allocations fail: the n-th of a thread, or all that a place asks for
//! (`Documentation/fault-injection` of the kernel).

use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io;
use std::os::unix::fs::FileExt;

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
}

/// What came of an operation while an allocation was to fail.
pub struct Attempt<T> {
    /// What it returned.
    pub result: io::Result<T>,
    /// Whether an allocation failed.
    pub failed: bool,
}

/// Skips a test where allocations cannot be made to fail.
fn are_possible() -> Outcome {
    match faults::possible() {
        true => Ok(()),
        false => Err(Failure::Skipped(
            "this kernel cannot let allocations fail".into(),
        )),
    }
}

/// A place in the kernel's code that gets no memory for as long as this lives.
pub struct Refusal {
    _settings: Changed,
}

impl Refusal {
    /// More often than a place asks.
    const TIMES: u64 = 1 << 20;

    /// The one to which allocators return at this address.
    pub fn at(address: u64) -> Result<Refusal, Failure> {
        are_possible()?;
        let values = [
            // To look where an allocation comes from takes time.
            ("task-filter", "Y".to_owned()),
            ("times", Refusal::TIMES.to_string()),
            ("require-start", format!("{address:#x}")),
            ("require-end", format!("{:#x}", address + 1)),
            ("probability", "100".to_owned()),
        ];
        let mut settings: Vec<(String, String)> = faults::EVERY_KIND
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        for kind in faults::KINDS {
            let of_kind = values.iter().cloned();
            settings.extend(of_kind.map(|(name, value)| (format!("{kind}/{name}"), value)));
        }
        let settings = settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let refusal = Refusal {
            _settings: Changed::to(settings)?,
        };
        refusal.reaches("thread-self")?;
        Ok(refusal)
    }

    /// Lets it refuse memory to a thread in `/proc`; the one that made it is refused from the start.
    pub fn reaches(&self, thread: &str) -> io::Result<()> {
        fs::write(format!("/proc/{thread}/make-it-fail"), "1")
    }

    /// How often it has asked.
    pub fn times(&self) -> Result<u64, Failure> {
        let mut times = 0;
        for kind in faults::KINDS {
            times += Refusal::TIMES - faults::number(&format!("{kind}/times"))?;
        }
        Ok(times)
    }
}

/// Makes sure that pages for the stack are there: to get one is an allocation as well.
#[inline(never)]
fn touch_stack() {
    std::hint::black_box([1_u8; 1 << 16]);
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
        are_possible()?;
        Changed::to(faults::EVERY_KIND.iter().copied())?.keep();
        let nth = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Faults { nth })
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
