// SPDX-License-Identifier: GPL-2.0
/* How much memory could be handed out before something must be killed. */
#include <linux/memcontrol.h>
#include <linux/mm.h>

#include "shim.h"

/**
 * twinpage_shim_pages_total - pages of memory that the host has.
 */
unsigned long twinpage_shim_pages_total(void)
{
	return totalram_pages();
}

/**
 * twinpage_shim_pages_available - pages that the host could hand out without
 * swapping.
 */
unsigned long twinpage_shim_pages_available(void)
{
	return max(si_mem_available(), 0L);
}

/**
 * twinpage_shim_cgroup_pages_left - pages that a process is still allowed.
 * @mm: the struct mm_struct of the process; alive as a structure.
 *
 * The least of what the process's memory cgroup and those above it have left.
 * May be out of date at once.
 */
unsigned long twinpage_shim_cgroup_pages_left(void *mm)
{
	unsigned long left = ULONG_MAX;
#ifdef CONFIG_MEMCG
	struct mem_cgroup *memcg = get_mem_cgroup_from_mm(mm);
	struct mem_cgroup *level;

	for (level = memcg; level; level = parent_mem_cgroup(level)) {
		unsigned long max = READ_ONCE(level->memory.max);
		unsigned long used = page_counter_read(&level->memory);

		left = min(left, max > used ? max - used : 0);
	}
	mem_cgroup_put(memcg);
#endif
	return left;
}
