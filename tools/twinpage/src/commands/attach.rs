// SPDX-License-Identifier: GPL-2.0

//! `twinpage attach`: takes the VM out of a running VMM and gives it to the module.

use std::io;

use rustix::io::Errno;
use serde::Serialize;

use crate::cli::Attach;
use crate::console::{
    Console,
    Format, //
};
use crate::device::{
    Device,
    Process, //
};
use crate::domain::{
    Domain,
    DomainName, //
};
use crate::error::Error;
use crate::guests::Guests;
use crate::host::Host;
use crate::memory::obstacles;
use crate::module;
use crate::process::{
    self,
    ForeignFd,
    Pid, //
};
use crate::stats::Stats;
use crate::table::{
    Side,
    Table, //
};
use crate::vm::{
    self,
    Id,
    Vm, //
};

use super::Failures;

/// Version of the JSON; raised when a field changes or goes.
const SCHEMA: u32 = 1;

/// A VM that was attached.
#[derive(Debug, Serialize)]
struct Attached {
    /// Number of the attachment.
    id: Id,
    /// Its process.
    pid: Pid,
    /// The name of the process.
    name: String,
    /// Its domain.
    domain: Domain,
    /// The domain as the user wrote it.
    domain_name: String,
    /// Why part of its memory will be skipped.
    warnings: Vec<String>,
}

/// A VM that needed nothing: it is attached to this domain, or nobody can tell to which.
#[derive(Debug, Serialize)]
struct Already {
    /// Its process.
    pid: Pid,
    /// The name of the process.
    name: String,
    /// Number of the attachment, if it is known.
    id: Option<Id>,
}

/// What could not be attached.
#[derive(Debug, Serialize)]
struct Failed {
    /// The process.
    pid: Pid,
    /// Why not.
    error: String,
    /// The exit code for that.
    code: u8,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Done {
    /// Version of the JSON.
    schema: u32,
    /// What was attached.
    attached: Vec<Attached>,
    /// What was attached before.
    already: Vec<Already>,
    /// What could not be.
    failed: Vec<Failed>,
}

/// Which domain a VM is to be in.
enum Wanted {
    /// This.
    One(DomainName),
    /// That of its guest's name.
    ByGuest(Guests),
}

impl Wanted {
    /// The domain of process `pid`; empty if it is to be left alone.
    fn domain(&self, host: &Host, pid: Pid) -> Option<&DomainName> {
        match self {
            Self::One(domain) => Some(domain),
            Self::ByGuest(guests) => guests.domain(&process::guest(host, pid)?),
        }
    }
}

/// What became of one VM.
enum Outcome {
    Attached(Attached),
    Already(Already),
}

/// Runs the command.
pub fn run(arguments: &Attach, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let device = module::open(host)?;
    let wanted = match &arguments.domains {
        Some(path) => Wanted::ByGuest(Guests::read(host, path)?),
        None => Wanted::One(arguments.domain.clone().unwrap_or_else(DomainName::private)),
    };
    let named = !arguments.pids.is_empty();
    let pids = match named {
        true => arguments.pids.clone(),
        false => process::with_vms(host)?,
    };
    // That no guest of a file runs now is as it may be.
    if pids.is_empty() && arguments.domains.is_none() {
        return Err(Error::NoVms);
    }
    // Without debugfs nobody can tell which there are.
    let before = vm::list(host).unwrap_or_default();
    let mut done = Done {
        schema: SCHEMA,
        attached: Vec::new(),
        already: Vec::new(),
        failed: Vec::new(),
    };
    let mut failures = Failures::default();
    for pid in pids {
        for result in attach_process(device.as_ref(), host, pid, &wanted, &before) {
            let result = match result {
                // Who names no domain wants the rest, and not those elsewhere.
                Err(Error::OtherDomain { id, pid, name, .. })
                    if arguments.all && arguments.domain.is_none() =>
                {
                    let id = Some(id);
                    Ok(Outcome::Already(Already { pid, name, id }))
                }
                result => result,
            };
            match &result {
                // One that has ended since is none of all.
                Err(Error::NoProcess(_) | Error::NoVm { .. } | Error::Exiting(_)) if !named => {
                    continue
                }
                Err(error) => done.failed.push(Failed {
                    pid,
                    error: error.chain(),
                    code: error.exit() as u8,
                }),
                Ok(_) => (),
            }
            match failures.sort(result, console) {
                Some(Outcome::Attached(vm)) => done.attached.push(vm),
                Some(Outcome::Already(vm)) => done.already.push(vm),
                None => (),
            }
        }
    }
    failures.shown(show(&done, Format::of(arguments.json), console));
    failures.outcome(console)
}

/// Attaches every VM of process `pid`, which is held from before anything is asked of it: its
/// number may become that of another. `before` are the VMs that were attached when that began.
fn attach_process(
    device: &dyn Device,
    host: &Host,
    pid: Pid,
    wanted: &Wanted,
    before: &[Vm],
) -> Vec<Result<Outcome, Error>> {
    let process = match host.hold(pid) {
        Ok(process) => process,
        Err(error) => return vec![Err(taking_failed(pid, error))],
    };
    let fds = match process::vm_fds(host, pid) {
        Ok(fds) => fds,
        Err(error) => return vec![Err(error)],
    };
    let Some(domain) = wanted.domain(host, pid) else {
        return Vec::new();
    };
    let name = process::name(host, pid);
    let mut already = false;
    let mut results = Vec::new();
    for fd in fds {
        match attach_fd(device, process.as_ref(), pid, fd, domain) {
            Ok(Met::New(id)) => results.push(Ok(Outcome::Attached(Attached {
                id,
                pid,
                name: name.clone(),
                domain: domain.domain,
                domain_name: domain.text.clone(),
                warnings: obstacles(host, pid, id),
            }))),
            Ok(Met::Closed) => (),
            // Several descriptors may stand for one VM: attached by one, refused by the next.
            Ok(Met::Attached) => already = true,
            Err(error) => results.push(Err(error)),
        }
    }
    if results.iter().any(Result::is_ok) {
        domain.remember(host);
    }
    if already {
        let vms = before.iter().filter(|vm| vm.stats.pid == pid);
        results.extend(vms.map(|vm| attached_before(vm, domain)));
    }
    match (results.is_empty(), already) {
        // Nobody can tell to which domain.
        (true, true) => {
            let id = None;
            results.push(Ok(Outcome::Already(Already { pid, name, id })));
        }
        (true, false) => results.push(Err(Error::NoVm { pid, name })),
        (false, _) => (),
    }
    results
}

/// A VM that was attached before, which may be to another domain.
fn attached_before(vm: &Vm, domain: &DomainName) -> Result<Outcome, Error> {
    let Stats { id, pid, .. } = vm.stats;
    let name = vm.name.clone();
    match vm.stats.domain == domain.domain {
        true => {
            let id = Some(id);
            Ok(Outcome::Already(Already { pid, name, id }))
        }
        false => Err(Error::OtherDomain {
            id,
            pid,
            name,
            domain: vm.domain_name.clone(),
        }),
    }
}

/// What a descriptor of a VM led to.
enum Met {
    /// The VM is attached now.
    New(Id),
    /// It was before.
    Attached,
    /// The process has just closed it.
    Closed,
}

/// Attaches the VM that descriptor `fd` of `process` stands for.
fn attach_fd(
    device: &dyn Device,
    process: &dyn Process,
    pid: Pid,
    fd: ForeignFd,
    domain: &DomainName,
) -> Result<Met, Error> {
    use std::os::fd::AsFd;

    let vm = match process.take_fd(fd) {
        Ok(vm) => vm,
        Err(error) if is(&error, Errno::BADF) => return Ok(Met::Closed),
        Err(error) => return Err(taking_failed(pid, error)),
    };
    match device.attach(vm.as_fd(), domain.domain) {
        Ok(id) => Ok(Met::New(id)),
        Err(error) if is(&error, Errno::EXIST) => Ok(Met::Attached),
        Err(error) => Err(attaching_failed(pid, domain, error)),
    }
}

/// Why a descriptor could not be taken out of process `pid`.
fn taking_failed(pid: Pid, error: io::Error) -> Error {
    if is(&error, Errno::SRCH) {
        Error::NoProcess(pid)
    } else if is(&error, Errno::NOSYS) {
        Error::OldKernel
    } else {
        Error::call(format!("take the VM out of process {pid}"), error)
    }
}

/// Why the module did not attach a VM of process `pid`.
fn attaching_failed(pid: Pid, domain: &DomainName, error: io::Error) -> Error {
    if is(&error, Errno::OPNOTSUPP) {
        Error::Encrypted(pid)
    } else if is(&error, Errno::SRCH) {
        Error::Exiting(pid)
    } else if is(&error, Errno::NOSPC) {
        Error::NoRoom(domain.text.clone())
    } else {
        Error::call(format!("attach the VM of process {pid}"), error)
    }
}

/// Whether `error` is `errno`.
fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Shows what was attached, and what to know about it.
fn show(done: &Done, format: Format, console: &mut Console<'_>) -> Result<(), Error> {
    if format == Format::Json {
        return console.json(done);
    }
    let attached = &done.attached;
    if !done.already.is_empty() {
        let text = "twinpage: VMs that were attached already:";
        writeln!(console.err, "{text} {}", done.already.len())?;
    }
    for vm in attached {
        for warning in &vm.warnings {
            console.warn(&format!("VM {} ({}): {warning}", vm.id, vm.name))?;
        }
    }
    if attached.is_empty() {
        return Ok(());
    }
    let columns = [
        ("ID", Side::Right),
        ("PID", Side::Right),
        ("NAME", Side::Left),
        ("DOMAIN", Side::Left),
    ];
    let mut table = Table::new(&columns, console.screen);
    for vm in attached {
        table.add([
            vm.id.to_string(),
            vm.pid.to_string(),
            vm.name.clone(),
            vm.domain_name.clone(),
        ]);
    }
    Ok(write!(console.out, "{}", table.text())?)
}
