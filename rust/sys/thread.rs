// SPDX-License-Identifier: GPL-2.0

//! A kernel thread that ends when its handle is dropped.

use super::bindings;
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    ffi::{c_int, c_void},
    prelude::*,
    sync::Arc, //
};

/// What a thread does.
pub(crate) trait Run: Send + Sync + 'static {
    /// Runs in the thread, until [`stop`](Self::stop) is called.
    fn run(&self);

    /// Makes [`run`](Self::run) return soon.
    fn stop(&self);
}

/// A running thread. Dropping it tells the thread to stop and waits until it has.
///
/// # Invariants
///
/// `task` was returned by `twinpage_shim_thread_run`, with one reference of `Arc<T>` as argument,
/// and has not been stopped.
pub(crate) struct Thread<T: Run> {
    task: NonNull<c_void>,
    data: *const c_void,
    _data: PhantomData<Arc<T>>,
}

// SAFETY: A thread may be stopped from any other.
unsafe impl<T: Run> Send for Thread<T> {}
// SAFETY: There are no methods that take `&self`.
unsafe impl<T: Run> Sync for Thread<T> {}

impl<T: Run> Thread<T> {
    /// Starts a thread that runs `data`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn start(data: Arc<T>) -> Result<Self> {
        let data = Arc::into_raw(data).cast::<c_void>();
        // SAFETY: `run::<T>` takes the pointer as a `T`, which it is, and which lives until
        // `drop` takes the reference back, after the thread has ended.
        let task = unsafe { bindings::twinpage_shim_thread_run(Some(run::<T>), data.cast_mut()) };
        match NonNull::new(task) {
            Some(task) => Ok(Self {
                task,
                data,
                _data: PhantomData,
            }),
            None => {
                // SAFETY: No thread runs, so the reference of `into_raw` is ours again.
                drop(unsafe { Arc::from_raw(data.cast::<T>()) });
                Err(ENOMEM)
            }
        }
    }
}

impl<T: Run> Drop for Thread<T> {
    fn drop(&mut self) {
        // SAFETY: `data` is a `T` until the reference is taken back below.
        unsafe { &*self.data.cast::<T>() }.stop();
        // SAFETY: By the invariant, `task` is a thread that was not stopped yet.
        unsafe { bindings::twinpage_shim_thread_stop(self.task.as_ptr()) };
        // SAFETY: The thread has ended, so nobody else uses the reference of `into_raw`.
        drop(unsafe { Arc::from_raw(self.data.cast::<T>()) });
    }
}

/// Freezes the calling thread here while the system suspends.
///
/// # Context
///
/// In a thread of [`Thread`] only. Sleeps.
pub(crate) fn freeze_point() {
    // SAFETY: `Run::run`, the only place to call this from, runs in a kernel thread.
    unsafe { bindings::twinpage_shim_thread_freeze_point() };
}

/// Lets other threads run if they should.
///
/// # Context
///
/// Sleeps.
pub(crate) fn yield_now() {
    // SAFETY: It may sleep, as all of this module's Rust code may: no spinlock is held outside of
    // the shim, from its calls to their return.
    unsafe { bindings::twinpage_shim_thread_yield() };
}

/// CPU time that the calling thread has used, in nanoseconds, at least as of its last switch.
pub(crate) fn cpu_ns() -> u64 {
    // SAFETY: Reads a field of the current task; there is nothing to guarantee.
    unsafe { bindings::twinpage_shim_thread_cpu_ns() }
}

/// May the caller administer the system (CAP_SYS_ADMIN)?
pub(crate) fn is_admin() -> bool {
    // SAFETY: Process context, which is where system calls are served.
    unsafe { bindings::twinpage_shim_capable() != 0 }
}

/// # Safety
///
/// `data` must point at a `T` that lives until this returns.
unsafe extern "C" fn run<T: Run>(data: *mut c_void) -> c_int {
    // SAFETY: This runs in a kernel thread of its own.
    unsafe { bindings::twinpage_shim_thread_set_freezable() };
    // SAFETY: The caller guarantees that `data` is a `T` until this returns.
    unsafe { &*data.cast::<T>() }.run();
    // SAFETY: This runs in the kernel thread that `Thread` stops.
    unsafe { bindings::twinpage_shim_thread_wait_for_stop() };
    0
}
