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

/// A type of which every bit pattern is a value.
trait Field {}

impl Field for u8 {}
impl Field for u32 {}
impl Field for i32 {}
impl Field for u64 {}
impl<T: Field, const N: usize> Field for [T; N] {}

/// Implements [`Argument`] for a structure of integers and arrays of them. What has a hole, or
/// fields that are not named or not such, does not build.
macro_rules! argument {
    ($name:ident: $($field:ident),+) => {
        // SAFETY: bindgen made it `repr(C)`. The fields are all that it has, as the pattern below
        // has each once; of each every bit pattern is a value (`Field`), and their sizes add up to
        // its own.
        unsafe impl Argument for $name {
            const FIELDS: usize = 0 $(+ size_of_field(|it: &$name| &it.$field))+;
        }

        const _: fn($name) = |$name { $($field: _),+ }| ();
        const _: () = assert!(size_of::<$name>() == <$name as Argument>::FIELDS);
    };
}

/// Bytes of the field that `_get` names.
const fn size_of_field<T, F: Field>(_get: fn(&T) -> &F) -> usize {
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
