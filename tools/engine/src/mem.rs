// SPDX-License-Identifier: GPL-2.0

//! The only memory that the engine may allocate, host side.
//!
//! Names and behaviour of `kernel::alloc` as far as the engine uses them, over [`std::vec::Vec`].
//! [`fail_after`] makes allocations fail on purpose.

extern crate std;

use core::ops::{
    Deref,
    DerefMut, //
};
use std::{
    cell::Cell,
    thread_local,
    vec::Vec, //
};

/// There is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocError;

/// How memory is asked for. The host does not care.
#[derive(Clone, Copy, Debug)]
pub struct Flags;

/// What every allocation of the engine is made with: it may sleep.
pub const GFP_KERNEL: Flags = Flags;

/// What happens to the allocations of a thread.
#[derive(Clone, Copy)]
enum Fate {
    /// They succeed.
    Succeed,
    /// The one after so many fails, and all later ones.
    FailAfter(u64),
    /// One has failed, and so will all others.
    Failed,
}

thread_local! {
    static FATE: Cell<Fate> = const { Cell::new(Fate::Succeed) };
}

/// Makes the allocation of this thread that follows `successes` others fail, and all later ones
/// too, until [`never_fail`].
pub fn fail_after(successes: u64) {
    FATE.set(Fate::FailAfter(successes));
}

/// Makes no further allocation of this thread fail, and says whether one did.
pub fn never_fail() -> bool {
    matches!(FATE.replace(Fate::Succeed), Fate::Failed)
}

/// Fails if the test asked for it.
fn permit() -> Result<(), AllocError> {
    match FATE.get() {
        Fate::Succeed => Ok(()),
        Fate::FailAfter(0) | Fate::Failed => {
            FATE.set(Fate::Failed);
            Err(AllocError)
        }
        Fate::FailAfter(successes) => {
            FATE.set(Fate::FailAfter(successes - 1));
            Ok(())
        }
    }
}

/// An element that did not fit.
#[derive(Debug)]
pub struct PushError<T>(pub T);

/// A vector whose growth can fail.
#[derive(Debug, PartialEq, Eq)]
pub struct KVVec<T>(Vec<T>);

impl<T> KVVec<T> {
    /// Makes an empty vector without allocating.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Makes an empty vector with room for `capacity` elements.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory.
    pub fn with_capacity(capacity: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut vec = Self::new();
        vec.reserve(capacity, flags)?;
        Ok(vec)
    }

    /// Returns how many elements fit without allocating.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Makes room for `additional` elements, doubling as the kernel's does.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory. The vector is unchanged.
    pub fn reserve(&mut self, additional: usize, _flags: Flags) -> Result<(), AllocError> {
        let (len, capacity) = (self.0.len(), self.0.capacity());
        if capacity - len >= additional {
            return Ok(());
        }
        permit()?;
        let wanted = (capacity * 2).max(len.checked_add(additional).ok_or(AllocError)?);
        self.0
            .try_reserve_exact(wanted - len)
            .map_err(|_| AllocError)
    }

    /// Appends `value`.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory. The vector is unchanged.
    pub fn push(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
        self.reserve(1, flags)?;
        self.0.push(value);
        Ok(())
    }

    /// Appends `value` without allocating.
    ///
    /// # Errors
    ///
    /// [`PushError`] gives `value` back if there is no room.
    pub fn push_within_capacity(&mut self, value: T) -> Result<(), PushError<T>> {
        if self.0.len() == self.0.capacity() {
            return Err(PushError(value));
        }
        self.0.push(value);
        Ok(())
    }

    /// Removes and returns the last element.
    pub fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    /// Shortens the vector to `len` elements.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// Removes the elements that are not to be kept.
    pub fn retain(&mut self, keep: impl FnMut(&mut T) -> bool) {
        self.0.retain_mut(keep);
    }

    /// Removes all elements and keeps the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl<T: Clone> KVVec<T> {
    /// Appends `n` clones of `value`.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory. The vector is unchanged.
    pub fn extend_with(&mut self, n: usize, value: T, flags: Flags) -> Result<(), AllocError> {
        self.reserve(n, flags)?;
        self.0.resize(self.0.len() + n, value);
        Ok(())
    }

    /// Appends clones of the elements of `other`.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory. The vector is unchanged.
    pub fn extend_from_slice(&mut self, other: &[T], flags: Flags) -> Result<(), AllocError> {
        self.reserve(other.len(), flags)?;
        self.0.extend_from_slice(other);
        Ok(())
    }

    /// Makes a vector of `n` clones of `value`.
    ///
    /// # Errors
    ///
    /// [`AllocError`] if there is no memory.
    pub fn from_elem(value: T, n: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut vec = Self::new();
        vec.extend_with(n, value, flags)?;
        Ok(vec)
    }
}

impl<T> Default for KVVec<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Deref for KVVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for KVVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
