// SPDX-License-Identifier: GPL-2.0
/* How much memory could be handed out before something must be killed. */
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>

#include "mm.h"

/* Of the memory of nodes that a mapping is bound to, one part in this many stays free. */
#define NODE_FLOOR_DIVISOR 64

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

#ifdef CONFIG_NUMA
/*
 * Pages of a node that can be had without swapping, less those that stay free:
 * for the node, and below the marks at which the kernel begins to look for more.
 */
static long node_room(int nid)
{
	pg_data_t *node = NODE_DATA(nid);
	long room = -(long)(node->node_present_pages / NODE_FLOOR_DIVISOR);
	unsigned int i;

	for (i = 0; i < MAX_NR_ZONES; i++) {
		struct zone *zone = &node->node_zones[i];
		long free = zone_page_state(zone, NR_FREE_PAGES) +
			    zone_page_state(zone, NR_ZONE_INACTIVE_FILE);
		long kept = high_wmark_pages(zone) +
			    zone->lowmem_reserve[MAX_NR_ZONES - 1];

		room += max(free - kept, 0L);
	}
	return room;
}
#endif

/**
 * twinpage_nodes_have_room - may pages of a mapping get their own copies?
 * @vma: the mapping; its mmap lock is held.
 * @pages: how many.
 *
 * What is bound to nodes that are full has the OOM killer called for it, however
 * much memory others have (mm/oom_kill.c, CONSTRAINT_MEMORY_POLICY). May be out
 * of date at once.
 */
bool twinpage_nodes_have_room(struct vm_area_struct *vma, unsigned int pages)
{
#ifdef CONFIG_NUMA
	struct mempolicy *policy = vma->vm_policy;
	long room = 0;
	int nid;

	if (!policy || policy->mode != MPOL_BIND)
		return true;
	for_each_node_mask(nid, policy->nodes)
		room += node_room(nid);
	return room > (long)pages;
#else
	return true;
#endif
}
