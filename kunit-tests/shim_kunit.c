// SPDX-License-Identifier: GPL-2.0
/*
 * The shim once more, for twinpage_kunit.ko: an object may not be in two
 * modules. And memory for tests to work on.
 */
#include "../rust/sys/shim/debugfs.c"
#include "../rust/sys/shim/frame.c"
#include "../rust/sys/shim/host.c"
#include "../rust/sys/shim/ksym.c"
#include "../rust/sys/shim/kvm.c"
#include "../rust/sys/shim/look.c"
#include "../rust/sys/shim/memory.c"
#include "../rust/sys/shim/share.c"

#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/mman.h>

#include "shim_kunit.h"

MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

/**
 * twinpage_kunit_map - map memory into the test's own address space.
 * @addr: where; what is mapped there goes. 0: anywhere.
 * @bytes: how much.
 * @shared: nonzero for shared memory.
 *
 * Gone when the test ends. Memory at an address that was asked for has other
 * flags, so that it and its neighbours do not become one mapping.
 *
 * Return: the address, 0 or a negative errno if that failed.
 */
unsigned long twinpage_kunit_map(unsigned long addr, unsigned long bytes,
				 int shared)
{
	struct kunit *test = kunit_get_current_test();
	unsigned long flags = shared ? MAP_SHARED : MAP_PRIVATE;

	if (!test)
		return 0;
	if (addr)
		flags |= MAP_FIXED | MAP_NORESERVE;
	return kunit_vm_mmap(test, NULL, addr, bytes, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | flags, 0);
}

/**
 * twinpage_kunit_entry - a page table entry of the test's own address space.
 * @addr: address of the page.
 *
 * Return: the entry with all its bits, 0 if there is none.
 */
unsigned long twinpage_kunit_entry(unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	unsigned long entry = 0;
	spinlock_t *ptl;
	pmd_t *pmd;
	pte_t *pte;

	mmap_read_lock(mm);
	pmd = vma_lookup(mm, addr) ? twinpage_find_pmd(mm, addr) : NULL;
	pte = pmd ? twinpage_pte_lock(mm, pmd, addr, &ptl) : NULL;
	if (pte) {
		entry = pte_val(ptep_get(pte));
		twinpage_pte_unlock(pte, ptl);
	}
	mmap_read_unlock(mm);
	return entry;
}
