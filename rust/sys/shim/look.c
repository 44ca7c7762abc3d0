// SPDX-License-Identifier: GPL-2.0
/* What page tables hold: one lock and one walk for a whole table. */
#include <linux/hugetlb.h>

#include "mm.h"

pmd_t *twinpage_find_pmd(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return NULL;
	pud = pud_offset(p4d, addr);
	if (pud_none(*pud) || pud_leaf(*pud) || pud_bad(*pud))
		return NULL;
	return pmd_offset(pud, addr);
}

pte_t *twinpage_pte_lock(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
			 spinlock_t **ptl)
{
	for (;;) {
		spinlock_t *lock;
		pmd_t val;
		pte_t *pte;

		rcu_read_lock();
		val = pmdp_get_lockless(pmd);
		if (pmd_none(val) || !pmd_present(val) || pmd_leaf(val) ||
		    pmd_bad(val)) {
			rcu_read_unlock();
			return NULL;
		}
		pte = pte_offset_kernel(&val, addr);
		lock = pte_lockptr(mm, &val);
		spin_lock(lock);
		if (likely(pmd_same(val, pmdp_get_lockless(pmd)))) {
			*ptl = lock;
			return pte;
		}
		twinpage_pte_unlock(pte, lock);
	}
}

int twinpage_vma_refusal(struct vm_area_struct *vma)
{
	if (is_vm_hugetlb_page(vma))
		return TWINPAGE_SHIM_SKIP_HUGETLB;
	if (vma->vm_flags & (VM_SHARED | VM_MAYSHARE))
		return TWINPAGE_SHIM_SKIP_SHARED;
	if (vma->vm_flags & VM_SPECIAL)
		return TWINPAGE_SHIM_SKIP_SPECIAL;
	/* Truncation would zap a copy in a private file mapping: merged = lost. */
	if (!vma_is_anonymous(vma))
		return TWINPAGE_SHIM_SKIP_SHARED;
	if (vma->vm_flags & VM_LOCKED)
		return TWINPAGE_SHIM_SKIP_LOCKED;
	if (userfaultfd_wp(vma) || userfaultfd_rwp(vma))
		return TWINPAGE_SHIM_SKIP_UFFD;
	if (vma->vm_flags & (VM_DROPPABLE | VM_SHADOW_STACK))
		return TWINPAGE_SHIM_SKIP_SPECIAL;
	if ((vma->vm_flags & (VM_READ | VM_WRITE)) != (VM_READ | VM_WRITE))
		return TWINPAGE_SHIM_SKIP_SPECIAL;
	return -1;
}

static void set(struct twinpage_shim_seen *seen, unsigned int class,
		unsigned int arg)
{
	seen->class = class;
	seen->arg = arg;
	seen->pfn = 0;
}

static void fill(struct twinpage_shim_seen *seen, unsigned int from,
		 unsigned int to, unsigned int class, unsigned int arg)
{
	while (from < to)
		set(&seen[from++], class, arg);
}

/* Says what a mapped page is; true if its bytes may be hashed. */
static bool classify_page(struct page *page, struct twinpage_shim_seen *seen)
{
	struct folio *folio = page_folio(page);

	if (folio_is_zone_device(folio)) {
		set(seen, TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_SPECIAL);
	} else if (PageHWPoison(page)) {
		set(seen, TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_POISON);
	} else if (twinpage_is_copy(folio)) {
		set(seen, TWINPAGE_SHIM_MERGED, page_private(page));
		seen->pfn = page_to_pfn(page);
	} else if (!folio_test_anon(folio)) {
		set(seen, TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_SHARED);
	} else if (folio_test_ksm(folio)) {
		set(seen, TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_KSM);
	} else {
		set(seen, folio_test_large(folio) ? TWINPAGE_SHIM_HUGE :
						    TWINPAGE_SHIM_ANON,
		    folio_nid(folio));
		return true;
	}
	return false;
}

static bool classify_pte(pte_t pte, struct twinpage_shim_seen *seen)
{
	if (!pte_present(pte))
		set(seen, TWINPAGE_SHIM_ABSENT, 0);
	else if (is_zero_pfn(pte_pfn(pte)))
		set(seen, TWINPAGE_SHIM_ZERO, 0);
	else if (pte_special(pte))
		set(seen, TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_SPECIAL);
	else if (pte_uffd(pte))
		set(seen, TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_UFFD);
	else
		return classify_page(pte_page(pte), seen);
	return false;
}

static bool wants(const unsigned long long *wanted, unsigned int i)
{
	return wanted[i / 64] >> (i % 64) & 1;
}

static void keep(struct page *page, void **kept)
{
	folio_get(page_folio(page));
	*kept = page;
}

/* Looks at a huge pmd. False if it is not one any more. */
static bool look_huge(struct mm_struct *mm, pmd_t *pmd, unsigned int first,
		      unsigned int end, const unsigned long long *wanted,
		      struct twinpage_shim_seen *seen, void **kept)
{
	spinlock_t *ptl = pmd_lock(mm, pmd);
	pmd_t val = pmdp_get(pmd);
	struct page *head;
	unsigned int i;

	if (!pmd_present(val) || !pmd_trans_huge(val)) {
		spin_unlock(ptl);
		return false;
	}
	head = pmd_page(val);
	for (i = first; i < end; i++) {
		struct page *page = head + i;

		/* The huge zero folio is neither anonymous nor a copy of ours. */
		if (pmd_uffd(val))
			set(&seen[i], TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_UFFD);
		else if (!folio_test_anon(page_folio(head)))
			set(&seen[i], TWINPAGE_SHIM_ZERO, 0);
		else if (classify_page(page, &seen[i]) && wants(wanted, i))
			keep(page, &kept[i]);
	}
	spin_unlock(ptl);
	return true;
}

static void look_table(struct vm_area_struct *vma, unsigned long block,
		       unsigned int first, unsigned int end,
		       const unsigned long long *wanted,
		       struct twinpage_shim_seen *seen, void **kept)
{
	struct mm_struct *mm = vma->vm_mm;
	unsigned long addr = block + first * PAGE_SIZE;
	pmd_t *pmd = twinpage_find_pmd(mm, addr);
	spinlock_t *ptl;
	unsigned int i;
	pte_t *pte;

	fill(seen, first, end, TWINPAGE_SHIM_ABSENT, 0);
	if (!pmd)
		return;
	if (pmd_trans_huge(pmdp_get_lockless(pmd)) &&
	    look_huge(mm, pmd, first, end, wanted, seen, kept))
		return;
	pte = twinpage_pte_lock(mm, pmd, addr, &ptl);
	if (!pte)
		return;
	for (i = first; i < end; i++) {
		pte_t val = ptep_get(pte + (i - first));

		if (classify_pte(val, &seen[i]) && wants(wanted, i))
			keep(pte_page(val), &kept[i]);
	}
	twinpage_pte_unlock(pte, ptl);
}

/*
 * The mapping may have been mlocked, watched or made read-only after pages of
 * it were merged.
 */
static bool may_hold_copies(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma) && !is_vm_hugetlb_page(vma) &&
	       !(vma->vm_flags & (VM_SHARED | VM_MAYSHARE | VM_SPECIAL));
}

/* Copies are reported, private pages are refused. */
static void look_refused(struct vm_area_struct *vma, unsigned long block,
			 unsigned int first, unsigned int end, int refusal,
			 struct twinpage_shim_seen *seen)
{
	static const unsigned long long none[TWINPAGE_SHIM_TABLE_PAGES / 64];
	unsigned int i;

	look_table(vma, block, first, end, none, seen, NULL);
	for (i = first; i < end; i++)
		if (seen[i].class == TWINPAGE_SHIM_ANON ||
		    seen[i].class == TWINPAGE_SHIM_HUGE)
			set(&seen[i], TWINPAGE_SHIM_SKIP, refusal);
}

/**
 * twinpage_shim_look - what is mapped in part of one page table.
 * @mm: the struct mm_struct; its mmap lock is held for reading.
 * @block: address of the first page of the table, a multiple of 2 MiB.
 * @first: index of the first page to look at.
 * @end: index after the last one, at most TWINPAGE_SHIM_TABLE_PAGES.
 * @wanted: bitmap by page index: pages to keep.
 * @seen: out, by page index: what was found.
 * @kept: in and out, by page index: a wanted page that is ANON or HUGE is
 *	written here with a reference; other entries are left as they are.
 *
 * The page table lock is taken once, and not held on return.
 */
void twinpage_shim_look(void *mm, unsigned long block, unsigned int first,
			unsigned int end, const unsigned long long *wanted,
			struct twinpage_shim_seen *seen, void **kept)
{
	while (first < end) {
		unsigned long addr = block + first * PAGE_SIZE;
		struct vm_area_struct *vma = find_vma(mm, addr);
		unsigned int until = end;
		int refusal;

		if (!vma || vma->vm_start > addr) {
			if (vma)
				until = min_t(unsigned long, end,
					      (vma->vm_start - block) / PAGE_SIZE);
			fill(seen, first, until, TWINPAGE_SHIM_SKIP,
			     TWINPAGE_SHIM_SKIP_NO_VMA);
			first = until;
			continue;
		}
		until = min_t(unsigned long, end,
			      (vma->vm_end - block) / PAGE_SIZE);
		refusal = twinpage_vma_refusal(vma);
		if (refusal < 0)
			look_table(vma, block, first, until, wanted, seen, kept);
		else if (may_hold_copies(vma))
			look_refused(vma, block, first, until, refusal, seen);
		else
			fill(seen, first, until, TWINPAGE_SHIM_SKIP, refusal);
		first = until;
	}
}

/**
 * twinpage_shim_page_map - address at which a kept page can be read.
 * @page: a page kept by twinpage_shim_look().
 *
 * Its bytes may change at any moment. Ends with twinpage_shim_page_unmap().
 */
void *twinpage_shim_page_map(void *page)
{
	return kmap_local_page(page);
}

/**
 * twinpage_shim_page_unmap - end of twinpage_shim_page_map().
 * @addr: what it returned.
 */
void twinpage_shim_page_unmap(void *addr)
{
	kunmap_local(addr);
}

/**
 * twinpage_shim_page_put - gives up a page kept by twinpage_shim_look().
 * @page: the page. It may be freed here. Does not sleep.
 */
void twinpage_shim_page_put(void *page)
{
	folio_put(page_folio((struct page *)page));
}
