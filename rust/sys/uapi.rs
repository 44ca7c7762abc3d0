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
pub(crate) unsafe trait Argument: Default + Copy {
    /// Bytes of all fields together.
    const FIELDS: usize;
}

/// Implements [`Argument`] for a structure of integers and arrays of them.
macro_rules! argument {
    ($name:ident: $($field:ident),+) => {
        // SAFETY: bindgen made it `repr(C)`, and integers take every bit pattern. Where it is used,
        // `whole` makes sure that these fields fill it.
        unsafe impl Argument for $name {
            const FIELDS: usize = 0 $(+ size_of_field(|it: &$name| &it.$field))+;
        }
    };
}

/// Bytes of the field that `_get` names.
const fn size_of_field<T, F>(_get: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

argument!(twinpage_version: uapi, features, reserved);
argument!(twinpage_attach: vm_fd, flags, domain, id, pad, reserved);
argument!(twinpage_detach: id, flags, unmerged, remaining, reserved);
argument!(twinpage_read: domain, digest, buffer, reserved);

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
    let wire: Wire<T> = user(addr, whole::<T>()).reader().read()?;
    Ok(wire.0)
}

/// Copies an argument to the caller's memory at `addr`.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn write<T: Argument>(addr: usize, value: T) -> Result {
    user(addr, whole::<T>()).writer().write(&Wire(value))
}

/// Copies bytes to the caller's memory at `addr`.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn write_bytes(addr: usize, bytes: &[u8]) -> Result {
    user(addr, bytes.len()).writer().write_slice(bytes)
}

/// Bytes of an argument. One with a hole does not build.
const fn whole<T: Argument>() -> usize {
    const { assert!(size_of::<T>() == T::FIELDS) };
    size_of::<T>()
}

fn user(addr: usize, len: usize) -> UserSlice {
    UserSlice::new(kernel::uaccess::UserPtr::from_addr(addr), len)
}
