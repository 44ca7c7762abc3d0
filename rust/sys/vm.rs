// SPDX-License-Identifier: GPL-2.0

//! KVM VMs and their memslots.

use super::{bindings, mm::Space};
use crate::engine::layout::Slot;
use core::ptr::{self, NonNull};
use kernel::{
    alloc::KVVec,
    error::to_result,
    ffi::c_void,
    mm::Mm,
    prelude::*,
    sync::aref::ARef, //
};

/// Where VMs are destroyed that nobody else held. Must outlive every [`Vm`], and is made once.
///
/// # Invariants
///
/// The call that ends it is still to come.
pub(crate) struct Vms(());

impl Vms {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn begin() -> Result<Self> {
        // SAFETY: The module makes one while it is loaded, before a file descriptor can be given.
        to_result(unsafe { bindings::twinpage_shim_vms_begin() })?;
        // INVARIANT: Drop is what ends it.
        Ok(Self(()))
    }
}

impl Drop for Vms {
    /// Waits for VMs that are being destroyed.
    fn drop(&mut self) {
        // SAFETY: By the type invariant it has begun and not ended. The module drops this when all
        // that could hold a VM is gone.
        unsafe { bindings::twinpage_shim_vms_end() };
    }
}

/// A VM, held by a reference.
///
/// # Invariants
///
/// `vm` is a `struct twinpage_vm` that `twinpage_shim_vm_get` gave to `self`.
pub(crate) struct Vm {
    vm: NonNull<c_void>,
}

// SAFETY: References to a `struct kvm` and to a module may be used and given up on any thread.
unsafe impl Send for Vm {}
// SAFETY: Every method takes `&self` and only reads: fields of KVM that it sets once or changes
// atomically or under SRCU, and the owner of the address space under RCU; the shim takes both.
unsafe impl Sync for Vm {}

impl Vm {
    /// Takes hold of the VM behind a file descriptor of the calling process.
    ///
    /// # Errors
    ///
    /// `EBADF`: not an open file; `EINVAL`: not a KVM VM; `EOPNOTSUPP`: encrypted memory; `ESRCH`:
    /// on its way out; `ENOMEM`.
    ///
    /// # Context
    ///
    /// Process context, may sleep.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        let mut vm = ptr::null_mut();
        // SAFETY: The pointer is valid for one write until the call returns. The module makes
        // `Vms` before anybody can give a file descriptor, and drops it after the last VM.
        to_result(unsafe { bindings::twinpage_shim_vm_get(fd, &mut vm) })?;
        // INVARIANT: The call succeeded and handed it over.
        Ok(Self {
            vm: NonNull::new(vm).ok_or(ESRCH)?,
        })
    }

    /// The address space that holds its memory.
    pub(crate) fn space(&self) -> Space {
        // SAFETY: `vm` is valid: `self` owns a reference until drop. KVM holds a reference to the
        // `mm_struct` as long as the VM exists, so taking another is sound.
        let mm = unsafe {
            let mm: *mut kernel::bindings::mm_struct =
                bindings::twinpage_shim_vm_mm(self.vm.as_ptr()).cast();
            ARef::from(Mm::from_raw(mm))
        };
        Space::new(mm)
    }

    /// Are these the same VM?
    pub(crate) fn is(&self, other: &Vm) -> bool {
        // SAFETY: Both are valid: `self` and `other` own them until drop.
        unsafe { bindings::twinpage_shim_vm_same(self.vm.as_ptr(), other.vm.as_ptr()) != 0 }
    }

    /// The process that its memory belongs to.
    pub(crate) fn pid(&self) -> i32 {
        // SAFETY: `vm` is valid: `self` owns a reference until drop.
        unsafe { bindings::twinpage_shim_vm_pid(self.vm.as_ptr()) }
    }

    /// Does nobody else hold it, or has it died?
    pub(crate) fn is_closed(&self) -> bool {
        // SAFETY: `vm` is valid: `self` owns a reference until drop.
        unsafe { bindings::twinpage_shim_vm_closed(self.vm.as_ptr()) != 0 }
    }

    /// Its memslots, in no order.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep. Holds the VM's SRCU lock for the copy only.
    pub(crate) fn slots(&self) -> Result<KVVec<Slot>> {
        let mut raw: KVVec<bindings::twinpage_shim_slot> = KVVec::new();
        let mut room = FEW_SLOTS;
        loop {
            raw.clear();
            raw.resize(room, Default::default(), GFP_KERNEL)?;
            // SAFETY: `vm` is valid: `self` owns a reference until drop. `raw` has `room`
            // elements until the call returns.
            let n = unsafe {
                bindings::twinpage_shim_vm_slots(self.vm.as_ptr(), raw.as_mut_ptr(), room)
            } as usize;
            if n <= room {
                raw.truncate(n);
                break;
            }
            room = n;
        }
        let mut slots = KVVec::with_capacity(raw.len(), GFP_KERNEL)?;
        for slot in raw.iter() {
            slots.push(decode(slot), GFP_KERNEL)?;
        }
        Ok(slots)
    }
}

/// Room to start with; a VM with more memslots takes a second try.
const FEW_SLOTS: usize = 32;

fn decode(slot: &bindings::twinpage_shim_slot) -> Slot {
    Slot {
        as_id: slot.as_id,
        id: slot.id,
        flags: slot.flags,
        gmem: slot.gmem != 0,
        base_gfn: slot.base_gfn,
        pages: slot.npages,
        addr: slot.addr,
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is ours to give back, and `self` is not used again.
        // `Vms` outlives it.
        unsafe { bindings::twinpage_shim_vm_put(self.vm.as_ptr()) };
    }
}
