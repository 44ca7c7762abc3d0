// SPDX-License-Identifier: GPL-2.0

//! Files of `/sys/kernel/mm/twinpage`.

use super::bindings;
use core::{marker::PhantomData, slice};
use kernel::{
    error::to_result,
    ffi::{c_char, c_long, c_uint, c_ulong, c_void},
    prelude::*,
    str::CStr,
    sync::Arc, //
};

/// One file.
pub(crate) struct File {
    /// Its name.
    pub(crate) name: &'static CStr,
    /// Its permissions.
    pub(crate) mode: u16,
}

/// Serves reads and writes of the files.
pub(crate) trait Serve: Send + Sync + 'static {
    /// Writes the text of file number `file` to `page` and returns its length.
    fn show(&self, file: usize, page: &mut [u8]) -> Result<usize>;

    /// Takes what was written to file number `file`.
    fn store(&self, file: usize, text: &[u8]) -> Result;
}

/// The files exist until this is dropped.
///
/// # Invariants
///
/// `twinpage_shim_sysfs_add` has succeeded with `data`, a reference of `Arc<T>`. There is only one
/// such object at a time, as the shim has room for one.
pub(crate) struct Files<T: Serve> {
    data: *const c_void,
    _data: PhantomData<Arc<T>>,
}

// SAFETY: The files may be removed from any thread.
unsafe impl<T: Serve> Send for Files<T> {}
// SAFETY: There are no methods that take `&self`.
unsafe impl<T: Serve> Sync for Files<T> {}

impl<T: Serve> Files<T> {
    /// Creates the directory and `files`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EEXIST`, `E2BIG` if there are too many.
    ///
    /// # Context
    ///
    /// Module init. May sleep.
    pub(crate) fn add(files: &'static [File], data: Arc<T>) -> Result<Self> {
        let mut names: KVec<*const c_char> = KVec::with_capacity(files.len(), GFP_KERNEL)?;
        let mut modes: KVec<u16> = KVec::with_capacity(files.len(), GFP_KERNEL)?;
        for file in files {
            names.push(
                kernel::str::as_char_ptr_in_const_context(file.name),
                GFP_KERNEL,
            )?;
            modes.push(file.mode, GFP_KERNEL)?;
        }
        let data = Arc::into_raw(data).cast::<c_void>();
        // SAFETY: `names` and `modes` have one element a file until the call returns; the names
        // are static. The callbacks take `data` as a `T`, which it is, and which lives until
        // `drop` takes the reference back, after the files are gone.
        let added = to_result(unsafe {
            bindings::twinpage_shim_sysfs_add(
                names.as_ptr(),
                modes.as_ptr(),
                files.len() as u32,
                data.cast_mut(),
                Some(show::<T>),
                Some(store::<T>),
            )
        });
        match added {
            Ok(()) => Ok(Self {
                data,
                _data: PhantomData,
            }),
            Err(error) => {
                // SAFETY: No callback can run, so the reference of `into_raw` is ours again.
                drop(unsafe { Arc::from_raw(data.cast::<T>()) });
                Err(error)
            }
        }
    }
}

impl<T: Serve> Drop for Files<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant the files exist; the call waits for callbacks that run.
        unsafe { bindings::twinpage_shim_sysfs_remove() };
        // SAFETY: No callback can run any more, so the reference of `into_raw` is ours again.
        drop(unsafe { Arc::from_raw(self.data.cast::<T>()) });
    }
}

/// # Safety
///
/// `data` must be a `T`, and `page` a writable page, until this returns.
unsafe extern "C" fn show<T: Serve>(data: *mut c_void, file: c_uint, page: *mut c_char) -> c_long {
    // SAFETY: sysfs hands over a page of which nobody else has a reference, and `data` lives until
    // the files are gone; both by the caller's promise.
    let (data, page) = unsafe {
        (
            &*data.cast::<T>(),
            slice::from_raw_parts_mut(page.cast::<u8>(), kernel::page::PAGE_SIZE),
        )
    };
    match data.show(file as usize, page) {
        Ok(len) => len as c_long,
        Err(error) => error.to_errno() as c_long,
    }
}

/// # Safety
///
/// `data` must be a `T`, and `text` point at `len` readable bytes, until this returns.
unsafe extern "C" fn store<T: Serve>(
    data: *mut c_void,
    file: c_uint,
    text: *const c_char,
    len: c_ulong,
) -> c_long {
    // SAFETY: sysfs hands over a private copy of what was written, and `data` lives until the
    // files are gone; both by the caller's promise.
    let (data, text) = unsafe {
        (
            &*data.cast::<T>(),
            slice::from_raw_parts(text.cast::<u8>(), len),
        )
    };
    match data.store(file as usize, text) {
        Ok(()) => len as c_long,
        Err(error) => error.to_errno() as c_long,
    }
}
