// SPDX-License-Identifier: GPL-2.0

//! How long work tells how far it is, and how it is stopped.

use std::ops::ControlFlow;

use crate::error::Error;

/// How far something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is done: pages, or bytes where an image is read.
    pub done: u64,
    /// All there is to do, as far as it is known.
    pub total: u64,
}

/// Called every few thousand pages; to break is to stop with [`Error::Stopped`].
pub type Watch<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// Reports progress and obeys.
pub(crate) fn step(watch: Watch<'_>, done: u64, total: u64) -> Result<(), Error> {
    match watch(Progress { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    }
}
