// SPDX-License-Identifier: GPL-2.0

//! A machine made of fixtures: a tree of files, and the fakes of `fakes.rs`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::{
    Arc,
    Mutex, //
};
use std::time::Instant;

use clap::Parser;
use tempfile::TempDir;

use twinpage::cli::Cli;
use twinpage::clock::Clock;
use twinpage::commands;
use twinpage::console::{
    Console,
    Live,
    Screen, //
};
use twinpage::host::Host;

use crate::fakes::{
    FakeClock,
    FakeKernel,
    RealClock,
    State, //
};

/// Slots of a VM with 1 MiB at address 0x100000.
pub const SLOTS: &str = "as_id slot base_gfn npages userspace_addr flags\n\
     0 0 0 256 0x100000 0x0\n";

/// The machine.
pub struct Machine {
    /// Where its files are.
    root: TempDir,
    /// Its kernel.
    pub state: Arc<Mutex<State>>,
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
        let state = State::of_new_module();
        let machine = Self {
            root,
            state: Arc::new(Mutex::new(state)),
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
        self.state.lock().unwrap().attached.insert(pid);
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
        let clock = FakeClock(self.root.path().to_owned(), Arc::clone(&self.state));
        self.run_with(Arc::new(clock), screen, line)
    }

    /// Runs the program in real time, until it ends or [`State::interrupted`] is set.
    pub fn live(&self, line: &str) -> Ran {
        let clock = RealClock(Instant::now(), Arc::clone(&self.state));
        self.run_with(Arc::new(clock), None, line)
    }

    /// Runs the program in real time with its output going there, and returns its exit code.
    pub fn live_into(&self, line: &str, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
        let clock = RealClock(Instant::now(), Arc::clone(&self.state));
        let console = Console {
            out,
            err,
            screen: None,
            live: Live::Lines,
        };
        self.run_into(Arc::new(clock), line, console)
    }

    /// Runs the program by this clock.
    fn run_with(&self, clock: Arc<dyn Clock>, screen: Option<Screen>, line: &str) -> Ran {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let console = Console {
            out: &mut out,
            err: &mut err,
            screen,
            live: Live::Lines,
        };
        let code = self.run_into(clock, line, console);
        let err = String::from_utf8(err).unwrap();
        Ran { out, err, code }
    }

    /// Runs the program by this clock on this console, and returns its exit code.
    fn run_into(&self, clock: Arc<dyn Clock>, line: &str, mut console: Console<'_>) -> u8 {
        let words = format!("twinpage {line}");
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let kernel = FakeKernel(self.root.path().to_owned(), Arc::clone(&self.state));
        let host = Host::new(self.root.path(), Arc::new(kernel), clock);
        match commands::run(&cli.command, &host, &mut console) {
            Ok(()) => 0,
            Err(error) => {
                // The code counts also where nobody reads the words.
                let _unread = console.report(&error);
                error.exit() as u8
            }
        }
    }

    /// The machine itself, for what is no command.
    pub fn host(&self) -> Host {
        let kernel = FakeKernel(self.root.path().to_owned(), Arc::clone(&self.state));
        let clock = FakeClock(self.root.path().to_owned(), Arc::clone(&self.state));
        Host::new(self.root.path(), Arc::new(kernel), Arc::new(clock))
    }

    /// What the module was asked, in words.
    pub fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    /// Lets something happen to the files while the program waits.
    pub fn later(&self, step: impl FnOnce(&Path) + Send + 'static) {
        self.state.lock().unwrap().steps.push_back(Box::new(step));
    }
}

/// Knobs and counters of a module that has done nothing.
const SYSFS: [(&str, &str); 24] = [
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
    ("max_break_rate", "10000"),
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
const STATS: [(&str, u64); 20] = [
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
    ("break_rate", 0),
    ("backed_off_ms", 0),
    ("back_offs", 0),
    ("passes", 2),
    ("cpu_ns", 50_000_000),
];
