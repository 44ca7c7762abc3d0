// SPDX-License-Identifier: GPL-2.0

//! Directories of debugfs with files that only root reads.
//!
//! The kernel crate's own let the module go while a file is open, and what closing it then needs
//! with it; these keep the module loaded until it is closed.

use super::bindings;
use core::ptr;
use kernel::{
    debugfs::{BinaryWriter, Writer},
    ffi::{c_int, c_long, c_longlong, c_ulong, c_void},
    fmt,
    fs,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    str::CStr,
    sync::Arc,
    uaccess::{UserPtr, UserSlice}, //
};

/// A directory, removed with its files when this is dropped, which waits for who reads them.
///
/// # Invariants
///
/// `entry` is what `twinpage_shim_debugfs_dir` returned, not removed yet, and neither is the
/// directory that it is in, of which `_parent` is a reference. Each of `files` is of a file in it.
pub(crate) struct Dir {
    entry: *mut c_void,
    files: KVec<Owned>,
    _parent: Option<Arc<Dir>>,
}

// SAFETY: A directory may be filled and removed on any thread; what serves its files is `Send`.
unsafe impl Send for Dir {}
// SAFETY: What takes `&self` only has debugfs add to the directory, for which that takes a lock.
// What serves its files is `Sync`.
unsafe impl Sync for Dir {}

/// What serves a file.
#[repr(C)]
struct Served<T> {
    calls: bindings::twinpage_shim_file,
    data: T,
}

/// A `Served` of some type.
///
/// # Invariants
///
/// `served` came from `KBox::into_raw`, and `free` takes it back.
struct Owned {
    served: *mut c_void,
    free: unsafe fn(*mut c_void),
}

impl Dir {
    /// Creates a directory in the root of debugfs. When that fails it has no files, which nobody
    /// is told, as is the custom with debugfs.
    ///
    /// # Context
    ///
    /// Sleeps.
    pub(crate) fn new(name: &CStr) -> Self {
        Self::under(None, name)
    }

    /// Creates a directory in another, likewise.
    ///
    /// # Context
    ///
    /// Sleeps.
    pub(crate) fn subdir(parent: &Arc<Dir>, name: &CStr) -> Self {
        Self::under(Some(parent.clone()), name)
    }

    fn under(parent: Option<Arc<Dir>>, name: &CStr) -> Self {
        let above = parent.as_ref().map_or(ptr::null_mut(), |dir| dir.entry);
        let name = kernel::str::as_char_ptr_in_const_context(name);
        // SAFETY: `above` is null, or a directory by the invariant of `parent`, which lives; the
        // name is a C string until the call returns.
        let entry = unsafe { bindings::twinpage_shim_debugfs_dir(above, name) };
        // INVARIANT: The directory was made just now, and has no files.
        Self {
            entry,
            files: KVec::new(),
            _parent: parent,
        }
    }

    /// Adds a file that shows what `data` writes.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// Sleeps.
    pub(crate) fn add_text<T>(&mut self, name: &CStr, data: T) -> Result
    where
        T: Writer + Send + Sync + 'static,
    {
        let calls = bindings::twinpage_shim_file {
            print: Some(print::<T>),
            read: None,
        };
        self.add(name, Served { calls, data })
    }

    /// Adds a file of the bytes that `data` writes.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// Sleeps.
    pub(crate) fn add_binary<T>(&mut self, name: &CStr, data: T) -> Result
    where
        T: BinaryWriter + Send + Sync + 'static,
    {
        let calls = bindings::twinpage_shim_file {
            print: None,
            read: Some(read::<T>),
        };
        self.add(name, Served { calls, data })
    }

    /// Adds a file; the callbacks in `served` are for its type.
    fn add<T>(&mut self, name: &CStr, served: Served<T>) -> Result {
        self.files.reserve(1, GFP_KERNEL)?;
        let served = KBox::into_raw(KBox::new(served, GFP_KERNEL)?).cast::<c_void>();
        // INVARIANT: It came from `into_raw` just now.
        let owned = Owned {
            served,
            free: free::<T>,
        };
        // There is room for it.
        let _ = self.files.push_within_capacity(owned);
        let name = kernel::str::as_char_ptr_in_const_context(name);
        // SAFETY: The directory is there by the invariant; the name is a C string until the call
        // returns. `served` begins with its callbacks, as it is `repr(C)`, and is freed only after
        // the directory is removed.
        unsafe { bindings::twinpage_shim_debugfs_file(self.entry, name, served.cast()) };
        Ok(())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // SAFETY: The directory is there by the invariant, and not used again.
        unsafe { bindings::twinpage_shim_debugfs_remove(self.entry) };
        for owned in self.files.iter() {
            // SAFETY: By the invariant of `Owned`; no callback can run any more, and none has been
            // freed before, as `files` ends with this.
            unsafe { (owned.free)(owned.served) };
        }
    }
}

/// # Safety
///
/// `served` must be a `Served<T>` from `KBox::into_raw` that nobody uses any more.
unsafe fn free<T>(served: *mut c_void) {
    // SAFETY: The caller's promise.
    drop(unsafe { KBox::from_raw(served.cast::<Served<T>>()) });
}

/// # Safety
///
/// `file` must be the begin of a `Served<T>`, and `seq` a `seq_file` that no other thread uses,
/// until this returns.
unsafe extern "C" fn print<T: Writer>(
    file: *const bindings::twinpage_shim_file,
    seq: *mut c_void,
) -> c_int {
    // SAFETY: The caller's promise.
    let (served, seq) = unsafe {
        (
            &*file.cast::<Served<T>>(),
            SeqFile::from_raw(seq.cast::<kernel::bindings::seq_file>()),
        )
    };
    seq_print!(seq, "{}", Shown(&served.data));
    0
}

/// # Safety
///
/// `file` must be the begin of a `Served<T>`, and `at` an offset that nobody else uses, until this
/// returns.
unsafe extern "C" fn read<T: BinaryWriter>(
    file: *const bindings::twinpage_shim_file,
    to: *mut c_void,
    len: c_ulong,
    at: *mut c_longlong,
) -> c_long {
    // SAFETY: The caller's promise.
    let (served, at) = unsafe { (&*file.cast::<Served<T>>(), &mut *at) };
    let mut writer = UserSlice::new(UserPtr::from_ptr(to), len).writer();
    let mut offset: fs::file::Offset = *at;
    match served.data.write_to_slice(&mut writer, &mut offset) {
        Ok(written) => {
            *at = offset;
            written as c_long
        }
        Err(error) => error.to_errno() as c_long,
    }
}

/// Displays what a `Writer` writes.
struct Shown<'a, T>(&'a T);

impl<T: Writer> fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f)
    }
}
