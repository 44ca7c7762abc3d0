// SPDX-License-Identifier: GPL-2.0

//! An unmodified QEMU: started with any arguments, with a monitor for the lab, one more for the
//! programs under test, and a serial port that a guest talks on.

use std::fs;
use std::io::{
    self,
    BufReader,
    Write, //
};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Child,
    Command,
    Stdio, //
};
use std::time::{
    Duration,
    Instant, //
};

use twinpage_guest::protocol::Request;

use crate::error::Error;
use crate::files::borrow;
use crate::lines::{
    connect,
    read_line, //
};
use crate::oracle::Range;
use crate::qmp::Qmp;

/// The longest a guest may take to boot and fill its memory.
const FILLS: Duration = Duration::from_secs(900);

/// The longest a guest may take to answer a question, on a machine that has to share its processors.
const ANSWER: Duration = Duration::from_secs(900);

/// Lines of the log that an error quotes.
const LAST_LINES: usize = 60;

/// A running QEMU.
pub struct Vmm {
    name: String,
    directory: PathBuf,
    qemu: Child,
    port: BufReader<UnixStream>,
    /// The monitor.
    pub qmp: Qmp,
}

impl Vmm {
    /// Starts QEMU with these arguments and a directory of its own in `parent`.
    ///
    /// # Errors
    ///
    /// QEMU does not start; the error has what it said.
    pub fn start(parent: &Path, name: &str, arguments: &[String]) -> Result<Vmm, Error> {
        let directory = parent.join(name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).map_err(Error::of("make a directory"))?;
        let log = directory.join("qemu.log");
        let console = format!("file:{}", directory.join("console.log").display());
        let errors = fs::File::create(&log).map_err(Error::of("make a log"))?;
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-name", &format!("{name},debug-threads=on")])
            .args(arguments)
            .args(["-serial", &console])
            .args(["-serial", &listens(&directory.join("port"))])
            .args(["-qmp", &listens(&directory.join("qmp"))])
            .args(["-qmp", &listens(&directory.join("qmp-spare"))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(Error::of("start QEMU"))?;
        let talks = Qmp::connect(name, &directory.join("qmp"))
            .and_then(|qmp| Ok((qmp, connect(&directory.join("port"))?)));
        match talks {
            Ok((qmp, port)) => Ok(Vmm {
                name: name.to_owned(),
                directory,
                qemu,
                port: BufReader::new(port),
                qmp,
            }),
            Err(error) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                let said = fs::read_to_string(&log).unwrap_or_default();
                Err(Error::Said {
                    who: format!("QEMU of {name} ({error})"),
                    said: said.trim().to_owned(),
                })
            }
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Its VM, as a file of this process.
    ///
    /// # Errors
    ///
    /// It has none, since it emulates; or it is gone.
    pub fn vm(&self) -> io::Result<OwnedFd> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid()))?.flatten();
        let vm = files
            .filter(|file| {
                fs::read_link(file.path()).is_ok_and(|to| to.ends_with("anon_inode:kvm-vm"))
            })
            .find_map(|file| file.file_name().to_str()?.parse().ok())
            .ok_or_else(|| io::Error::other(format!("{} has no VM", self.name)))?;
        borrow(self.pid(), vm)
    }

    /// A file of its own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The second monitor, which nobody has connected to yet.
    pub fn spare_qmp(&self) -> PathBuf {
        self.file("qmp-spare")
    }

    /// What the guest's kernel and QEMU had to say.
    pub fn log(&self) -> String {
        let read = |name| fs::read(self.file(name)).unwrap_or_default();
        let text = [read("console.log"), read("qemu.log")].concat();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The next line of the guest.
    ///
    /// # Errors
    ///
    /// None comes in time.
    pub fn line(&mut self, limit: Duration) -> Result<String, Error> {
        match read_line(&mut self.port, Instant::now() + limit) {
            Ok(line) => Ok(line.trim_end().to_owned()),
            Err(source) => {
                let last_words = self.last_words();
                let what = format!("{} did not answer{last_words}", self.name);
                Err(Error::Io { what, source })
            }
        }
    }

    /// Says a line to the guest.
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn say(&mut self, line: &str) -> Result<(), Error> {
        writeln!(self.port.get_mut(), "{line}")
            .map_err(Error::of(format!("say '{line}' to {}", self.name)))
    }

    /// Waits until the guest program has filled the memory; says how many pages never change.
    ///
    /// # Errors
    ///
    /// The guest says something else, or nothing in time.
    pub fn ready(&mut self) -> Result<usize, Error> {
        let line = self.line(FILLS)?;
        let pages = line.strip_prefix("ready ").map(str::parse);
        pages.and_then(Result::ok).ok_or_else(|| self.said(line))
    }

    /// Asks the guest program something that it answers with `ok`; the rest of the answer.
    ///
    /// # Errors
    ///
    /// The guest says something else, such as which page is wrong.
    pub fn fine(&mut self, request: Request) -> Result<String, Error> {
        self.ask(request, "ok")
    }

    /// The guest program's checksum over all pages that do not change.
    ///
    /// # Errors
    ///
    /// The guest says something else.
    pub fn sum(&mut self) -> Result<String, Error> {
        self.ask(Request::Sum, "sum")
    }

    /// Asks the guest program something; what follows the expected word of its answer.
    fn ask(&mut self, request: Request, expected: &str) -> Result<String, Error> {
        self.say(&request.to_string())?;
        let line = self.line(ANSWER)?;
        match line.strip_prefix(expected) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(self.said(line)),
        }
    }

    /// Where the guest's RAM is in QEMU's address space.
    ///
    /// # Errors
    ///
    /// QEMU does not say.
    pub fn ram(&mut self) -> Result<Range, Error> {
        let text = self.qmp.human("info ramblock")?;
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with("pc.ram"));
        let numbers: Vec<_> = line
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
            .collect();
        match numbers[..] {
            [_offset, used, _total, address] => Ok(Range {
                pid: self.pid(),
                address,
                pages: (used / 4096) as usize,
            }),
            _ => Err(self.said(text)),
        }
    }

    /// Ends QEMU and waits for it.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        // It may have ended by itself, and then there is nothing to kill.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }

    fn said(&mut self, said: String) -> Error {
        let last_words = self.last_words();
        Error::Said {
            who: self.name.clone(),
            said: format!("{said}{last_words}"),
        }
    }

    /// How QEMU ended, if it did, and the end of the log, which is empty as long as guest and QEMU
    /// are well.
    fn last_words(&mut self) -> String {
        let ended = match self.qemu.try_wait() {
            Ok(Some(status)) => format!("\nQEMU ended with {status}"),
            _ => String::new(),
        };
        let log = self.log();
        let lines: Vec<_> = log.lines().rev().take(LAST_LINES).collect();
        let lines = lines.into_iter().rev().map(|line| format!("\n{line}"));
        std::iter::once(ended).chain(lines).collect()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.finish();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// A chardev that listens.
fn listens(path: &Path) -> String {
    format!("unix:{},server=on,wait=off", path.display())
}
