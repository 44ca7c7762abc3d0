// SPDX-License-Identifier: GPL-2.0
/*
 * Kernel functions that are not exported to modules: found once at load, bound
 * to static calls (direct calls, so IBT does not matter), all or nothing for
 * the ones that merging cannot do without.
 *
 * kallsyms_lookup_name() is itself not exported; a kprobe on it tells its
 * address (kernel/kprobes.c).
 */
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/kvm_host.h>
#include <linux/utsname.h>

#include "mm.h"

DEFINE_STATIC_CALL_NULL(twinpage_lookup, kallsyms_lookup_name);
DEFINE_STATIC_CALL_NULL(twinpage_range_start, __mmu_notifier_invalidate_range_start);
DEFINE_STATIC_CALL_NULL(twinpage_range_end, __mmu_notifier_invalidate_range_end);
DEFINE_STATIC_CALL_NULL(twinpage_remove_rmap, folio_remove_rmap_ptes);
DEFINE_STATIC_CALL_NULL(twinpage_file_is_kvm, file_is_kvm);
DEFINE_STATIC_CALL_NULL(twinpage_split, __split_huge_page_to_list_to_order);
DEFINE_STATIC_CALL_NULL(twinpage_free_swap, folio_free_swap);
DEFINE_STATIC_CALL_NULL(twinpage_lru_drain, lru_add_drain_all);
#if IS_ENABLED(CONFIG_DEBUG_VM)
DEFINE_STATIC_CALL_NULL(twinpage_add_rmap, folio_add_anon_rmap_ptes);
#define TWINPAGE_ADD_RMAP "folio_add_anon_rmap_ptes"
#else
DEFINE_STATIC_CALL_NULL(twinpage_add_rmap, folio_add_file_rmap_ptes);
#define TWINPAGE_ADD_RMAP "folio_add_file_rmap_ptes"
#endif

static unsigned int twinpage_features;

bool twinpage_has(unsigned int feature)
{
	return twinpage_features & feature;
}

static unsigned long twinpage_find_lookup(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long addr = 0;
	int err;

	err = register_kprobe(&probe);
	if (err) {
		pr_err("twinpage: cannot find kernel symbols: kprobe on kallsyms_lookup_name failed with %d on %s (no CONFIG_KPROBES, or kprobes disabled?)\n",
		       err, init_utsname()->release);
		return 0;
	}
	addr = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	return addr;
}

static unsigned long twinpage_lookup_one(const char *name, bool hard)
{
	unsigned long addr = static_call(twinpage_lookup)(name);

	if (!addr && hard)
		pr_err("twinpage: kernel %s has no symbol %s, which merging needs\n",
		       init_utsname()->release, name);
	else if (!addr)
		pr_notice("twinpage: kernel %s has no symbol %s: the feature that needs it is off\n",
			  init_utsname()->release, name);
	return addr;
}

/* Each static call has a type of its own, so this cannot be a function. */
#define TWINPAGE_BIND(call, name, hard)					\
({									\
	unsigned long __addr = twinpage_lookup_one(name, hard);		\
									\
	if (__addr)							\
		static_call_update(call, (void *)__addr);		\
	__addr != 0;							\
})

/**
 * twinpage_shim_bind - find and bind every unexported function.
 * @features: out: TWINPAGE_SHIM_HAS_* of the optional ones.
 *
 * Sleeps. Must succeed before any other function of the shim is called; after a
 * failure nothing is left behind.
 *
 * Return: 0, or -ENOENT if a function is missing without which nothing works
 * (named in the kernel log).
 */
int twinpage_shim_bind(unsigned int *features)
{
	unsigned long lookup = twinpage_find_lookup();
	unsigned long flush;
	bool all = true;

	if (!lookup)
		return -ENOENT;
	static_call_update(twinpage_lookup, (void *)lookup);

	flush = twinpage_lookup_one("flush_tlb_mm_range", true);
	all &= flush != 0;
	all &= TWINPAGE_BIND(twinpage_range_start,
			     "__mmu_notifier_invalidate_range_start", true);
	all &= TWINPAGE_BIND(twinpage_range_end,
			     "__mmu_notifier_invalidate_range_end", true);
	all &= TWINPAGE_BIND(twinpage_remove_rmap, "folio_remove_rmap_ptes", true);
	all &= TWINPAGE_BIND(twinpage_add_rmap, TWINPAGE_ADD_RMAP, true);
	/* In kvm.ko, which this module links to: it is there, and stays. */
	all &= TWINPAGE_BIND(twinpage_file_is_kvm, "file_is_kvm", true);
	if (!all)
		return -ENOENT;
	twinpage_flush_bind(flush);

	twinpage_features = 0;
	if (TWINPAGE_BIND(twinpage_split, "__split_huge_page_to_list_to_order", false))
		twinpage_features |= TWINPAGE_SHIM_HAS_SPLIT;
	if (TWINPAGE_BIND(twinpage_free_swap, "folio_free_swap", false))
		twinpage_features |= TWINPAGE_SHIM_HAS_FREE_SWAP;
	if (TWINPAGE_BIND(twinpage_lru_drain, "lru_add_drain_all", false))
		twinpage_features |= TWINPAGE_SHIM_HAS_LRU_DRAIN;
	*features = twinpage_features;
	return 0;
}

/**
 * twinpage_shim_lru_drain - move freshly faulted pages from the per-CPU batches
 * to the LRU lists, where they hold no extra reference.
 *
 * Sleeps. Does nothing if the kernel lacks the function.
 */
void twinpage_shim_lru_drain(void)
{
	if (twinpage_has(TWINPAGE_SHIM_HAS_LRU_DRAIN))
		static_call(twinpage_lru_drain)();
}
