// SPDX-License-Identifier: GPL-2.0

//! Being asked for memory when it is short.

use super::bindings;
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    ffi::{c_ulong, c_void},
    prelude::*,
    sync::Arc, //
};

/// Gives memory back.
///
/// # Context
///
/// Both methods run in reclaim: they must not wait for a lock that is held over an allocation.
pub(crate) trait Shrink: Send + Sync + 'static {
    /// How many pages could be given back.
    fn count(&self) -> usize;

    /// Gives pages back that `want` of those counted stand for; returns how many.
    fn scan(&self, want: usize) -> usize;
}

/// Registered until this is dropped.
///
/// # Invariants
///
/// `twinpage_shim_shrinker_add` has succeeded with `data`, a reference of `Arc<T>`. There is only
/// one such object at a time, as the shim has room for one.
pub(crate) struct Shrinker<T: Shrink> {
    data: *const c_void,
    _data: PhantomData<Arc<T>>,
}

// SAFETY: A shrinker may be removed from any thread.
unsafe impl<T: Shrink> Send for Shrinker<T> {}
// SAFETY: There are no methods that take `&self`.
unsafe impl<T: Shrink> Sync for Shrinker<T> {}

impl<T: Shrink> Shrinker<T> {
    /// Registers `data`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// Module init. May sleep.
    pub(crate) fn add(data: Arc<T>) -> Result<Self> {
        let data = Arc::into_raw(data).cast::<c_void>();
        // SAFETY: The callbacks take `data` as a `T`, which it is, and which lives until `drop`
        // takes the reference back, after the shrinker is gone.
        let added = to_result(unsafe {
            bindings::twinpage_shim_shrinker_add(data.cast_mut(), Some(count::<T>), Some(scan::<T>))
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

impl<T: Shrink> Drop for Shrinker<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant it is registered; the call waits for callbacks that run.
        unsafe { bindings::twinpage_shim_shrinker_remove() };
        // SAFETY: No callback can run any more, so the reference of `into_raw` is ours again.
        drop(unsafe { Arc::from_raw(self.data.cast::<T>()) });
    }
}

/// # Safety
///
/// `data` must be a `T` until this returns.
unsafe extern "C" fn count<T: Shrink>(data: *mut c_void) -> c_ulong {
    // SAFETY: The caller guarantees that `data` is a `T` until this returns.
    unsafe { &*data.cast::<T>() }.count()
}

/// # Safety
///
/// `data` must be a `T` until this returns.
unsafe extern "C" fn scan<T: Shrink>(data: *mut c_void, want: c_ulong) -> c_ulong {
    // SAFETY: The caller guarantees that `data` is a `T` until this returns.
    unsafe { &*data.cast::<T>() }.scan(want)
}
