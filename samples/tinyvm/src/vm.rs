// SPDX-License-Identifier: GPL-2.0

//! A KVM VM and its memslots.

use std::os::fd::{
    AsRawFd,
    FromRawFd,
    OwnedFd,
    RawFd, //
};

use kvm_bindings::{
    kvm_create_guest_memfd,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
    KVM_MEM_GUEST_MEMFD, //
};
use kvm_ioctls::{
    Kvm,
    VcpuFd,
    VmFd, //
};

use crate::{
    Error,
    Memory,
    PAGE_BYTES, //
};

/// A memslot: guest physical addresses that show a range of the process's memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// Number of the slot in its address space.
    pub number: u16,
    /// Address space: 0, or 1 for system management mode.
    pub address_space: u16,
    /// First guest physical address.
    pub guest: u64,
    /// First address in this process.
    pub host: u64,
    /// How many pages; 0 takes the slot away.
    pub pages: usize,
    /// `KVM_MEM_*`.
    pub flags: u32,
}

/// A VM without devices.
pub struct Vm {
    // Dropped in this order: the VM goes before the KVM handle.
    vm: VmFd,
    _kvm: Kvm,
}

impl Vm {
    /// Creates a VM.
    ///
    /// # Errors
    ///
    /// No `/dev/kvm`, or KVM refuses.
    pub fn new() -> Result<Vm, Error> {
        let kvm = Kvm::new().map_err(Error::kvm("open /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(Error::kvm("create a VM"))?;
        Ok(Vm { vm, _kvm: kvm })
    }

    /// Creates a VM with all of some memory in one slot, number 0, from guest address 0 on.
    ///
    /// # Errors
    ///
    /// No `/dev/kvm`, or KVM refuses.
    pub fn over(memory: &Memory) -> Result<Vm, Error> {
        let vm = Vm::new()?;
        vm.set_slot(Slot {
            host: memory.address(),
            pages: memory.pages(),
            ..Slot::default()
        })?;
        Ok(vm)
    }

    /// Adds, moves, changes or takes away a memslot, as KVM_SET_USER_MEMORY_REGION does.
    ///
    /// # Errors
    ///
    /// KVM's.
    pub fn set_slot(&self, slot: Slot) -> Result<(), Error> {
        let region = kvm_userspace_memory_region {
            slot: (u32::from(slot.address_space) << 16) | u32::from(slot.number),
            flags: slot.flags,
            guest_phys_addr: slot.guest,
            memory_size: (slot.pages * PAGE_BYTES) as u64,
            userspace_addr: slot.host,
        };
        // SAFETY: KVM checks every access to the range as it would a read() or write() of this
        // process, so a range that is not or no longer mapped cannot make this program unsound; the
        // guest's writes go to `Memory`, which is accessed in volatile words only.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(Error::kvm("set a memslot"))
    }

    /// Adds a memslot that has memory of the guest's own, in a guest_memfd, beside that of this
    /// process.
    ///
    /// # Errors
    ///
    /// KVM's; ENOTTY if it has no such thing.
    pub fn add_private_slot(&self, slot: Slot) -> Result<(), Error> {
        let bytes = (slot.pages * PAGE_BYTES) as u64;
        let file = self
            .vm
            .create_guest_memfd(kvm_create_guest_memfd {
                size: bytes,
                ..Default::default()
            })
            .map_err(Error::kvm("create a guest_memfd"))?;
        // SAFETY: KVM has just made the file for this caller, and nobody else knows its number.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        let region = kvm_userspace_memory_region2 {
            slot: (u32::from(slot.address_space) << 16) | u32::from(slot.number),
            flags: slot.flags | KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: slot.guest,
            memory_size: bytes,
            userspace_addr: slot.host,
            guest_memfd: file.as_raw_fd() as u32,
            ..Default::default()
        };
        // SAFETY: as in `set_slot`; KVM has a reference of its own on the file.
        unsafe { self.vm.set_user_memory_region2(region) }.map_err(Error::kvm("set a memslot"))
    }

    /// The pages the guest has written since the last call, one bit each; clears the log.
    ///
    /// # Errors
    ///
    /// KVM's, for example when the slot has no KVM_MEM_LOG_DIRTY_PAGES.
    pub fn dirty_pages(&self, slot: u16, pages: usize) -> Result<Vec<bool>, Error> {
        let words = self
            .vm
            .get_dirty_log(u32::from(slot), pages * PAGE_BYTES)
            .map_err(Error::kvm("read the dirty log"))?;
        Ok((0..pages)
            .map(|page| (words[page / 64] >> (page % 64)) & 1 == 1)
            .collect())
    }

    pub(crate) fn processor(&self) -> Result<VcpuFd, Error> {
        self.vm
            .create_vcpu(0)
            .map_err(Error::kvm("create a processor"))
    }
}

impl AsRawFd for Vm {
    fn as_raw_fd(&self) -> RawFd {
        self.vm.as_raw_fd()
    }
}
