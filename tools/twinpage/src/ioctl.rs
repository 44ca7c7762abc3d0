// SPDX-License-Identifier: GPL-2.0

//! The ioctls of `/dev/twinpage`: the only unsafe code of the tool.
//!
//! Each function fills the struct of `rust/uapi/twinpage.h`, makes the call and hands plain values
//! back. Structs that hold an address never leave this file.

#![allow(unsafe_code, reason = "an ioctl hands memory to the kernel")]

use core::ffi::c_void;
use std::os::fd::{
    AsRawFd,
    BorrowedFd, //
};

use rustix::io::{
    Errno,
    Result, //
};
use rustix::ioctl::{
    ioctl,
    Ioctl,
    IoctlOutput,
    Opcode, //
};

use crate::device::{
    Copies,
    Detached,
    Version, //
};
use crate::digest::Digest;
use crate::domain::Domain;
use crate::uapi::{
    self,
    Page, //
};
use crate::vm::Id;

/// A struct that one ioctl of `/dev/twinpage` takes.
///
/// # Safety
///
/// - `OPCODE` is the number of an ioctl whose argument has the layout of `Self`: the kernel reads
///   and writes no byte behind it.
/// - Every bit pattern is a valid `Self`.
unsafe trait Argument {
    /// Number of the ioctl.
    const OPCODE: Opcode;
}

// SAFETY: Number and layout come from the same header, and the size is part of the number, which
// the module compares; the fields are integers.
unsafe impl Argument for uapi::twinpage_version {
    const OPCODE: Opcode = uapi::TWINPAGE_VERSION_IOC;
}

// SAFETY: Number and layout come from the same header, and the size is part of the number, which
// the module compares; the fields are integers.
unsafe impl Argument for uapi::twinpage_attach {
    const OPCODE: Opcode = uapi::TWINPAGE_ATTACH_IOC;
}

// SAFETY: Number and layout come from the same header, and the size is part of the number, which
// the module compares; the fields are integers.
unsafe impl Argument for uapi::twinpage_detach {
    const OPCODE: Opcode = uapi::TWINPAGE_DETACH_IOC;
}

// SAFETY: Number and layout come from the same header, and the size is part of the number, which
// the module compares; the fields are integers and bytes.
unsafe impl Argument for uapi::twinpage_read {
    const OPCODE: Opcode = uapi::TWINPAGE_READ_IOC;
}

/// One call: its argument is borrowed until the call returns.
struct Request<'a, A>(&'a mut A);

// SAFETY: `opcode` and `as_ptr` belong together by the contract of `Argument`, and
// `output_from_ptr` reads nothing.
unsafe impl<A: Argument> Ioctl for Request<'_, A> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        A::OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        core::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<()> {
        Ok(())
    }
}

/// What the module speaks.
pub fn version(device: BorrowedFd<'_>) -> Result<Version> {
    let mut argument = uapi::twinpage_version::default();
    // SAFETY: The struct holds no address, and `argument` is borrowed until the call returns.
    unsafe { ioctl(device, Request(&mut argument)) }?;
    Ok(Version {
        uapi: argument.uapi,
        features: argument.features,
    })
}

/// Starts merging the VM that `vm` stands for.
pub fn attach(device: BorrowedFd<'_>, vm: BorrowedFd<'_>, domain: Domain) -> Result<Id> {
    let mut argument = uapi::twinpage_attach {
        vm_fd: vm.as_raw_fd(),
        domain: domain.0,
        ..Default::default()
    };
    // SAFETY: The struct holds no address; `argument` and the file that `vm_fd` names are borrowed
    // until the call returns.
    unsafe { ioctl(device, Request(&mut argument)) }?;
    Ok(Id(argument.id))
}

/// Stops merging the VM `id`, and says how far that got even when it failed.
pub fn detach(device: BorrowedFd<'_>, id: Id, copies: Copies) -> (Detached, Result<()>) {
    let mut argument = uapi::twinpage_detach {
        id: id.0,
        flags: match copies {
            Copies::Keep => 0,
            Copies::Unmerge => uapi::TWINPAGE_DETACH_UNMERGE,
        },
        ..Default::default()
    };
    // SAFETY: The struct holds no address, and `argument` is borrowed until the call returns.
    let result = unsafe { ioctl(device, Request(&mut argument)) };
    let detached = Detached {
        unmerged: argument.unmerged,
        remaining: argument.remaining,
    };
    (detached, result)
}

/// The bytes of a merged page of `domain` with that digest.
pub fn read_page(device: BorrowedFd<'_>, domain: Domain, digest: &Digest) -> Result<Box<Page>> {
    let mut page: Box<Page> = Box::new([0; uapi::PAGE_BYTES]);
    let address = page.as_mut_ptr().expose_provenance();
    let mut argument = uapi::twinpage_read {
        domain: domain.0,
        digest: digest.0,
        buffer: u64::try_from(address).map_err(|_| Errno::FAULT)?,
        ..Default::default()
    };
    // SAFETY: `buffer` is the address of `page`, 4096 bytes as the ioctl demands, which nothing
    // else uses before the call returns; `argument` is borrowed as long.
    unsafe { ioctl(device, Request(&mut argument)) }?;
    Ok(page)
}
