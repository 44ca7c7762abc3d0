// SPDX-License-Identifier: GPL-2.0

//! An unmodified QEMU with a stock kernel in it, and ways to talk to both.

use std::fs;
use std::io::{
    self,
    BufRead,
    BufReader,
    Write, //
};
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

use serde_json::{
    json,
    Value, //
};
use twinpage_guest::config::Config;
use twinpage_guest::protocol::Request;

use crate::initramfs::Archive;
use crate::oracle::Range;
use crate::{
    place,
    wait, //
};

/// The longest a guest may take to boot and fill its memory.
const BOOT: Duration = Duration::from_secs(240);

/// The longest a guest may take to answer.
const ANSWER: Duration = Duration::from_secs(120);

/// What can go wrong with a guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, a socket or a process.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The guest or QEMU said something that was not expected.
    #[error("{who} said '{said}'")]
    Said {
        /// Who.
        who: String,
        /// What.
        said: String,
    },
    /// Something did not happen in time.
    #[error(transparent)]
    Late(#[from] wait::Late),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// What kind of guest to start.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Its name, which names its files too.
    pub name: String,
    /// Its memory.
    pub memory_mib: usize,
    /// What it holds in it.
    pub content: Config,
    /// Whether it has a balloon.
    pub balloon: bool,
}

/// A running guest.
pub struct Machine {
    name: String,
    qemu: Child,
    port: BufReader<UnixStream>,
    control: BufReader<UnixStream>,
    console: PathBuf,
}

impl Machine {
    /// Starts QEMU; the guest boots meanwhile.
    ///
    /// # Errors
    ///
    /// QEMU does not start.
    pub fn start(kind: &Kind) -> Result<Machine, Error> {
        let directory = std::env::temp_dir().join(format!("{}-{}", kind.name, std::process::id()));
        fs::create_dir_all(&directory).map_err(io_error("make a directory"))?;
        let console = directory.join("console.log");
        let (port, control) = (directory.join("port"), directory.join("control"));
        let initramfs = directory.join("initramfs");
        let archive = archive(kind.balloon).map_err(io_error("make the guest's initramfs"))?;
        fs::write(&initramfs, archive).map_err(io_error("write the guest's initramfs"))?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-enable-kvm", "-cpu", "qemu64", "-M", "q35", "-nodefaults"])
            .args(["-no-user-config", "-display", "none"])
            .args(["-name", &kind.name, "-m", &kind.memory_mib.to_string()])
            .arg("-kernel")
            .arg(place::kernel())
            .arg("-initrd")
            .arg(&initramfs)
            .args(["-append", &command_line(&kind.content)])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-serial", &server(&port), "-qmp", &server(&control)])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if kind.balloon {
            command.args(["-device", "virtio-balloon-pci"]);
        }
        let qemu = command.spawn().map_err(io_error("start QEMU"))?;
        let mut machine = Machine {
            name: kind.name.clone(),
            port: BufReader::new(connect(&port)?),
            control: BufReader::new(connect(&control)?),
            qemu,
            console,
        };
        machine.line_of_control()?;
        machine.control("qmp_capabilities", json!({}))?;
        // The memory of the archive is the host's: QEMU has read it when it answers.
        fs::remove_file(&initramfs).map_err(io_error("remove the guest's initramfs"))?;
        Ok(machine)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Waits until the guest has filled its memory; says how many pages never change.
    ///
    /// # Errors
    ///
    /// The guest says something else, or nothing in time.
    pub fn ready(&mut self) -> Result<usize, Error> {
        let line = self.line(BOOT)?;
        line.strip_prefix("ready ")
            .and_then(|pages| pages.parse().ok())
            .ok_or_else(|| self.said(line))
    }

    /// Asks the guest something.
    ///
    /// # Errors
    ///
    /// No answer in time.
    pub fn ask(&mut self, request: Request) -> Result<String, Error> {
        self.tell(request)?;
        self.line(ANSWER)
    }

    /// Asks the guest something and gives it no chance to answer.
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn tell(&mut self, request: Request) -> Result<(), Error> {
        let what = format!("ask {} for '{request}'", self.name);
        writeln!(self.port.get_mut(), "{request}").map_err(io_error(what))
    }

    /// The checksum over all pages that do not change.
    ///
    /// # Errors
    ///
    /// The guest says something else.
    pub fn sum(&mut self) -> Result<String, Error> {
        let line = self.ask(Request::Sum)?;
        match line.strip_prefix("sum ") {
            Some(sum) => Ok(sum.to_owned()),
            None => Err(self.said(line)),
        }
    }

    /// Asks something that must be answered with `ok`; the rest of the answer.
    ///
    /// # Errors
    ///
    /// The guest says something else, such as which page is wrong.
    pub fn fine(&mut self, request: Request) -> Result<String, Error> {
        let line = self.ask(request)?;
        match line.strip_prefix("ok") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(self.said(line)),
        }
    }

    /// Gives QEMU a command over QMP.
    ///
    /// # Errors
    ///
    /// QEMU refuses.
    pub fn control(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.control.get_mut(), "{request}").map_err(io_error("command QEMU"))?;
        loop {
            let answer = self.line_of_control()?;
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
            if answer.get("error").is_some() {
                return Err(Error::Said {
                    who: format!("QEMU of {}", self.name),
                    said: answer.to_string(),
                });
            }
            // Events come in between; nobody waits for them.
        }
    }

    /// Where the guest's RAM is in QEMU's address space.
    ///
    /// # Errors
    ///
    /// QEMU does not say.
    pub fn ram(&mut self) -> Result<Range, Error> {
        let arguments = json!({ "command-line": "info ramblock" });
        let answer = self.control("human-monitor-command", arguments)?;
        let text = answer.as_str().unwrap_or_default();
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
            _ => Err(self.said(text.to_owned())),
        }
    }

    /// What the guest's kernel had to say.
    pub fn console(&self) -> String {
        fs::read_to_string(&self.console).unwrap_or_default()
    }

    /// Kills QEMU without warning.
    ///
    /// # Errors
    ///
    /// It is gone already.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.qemu.kill().map_err(io_error("kill QEMU"))?;
        self.qemu.wait().map_err(io_error("wait for QEMU"))?;
        Ok(())
    }

    fn line(&mut self, limit: Duration) -> Result<String, Error> {
        let what = format!("{} did not answer", self.name);
        let line = read_line(&mut self.port, limit).map_err(io_error(what))?;
        Ok(line.trim_end().to_owned())
    }

    fn line_of_control(&mut self) -> Result<Value, Error> {
        let what = format!("QEMU of {} did not answer", self.name);
        let line = read_line(&mut self.control, ANSWER).map_err(io_error(what))?;
        serde_json::from_str(&line).map_err(|_| self.said(line))
    }

    fn said(&self, said: String) -> Error {
        Error::Said {
            who: self.name.clone(),
            said,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, and nobody is left to tell.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if let Some(directory) = self.console.parent() {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// A chardev that listens.
fn server(path: &Path) -> String {
    format!("unix:{},server=on,wait=off", path.display())
}

fn connect(path: &Path) -> Result<UnixStream, Error> {
    let mut stream = None;
    wait::until("QEMU's socket", ANSWER, || {
        stream = UnixStream::connect(path).ok();
        Ok::<_, wait::Late>(stream.is_some())
    })?;
    stream.ok_or_else(|| Error::Said {
        who: "QEMU".into(),
        said: "no socket".into(),
    })
}

fn read_line(reader: &mut BufReader<UnixStream>, limit: Duration) -> io::Result<String> {
    let end = Instant::now() + limit;
    let mut line = String::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        reader
            .get_ref()
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match reader.read_line(&mut line) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if line.ends_with('\n') => return Ok(line),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The guest kernel's command line: quiet, since every character costs an exit.
fn command_line(content: &Config) -> String {
    format!("console=ttyS0 quiet loglevel=3 panic=-1 rdinit=/init {content}")
}

/// The guest's initramfs: the program and what it is linked with.
fn archive(balloon: bool) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default()
        .directory("dev")
        .device("dev/console", 5, 1)
        .device("dev/null", 1, 3)
        .directory("proc")
        .directory("lib")
        .directory("lib64")
        .file("init", &fs::read(place::guest())?);
    for library in [
        "lib64/ld-linux-x86-64.so.2",
        "lib/libc.so.6",
        "lib/libgcc_s.so.1",
    ] {
        archive = archive.file(library, &fs::read(Path::new("/").join(library))?);
    }
    if balloon {
        let driver = place::stock_module("virtio_balloon")
            .ok_or_else(|| io::Error::other("there is no virtio_balloon.ko"))?;
        archive = archive.file("virtio_balloon.ko", &fs::read(driver)?);
    }
    Ok(archive.finish())
}
