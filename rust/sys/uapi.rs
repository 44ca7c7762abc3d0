// SPDX-License-Identifier: GPL-2.0

//! The structures of `rust/uapi/twinpage.h`, as they travel to and from userspace.

use kernel::{
    prelude::*,
    transmute::{AsBytes, FromBytes},
    uaccess::UserSlice, //
};

/// Types of the header.
#[allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::all
)]
mod header {
    include!(concat!(env!("TWINPAGE_GEN"), "/uapi_gen.rs"));
}

pub(crate) use header::*;

/// A structure that an ioctl takes or gives.
///
/// # Safety
///
/// The type is `repr(C)`, has no padding, and every bit pattern is a value of it.
pub(crate) unsafe trait Argument: Default + Copy {}

// SAFETY: Integers and arrays of them, laid out without a hole (see the offsets in the header).
unsafe impl Argument for twinpage_version {}
// SAFETY: As above.
unsafe impl Argument for twinpage_attach {}
// SAFETY: As above.
unsafe impl Argument for twinpage_detach {}
// SAFETY: As above.
unsafe impl Argument for twinpage_read {}

/// Gives an [`Argument`] the traits that copying needs.
#[repr(transparent)]
struct Wire<T>(T);

// SAFETY: `T: Argument` takes every bit pattern.
unsafe impl<T: Argument> FromBytes for Wire<T> {}
// SAFETY: `T: Argument` has no padding.
unsafe impl<T: Argument> AsBytes for Wire<T> {}

/// Copies an argument from the caller's memory at `addr`.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn read<T: Argument>(addr: usize) -> Result<T> {
    let wire: Wire<T> = user(addr, size_of::<T>()).reader().read()?;
    Ok(wire.0)
}

/// Copies an argument to the caller's memory at `addr`.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn write<T: Argument>(addr: usize, value: T) -> Result {
    user(addr, size_of::<T>()).writer().write(&Wire(value))
}

/// Copies bytes to the caller's memory at `addr`.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn write_bytes(addr: usize, bytes: &[u8]) -> Result {
    user(addr, bytes.len()).writer().write_slice(bytes)
}

fn user(addr: usize, len: usize) -> UserSlice {
    UserSlice::new(kernel::uaccess::UserPtr::from_addr(addr), len)
}
