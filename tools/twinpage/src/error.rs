// SPDX-License-Identifier: GPL-2.0

//! What can go wrong, what to do about it, and the exit code it gives.
//!
//! The message names the cause; `remedy.rs` knows what to do. Sources are not repeated in the
//! message: `main` prints the chain.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use twinpage_migrate::net;
use twinpage_migrate::proxy;
use twinpage_migrate::run;

use crate::device::Detached;
use crate::digest::Digest;
use crate::host::FileError;
use crate::knobs::KnobError;
use crate::parse::ParseError;
use crate::process::Pid;
use crate::uapi::TWINPAGE_UAPI_VERSION;
use crate::vm::Id;

/// Why the program ends without success.
///
/// Code 2 (wrong usage) is clap's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The migration is complete, and only what it came to could not be told.
    Complete = 0,
    /// It was tried and failed.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// The module is not loaded, not the right one, or the caller may not use it.
    Module = 3,
    /// What was named does not exist: process, VM, attachment, page, user.
    NotFound = 4,
    /// A migration ended, and both QEMUs must be asked which of them has the VM.
    Unsure = 5,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no device node and no trace of the module.
    #[error("The module twinpage is not loaded")]
    NotLoaded,
    /// The module is there, its device node is not.
    #[error("The module twinpage is loaded, but there is no /dev/twinpage")]
    NoDevice,
    /// Something needs more rights.
    #[error("Not permitted to {action}")]
    NotPermitted {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The module is older than the tool.
    #[error(
        "The module speaks version {module} of the interface, this program needs {}",
        TWINPAGE_UAPI_VERSION
    )]
    Interface {
        /// What the module speaks.
        module: u32,
    },
    /// debugfs is not mounted.
    #[error("debugfs is not mounted, and the state of each VM is there")]
    NoDebugfs,
    /// debugfs is mounted, but the module shows nothing there.
    #[error("The module shows nothing in debugfs")]
    EmptyDebugfs,
    /// No such process.
    #[error("There is no process {0}")]
    NoProcess(Pid),
    /// The process has no VM.
    #[error("Process {pid} ({name}) has no KVM VM")]
    NoVm {
        /// The process.
        pid: Pid,
        /// Its name.
        name: String,
    },
    /// No process has a VM.
    #[error("No process has a KVM VM")]
    NoVms,
    /// The process has a VM that is not attached.
    #[error("No VM of process {0} is attached")]
    NotAttached(Pid),
    /// The process has several VMs and one is needed.
    #[error("Process {pid} has several VMs attached: {ids}")]
    SeveralVms {
        /// The process.
        pid: Pid,
        /// Its attachments.
        ids: String,
    },
    /// No such attachment.
    #[error("No VM is attached with id {0}")]
    NoSuchId(Id),
    /// The VM is attached to another domain.
    #[error("VM {id} of process {pid} ({name}) is attached already, to domain {domain}")]
    OtherDomain {
        /// The attachment.
        id: Id,
        /// The process.
        pid: Pid,
        /// Its name.
        name: String,
        /// Name of that domain.
        domain: String,
    },
    /// The VM's memory is encrypted.
    #[error("The memory of the VM of process {0} is encrypted (SEV or TDX)")]
    Encrypted(Pid),
    /// The process is exiting.
    #[error("Process {0} is exiting")]
    Exiting(Pid),
    /// The module has no number left for the VM, or for its blocks of memory.
    #[error(
        "Domain {0} has no room for this VM: it is full, or the VM has more than 4 TiB of memory"
    )]
    NoRoom(String),
    /// The kernel has no `pidfd_open` or no `pidfd_getfd`.
    #[error("This kernel cannot hand out file descriptors of other processes")]
    OldKernel,
    /// A detach that was to unmerge did not finish.
    #[error(
        "VM {id} is still attached: {} pages have their own copy again, {} are still merged",
        detached.unmerged, detached.remaining
    )]
    UnmergeStopped {
        /// The attachment.
        id: Id,
        /// How far it got.
        detached: Detached,
        /// What the kernel said.
        source: io::Error,
    },
    /// No merged page has that digest.
    #[error("Domain {domain} has no merged page with digest {digest}")]
    NoSuchPage {
        /// The domain as the user wrote it.
        domain: String,
        /// What was asked for.
        digest: Box<Digest>,
    },
    /// The module handed out another page than was asked for.
    #[error("The module returned a page with digest {found} for {asked}")]
    WrongPage {
        /// What was asked for.
        asked: Box<Digest>,
        /// What came.
        found: Box<Digest>,
    },
    /// A system call failed for a reason that has no case of its own.
    #[error("Cannot {action}")]
    Call {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file says what it must not say.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The file that names guests and their domains is wrong.
    #[error(transparent)]
    Guests(ParseError),
    /// A knob was named or set wrongly.
    #[error(transparent)]
    Knob(#[from] KnobError),
    /// A signal came before the VM's turn.
    #[error("VM {0} is still attached: interrupted")]
    Interrupted(Id),
    /// Pages of private VMs are for nobody else.
    #[error("Pages of private VMs cannot be asked for by digest")]
    PrivateDomain,
    /// The memslots changed while digests were read.
    #[error("The memslots of VM {0} changed while its digests were read")]
    LayoutChanged(Id),
    /// Digests do not match memory.
    #[error("VM {id}: {pages} pages differ from their digests")]
    WrongDigests {
        /// The attachment.
        id: Id,
        /// How many.
        pages: u64,
    },
    /// Memory that should be compared cannot be read.
    #[error("VM {id}: the memory of {pages} pages cannot be read, so they were not compared")]
    Uncompared {
        /// The attachment.
        id: Id,
        /// How many.
        pages: u64,
    },
    /// Two VMs report different content of one shared copy.
    #[error("Merged copy {generation} has different digests in different VMs")]
    TornCopy {
        /// Serial number of the copy.
        generation: u64,
    },
    /// Waiting for an end that cannot come.
    #[error("There is nothing to wait for: {0}")]
    NothingToWaitFor(&'static str),
    /// Memory did not settle in time.
    #[error("The VMs did not settle within {0} s")]
    NotStable(u64),
    /// Binary output would go to a terminal.
    #[error("A page is binary and standard output is a terminal")]
    Terminal,
    /// Output cannot be written.
    #[error("Cannot write the output")]
    Output(#[source] io::Error),
    /// The output of a migration that is complete cannot be written.
    #[error("The migration is complete, but the output cannot be written")]
    Unshown(#[source] io::Error),
    /// Nothing says who the peer may be.
    #[error("Nothing says who the peer is: name --key, or --ca with --cert and --key-file, or --insecure")]
    NoSecurity,
    /// Keys, certificates or addresses cannot be used.
    #[error(transparent)]
    Network(#[from] net::Error),
    /// A migration did not come to a good end.
    #[error(transparent)]
    Migration(Box<proxy::Error>),
    /// A migration did not begin.
    #[error(transparent)]
    Run(#[from] run::Error),
    /// A migration ended, and the VM is at the source.
    #[error("The migration {what}; {evidence}")]
    NotMigrated {
        /// How it ended.
        what: String,
        /// What each side says.
        evidence: String,
    },
    /// A migration is complete, and the VM does not run although it should.
    #[error("The VM is at the destination and does not run: {0}")]
    Stopped(String),
    /// A migration ended, and where the VM is is not known, or not good.
    #[error("The migration {what}; {evidence}")]
    Doubt {
        /// How it ended.
        what: String,
        /// What each side says.
        evidence: String,
    },
    /// No candidate of a plan answered.
    #[error("No candidate answered")]
    NoCandidate,
    /// There is no such user.
    #[error("There is no user {0:?}")]
    NoUser(String),
    /// A source of pages is to be used that has no place.
    #[error("--sources names {0}, and no --{0} says where that is")]
    NoPlace(&'static str),
    /// Nothing says which store of pages is meant.
    #[error("Nothing says which store: name --store or --fleet")]
    NoStore,
    /// A store of pages cannot be used.
    #[error(transparent)]
    Store(#[from] twinpage_store::Error),
    /// A store exists and was made with another rule.
    #[error("The store admits pages that {has} sources have, not {asked}")]
    SourcesNeeded {
        /// What was asked for.
        asked: u32,
        /// What it was made with.
        has: u32,
    },
    /// The secret of a fleet is malformed.
    #[error("{} is no secret of a fleet: it has not 64 hexadecimal digits", .0.display())]
    FleetKey(PathBuf),
    /// Pages of a store are not what they were.
    #[error("{0} pages of the store are not what they were")]
    WrongPages(u64),
    /// Some of several things failed; each was reported.
    #[error("{failed} of {tried} failed")]
    Some {
        /// How many failed.
        failed: usize,
        /// How many were tried.
        tried: usize,
        /// The exit code of the last that failed.
        exit: Exit,
    },
}

impl From<io::Error> for Error {
    /// Everything that reads has an error of its own, so what is left is output.
    fn from(source: io::Error) -> Self {
        Self::Output(source)
    }
}

impl From<serde_json::Error> for Error {
    /// The tool only writes JSON, and its types can all be written.
    fn from(source: serde_json::Error) -> Self {
        Self::Output(source.into())
    }
}

impl Error {
    /// What the kernel refused in `action`.
    pub fn call(action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted { action, source },
            _ => Self::Call { action, source },
        }
    }

    /// The exit code of the program.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotLoaded
            | Self::NoDevice
            | Self::NotPermitted { .. }
            | Self::Interface { .. }
            | Self::NoDebugfs
            | Self::EmptyDebugfs => Exit::Module,
            Self::File(error) if error.kind() == io::ErrorKind::PermissionDenied => Exit::Module,
            Self::NoProcess(_)
            | Self::NoVm { .. }
            | Self::NoVms
            | Self::NotAttached(_)
            | Self::NoSuchId(_)
            | Self::NoSuchPage { .. }
            | Self::NoUser(_) => Exit::NotFound,
            Self::SeveralVms { .. }
            | Self::Guests(_)
            | Self::Terminal
            | Self::PrivateDomain
            | Self::NoSecurity
            | Self::NoPlace(_)
            | Self::NoStore
            | Self::Store(twinpage_store::Error::Plaintext)
            | Self::SourcesNeeded { .. } => Exit::Usage,
            Self::Migration(error) => match **error {
                proxy::Error::Unsure { .. } => Exit::Unsure,
                proxy::Error::Limit { .. } => Exit::Usage,
                _ => Exit::Failed,
            },
            // The VM of `Stopped` is where QEMU is ended after code 1.
            Self::Doubt { .. } | Self::Stopped(_) => Exit::Unsure,
            Self::Unshown(_) => Exit::Complete,
            Self::Knob(error) => error.exit(),
            Self::Some { exit, .. } => *exit,
            _ => Exit::Failed,
        }
    }

    /// Whether the reader of the output went away, which deserves no message.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The message and its causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        text
    }

    /// The message, its causes and the remedy, as printed.
    pub fn report(&self) -> String {
        let mut text = self.chain();
        if let Some(remedy) = self.remedy() {
            text += &format!("\n  Remedy: {remedy}");
        }
        text
    }
}
