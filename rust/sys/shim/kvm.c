// SPDX-License-Identifier: GPL-2.0
/* KVM VMs: taking hold of one by file descriptor, and its memslots. */
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/static_call.h>
#include <linux/workqueue.h>

#include "shim.h"

/* Exported to the vendor modules only, so bound by ksym.c. */
DECLARE_STATIC_CALL(twinpage_file_is_kvm, file_is_kvm);

/* A VM, with a reference. */
struct twinpage_vm {
	struct kvm *kvm;
	/*
	 * The vendor module, with a reference: destroying the VM runs its code,
	 * and a reference on the VM alone does not pin it.
	 */
	struct module *owner;
	struct work_struct destroy;
};

static struct kvm *kvm_of(void *held)
{
	return ((struct twinpage_vm *)held)->kvm;
}

/* Where VMs are destroyed. */
static struct workqueue_struct *twinpage_vms;

/**
 * twinpage_shim_vms_begin - before the first VM is taken hold of.
 *
 * Sleeps. Return: 0 or -ENOMEM.
 */
int twinpage_shim_vms_begin(void)
{
	twinpage_vms = alloc_workqueue("twinpage_vms", WQ_UNBOUND, 0);
	return twinpage_vms ? 0 : -ENOMEM;
}

/**
 * twinpage_shim_vms_end - when no VM is held any more.
 *
 * Waits until those are destroyed that nobody else held.
 */
void twinpage_shim_vms_end(void)
{
	destroy_workqueue(twinpage_vms);
}

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
 * @held: out: the struct twinpage_vm.
 *
 * Return: 0; -EBADF, not an open file; -EINVAL, not a KVM VM; -EOPNOTSUPP,
 * encrypted memory; -ESRCH, the VM or its process is on its way out; -ENOMEM.
 */
int twinpage_shim_vm_get(int fd, void **held)
{
	CLASS(fd, f)(fd);
	struct twinpage_vm *vm;
	struct module *owner;
	struct kvm *kvm;

	if (fd_empty(f))
		return -EBADF;
	if (!static_call(twinpage_file_is_kvm)(fd_file(f)))
		return -EINVAL;
	kvm = fd_file(f)->private_data;
	if (is_encrypted(kvm))
		return -EOPNOTSUPP;
	vm = kmalloc_obj(*vm);
	if (!vm)
		return -ENOMEM;
	owner = fd_file(f)->f_op->owner;
	if (!try_module_get(owner))
		goto free;
	/* Of a process that is gone there is no memory to merge. */
	if (READ_ONCE(kvm->vm_dead) || !atomic_read(&kvm->mm->mm_users) ||
	    !kvm_get_kvm_safe(kvm))
		goto put;
	vm->kvm = kvm;
	vm->owner = owner;
	*held = vm;
	return 0;
put:
	module_put(owner);
free:
	kfree(vm);
	return -ESRCH;
}

static void destroy(struct work_struct *work)
{
	struct twinpage_vm *vm = container_of(work, struct twinpage_vm, destroy);

	kvm_put_kvm(vm->kvm);
	module_put(vm->owner);
	kfree(vm);
}

/**
 * twinpage_shim_vm_put - end of twinpage_shim_vm_get().
 * @held: the VM.
 *
 * A VM that nobody else holds is destroyed elsewhere, later: that waits for a
 * thread of its process, which may stand still (arch/x86/kvm/mmu/mmu.c:
 * kvm_mmu_pre_destroy_vm, kernel/vhost_task.c:vhost_task_stop). Does not sleep.
 */
void twinpage_shim_vm_put(void *held)
{
	struct twinpage_vm *vm = held;

	if (!refcount_dec_not_one(&vm->kvm->users_count)) {
		INIT_WORK(&vm->destroy, destroy);
		queue_work(twinpage_vms, &vm->destroy);
		return;
	}
	module_put(vm->owner);
	kfree(vm);
}

/**
 * twinpage_shim_vm_same - are these the same VM?
 * @a: a VM.
 * @b: another hold of it, or another VM.
 */
int twinpage_shim_vm_same(void *a, void *b)
{
	return kvm_of(a) == kvm_of(b);
}

/**
 * twinpage_shim_vm_mm - address space that holds the VM's memory.
 * @vm: the VM.
 *
 * Return: the struct mm_struct, alive as a structure while @vm is held.
 */
void *twinpage_shim_vm_mm(void *vm)
{
	return kvm_of(vm)->mm;
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
	struct kvm *kvm = kvm_of(vm);
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
	struct kvm *kvm = kvm_of(vm);

	return READ_ONCE(kvm->vm_dead) || refcount_read(&kvm->users_count) == 1;
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
	struct kvm *kvm = kvm_of(vm);
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
