/* SPDX-License-Identifier: GPL-2.0 */
/* What the C files of the shim share among themselves. Not seen by Rust. */
#ifndef TWINPAGE_SHIM_MM_H
#define TWINPAGE_SHIM_MM_H

#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/static_call.h>
#include <linux/swap.h>
#include <linux/userfaultfd_k.h>

#include "flush.h"
#include "shim.h"

/*
 * Unexported kernel functions, bound by ksym.c before anything else runs. Each
 * static call takes its type from the kernel's own prototype, so a changed
 * prototype fails the build.
 */
DECLARE_STATIC_CALL(twinpage_range_start, __mmu_notifier_invalidate_range_start);
DECLARE_STATIC_CALL(twinpage_range_end, __mmu_notifier_invalidate_range_end);
DECLARE_STATIC_CALL(twinpage_remove_rmap, folio_remove_rmap_ptes);
DECLARE_STATIC_CALL(twinpage_split, __split_huge_page_to_list_to_order);
DECLARE_STATIC_CALL(twinpage_free_swap, folio_free_swap);

/*
 * A merged copy is a kernel page mapped like a file page: mapping NULL, counted
 * in MM_FILEPAGES. Assertions of CONFIG_DEBUG_VM insist that a normal page in
 * an anonymous mapping is PageAnon, so there it is dressed as a KSM folio
 * without a stable node. Documentation/design.rst, "Two kinds of copy".
 */
#define TWINPAGE_COPY_IS_ANON IS_ENABLED(CONFIG_DEBUG_VM)

#if IS_ENABLED(CONFIG_DEBUG_VM)
DECLARE_STATIC_CALL(twinpage_add_rmap, folio_add_anon_rmap_ptes);
#else
DECLARE_STATIC_CALL(twinpage_add_rmap, folio_add_file_rmap_ptes);
#endif

bool twinpage_has(unsigned int feature);

/* Why pages of this mapping cannot be merged; -1 if they can. */
int twinpage_vma_refusal(struct vm_area_struct *vma);

/* May pages of this mapping be merged copies? */
bool twinpage_vma_holds_copies(struct vm_area_struct *vma);

/* May so many pages of this mapping get their own copies? */
bool twinpage_nodes_have_room(struct vm_area_struct *vma, unsigned int pages);

/* Is this folio a merged copy, ours or of an earlier load? */
static inline bool twinpage_is_copy(struct folio *folio)
{
	if (folio_test_large(folio))
		return false;
	if (TWINPAGE_COPY_IS_ANON)
		return folio->mapping == (void *)FOLIO_MAPPING_KSM;
	return !folio->mapping && !folio_test_lru(folio) &&
	       !folio_test_swapcache(folio) && !folio_test_reserved(folio);
}

/* The pmd that covers addr, or NULL if there is no table down to it. */
pmd_t *twinpage_find_pmd(struct mm_struct *mm, unsigned long addr);

/*
 * pte_offset_map_lock() without its unexported body: maps and locks the page
 * table under pmd, or returns NULL if there is none (empty or huge). Ends with
 * twinpage_pte_unlock().
 */
pte_t *twinpage_pte_lock(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
			 spinlock_t **ptl);

static inline void twinpage_pte_unlock(pte_t *pte, spinlock_t *ptl)
{
	spin_unlock(ptl);
	pte_unmap(pte);
}

#endif /* TWINPAGE_SHIM_MM_H */
