// SPDX-License-Identifier: GPL-2.0

//! The fakes of a machine: a module that answers as told, a clock that runs at once.

use std::collections::{
    HashMap,
    HashSet,
    VecDeque, //
};
use std::fs::{
    self,
    File, //
};
use std::io;
use std::os::fd::{
    BorrowedFd,
    OwnedFd, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::time::{
    Duration,
    Instant, //
};

use rustix::io::Errno;

use twinpage::clock::{
    Clock,
    Pause, //
};
use twinpage::device::{
    Copies,
    Detached,
    Device,
    Kernel,
    Process,
    Version, //
};
use twinpage::digest::Digest;
use twinpage::domain::Domain;
use twinpage::process::{
    ForeignFd,
    Pid, //
};
use twinpage::uapi::Page;
use twinpage::vm::Id;

use crate::machine::SLOTS;

/// What happens to the files while the program waits.
type Step = Box<dyn FnOnce(&Path) + Send>;

/// What the fake kernel knows and remembers.
#[derive(Default)]
pub struct State {
    /// Version of the interface that the module speaks.
    pub uapi: u32,
    /// Features of the module.
    pub features: u32,
    /// What opening the device node gives.
    pub open_error: Option<Errno>,
    /// What taking a descriptor out of a process gives.
    pub take_errors: HashMap<u32, Errno>,
    /// What attaching the VM of a process gives.
    pub attach_errors: HashMap<u32, Errno>,
    /// What detaching a VM gives, and how far it gets.
    pub detach_results: HashMap<u32, (u64, u64, Option<Errno>)>,
    /// Merged pages.
    pub pages: HashMap<(u64, Digest), Vec<u8>>,
    /// What reading any page gives.
    pub read_error: Option<Errno>,
    /// Attached VMs: the process.
    pub attached: HashSet<u32>,
    /// What was asked, in words.
    pub log: Vec<String>,
    /// The process that the last descriptor came from.
    taken: u32,
    /// Number of the next attachment.
    next_id: u32,
    /// The time.
    now: Duration,
    /// How much of it passes with each look at the clock.
    pub look: Duration,
    /// What is still to happen; a signal comes when nothing is left.
    pub steps: VecDeque<Step>,
    /// A signal came.
    pub interrupted: bool,
}

impl State {
    /// A module that has just been loaded.
    pub fn of_new_module() -> Self {
        Self {
            uapi: 1,
            features: 5,
            next_id: 3,
            ..Self::default()
        }
    }
}

/// System calls of the machine at a root.
pub struct FakeKernel(pub PathBuf, pub Arc<Mutex<State>>);

/// A process that is held.
struct FakeProcess(Pid, Arc<Mutex<State>>);

/// The device node of the machine at a root.
struct FakeDevice(PathBuf, Arc<Mutex<State>>);

/// The time of the machine at a root.
pub struct FakeClock(pub PathBuf, pub Arc<Mutex<State>>);

/// Real time, which a test can interrupt.
pub struct RealClock(pub Instant, pub Arc<Mutex<State>>);

/// `errno` as the result of a call.
fn fail<T>(errno: Errno) -> io::Result<T> {
    Err(errno.into())
}

impl Kernel for FakeKernel {
    fn open_device(&self, path: &Path) -> io::Result<Box<dyn Device>> {
        if let Some(errno) = self.1.lock().unwrap().open_error {
            return fail(errno);
        }
        File::open(path)?;
        Ok(Box::new(FakeDevice(self.0.clone(), Arc::clone(&self.1))))
    }

    fn hold(&self, pid: Pid) -> io::Result<Box<dyn Process>> {
        Ok(Box::new(FakeProcess(pid, Arc::clone(&self.1))))
    }
}

impl Process for FakeProcess {
    fn take_fd(&self, _: ForeignFd) -> io::Result<OwnedFd> {
        let mut state = self.1.lock().unwrap();
        if let Some(errno) = state.take_errors.get(&self.0 .0) {
            return fail(*errno);
        }
        state.taken = self.0 .0;
        Ok(File::open("/dev/null")?.into())
    }
}

impl Device for FakeDevice {
    fn version(&self) -> io::Result<Version> {
        let State { uapi, features, .. } = *self.1.lock().unwrap();
        Ok(Version { uapi, features })
    }

    fn attach(&self, _: BorrowedFd<'_>, domain: Domain) -> io::Result<Id> {
        let mut state = self.1.lock().unwrap();
        let pid = state.taken;
        if let Some(errno) = state.attach_errors.get(&pid) {
            return fail(*errno);
        }
        if !state.attached.insert(pid) {
            return fail(Errno::EXIST);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.log.push(format!("attach {pid} {}", domain.0));
        let directory = self.0.join(format!("sys/kernel/debug/twinpage/{id}"));
        if directory.parent().is_some_and(Path::exists) {
            fs::create_dir(&directory)?;
            fs::write(directory.join("slots"), SLOTS)?;
        }
        Ok(Id(id))
    }

    fn detach(&self, id: Id, copies: Copies) -> (Detached, io::Result<()>) {
        let mut state = self.1.lock().unwrap();
        state.log.push(format!("detach {id} {copies:?}"));
        let known = state.detach_results.get(&id.0).copied();
        let (unmerged, remaining, errno) = known.unwrap_or((0, 0, Some(Errno::NOENT)));
        state.interrupted |= errno == Some(Errno::INTR);
        let detached = Detached {
            unmerged,
            remaining,
        };
        (detached, errno.map_or(Ok(()), fail))
    }

    fn read_page(&self, domain: Domain, digest: &Digest) -> io::Result<Box<Page>> {
        let state = self.1.lock().unwrap();
        if let Some(errno) = state.read_error {
            return fail(errno);
        }
        let Some(page) = state.pages.get(&(domain.0, *digest)) else {
            return fail(Errno::NOENT);
        };
        Ok(page.clone().into_boxed_slice().try_into().unwrap())
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        let mut state = self.1.lock().unwrap();
        let now = state.now;
        let look = state.look;
        state.now += look;
        now
    }

    fn pause(&self, duration: Duration) -> Pause {
        if duration.is_zero() {
            // A signal is heard once.
            return match std::mem::take(&mut self.1.lock().unwrap().interrupted) {
                true => Pause::Interrupted,
                false => Pause::Elapsed,
            };
        }
        self.1.lock().unwrap().now += duration;
        let step = self.1.lock().unwrap().steps.pop_front();
        let Some(step) = step else {
            return Pause::Interrupted;
        };
        step(&self.0);
        Pause::Elapsed
    }

    fn catch_signals(&self) {}
}

impl Clock for RealClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn pause(&self, duration: Duration) -> Pause {
        std::thread::sleep(duration.min(Duration::from_millis(10)));
        match self.1.lock().unwrap().interrupted {
            true => Pause::Interrupted,
            false => Pause::Elapsed,
        }
    }

    fn catch_signals(&self) {}
}
