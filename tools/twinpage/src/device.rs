// SPDX-License-Identifier: GPL-2.0

//! What the tool asks of the kernel by system call: `/dev/twinpage` and file descriptors of others.
//!
//! The traits are the half of the seam (see [`crate::host`]) that is not files. Tests replace them.

use std::fs::File;
use std::io;
use std::os::fd::{
    AsFd,
    BorrowedFd,
    OwnedFd, //
};
use std::path::Path;

use rustix::event::{
    poll,
    PollFd,
    PollFlags,
    Timespec, //
};
use rustix::io::Errno;
use rustix::process::{
    pidfd_getfd,
    pidfd_open,
    PidfdFlags,
    PidfdGetfdFlags, //
};

use crate::digest::Digest;
use crate::domain::Domain;
use crate::ioctl;
use crate::process::{
    ForeignFd,
    Pid, //
};
use crate::uapi::Page;
use crate::vm::Id;

/// What becomes of the merged pages of a VM that is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// They stay merged.
    Keep,
    /// The VM gets its own copies back.
    Unmerge,
}

/// How far a detach got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Pages that got their own copy back.
    pub unmerged: u64,
    /// Pages still merged.
    pub remaining: u64,
}

/// What a module speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Version of the interface.
    pub uapi: u32,
    /// `TWINPAGE_FEATURE_*` bits that work on this kernel.
    pub features: u32,
}

/// An open `/dev/twinpage`, for any number of threads.
pub trait Device: Send + Sync {
    /// What the module speaks.
    ///
    /// # Errors
    ///
    /// What the ioctl returns.
    fn version(&self) -> io::Result<Version>;

    /// Starts merging the VM that `vm` stands for.
    ///
    /// # Errors
    ///
    /// What the ioctl returns: see `struct twinpage_attach`.
    fn attach(&self, vm: BorrowedFd<'_>, domain: Domain) -> io::Result<Id>;

    /// Stops merging the VM `id`. How far that got is known even if it failed.
    fn detach(&self, id: Id, copies: Copies) -> (Detached, io::Result<()>);

    /// The bytes of a merged page of `domain` with that digest.
    ///
    /// # Errors
    ///
    /// What the ioctl returns: see `struct twinpage_read`.
    fn read_page(&self, domain: Domain, digest: &Digest) -> io::Result<Box<Page>>;
}

/// The system calls that are more than reading and writing files.
pub trait Kernel: Send + Sync {
    /// Opens the device node at `path`.
    ///
    /// # Errors
    ///
    /// What `open` returns.
    fn open_device(&self, path: &Path) -> io::Result<Box<dyn Device>>;

    /// Takes hold of process `pid`: what is asked of the result is asked of no other that gets its
    /// number later.
    ///
    /// # Errors
    ///
    /// `ENOSYS`: the kernel is too old; `ESRCH`: no such process.
    fn hold(&self, pid: Pid) -> io::Result<Box<dyn Process>>;

    /// Whether standard output takes a line without a wait for whoever reads it.
    fn output_takes(&self) -> bool {
        true
    }
}

/// A process that is held.
pub trait Process {
    /// Duplicates its file descriptor `fd` into this process.
    ///
    /// # Errors
    ///
    /// `ENOSYS`: the kernel is too old; `ESRCH`: it has ended; `EPERM`: not allowed to trace it;
    /// `EBADF`: it has closed the descriptor.
    fn take_fd(&self, fd: ForeignFd) -> io::Result<OwnedFd>;
}

/// The running kernel.
#[derive(Debug)]
pub struct Running;

impl Kernel for Running {
    fn open_device(&self, path: &Path) -> io::Result<Box<dyn Device>> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Box::new(Node(file)))
    }

    fn hold(&self, pid: Pid) -> io::Result<Box<dyn Process>> {
        let number = i32::try_from(pid.0).map_err(|_| Errno::SRCH)?;
        let pid = rustix::process::Pid::from_raw(number).ok_or(Errno::SRCH)?;
        Ok(Box::new(Held(pidfd_open(pid, PidfdFlags::empty())?)))
    }

    fn output_takes(&self) -> bool {
        takes(io::stdout())
    }
}

/// Whether `file` can be written to now, or fails now.
fn takes(file: impl AsFd) -> bool {
    let mut state = [PollFd::new(&file, PollFlags::OUT)];
    let polled = poll(&mut state, Some(&Timespec::default()));
    // What cannot be asked is written to, and says then what is wrong with it.
    !matches!(polled, Ok(0) | Err(Errno::INTR))
}

/// A process of the running kernel, by its pidfd.
struct Held(OwnedFd);

impl Process for Held {
    fn take_fd(&self, fd: ForeignFd) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.0, fd.0, PidfdGetfdFlags::empty())?)
    }
}

/// The device node of the running kernel.
struct Node(File);

impl Device for Node {
    fn version(&self) -> io::Result<Version> {
        Ok(ioctl::version(self.0.as_fd())?)
    }

    fn attach(&self, vm: BorrowedFd<'_>, domain: Domain) -> io::Result<Id> {
        Ok(ioctl::attach(self.0.as_fd(), vm, domain)?)
    }

    fn detach(&self, id: Id, copies: Copies) -> (Detached, io::Result<()>) {
        let (detached, result) = ioctl::detach(self.0.as_fd(), id, copies);
        (detached, result.map_err(io::Error::from))
    }

    fn read_page(&self, domain: Domain, digest: &Digest) -> io::Result<Box<Page>> {
        Ok(ioctl::read_page(self.0.as_fd(), domain, digest)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{
        Read,
        Write, //
    };
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_of_this_process_can_be_taken() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"twin").unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let own = Pid(std::process::id());
        let held = Running.hold(own).unwrap();
        let taken = match held.take_fd(ForeignFd(file.as_raw_fd())) {
            // A sandbox may forbid the call; there is nothing to test then.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return,
            taken => taken.unwrap(),
        };
        let mut text = String::new();
        File::from(taken).read_to_string(&mut text).unwrap();
        assert_eq!(text, "twin");
    }

    #[test]
    fn an_ioctl_of_another_file_fails_cleanly() {
        let node = Node(File::open("/dev/null").unwrap());
        let error = node.version().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::NOTTY.raw_os_error()));
        let (detached, result) = node.detach(Id(1), Copies::Unmerge);
        assert_eq!(detached, Detached::default());
        assert!(result.is_err());
    }

    #[test]
    fn output_that_nobody_reads_takes_no_more() {
        let (mut file, reader) = UnixStream::pair().unwrap();
        assert!(takes(&file));
        file.set_nonblocking(true).unwrap();
        while matches!(file.write(&[0; 4096]), Ok(1..)) {}
        assert!(!takes(&file));
        drop(reader);
        assert!(takes(&file));
        assert!(takes(tempfile::tempfile().unwrap()));
    }

    #[test]
    fn a_missing_node_is_not_found() {
        let result = Running.open_device(Path::new("/dev/null/twinpage"));
        assert!(result.is_err());
    }
}
