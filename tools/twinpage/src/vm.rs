// SPDX-License-Identifier: GPL-2.0

//! Attached VMs: which there are, and which one the user means.

use std::fmt;
use std::path::{
    Path,
    PathBuf, //
};

use serde::Serialize;

use crate::domain::display_name;
use crate::error::Error;
use crate::host::Host;
use crate::module::debugfs;
use crate::process::{
    self,
    Pid, //
};
use crate::slots::{
    self,
    Slots, //
};
use crate::stats::{
    self,
    Stats, //
};

/// Number of an attachment, never reused while the module is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Id(pub u32);

/// An attached VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// Name of its process.
    pub name: String,
    /// Name of its domain, or the number.
    pub domain_name: String,
    /// What the module says of it.
    #[serde(flatten)]
    pub stats: Stats,
}

/// Which VMs a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Those of a process.
    Pid(Pid),
    /// The one with a number.
    Id(Id),
    /// Every one.
    All,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Id {
    /// The file `name` of this VM in the module's debugfs directory.
    fn file(self, directory: &Path, name: &str) -> PathBuf {
        directory.join(self.to_string()).join(name)
    }
}

impl Vm {
    /// Reads the state of VM `id`, or nothing if it has just gone.
    fn read(host: &Host, directory: &Path, id: Id) -> Result<Option<Self>, Error> {
        let path = id.file(directory, "stats");
        let text = match host.read_text(&path, stats::FILE_BYTES) {
            Err(error) if error.is_gone() => return Ok(None),
            text => text?,
        };
        // The file may live a moment longer than the VM; it says nothing then.
        if text.is_empty() {
            return Ok(None);
        }
        let stats = Stats::parse(&path, &text)?;
        Ok(Some(Self {
            name: process::name(host, stats.pid),
            domain_name: display_name(host, stats.domain),
            stats,
        }))
    }
}

/// The numbers of the attached VMs, in order.
///
/// # Errors
///
/// debugfs cannot be read.
pub fn ids(host: &Host) -> Result<Vec<Id>, Error> {
    let mut ids: Vec<Id> = host
        .list(debugfs(host)?)?
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .map(Id)
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// The attached VMs, in order of their numbers.
///
/// # Errors
///
/// debugfs cannot be read, or says what it must not say.
pub fn list(host: &Host) -> Result<Vec<Vm>, Error> {
    let directory = debugfs(host)?;
    ids(host)?
        .into_iter()
        .filter_map(|id| Vm::read(host, &directory, id).transpose())
        .collect()
}

/// The attached VMs that `selection` means: at least one, but for `All`.
///
/// # Errors
///
/// There is none, or debugfs cannot be read.
pub fn select(host: &Host, selection: Selection) -> Result<Vec<Vm>, Error> {
    let mut vms = list(host)?;
    match selection {
        Selection::All => (),
        Selection::Id(id) => vms.retain(|vm| vm.stats.id == id),
        Selection::Pid(pid) => vms.retain(|vm| vm.stats.pid == pid),
    }
    match selection {
        Selection::Id(id) if vms.is_empty() => Err(Error::NoSuchId(id)),
        Selection::Pid(pid) if vms.is_empty() => Err(not_attached(host, pid)),
        _ => Ok(vms),
    }
}

/// The one attached VM that `selection` means.
///
/// # Errors
///
/// There is none or more than one, or debugfs cannot be read.
pub fn select_one(host: &Host, selection: Selection) -> Result<Vm, Error> {
    let mut vms = select(host, selection)?;
    match (vms.len(), selection) {
        (2.., Selection::Pid(pid)) => {
            let ids: Vec<_> = vms.iter().map(|vm| vm.stats.id.to_string()).collect();
            let ids = ids.join(", ");
            Err(Error::SeveralVms { pid, ids })
        }
        _ => vms
            .pop()
            .ok_or(Error::NothingToWaitFor("no VM is attached")),
    }
}

/// The memslots of VM `id`.
///
/// # Errors
///
/// debugfs cannot be read, or says what it must not say.
pub fn slots(host: &Host, id: Id) -> Result<Slots, Error> {
    let path = id.file(&debugfs(host)?, "slots");
    let text = host.read_text(&path, slots::FILE_BYTES)?;
    Ok(Slots::parse(&path, &text)?)
}

/// Where the digests of VM `id` are.
///
/// # Errors
///
/// There is no debugfs.
pub fn digests_file(host: &Host, id: Id) -> Result<PathBuf, Error> {
    Ok(id.file(&debugfs(host)?, "digests"))
}

/// Why there is no VM of process `pid`.
fn not_attached(host: &Host, pid: Pid) -> Error {
    match process::vm_fds(host, pid) {
        Ok(fds) if fds.is_empty() => Error::NoVm {
            pid,
            name: process::name(host, pid),
        },
        Err(error @ Error::NoProcess(_)) => error,
        _ => Error::NotAttached(pid),
    }
}
