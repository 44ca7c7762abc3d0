// SPDX-License-Identifier: GPL-2.0

//! An unmodified QEMU that migrates: started with any arguments, with a monitor for the lab, one
//! more for the programs under test, and a serial port that a guest talks on.

use std::fs;
use std::io::{
    self,
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

use twinpage_guest::protocol::Request;

use crate::lines::{
    connect,
    read_line, //
};
use crate::qemu::Error;
use crate::qmp::Qmp;

/// The longest a guest may take to answer a question.
const ANSWER: Duration = Duration::from_secs(300);

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
        fs::create_dir_all(&directory).map_err(failed("make a directory"))?;
        let log = directory.join("qemu.log");
        let console = format!("file:{}", directory.join("console.log").display());
        let errors = fs::File::create(&log).map_err(failed("make a log"))?;
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
            .map_err(failed("start QEMU"))?;
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
        let line = read_line(&mut self.port, Instant::now() + limit)
            .map_err(failed(format!("{} did not answer", self.name)))?;
        Ok(line.trim_end().to_owned())
    }

    /// Says a line to the guest.
    ///
    /// # Errors
    ///
    /// QEMU is gone.
    pub fn say(&mut self, line: &str) -> Result<(), Error> {
        writeln!(self.port.get_mut(), "{line}")
            .map_err(failed(format!("say '{line}' to {}", self.name)))
    }

    /// Asks the guest program something that it answers with `ok`; the rest of the answer.
    ///
    /// # Errors
    ///
    /// The guest says something else, such as which page is wrong.
    pub fn fine(&mut self, request: Request) -> Result<String, Error> {
        self.say(&request.to_string())?;
        let line = self.line(ANSWER)?;
        match line.strip_prefix("ok") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(self.said(line)),
        }
    }

    /// The guest program's checksum over all pages that do not change.
    ///
    /// # Errors
    ///
    /// The guest says something else.
    pub fn sum(&mut self) -> Result<String, Error> {
        self.say(&Request::Sum.to_string())?;
        let line = self.line(ANSWER)?;
        match line.strip_prefix("sum ") {
            Some(sum) => Ok(sum.to_owned()),
            None => Err(self.said(line)),
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

    fn said(&self, said: String) -> Error {
        Error::Said {
            who: self.name.clone(),
            said,
        }
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

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}
