// SPDX-License-Identifier: GPL-2.0

//! Merged pages of this host as a source of pages: by digest, of one domain, while VMs come and go.
//!
//! Only merged copies count: nobody can write to them, so a digest stays true while the copy lives.
//! Private VMs serve nobody. What is handed out is checked by the one who asks, as with any source.

use std::collections::HashSet;
use std::io;

use rustix::io::Errno;
use twinpage_engine::engine::wire::PageState;

use crate::device::Device;
use crate::digest::Digest;
use crate::digests::Digests;
use crate::domain::Domain;
use crate::error::Error;
use crate::host::Host;
use crate::module;
use crate::uapi::Page;
use crate::vm::{
    self,
    Id, //
};

/// The merged pages of one domain.
pub struct ModulePages {
    /// The machine, for the files of its VMs.
    host: Host,
    /// The module, for their pages.
    device: Box<dyn Device>,
    /// Whose pages.
    domain: Domain,
}

impl ModulePages {
    /// The merged pages of `domain` on this machine.
    ///
    /// # Errors
    ///
    /// The domain is the private one, or the module cannot be used.
    pub fn open(host: &Host, domain: Domain) -> Result<Self, Error> {
        if domain == Domain::PRIVATE {
            return Err(Error::PrivateDomain);
        }
        let device = module::open(host)?;
        // Without debugfs there would be no digests; better said now than in a migration.
        module::debugfs(host)?;
        let host = host.clone();
        Ok(Self {
            host,
            device,
            domain,
        })
    }

    /// Calls `each` with the digest of every merged copy that VMs of the domain map.
    ///
    /// A VM that is detached meanwhile counts as far as it was read.
    ///
    /// # Errors
    ///
    /// debugfs cannot be read, or says what it must not say.
    pub fn each_digest(&self, each: &mut dyn FnMut(Digest)) -> Result<(), Error> {
        let mut seen = HashSet::new();
        for vm in vm::list(&self.host)? {
            if vm.stats.domain == self.domain {
                each_merged(&self.host, vm.stats.id, &mut seen, each)?;
            }
        }
        Ok(())
    }

    /// Copies the page with that digest to `into`, or says that none is merged now.
    ///
    /// # Errors
    ///
    /// The module refuses for another reason.
    pub fn copy(&self, digest: &Digest, into: &mut Page) -> Result<bool, Error> {
        match self.device.read_page(self.domain, digest) {
            Ok(page) => {
                *into = *page;
                Ok(true)
            }
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(Error::call("read a merged page", error)),
        }
    }
}

/// Calls `each` with the digest of every merged copy that VM `id` maps and that is not in `seen`.
///
/// A VM that is detached, or whose memslots change, counts as far as it was read: what was read of
/// merged copies is true all the same.
///
/// # Errors
///
/// debugfs cannot be read, or says what it must not say.
pub fn each_merged(
    host: &Host,
    id: Id,
    seen: &mut HashSet<u64>,
    each: &mut dyn FnMut(Digest),
) -> Result<(), Error> {
    match read_merged(host, id, seen, each) {
        Err(Error::NoSuchId(_) | Error::LayoutChanged(_)) => Ok(()),
        Err(Error::File(error)) if error.is_gone() => Ok(()),
        // The file may end while the VM goes, which reads as if it was cut off.
        Err(Error::Parse(_)) if is_gone(host, id) => Ok(()),
        result => result,
    }
}

/// Reads the records of VM `id` to their end.
fn read_merged(
    host: &Host,
    id: Id,
    seen: &mut HashSet<u64>,
    each: &mut dyn FnMut(Digest),
) -> Result<(), Error> {
    let mut digests = Digests::open(host, id)?;
    while let Some((_, record)) = digests.read_next()? {
        if let PageState::Merged { serial, digest } = record.state {
            if seen.insert(serial) {
                each(Digest(digest));
            }
        }
    }
    Ok(())
}

/// Whether VM `id` is not attached any more.
fn is_gone(host: &Host, id: Id) -> bool {
    matches!(Digests::open(host, id), Err(Error::NoSuchId(_)))
}

/// Whether the module has no such page.
fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOENT.raw_os_error())
}
