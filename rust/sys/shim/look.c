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

/* One look: what is wanted of it, and what it has found so far. */
struct look {
	const unsigned long long *wanted;
	struct twinpage_shim_seen *seen;
	unsigned int runs;
	void **kept;
	int refusal;	/* why private pages of this mapping are refused, or -1 */
};

static struct twinpage_shim_seen found(unsigned int class, unsigned int arg)
{
	return (struct twinpage_shim_seen){ .class = class, .arg = arg };
}

/* The pages from the end of the last run up to end are so. */
static __always_inline void see(struct look *look, unsigned int end,
				struct twinpage_shim_seen now)
{
	struct twinpage_shim_seen *next = look->seen + look->runs;

	if (look->runs && next[-1].class == now.class &&
	    next[-1].arg == now.arg && next[-1].pfn == now.pfn) {
		next[-1].end = end;
		return;
	}
	now.end = end;
	*next = now;
	look->runs++;
}

static __always_inline struct twinpage_shim_seen
classify_page(const struct look *look, struct page *page)
{
	struct folio *folio = page_folio(page);
	struct twinpage_shim_seen copy;

	if (folio_is_zone_device(folio))
		return found(TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_SPECIAL);
	if (PageHWPoison(page))
		return found(TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_POISON);
	if (twinpage_is_copy(folio)) {
		copy = found(TWINPAGE_SHIM_MERGED, READ_ONCE(page->private));
		copy.pfn = page_to_pfn(page);
		return copy;
	}
	if (!folio_test_anon(folio))
		return found(TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_SHARED);
	if (folio_test_ksm(folio))
		return found(TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_KSM);
	if (look->refusal >= 0)
		return found(TWINPAGE_SHIM_SKIP, look->refusal);
	return found(folio_test_large(folio) ? TWINPAGE_SHIM_HUGE :
					       TWINPAGE_SHIM_ANON,
		     folio_nid(folio));
}

static bool is_private(struct twinpage_shim_seen now)
{
	return now.class == TWINPAGE_SHIM_ANON || now.class == TWINPAGE_SHIM_HUGE;
}

static struct twinpage_shim_seen classify_pte(const struct look *look, pte_t pte)
{
	unsigned long pfn = pte_pfn(pte);
	struct twinpage_shim_seen now;

	if (!pte_present(pte))
		return found(TWINPAGE_SHIM_ABSENT, 0);
	if (is_zero_pfn(pfn))
		return found(TWINPAGE_SHIM_ZERO, 0);
	if (pte_special(pte))
		return found(TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_SPECIAL);
	now = classify_page(look, pfn_to_page(pfn));
	if (pte_uffd(pte) && is_private(now))
		return found(TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_UFFD);
	return now;
}

/* Keeps a private page if it is wanted: its bytes may be hashed. */
static void keep(const struct look *look, unsigned int i, struct page *page)
{
	if (!(look->wanted[i / 64] >> (i % 64) & 1))
		return;
	folio_get(page_folio(page));
	look->kept[i] = page;
}

static void look_folio(struct look *look, struct page *head, unsigned int first,
		       unsigned int end)
{
	unsigned int i;

	for (i = first; i < end; i++) {
		struct twinpage_shim_seen now = classify_page(look, head + i);

		see(look, i + 1, now);
		if (is_private(now))
			keep(look, i, head + i);
	}
}

/* Looks at a huge pmd. False if it is not one any more. */
static bool look_huge(struct look *look, struct mm_struct *mm, pmd_t *pmd,
		      unsigned int first, unsigned int end)
{
	spinlock_t *ptl = pmd_lock(mm, pmd);
	pmd_t val = pmdp_get(pmd);
	bool huge = pmd_present(val) && pmd_trans_huge(val);

	/* The huge zero folio is neither anonymous nor a copy of ours. */
	if (huge && pmd_uffd(val))
		see(look, end, found(TWINPAGE_SHIM_SKIP, TWINPAGE_SHIM_SKIP_UFFD));
	else if (huge && !folio_test_anon(page_folio(pmd_page(val))))
		see(look, end, found(TWINPAGE_SHIM_ZERO, 0));
	else if (huge)
		look_folio(look, pmd_page(val), first, end);
	spin_unlock(ptl);
	return huge;
}

/* How many of the next entries are val. */
static unsigned int equal_entries(pte_t *pte, pte_t val, unsigned int most)
{
	unsigned int n = 0;

	while (n < most && pte_same(ptep_get(pte + n), val))
		n++;
	return n;
}

/*
 * An entry that is not of a private page is of the zero page, of a copy, or
 * empty, and so are those after it that are equal.
 */
static void look_entries(struct look *look, pte_t *pte, unsigned int first,
			 unsigned int end)
{
	unsigned int i = first;

	while (i < end) {
		pte_t val = ptep_get(pte + (i - first));
		struct twinpage_shim_seen now = classify_pte(look, val);

		if (is_private(now))
			keep(look, i, pte_page(val));
		i++;
		if (!is_private(now))
			i += equal_entries(pte + (i - first), val, end - i);
		see(look, i, now);
	}
}

/* Entries that are looked at under one hold of the page table lock. */
#define HOLD 128

static void look_table(struct look *look, struct vm_area_struct *vma,
		       unsigned long block, unsigned int first,
		       unsigned int end)
{
	struct mm_struct *mm = vma->vm_mm;
	pmd_t *pmd = twinpage_find_pmd(mm, block + first * PAGE_SIZE);
	spinlock_t *ptl;
	pte_t *pte;

	if (pmd && pmd_trans_huge(pmdp_get_lockless(pmd)) &&
	    look_huge(look, mm, pmd, first, end))
		return;
	while (pmd && first < end) {
		unsigned int until = min(end, first + HOLD);

		pte = twinpage_pte_lock(mm, pmd, block + first * PAGE_SIZE, &ptl);
		if (!pte)
			break;
		look_entries(look, pte, first, until);
		twinpage_pte_unlock(pte, ptl);
		first = until;
	}
	if (first < end)
		see(look, end, found(TWINPAGE_SHIM_ABSENT, 0));
}

/*
 * The mapping may have been mlocked, watched or made read-only after pages of
 * it were merged: copies are reported, watched ones too, private pages refused.
 */
bool twinpage_vma_holds_copies(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma) && !is_vm_hugetlb_page(vma) &&
	       !(vma->vm_flags & (VM_SHARED | VM_MAYSHARE | VM_SPECIAL));
}

/**
 * twinpage_shim_look - what is mapped in part of one page table.
 * @mm: the struct mm_struct; its mmap lock is held for reading.
 * @block: address of a page of the table.
 * @first: index of the first page to look at.
 * @end: index after the last one, at most TWINPAGE_SHIM_TABLE_PAGES.
 * @wanted: bitmap by page index: pages to keep.
 * @seen: out: runs of pages that are alike, room for @end - @first of them; the
 *	first one begins with @first, each other where the one before ends.
 * @kept: in and out, by page index: a wanted page that is ANON or HUGE is
 *	written here with a reference; other entries are left as they are.
 *
 * The page table lock is taken for some entries at a time, and not held on
 * return.
 *
 * Return: how many runs there are.
 */
unsigned int twinpage_shim_look(void *mm, unsigned long block,
				unsigned int first, unsigned int end,
				const unsigned long long *wanted,
				struct twinpage_shim_seen *seen, void **kept)
{
	struct look look = { .wanted = wanted, .seen = seen, .kept = kept };

	block &= PMD_MASK;
	while (first < end) {
		unsigned long addr = block + first * PAGE_SIZE;
		struct vm_area_struct *vma = find_vma(mm, addr);
		unsigned int until = end;

		if (!vma || vma->vm_start > addr) {
			if (vma)
				until = min_t(unsigned long, end,
					      (vma->vm_start - block) / PAGE_SIZE);
			see(&look, until, found(TWINPAGE_SHIM_SKIP,
						TWINPAGE_SHIM_SKIP_NO_VMA));
			first = until;
			continue;
		}
		until = min_t(unsigned long, end,
			      (vma->vm_end - block) / PAGE_SIZE);
		look.refusal = twinpage_vma_refusal(vma);
		if (look.refusal < 0 || twinpage_vma_holds_copies(vma))
			look_table(&look, vma, block, first, until);
		else
			see(&look, until, found(TWINPAGE_SHIM_SKIP, look.refusal));
		first = until;
	}
	return look.runs;
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
