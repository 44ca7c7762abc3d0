// SPDX-License-Identifier: GPL-2.0

//! Why a migration did not begin. What began has an outcome instead.

use crate::net;
use crate::proxy;
use crate::qmp;

/// Why a migration did not begin: the guest is where it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A monitor does not do what it is told.
    #[error(transparent)]
    Qmp(#[from] qmp::Error),
    /// It cannot go well.
    #[error("The guest cannot be migrated: {}", .0.join("; "))]
    Unfit(Vec<String>),
    /// A socket for the source cannot be made.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// A directory or a thread cannot be made.
    #[error("Cannot {action}")]
    Call {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The sending proxy cannot be started.
    #[error("The sending proxy did not start")]
    Proxy(#[source] proxy::Error),
    /// It was cancelled before it began.
    #[error("The migration was cancelled before it began")]
    Cancelled,
}

impl Error {
    /// A failed system call.
    pub(super) fn call(action: impl Into<String>, source: std::io::Error) -> Self {
        let action = action.into();
        Self::Call { action, source }
    }
}
