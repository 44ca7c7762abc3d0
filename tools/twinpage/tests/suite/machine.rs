// SPDX-License-Identifier: GPL-2.0

//! A machine made of fixtures: a tree of files, a module that answers as told, a clock that runs
//! at once.

use std::cell::RefCell;
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
use std::os::unix::fs::symlink;
use std::path::{
    Path,
    PathBuf, //
};
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use rustix::io::Errno;
use tempfile::TempDir;

use twinpage::cli::Cli;
use twinpage::clock::{
    Clock,
    Pause, //
};
use twinpage::commands;
use twinpage::console::{
    Console,
    Screen, //
};
use twinpage::device::{
    Copies,
    Detached,
    Device,
    Kernel,
    Version, //
};
use twinpage::digest::Digest;
use twinpage::domain::Domain;
use twinpage::host::Host;
use twinpage::process::{
    ForeignFd,
    Pid, //
};
use twinpage::uapi::Page;
use twinpage::vm::Id;

/// Slots of a VM with 1 MiB at address 0x100000.
pub const SLOTS: &str = "as_id slot base_gfn npages userspace_addr flags\n\
     0 0 0 256 0x100000 0x0\n";

/// What happens to the files while the program waits.
type Step = Box<dyn FnOnce(&Path)>;

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
    /// What is still to happen; a signal comes when nothing is left.
    pub steps: VecDeque<Step>,
    /// A signal came.
    pub interrupted: bool,
}

/// The machine.
pub struct Machine {
    /// Where its files are.
    root: TempDir,
    /// Its kernel.
    pub state: Rc<RefCell<State>>,
}

/// What a run of the program gave.
#[derive(Debug)]
pub struct Ran {
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
    /// Exit code.
    pub code: u8,
}

impl Ran {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.out.clone()).unwrap()
    }

    /// Standard output of a run that must have gone well.
    pub fn good(&self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""));
        self.text()
    }

    /// Standard error of a run that must have ended with `code`.
    pub fn bad(&self, code: u8) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        &self.err
    }
}

impl Machine {
    /// A machine with the module loaded, nothing attached.
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let state = State {
            uapi: 1,
            features: 5,
            next_id: 3,
            ..State::default()
        };
        let machine = Self {
            root,
            state: Rc::new(RefCell::new(state)),
        };
        machine.file("/proc/mounts", "none /sys/kernel/debug debugfs rw 0 0\n");
        machine.file("/dev/twinpage", "");
        fs::create_dir_all(machine.path("/sys/kernel/debug/twinpage")).unwrap();
        for (name, value) in SYSFS {
            machine.sysfs(name, value);
        }
        machine
    }

    /// The same machine without the module.
    pub fn without_module() -> Self {
        let machine = Self::new();
        fs::remove_dir_all(machine.path("/sys/kernel/mm")).unwrap();
        fs::remove_dir_all(machine.path("/sys/kernel/debug/twinpage")).unwrap();
        fs::remove_file(machine.path("/dev/twinpage")).unwrap();
        machine
    }

    /// Where the file `path` really is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// Writes the file `path`.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Writes a file of the module in sysfs.
    pub fn sysfs(&self, name: &str, value: &str) {
        self.file(
            &format!("/sys/kernel/mm/twinpage/{name}"),
            format!("{value}\n"),
        );
    }

    /// Adds a process, with as many descriptors of a VM.
    pub fn process(&self, pid: u32, name: &str, vms: usize) {
        self.file(&format!("/proc/{pid}/comm"), format!("{name}\n"));
        let fds = self.path(&format!("/proc/{pid}/fd"));
        fs::create_dir_all(&fds).unwrap();
        symlink("/dev/null", fds.join("0")).unwrap();
        symlink("anon_inode:kvm-vcpu:0", fds.join("9")).unwrap();
        for number in 0..vms {
            symlink("anon_inode:kvm-vm", fds.join((10 + number).to_string())).unwrap();
        }
        self.file(
            &format!("/proc/{pid}/smaps"),
            "100000-200000 rw-p 00000000 00:00 0 \nSize: 1024 kB\nVmFlags: rd wr mr mw me ac \n",
        );
    }

    /// Adds an attached VM; `changes` replace values of its statistics.
    pub fn vm(&self, id: u32, pid: u32, domain: u64, changes: &[(&str, u64)]) {
        self.state.borrow_mut().attached.insert(pid);
        let directory = format!("/sys/kernel/debug/twinpage/{id}");
        let mut text = format!("id {id}\npid {pid}\ndomain {domain}\n");
        for (name, value) in STATS {
            let change = changes.iter().find(|(changed, _)| *changed == name);
            text += &format!("{name} {}\n", change.map_or(value, |(_, value)| *value));
        }
        self.file(&format!("{directory}/stats"), text);
        self.file(&format!("{directory}/slots"), SLOTS);
    }

    /// Runs the program with its output in a file.
    pub fn run(&self, line: &str) -> Ran {
        self.run_on(None, line)
    }

    /// Runs the program with its output on `screen`.
    pub fn run_on(&self, screen: Option<Screen>, line: &str) -> Ran {
        let words = format!("twinpage {line}");
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let kernel = FakeKernel(self.root.path().to_owned(), Rc::clone(&self.state));
        let clock = FakeClock(self.root.path().to_owned(), Rc::clone(&self.state));
        let host = Host::new(self.root.path(), Box::new(kernel), Box::new(clock));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut console = Console {
            out: &mut out,
            err: &mut err,
            screen,
        };
        let code = match commands::run(&cli.command, &host, &mut console) {
            Ok(()) => 0,
            Err(error) => {
                console.report(&error).unwrap();
                error.exit() as u8
            }
        };
        let err = String::from_utf8(err).unwrap();
        Ran { out, err, code }
    }

    /// What the module was asked, in words.
    pub fn log(&self) -> Vec<String> {
        self.state.borrow().log.clone()
    }

    /// Lets something happen to the files while the program waits.
    pub fn later(&self, step: impl FnOnce(&Path) + 'static) {
        self.state.borrow_mut().steps.push_back(Box::new(step));
    }
}

/// Knobs and counters of a module that has done nothing.
const SYSFS: [(&str, &str); 23] = [
    ("run", "1"),
    ("pages_to_scan", "4096"),
    ("sleep_millisecs", "20"),
    ("use_zero_pages", "1"),
    ("smart_scan", "1"),
    ("max_page_sharing", "256"),
    ("merge_across_nodes", "1"),
    ("advisor_mode", "none [cpu]"),
    ("advisor_max_cpu", "5"),
    ("thp_split_threshold", "64"),
    ("merge_batch", "32"),
    ("unmerge_on_exit", "0"),
    ("pages_shared", "0"),
    ("pages_sharing", "0"),
    ("pages_unshared", "0"),
    ("pages_volatile", "0"),
    ("pages_skipped", "0"),
    ("pages_scanned", "0"),
    ("zero_pages", "0"),
    ("full_scans", "0"),
    ("general_profit", "0"),
    ("cpu_ns", "0"),
    ("metadata_bytes", "0"),
];

/// Statistics of a VM that was looked at twice without finding anything.
const STATS: [(&str, u64); 17] = [
    ("pages", 256),
    ("pages_absent", 0),
    ("pages_unshared", 256),
    ("pages_volatile", 0),
    ("pages_merged", 0),
    ("zero_pages", 0),
    ("skip_shared", 0),
    ("skip_locked", 0),
    ("skip_pinned", 0),
    ("skip_huge", 0),
    ("skip_zero", 0),
    ("pages_unseen", 0),
    ("pages_scanned", 512),
    ("merges", 0),
    ("breaks", 0),
    ("passes", 2),
    ("cpu_ns", 50_000_000),
];

/// System calls of the machine at a root.
struct FakeKernel(PathBuf, Rc<RefCell<State>>);

/// The device node of the machine at a root.
struct FakeDevice(PathBuf, Rc<RefCell<State>>);

/// The time of the machine at a root.
struct FakeClock(PathBuf, Rc<RefCell<State>>);

/// `errno` as the result of a call.
fn fail<T>(errno: Errno) -> io::Result<T> {
    Err(errno.into())
}

impl Kernel for FakeKernel {
    fn open_device(&self, path: &Path) -> io::Result<Box<dyn Device>> {
        if let Some(errno) = self.1.borrow().open_error {
            return fail(errno);
        }
        File::open(path)?;
        Ok(Box::new(FakeDevice(self.0.clone(), Rc::clone(&self.1))))
    }

    fn take_fd(&self, pid: Pid, _: ForeignFd) -> io::Result<OwnedFd> {
        let mut state = self.1.borrow_mut();
        if let Some(errno) = state.take_errors.get(&pid.0) {
            return fail(*errno);
        }
        state.taken = pid.0;
        Ok(File::open("/dev/null")?.into())
    }
}

impl Device for FakeDevice {
    fn version(&self) -> io::Result<Version> {
        let State { uapi, features, .. } = *self.1.borrow();
        Ok(Version { uapi, features })
    }

    fn attach(&self, _: BorrowedFd<'_>, domain: Domain) -> io::Result<Id> {
        let mut state = self.1.borrow_mut();
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
        let mut state = self.1.borrow_mut();
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
        let state = self.1.borrow();
        let Some(page) = state.pages.get(&(domain.0, *digest)) else {
            return fail(Errno::NOENT);
        };
        Ok(page.clone().into_boxed_slice().try_into().unwrap())
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        self.1.borrow().now
    }

    fn pause(&self, duration: Duration) -> Pause {
        let interrupted = self.1.borrow().interrupted;
        if duration.is_zero() {
            return match interrupted {
                true => Pause::Interrupted,
                false => Pause::Elapsed,
            };
        }
        self.1.borrow_mut().now += duration;
        let step = self.1.borrow_mut().steps.pop_front();
        let Some(step) = step else {
            return Pause::Interrupted;
        };
        step(&self.0);
        Pause::Elapsed
    }

    fn catch_signals(&self) {}
}
