// SPDX-License-Identifier: GPL-2.0

//! Forked children.

use std::io;

use nix::sys::signal::{
    kill,
    Signal, //
};
use nix::sys::wait::{
    waitpid,
    WaitStatus, //
};
use nix::unistd::Pid;

use crate::ensure;
use crate::tap::{
    Failure,
    Outcome, //
};

/// Runs `work` in a forked child; what it returns is whether it went well.
///
/// # Errors
///
/// No process can be made.
pub fn in_child(work: impl FnOnce() -> bool) -> Result<Child, Failure> {
    // SAFETY: callers fork while they have one thread, so the child may do anything; it never
    // returns into the code above.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error().into()),
        0 => {
            let status = i32::from(!work());
            // SAFETY: the call ends the process; nothing of the parent's is to be cleaned up here.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Child(pid)),
    }
}

/// A forked child.
pub struct Child(libc::pid_t);

impl Child {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.unsigned_abs()
    }

    /// Waits until it says that all went well.
    ///
    /// # Errors
    ///
    /// It says that something went wrong, or died.
    pub fn join(self) -> Outcome {
        let status = waitpid(Pid::from_raw(self.0), None)?;
        ensure!(
            matches!(status, WaitStatus::Exited(_, 0)),
            "the child ended with {status:?}"
        );
        Ok(())
    }

    /// Kills it without warning and waits for its end.
    ///
    /// # Errors
    ///
    /// It had ended by itself, which it does when something is wrong, or was waited for already.
    pub fn kill(self) -> Outcome {
        let pid = Pid::from_raw(self.0);
        kill(pid, Signal::SIGKILL)?;
        let status = waitpid(pid, None)?;
        ensure!(
            matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
            "the child ended with {status:?}"
        );
        Ok(())
    }
}
