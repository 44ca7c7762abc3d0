// SPDX-License-Identifier: GPL-2.0

//! A virtual machine of our own: anonymous memory, memslots, one processor, one small program.
//!
//! It is the least a program must do to be a KVM guest whose memory Twinpage can merge: create a
//! VM, map private anonymous memory, register it as a memslot. [`Memory`] and [`Vm`] do that, with
//! every variation that matters to merging (huge pages, shared memory, several slots over one
//! address, slots that move). [`Counter`] runs real guest code over the pages: it checks every
//! word of each of them, and writes them anew when told to, so that a page that shows a wrong byte
//! to the *guest* is found.

mod counter;
mod memory;
mod vm;

pub use counter::{
    content,
    fresh,
    Counter,
    Lost,
    Sweep, //
};
pub use memory::{
    Backing,
    Memory,
    PAGE_BYTES,
    WORDS, //
};
pub use vm::{
    Slot,
    Vm, //
};

/// What can go wrong around a VM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a KVM operation.
    #[error("KVM refused to {what}")]
    Kvm {
        /// The operation.
        what: &'static str,
        /// Its error.
        source: kvm_ioctls::Error,
    },
    /// The kernel refused a memory operation.
    #[error("Cannot {what}")]
    Memory {
        /// The operation.
        what: &'static str,
        /// Its error.
        source: std::io::Error,
    },
    /// The guest did something its program never does.
    #[error("The guest left its program: {0}")]
    Exit(String),
}

impl Error {
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
        move |source| Error::Kvm { what, source }
    }

    pub(crate) fn memory(what: &'static str) -> Error {
        Error::Memory {
            what,
            source: std::io::Error::last_os_error(),
        }
    }
}
