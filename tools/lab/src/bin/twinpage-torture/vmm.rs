// SPDX-License-Identifier: GPL-2.0

//! A monitor of the fleet: one tiny VM that checks its memory without rest, and a thread that does
//! to that memory what monitors do.
//!
//! It says what it does on standard output, a line each: `vms FD FD` once, then `did NAME`, `refused
//! NAME: ERROR`, `wrong TEXT`, and `audited SWEEPS` when its standard input ended and every byte
//! was as it should be.

use std::io::{
    self,
    Read,
    Write, //
};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{
    AtomicBool,
    AtomicUsize,
    Ordering, //
};
use std::sync::{
    Arc,
    Mutex,
    MutexGuard, //
};
use std::time::Duration;

use tinyvm::{
    Backing,
    Counter,
    Error,
    Lost,
    Memory,
    Sweep,
    Vm, //
};
use twinpage_lab::random::Random;
use twinpage_lab::tap::Failure;

use crate::acts::{
    Act,
    ACTS, //
};
use crate::deck::Deck;
use crate::events::GROUP;

/// How a monitor is made.
pub struct Plan {
    /// The seed of the run.
    pub seed: u64,
    /// Its number.
    pub number: u64,
    /// Data pages.
    pub pages: usize,
    /// A disk, of which it uses a part of its own.
    pub disk: Option<String>,
    /// Acts to choose from; empty: all.
    pub only: Vec<String>,
}

impl Plan {
    /// What lies behind the guest's memory.
    fn backing(&self) -> Backing {
        match self.number % 2 {
            0 => Backing::Small,
            _ => Backing::Huge,
        }
    }
}

/// What all threads of a monitor share.
pub struct Machine {
    /// How it was made.
    pub plan: Plan,
    /// Its VM.
    pub vm: Arc<Vm>,
    /// Another VM, without a processor, that has the same memory.
    twin: Vm,
    /// The memory of the VM.
    pub memory: Arc<Memory>,
    /// Which page of the memory is the first data page.
    pub first_page: usize,
    state: Mutex<State>,
    /// How many wait until the guest stands still.
    waiting: AtomicUsize,
    stop: AtomicBool,
}

/// The guest's processor.
pub struct State {
    /// The guest.
    pub counter: Counter,
    /// Whether the guest is between two sweeps, not in the middle of one.
    between: bool,
    sweeps: u64,
}

/// How an act ends that does not end well.
pub enum Trouble {
    /// The kernel did not want to, which it may.
    Refused(io::Error),
    /// A byte is wrong, or something is that must not be.
    Wrong(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Refused(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        match error {
            Error::Memory { source, .. } => Trouble::Refused(source),
            Error::Kvm { source, .. } => {
                Trouble::Refused(io::Error::from_raw_os_error(source.errno()))
            }
            Error::Exit(_) => Trouble::Wrong(error.to_string()),
        }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        match failure {
            Failure::Skipped(text) => Trouble::Refused(io::Error::other(text)),
            Failure::Failed(text) => Trouble::Wrong(text),
        }
    }
}

impl From<Lost> for Trouble {
    fn from(lost: Lost) -> Trouble {
        Trouble::Wrong(format!(
            "gfn {:#x} byte {:#x}: expected {:#x} (number {:#x}), seen {:#x}",
            lost.gfn, lost.offset, lost.expected, lost.number, lost.seen
        ))
    }
}

impl Machine {
    fn new(plan: Plan) -> Result<Machine, Error> {
        let backing = plan.backing();
        // Contents that the others have too, some of them often; zeroes are among them.
        let kinds = plan.pages as u64 / 2;
        let counter = Counter::new(plan.pages, backing, |page| page as u64 % kinds)?;
        Ok(Machine {
            vm: counter.vm().clone(),
            twin: Vm::over(counter.memory())?,
            memory: counter.memory().clone(),
            first_page: counter.first_page(),
            plan,
            state: Mutex::new(State {
                counter,
                between: true,
                sweeps: 0,
            }),
            waiting: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// The guest, standing still between two sweeps until the result goes.
    pub fn still(&self) -> MutexGuard<'_, State> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        loop {
            let state = self.lock();
            if state.between {
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                return state;
            }
            // It met memory that it may not use at the moment: let it go on.
            drop(state);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What lies behind the memory.
    pub fn backing(&self) -> Backing {
        self.plan.backing()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|error| error.into_inner())
    }

    /// Some data pages: the first, as a page of the memory, and how many.
    pub fn some_pages(&self, random: &mut Random, most: usize) -> (usize, usize) {
        let page = random.below(self.plan.pages);
        let left = self.plan.pages - page;
        (
            self.first_page + page,
            1 + random.below(left.min(most).max(1)),
        )
    }

    /// Lets the guest run: it checks every page, and writes some.
    fn run_guest(&self) -> Result<(), Trouble> {
        let mut random = Random::new(self.plan.seed, 2 * self.plan.number + 1);
        while !self.stop.load(Ordering::Acquire) {
            {
                let mut state = self.lock();
                let waited_for = self.waiting.load(Ordering::Acquire) > 0;
                if !(waited_for && state.between) {
                    let sweep = match random.below(4) {
                        0 => Sweep::WriteEighth(random.below(8) as u32),
                        _ => Sweep::Read,
                    };
                    self.sweep(&mut state, sweep)?;
                }
            }
            random.nap(8);
        }
        Ok(())
    }

    /// One sweep, or as much of one as the host allows: memory that is protected, or a lack of it,
    /// stops the guest, which goes on there with the next call.
    fn sweep(&self, state: &mut State, sweep: Sweep) -> Result<(), Trouble> {
        state.between = false;
        match state.counter.sweep(sweep) {
            Ok(Ok(())) => {
                state.between = true;
                state.sweeps += 1;
                Ok(())
            }
            Ok(Err(lost)) => Err(lost.into()),
            Err(error) => match error.into() {
                Trouble::Refused(error)
                    if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::ENOMEM)) =>
                {
                    said("did stopped guest");
                    Ok(())
                }
                Trouble::Refused(error) => Err(Trouble::Wrong(format!("the guest: {error}"))),
                wrong => Err(wrong),
            },
        }
    }

    /// Does things to the memory until told to stop.
    fn act(&self) -> Result<(), Trouble> {
        let mut random = Random::new(self.plan.seed, 2 * self.plan.number);
        let wanted = |act: &&Act| {
            self.plan.only.is_empty() || self.plan.only.iter().any(|name| name == act.name)
        };
        let mut acts: Deck<&Act> = Deck::new(ACTS.iter().filter(wanted).collect());
        while !self.stop.load(Ordering::Acquire) {
            let Some(act) = acts.deal(&mut random) else {
                break;
            };
            // How many choices it makes may depend on what it meets.
            match (act.run)(self, &mut Random::new(random.word(), 0)) {
                Ok(()) => said(&format!("did {}", act.name)),
                Err(Trouble::Refused(error)) => said(&format!("refused {}: {error}", act.name)),
                Err(Trouble::Wrong(text)) => {
                    return Err(Trouble::Wrong(format!("{}: {text}", act.name)))
                }
            }
            random.nap(60);
        }
        Ok(())
    }

    /// Lets the guest end the sweep that it is in, and looks at all of its memory.
    fn audit(&self) -> Result<(), Trouble> {
        let mut state = self.lock();
        while !state.between {
            self.sweep(&mut state, Sweep::Read)?;
        }
        state.counter.audit()?;
        said(&format!("audited {}", state.sweeps));
        Ok(())
    }

    /// Does some work; trouble in it ends the process.
    fn or_die(&self, work: impl FnOnce(&Machine) -> Result<(), Trouble>) {
        match work(self) {
            Ok(()) => {}
            Err(Trouble::Refused(error)) => die(&error.to_string()),
            Err(Trouble::Wrong(text)) => die(&text),
        }
    }
}

/// Says a line, at once.
fn said(line: &str) {
    let mut output = io::stdout().lock();
    // Whoever listens may be gone; this process will be told soon enough.
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn die(text: &str) -> ! {
    said(&format!("wrong {text}"));
    std::process::exit(1)
}

/// Runs a monitor until its standard input ends.
pub fn run(plan: Plan) -> ExitCode {
    let machine = match Machine::new(plan) {
        Ok(machine) => machine,
        Err(error) => die(&Failure::from(error).to_string()),
    };
    if let Err(error) = std::fs::write(format!("{GROUP}/cgroup.procs"), "0") {
        die(&format!("{GROUP}: {error}"));
    }
    let (vm, twin) = (machine.vm.as_raw_fd(), machine.twin.as_raw_fd());
    said(&format!("vms {vm} {twin}"));
    std::thread::scope(|scope| {
        scope.spawn(|| machine.or_die(Machine::run_guest));
        scope.spawn(|| machine.or_die(Machine::act));
        let _ = io::stdin().read_to_end(&mut Vec::new());
        machine.stop.store(true, Ordering::Release);
    });
    machine.or_die(Machine::audit);
    ExitCode::SUCCESS
}
