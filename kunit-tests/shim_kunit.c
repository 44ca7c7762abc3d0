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
 * @bytes: how much.
 * @shared: nonzero for shared memory.
 *
 * Gone when the test ends.
 *
 * Return: the address, 0 if that failed.
 */
unsigned long twinpage_kunit_map(unsigned long bytes, int shared)
{
	struct kunit *test = kunit_get_current_test();

	if (!test)
		return 0;
	return kunit_vm_mmap(test, NULL, 0, bytes, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | (shared ? MAP_SHARED : MAP_PRIVATE),
			     0);
}
