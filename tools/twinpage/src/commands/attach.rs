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
use crate::device::Device;
use crate::domain::{
    Domain,
    DomainName, //
};
use crate::error::Error;
use crate::host::Host;
use crate::memory::obstacles;
use crate::module;
use crate::process::{
    self,
    ForeignFd,
    Pid, //
};
use crate::table::{
    Side,
    Table, //
};
use crate::vm::Id;

use super::Failures;

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

/// Runs the command.
pub fn run(arguments: &Attach, host: &Host, console: &mut Console<'_>) -> Result<(), Error> {
    let device = module::open(host)?;
    let domain = arguments.domain.clone().unwrap_or_else(DomainName::private);
    let pids = match arguments.all {
        true => process::with_vms(host)?,
        false => arguments.pids.clone(),
    };
    if pids.is_empty() {
        return Err(Error::NoVms);
    }
    let mut attached = Vec::new();
    let mut failures = Failures::default();
    let mut passed_over = 0;
    for pid in pids {
        for result in attach_process(device.as_ref(), host, pid, &domain) {
            match result {
                Err(Error::AlreadyAttached { .. }) if arguments.all => passed_over += 1,
                result => attached.extend(failures.sort(result, console)?),
            }
        }
    }
    if !attached.is_empty() {
        domain.remember(host);
    }
    show(&attached, Format::of(arguments.json), console)?;
    if passed_over > 0 {
        let text = "twinpage: processes whose VMs were attached already:";
        writeln!(console.err, "{text} {passed_over}")?;
    }
    failures.outcome(console)
}

/// Attaches every VM of process `pid`.
fn attach_process(
    device: &dyn Device,
    host: &Host,
    pid: Pid,
    domain: &DomainName,
) -> Vec<Result<Attached, Error>> {
    let fds = match process::vm_fds(host, pid) {
        Ok(fds) => fds,
        Err(error) => return vec![Err(error)],
    };
    let name = process::name(host, pid);
    let mut already = false;
    let mut results = Vec::new();
    for fd in fds {
        match attach_fd(device, host, pid, fd, domain) {
            Ok(Some(id)) => results.push(Ok(Attached {
                id,
                pid,
                name: name.clone(),
                domain: domain.domain,
                domain_name: domain.text.clone(),
                warnings: obstacles(host, pid, id),
            })),
            Ok(None) => (),
            // Several descriptors may stand for one VM: attached by one, refused by the next.
            Err(Error::AlreadyAttached { .. }) => already = true,
            Err(error) => results.push(Err(error)),
        }
    }
    if results.is_empty() {
        results.push(Err(match already {
            true => Error::AlreadyAttached { pid, name },
            false => Error::NoVm { pid, name },
        }));
    }
    results
}

/// Attaches the VM that descriptor `fd` of process `pid` stands for, unless it was just closed.
fn attach_fd(
    device: &dyn Device,
    host: &Host,
    pid: Pid,
    fd: ForeignFd,
    domain: &DomainName,
) -> Result<Option<Id>, Error> {
    use std::os::fd::AsFd;

    let vm = match host.take_fd(pid, fd) {
        Ok(vm) => vm,
        Err(error) if is(&error, Errno::BADF) => return Ok(None),
        Err(error) => return Err(taking_failed(pid, error)),
    };
    let id = device.attach(vm.as_fd(), domain.domain);
    Ok(Some(id.map_err(|error| {
        attaching_failed(host, pid, domain, error)
    })?))
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
fn attaching_failed(host: &Host, pid: Pid, domain: &DomainName, error: io::Error) -> Error {
    if is(&error, Errno::EXIST) {
        let name = process::name(host, pid);
        Error::AlreadyAttached { pid, name }
    } else if is(&error, Errno::OPNOTSUPP) {
        Error::Encrypted(pid)
    } else if is(&error, Errno::SRCH) {
        Error::Exiting(pid)
    } else if is(&error, Errno::NOSPC) {
        Error::DomainFull(domain.text.clone())
    } else {
        Error::call(format!("attach the VM of process {pid}"), error)
    }
}

/// Whether `error` is `errno`.
fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Shows what was attached, and what to know about it.
fn show(attached: &[Attached], format: Format, console: &mut Console<'_>) -> Result<(), Error> {
    if format == Format::Json {
        return console.json(&attached);
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
