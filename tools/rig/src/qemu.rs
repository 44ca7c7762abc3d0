// SPDX-License-Identifier: GPL-2.0

//! Starting a QEMU.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::code;
use crate::error::Error;
use crate::guest::{
    Guest,
    Progress,
    READY,
    STATUS, //
};
use crate::process::Process;
use crate::qmp::{
    poll,
    Qmp, //
};

/// How long a QEMU may take to start.
const START: Duration = Duration::from_secs(60);
/// How long a guest may take to fill its memory.
const FILL: Duration = Duration::from_secs(120);

/// Which QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// That of the build root (Debian 13).
    Trixie,
    /// That of the peers (Debian 12), in the directory `TWINPAGE_PEERS`.
    Bookworm,
}

impl Build {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Trixie, Self::Bookworm];

    /// Where its program is.
    ///
    /// # Errors
    ///
    /// It is not there; the error says how to get it.
    pub fn program(self) -> Result<PathBuf, Error> {
        let path = match self {
            Self::Trixie => PathBuf::from("/usr/bin/qemu-system-x86_64"),
            Self::Bookworm => {
                let peers = env::var_os("TWINPAGE_PEERS").ok_or(Error::NoPeers)?;
                PathBuf::from(peers).join("start/qemu-system-x86_64")
            }
        };
        match path.is_file() {
            true => Ok(path),
            false => Err(Error::NoProgram(path)),
        }
    }
}

/// How the guest is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// As the machine's only firmware: at once, and on any machine.
    Firmware,
    /// As the boot sector of a disk, by the machine's own firmware.
    Sector,
}

/// What is to be started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which QEMU.
    build: Build,
    /// The machine, with its properties, as `-machine` takes it.
    machine: String,
    /// The guest.
    guest: Guest,
    /// How it is started.
    boot: Boot,
    /// Further arguments.
    arguments: Vec<OsString>,
}

impl Options {
    /// A `machine` (as `-machine` takes it: `pc`, `q35`, `microvm`, ...) of `build` for `guest`.
    pub fn new(build: Build, machine: &str, guest: &Guest) -> Self {
        Self {
            build,
            machine: machine.into(),
            guest: guest.clone(),
            boot: Boot::Firmware,
            arguments: Vec::new(),
        }
    }

    /// How the guest is started; as firmware if this is not called.
    #[must_use]
    pub fn boot(mut self, boot: Boot) -> Self {
        self.boot = boot;
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn with<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// The guest is to come by migration: from `uri`, or from where `migrate-incoming` says if that is
    /// `defer`. It runs as soon as it is there, unless `-S` is given too.
    #[must_use]
    pub fn incoming(self, uri: &str) -> Self {
        self.with(["-incoming", uri])
    }
}

/// A QEMU that runs.
pub struct Qemu {
    /// Its process.
    process: Process,
    /// Its monitor.
    qmp: Qmp,
    /// Its guest.
    guest: Guest,
    /// A directory of its own.
    dir: PathBuf,
}

impl Qemu {
    /// Starts the QEMU `name` and keeps its files in `dir/name`, where its monitor for others (a
    /// second QMP socket) is `qmp.sock`.
    ///
    /// # Errors
    ///
    /// It is not there, does not start, or not in time.
    pub fn start(options: &Options, name: &str, dir: &Path) -> Result<Self, Error> {
        let dir = dir.join(name);
        let failed = |what: &str| Error::io(format!("Cannot {what} {}", dir.display()));
        fs::create_dir_all(&dir).map_err(failed("make"))?;
        let bytes = match options.boot {
            Boot::Firmware => code::firmware(&options.guest),
            Boot::Sector => code::sector(&options.guest),
        };
        fs::write(dir.join("guest.bin"), bytes).map_err(failed("write into"))?;
        let mut command = Command::new(options.build.program()?);
        command
            .args(arguments(options, &dir))
            .args(&options.arguments);
        let mut process = Process::start(&mut command, name, &dir.join("log"))?;
        let qmp = poll(&format!("The start of {name}"), START, || {
            process.must_run()?;
            Ok(Qmp::connect(&dir.join("rig.sock")).map_err(|error| error.to_string()))
        })?;
        Ok(Self {
            process,
            qmp,
            guest: options.guest.clone(),
            dir,
        })
    }

    /// Its monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A directory of its own.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A QMP socket that nobody else uses.
    pub fn qmp_socket(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// Its guest.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// What QEMU calls its state: `running`, `paused`, `inmigrate`, `postmigrate`, ...
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn state(&mut self) -> Result<String, Error> {
        let status = self.qmp.run("query-status", json!({}))?;
        Ok(status["status"].as_str().unwrap_or("unknown").into())
    }

    /// Waits until the guest has filled its memory.
    ///
    /// # Errors
    ///
    /// It has not in time, or QEMU is gone.
    pub fn wait_filled(&mut self) -> Result<(), Error> {
        let (qmp, process) = (&mut self.qmp, &mut self.process);
        poll("The filling of the guest's memory", FILL, || {
            process.must_run()?;
            let word = qmp.human(&format!("xp /1wx {STATUS:#x}"))?;
            Ok(match word.contains(&format!("{READY:#010x}")) {
                true => Ok(()),
                false => Err(word.trim().into()),
            })
        })
    }

    /// The pass that the guest's writes are in.
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn pass(&mut self) -> Result<u32, Error> {
        let text = self.qmp.human(&format!("xp /1wx {:#x}", STATUS + 4))?;
        let word = text.trim().rsplit_once("0x").map_or("", |(_, word)| word);
        u32::from_str_radix(word, 16).map_err(|_| Error::NotQmp(text))
    }

    /// Is the guest doing something? Tells so by its passes, not by what QEMU says.
    ///
    /// # Errors
    ///
    /// QEMU is gone, or the pass does not change within `limit`.
    pub fn wait_progress(&mut self, limit: Duration) -> Result<(), Error> {
        let before = self.pass()?;
        poll("The guest's next pass", limit, || {
            let now = self.pass()?;
            Ok(if now == before {
                Err(format!("pass {now}"))
            } else {
                Ok(())
            })
        })
    }

    /// Writes the guest's memory to a file of its directory and gives its path. Only memory of a guest
    /// that stands still can be judged.
    ///
    /// # Errors
    ///
    /// QEMU cannot write it.
    pub fn save_memory(&mut self) -> Result<PathBuf, Error> {
        let path = self.dir.join("memory");
        let size = self.guest.memory_bytes();
        let arguments = json!({ "val": 0, "size": size, "filename": path });
        self.qmp.run("pmemsave", arguments)?;
        Ok(path)
    }

    /// Stops the guest and judges its memory.
    ///
    /// # Errors
    ///
    /// QEMU is gone, or [`Error::WrongMemory`].
    pub fn check_memory(&mut self) -> Result<Progress, Error> {
        self.qmp.run("stop", json!({}))?;
        let path = self.save_memory()?;
        let memory = fs::read(&path).map_err(Error::io("Cannot read the memory"))?;
        self.guest.check(&memory)
    }
}

/// The arguments that every machine gets.
fn arguments(options: &Options, dir: &Path) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    let memory = options.guest.memory_mib;
    let mut arguments: Vec<String> = [
        "-accel",
        "tcg,tb-size=16",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-vga",
        "none",
        "-smp",
        "1",
    ]
    .map(String::from)
    .into();
    arguments.extend(["-machine".into(), options.machine.clone()]);
    arguments.extend(["-m".into(), format!("{memory}M")]);
    for socket in ["rig.sock", "qmp.sock"] {
        arguments.extend([
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", file(socket)),
        ]);
    }
    let guest = file("guest.bin");
    match options.boot {
        Boot::Firmware => arguments.extend(["-bios".into(), guest]),
        Boot::Sector => {
            let drive = format!("file={guest},format=raw,if=ide,readonly=off,snapshot=on");
            arguments.extend(["-drive".into(), drive]);
        }
    }
    arguments
}
