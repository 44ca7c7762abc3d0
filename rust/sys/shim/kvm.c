// SPDX-License-Identifier: GPL-2.0
/* KVM VMs: taking hold of one by file descriptor, and its memslots. */
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/static_call.h>

#include "shim.h"

/* Exported to the vendor modules only, so bound by ksym.c. */
DECLARE_STATIC_CALL(twinpage_file_is_kvm, file_is_kvm);

/*
 * Encrypted memory cannot be compared, and invalidating it is dear
 * (arch/x86/kvm/svm/sev.c).
 */
static bool is_encrypted(struct kvm *kvm)
{
#ifdef CONFIG_X86
	return kvm->arch.vm_type != KVM_X86_DEFAULT_VM ||
	       kvm->arch.has_private_mem || kvm->arch.has_protected_state;
#else
	return kvm_arch_has_private_mem(kvm);
#endif
}

/**
 * twinpage_shim_vm_get - take hold of the VM behind a file descriptor.
 * @fd: a file descriptor of the caller's process.
 * @vm: out: the struct kvm, with a reference.
 * @owner: out: the vendor module, with a reference: destroying the VM runs its
 *	code, and a reference on the VM alone does not pin it.
 *
 * Return: 0; -EBADF, not an open file; -EINVAL, not a KVM VM; -EOPNOTSUPP,
 * encrypted memory; -ESRCH, the VM or its process is on its way out.
 */
int twinpage_shim_vm_get(int fd, void **vm, void **owner)
{
	CLASS(fd, f)(fd);
	struct kvm *kvm;

	if (fd_empty(f))
		return -EBADF;
	if (!static_call(twinpage_file_is_kvm)(fd_file(f)))
		return -EINVAL;
	kvm = fd_file(f)->private_data;
	if (is_encrypted(kvm))
		return -EOPNOTSUPP;
	if (!try_module_get(fd_file(f)->f_op->owner))
		return -ESRCH;
	/* Of a process that is gone there is no memory to merge. */
	if (kvm->vm_dead || !atomic_read(&kvm->mm->mm_users) ||
	    !kvm_get_kvm_safe(kvm)) {
		module_put(fd_file(f)->f_op->owner);
		return -ESRCH;
	}
	*vm = kvm;
	*owner = fd_file(f)->f_op->owner;
	return 0;
}

/**
 * twinpage_shim_vm_put - end of twinpage_shim_vm_get().
 * @vm: the VM.
 * @owner: its vendor module.
 *
 * Sleeps; may destroy the VM, so no lock may be held that KVM takes.
 */
void twinpage_shim_vm_put(void *vm, void *owner)
{
	kvm_put_kvm(vm);
	module_put(owner);
}

/**
 * twinpage_shim_vm_mm - address space that holds the VM's memory.
 * @vm: the VM.
 *
 * Return: the struct mm_struct, alive as a structure while @vm is held.
 */
void *twinpage_shim_vm_mm(void *vm)
{
	return ((struct kvm *)vm)->mm;
}

/**
 * twinpage_shim_vm_pid - process that a VM's memory belongs to.
 * @vm: the VM.
 *
 * Its thread group, or the thread that created the VM if the kernel keeps no
 * owner of an address space (CONFIG_MEMCG).
 */
int twinpage_shim_vm_pid(void *vm)
{
	struct kvm *kvm = vm;
#ifdef CONFIG_MEMCG
	struct task_struct *owner;
	int pid = 0;

	rcu_read_lock();
	owner = rcu_dereference(kvm->mm->owner);
	if (owner)
		pid = task_tgid_nr(owner);
	rcu_read_unlock();
	if (pid)
		return pid;
#endif
	return kvm->userspace_pid;
}

/**
 * twinpage_shim_vm_closed - does nobody but us hold the VM, or has it died?
 * @vm: the VM.
 */
int twinpage_shim_vm_closed(void *vm)
{
	struct kvm *kvm = vm;

	return kvm->vm_dead || refcount_read(&kvm->users_count) == 1;
}

/**
 * twinpage_shim_vm_slots - the memslots that userspace gave a VM.
 * @vm: the VM.
 * @slots: out: at most @max of them, in no order.
 * @max: room in @slots.
 *
 * KVM's own slots and those in the middle of a change are left out. Holds
 * kvm->srcu only here: memslot updates wait for it.
 *
 * Return: how many there are, which may be more than @max.
 */
long twinpage_shim_vm_slots(void *vm, struct twinpage_shim_slot *slots,
			    unsigned long max)
{
	struct kvm *kvm = vm;
	unsigned long n = 0;
	int as_id, srcu;

	srcu = srcu_read_lock(&kvm->srcu);
	for (as_id = 0; as_id < kvm_arch_nr_memslot_as_ids(kvm); as_id++) {
		/* Once: the macro asks again at each step, and KVM swaps sets. */
		struct kvm_memslots *slots_now = __kvm_memslots(kvm, as_id);
		struct kvm_memory_slot *slot;
		int bkt;

		kvm_for_each_memslot(slot, bkt, slots_now) {
			if (slot->id >= KVM_USER_MEM_SLOTS ||
			    slot->flags & KVM_MEMSLOT_INVALID)
				continue;
			if (n < max)
				slots[n] = (struct twinpage_shim_slot){
					.as_id = as_id,
					.id = slot->id,
					.flags = slot->flags,
					.gmem = kvm_slot_has_gmem(slot),
					.base_gfn = slot->base_gfn,
					.npages = slot->npages,
					.addr = slot->userspace_addr,
				};
			n++;
		}
	}
	srcu_read_unlock(&kvm->srcu, srcu);
	return n;
}
