// SPDX-License-Identifier: GPL-2.0
/*
 * Replacing page table entries: the one-step merge, and its way back.
 *
 * Documentation/design.rst, "Merging", argues why one step is enough; the order
 * of locks is in Documentation/locking.rst.
 */
#include "mm.h"

/* One page on its way from its own frame to the target. */
struct page_move {
	struct page *page;	/* locked, its entry cleared; NULL if refused */
	pte_t old;
};

/* Words that are compared at once: 256 bytes, four cache lines. */
#define WORDS 32

/* Not 0 if 8 words differ. Written out: a loop costs three times as much. */
static __always_inline unsigned long differ8(const unsigned long *a,
					     const unsigned long *b)
{
	return (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) |
	       (a[4] ^ b[4]) | (a[5] ^ b[5]) | (a[6] ^ b[6]) | (a[7] ^ b[7]);
}

static __always_inline unsigned long differ(const unsigned long *a,
					    const unsigned long *b)
{
	return differ8(a, b) | differ8(a + 8, b + 8) |
	       differ8(a + 16, b + 16) | differ8(a + 24, b + 24);
}

/* Are two pages equal? Nobody may write to them. A NULL @target: zeroes. */
static bool pages_equal(struct page *page, struct page *target)
{
	const unsigned long *a = kmap_local_page(page);
	const unsigned long *b = kmap_local_page(target ?: ZERO_PAGE(0));
	unsigned int i = 0;

	while (i < PAGE_SIZE / sizeof(*a) && !differ(a + i, b + i))
		i += WORDS;
	kunmap_local(b);
	kunmap_local(a);
	return i == PAGE_SIZE / sizeof(*a);
}

/*
 * What pte maps, if it may be replaced: a small private page. An entry without
 * rights in a mapping that has them is a NUMA hint, which does not matter here:
 * idle memory of a host with several nodes is full of them.
 */
static struct page *candidate(pte_t pte, unsigned char *result)
{
	unsigned long pfn = pte_pfn(pte);
	struct folio *folio;
	struct page *page;

	*result = TWINPAGE_SHIM_GONE;
	if (!pte_present(pte) || pte_special(pte) || pte_uffd(pte) ||
	    is_zero_pfn(pfn))
		return NULL;
	page = pfn_to_page(pfn);
	folio = page_folio(page);
	if (folio_is_zone_device(folio) || !folio_test_anon(folio) ||
	    folio_test_ksm(folio) || folio_test_large(folio) ||
	    PageHWPoison(page))
		return NULL;
	*result = TWINPAGE_SHIM_PINNED;
	if (folio_expected_ref_count(folio) != folio_ref_count(folio))
		return NULL;
	return page;
}

/*
 * The mapping of addr, if pages of it may be replaced; *n is cut to its end, and
 * to that of the page table.
 */
static struct vm_area_struct *find_run(struct mm_struct *mm, unsigned long addr,
				       unsigned int *n)
{
	struct vm_area_struct *vma = find_vma(mm, addr);

	if (!vma || vma->vm_start > addr || twinpage_vma_refusal(vma) >= 0 ||
	    !vma->anon_vma)
		return NULL;
	*n = min3((unsigned long)*n, (vma->vm_end - addr) / PAGE_SIZE,
		  PTRS_PER_PTE - pte_index(addr));
	return vma;
}

/*
 * Which pages could be replaced, and whose target can be read: DONE, or why not.
 * A hint that costs no flush: what is pinned should not lose its mapping in the
 * VM again and again.
 */
static void check_run(struct mm_struct *mm, pmd_t *pmd, unsigned long addr,
		      unsigned int n, void *const *targets,
		      unsigned char *results)
{
	spinlock_t *ptl;
	unsigned int i;
	pte_t *pte;

	pte = twinpage_pte_lock(mm, pmd, addr, &ptl);
	if (!pte)
		return;
	for (i = 0; i < n; i++) {
		if (!candidate(ptep_get(pte + i), &results[i]))
			continue;
		results[i] = TWINPAGE_SHIM_DONE;
		if (targets[i] && PageHWPoison((struct page *)targets[i]))
			results[i] = TWINPAGE_SHIM_POISONED;
	}
	twinpage_pte_unlock(pte, ptl);
}

/* Locks the page and clears its entry: from the flush on, nobody can write. */
static void freeze(struct vm_area_struct *vma, unsigned long addr, pte_t *pte,
		   struct page_move *move, unsigned char *result)
{
	struct page *page = candidate(ptep_get(pte), result);

	if (!page)
		return;
	/* Holds off migration, reclaim and split; never sleep for it here. */
	if (!folio_trylock(page_folio(page))) {
		*result = TWINPAGE_SHIM_BUSY;
		return;
	}
	move->page = page;
	move->old = ptep_get_and_clear(vma->vm_mm, addr, pte);
}

/* After the flush: may the frozen page be replaced by its target? */
static bool may_replace(struct page_move *move, struct page *target,
			unsigned char *result)
{
	struct folio *folio = page_folio(move->page);

	/* ksmd makes a page its own under this lock. */
	*result = TWINPAGE_SHIM_GONE;
	if (folio_test_ksm(folio))
		return false;
	*result = TWINPAGE_SHIM_PINNED;
	if (folio_expected_ref_count(folio) != folio_ref_count(folio))
		return false;
	*result = TWINPAGE_SHIM_DIFFERS;
	if (!pages_equal(move->page, target))
		return false;
	*result = TWINPAGE_SHIM_PINNED;
	/* Once this succeeds the old entry must not come back writable. */
	if (PageAnonExclusive(move->page) &&
	    folio_try_share_anon_rmap_pte(folio, move->page))
		return false;
	*result = TWINPAGE_SHIM_DONE;
	return true;
}

/* Entry for a merged copy, with the rmap that goes with it. */
static pte_t map_copy(struct vm_area_struct *vma, unsigned long addr,
		      struct page *copy)
{
	struct folio *folio = page_folio(copy);

	folio_get(folio);
#if IS_ENABLED(CONFIG_DEBUG_VM)
	static_call(twinpage_add_rmap)(folio, copy, 1, vma, addr, RMAP_NONE);
#else
	static_call(twinpage_add_rmap)(folio, copy, 1, vma);
#endif
	return mk_pte(copy, vma->vm_page_prot);
}

/*
 * Entry for the shared zero page. Not dirty: a dirty one is ksmd's mark, and
 * would be subtracted from its count at unmap (include/linux/ksm.h).
 */
static pte_t map_zero(struct vm_area_struct *vma, unsigned long addr)
{
	return pte_mkspecial(pfn_pte(zero_pfn(addr), vma->vm_page_prot));
}

static void replace(struct vm_area_struct *vma, unsigned long addr, pte_t *pte,
		    struct page_move *move, struct page *target)
{
	struct folio *folio = page_folio(move->page);
	pte_t new;

	if (pte_dirty(move->old))
		folio_mark_dirty(folio);
	new = target ? map_copy(vma, addr, target) : map_zero(vma, addr);
	new = pte_wrprotect(new);
	if (pte_soft_dirty(move->old))
		new = pte_mksoft_dirty(new);
	set_pte_at(vma->vm_mm, addr, pte, new);
	static_call(twinpage_remove_rmap)(folio, move->page, 1, vma);
	/* Else the page would stay allocated until reclaim finds it. */
	if (folio_test_swapcache(folio) && !folio_mapped(folio) &&
	    twinpage_has(TWINPAGE_SHIM_HAS_FREE_SWAP))
		static_call(twinpage_free_swap)(folio);
}

/* The counters that go with pages which map copies and the zero page now. */
static void count_replaced(struct mm_struct *mm, long copies, long zeroes)
{
	long files = TWINPAGE_COPY_IS_ANON ? 0 : copies;

	if (zeroes)
		update_hiwater_rss(mm);
	percpu_counter_add(&mm->rss_stat[MM_ANONPAGES], -(files + zeroes));
	percpu_counter_add(&mm->rss_stat[MM_FILEPAGES], files);
}

static void replace_run(struct vm_area_struct *vma, unsigned long addr,
			pte_t *pte, unsigned int n, struct page_move *moves,
			void *const *targets, unsigned char *results)
{
	long copies = 0, zeroes = 0;
	bool frozen = false;
	unsigned int i;

	for (i = 0; i < n; i++) {
		freeze(vma, addr + i * PAGE_SIZE, pte + i, &moves[i], &results[i]);
		frozen |= !!moves[i].page;
	}
	if (!frozen)
		return;
	twinpage_flush(vma->vm_mm, addr, addr + n * PAGE_SIZE);
	/* Pairs with GUP-fast: it sees the entry gone, or we see its reference. */
	smp_mb();
	for (i = 0; i < n; i++) {
		unsigned long at = addr + i * PAGE_SIZE;

		if (!moves[i].page)
			continue;
		if (may_replace(&moves[i], targets[i], &results[i])) {
			replace(vma, at, pte + i, &moves[i], targets[i]);
			copies += !!targets[i];
			zeroes += !targets[i];
		} else {
			set_pte_at(vma->vm_mm, at, pte + i, moves[i].old);
		}
		folio_unlock(page_folio(moves[i].page));
	}
	count_replaced(vma->vm_mm, copies, zeroes);
}

/*
 * Gives up the page table's references to the pages that it no longer maps. Not
 * inline: its array has no place on the stack while notifiers are called.
 */
static noinline void put_replaced(unsigned int n, const struct page_move *moves,
				  const unsigned char *results)
{
	struct page *gone[16];
	unsigned int i, count = 0;

	for (i = 0; i < n; i++) {
		if (results[i] == TWINPAGE_SHIM_DONE)
			gone[count++] = moves[i].page;
		if (count == ARRAY_SIZE(gone) || i + 1 == n) {
			release_pages(gone, count);
			count = 0;
		}
	}
}

/* One notifier range and one flush for a run of pages that could be replaced. */
static void share_run(struct vm_area_struct *vma, pmd_t *pmd,
		      unsigned long addr, unsigned int n,
		      struct page_move *moves, void *const *targets,
		      unsigned char *results)
{
	struct mm_struct *mm = vma->vm_mm;
	struct mmu_notifier_range range;
	spinlock_t *ptl;
	unsigned int i;
	pte_t *pte;

	for (i = 0; i < n; i++) {
		moves[i].page = NULL;
		results[i] = TWINPAGE_SHIM_GONE;
	}
	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR,
				MMU_NOTIFIER_RANGE_BLOCKABLE, mm, addr,
				addr + n * PAGE_SIZE);
	if (mm_has_notifiers(mm))
		static_call(twinpage_range_start)(&range);
	pte = twinpage_pte_lock(mm, pmd, addr, &ptl);
	if (pte) {
		replace_run(vma, addr, pte, n, moves, targets, results);
		twinpage_pte_unlock(pte, ptl);
	}
	if (mm_has_notifiers(mm))
		static_call(twinpage_range_end)(&range);
	put_replaced(n, moves, results);
}

/**
 * twinpage_shim_share - make pages map their targets if their bytes are equal.
 * @mm: the struct mm_struct; its mmap lock is held for reading.
 * @addr: address of the first page.
 * @n: how many neighbouring pages, 1..TWINPAGE_SHIM_RUN_MAX; those of the next
 *	page table are GONE.
 * @batch: how many are replaced at once, at least 1.
 * @targets: for each page a frame, or NULL for the shared zero page.
 * @results: out: DONE, or why nothing was changed.
 *
 * One notifier range and one TLB flush for a batch, and none for pages that
 * cannot be replaced, which divide the rest. Bytes are compared with entries
 * cleared: nobody can write. A target with a hardware memory error is not read.
 * Sleeps.
 */
void twinpage_shim_share(void *mm, unsigned long addr, unsigned int n,
			 unsigned int batch, void *const *targets,
			 unsigned char *results)
{
	struct page_move moves[TWINPAGE_SHIM_RUN_MAX];
	unsigned int mapped = n, from, end;
	struct vm_area_struct *vma;
	pmd_t *pmd;

	memset(results, TWINPAGE_SHIM_GONE, n);
	vma = find_run(mm, addr, &mapped);
	if (!vma) {
		memset(results, TWINPAGE_SHIM_REFUSED, n);
		return;
	}
	pmd = twinpage_find_pmd(mm, addr);
	if (!pmd)
		return;
	check_run(mm, pmd, addr, mapped, targets, results);
	for (from = 0; from < mapped; from = end) {
		end = from;
		while (end < mapped && end - from < batch &&
		       results[end] == TWINPAGE_SHIM_DONE)
			end++;
		if (end == from)
			end++;
		else
			share_run(vma, pmd, addr + from * PAGE_SIZE, end - from,
				  moves, targets + from, results + from);
	}
}

/*
 * The mapping at addr, or NULL if there is none that can hold what was seen
 * there: since then the process may have put anything in its place. Page tables
 * go away under the mmap lock for reading once munmap() has taken their mapping
 * out, and those of hugetlb at any time.
 */
static struct vm_area_struct *find_mapping(struct mm_struct *mm,
					   unsigned long addr)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);

	return vma && twinpage_vma_holds_copies(vma) ? vma : NULL;
}

/*
 * The first of n pages from addr on that maps a merged copy, or n. They are in
 * such a mapping, and in one page table.
 */
static unsigned int first_copy(struct mm_struct *mm, unsigned long addr,
			       unsigned int n)
{
	pmd_t *pmd = twinpage_find_pmd(mm, addr);
	spinlock_t *ptl;
	unsigned int i;
	pte_t *pte;

	pte = pmd ? twinpage_pte_lock(mm, pmd, addr, &ptl) : NULL;
	if (!pte)
		return n;
	for (i = 0; i < n; i++) {
		pte_t val = ptep_get(pte + i);

		if (pte_present(val) && !pte_special(val) &&
		    !is_zero_pfn(pte_pfn(val)) &&
		    twinpage_is_copy(page_folio(pte_page(val))))
			break;
	}
	twinpage_pte_unlock(pte, ptl);
	return i;
}

/* How often a page is tried that a fault does not give its own copy. */
#define TRIES 3

#define UNSHARE (FAULT_FLAG_UNSHARE | FAULT_FLAG_REMOTE | \
		 FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_RETRY_NOWAIT)

/*
 * As twinpage_shim_unshare(), for the pages from number *done up to end, which
 * are in one mapping. Faults that may not wait keep the mmap lock, and the mapping
 * with it; one that userspace would have to answer asks to be retried instead.
 */
static int unshare_mapped(struct vm_area_struct *vma, unsigned long addr,
			  unsigned int *done, unsigned int end)
{
	/* A page table that comes and goes under us ends the loop sooner. */
	unsigned int next, tries = TRIES;
	vm_fault_t fault;

	if (!twinpage_nodes_have_room(vma, end - *done))
		return TWINPAGE_SHIM_NO_MEMORY;
	for (;;) {
		next = *done + first_copy(vma->vm_mm, addr + *done * PAGE_SIZE,
					  end - *done);
		if (next > *done)
			tries = TRIES;
		*done = next;
		if (next == end)
			return TWINPAGE_SHIM_DONE;
		if (!tries--)
			return TWINPAGE_SHIM_BUSY;
		fault = handle_mm_fault(vma, addr + next * PAGE_SIZE,
					UNSHARE, NULL);
		if (fault & VM_FAULT_OOM)
			return TWINPAGE_SHIM_NO_MEMORY;
		if (fault & VM_FAULT_ERROR)
			return TWINPAGE_SHIM_BUSY;
	}
}

/**
 * twinpage_shim_unshare - give pages their own copies back.
 * @mm: the struct mm_struct; its mmap lock is held for reading.
 * @addr: address of the first page.
 * @n: how many neighbouring pages; those of the next page table are left out.
 * @done: out: how many of them map no merged copy now, from the first on.
 *
 * The caller has made sure that there is memory: copies are charged to the VM's
 * memory cgroup, and a charge that fails may call the OOM killer. Sleeps.
 *
 * Return: TWINPAGE_SHIM_DONE, or what kept the page after these from it:
 * TWINPAGE_SHIM_NO_MEMORY or TWINPAGE_SHIM_BUSY.
 */
int twinpage_shim_unshare(void *mm, unsigned long addr, unsigned int n,
			  unsigned int *done)
{
	int result = TWINPAGE_SHIM_DONE;

	n = min_t(unsigned long, n, PTRS_PER_PTE - pte_index(addr));
	*done = 0;
	while (*done < n && result == TWINPAGE_SHIM_DONE) {
		struct vm_area_struct *vma;

		vma = find_mapping(mm, addr + *done * PAGE_SIZE);
		if (vma)
			result = unshare_mapped(vma, addr, done,
						min_t(unsigned long, n,
						      (vma->vm_end - addr) / PAGE_SIZE));
		else
			(*done)++;
	}
	return result;
}

/* A reference on the large folio mapped at addr, or NULL. */
static struct page *get_huge(struct mm_struct *mm, unsigned long addr)
{
	pmd_t *pmd = find_mapping(mm, addr) ? twinpage_find_pmd(mm, addr) : NULL;
	struct page *page = NULL;
	spinlock_t *ptl;
	pmd_t val;
	pte_t *pte;

	if (!pmd)
		return NULL;
	ptl = pmd_lock(mm, pmd);
	val = pmdp_get(pmd);
	if (pmd_present(val) && pmd_trans_huge(val)) {
		page = pmd_page(val);
		if (folio_test_anon(page_folio(page)))
			folio_get(page_folio(page));
		else
			page = NULL;
		spin_unlock(ptl);
		return page;
	}
	spin_unlock(ptl);
	pte = twinpage_pte_lock(mm, pmd, addr, &ptl);
	if (!pte)
		return NULL;
	if (pte_present(ptep_get(pte)) && !pte_special(ptep_get(pte))) {
		page = pte_page(ptep_get(pte));
		if (folio_test_large(page_folio(page)) &&
		    folio_test_anon(page_folio(page)))
			folio_get(page_folio(page));
		else
			page = NULL;
	}
	twinpage_pte_unlock(pte, ptl);
	return page;
}

/**
 * twinpage_shim_split - split the large folio mapped at an address.
 * @mm: the struct mm_struct; its mmap lock is held for reading.
 * @addr: an address inside it.
 *
 * Sleeps.
 *
 * Return: 0, -ENOENT if there is none, -EBUSY if it is in use, -EOPNOTSUPP if
 * the kernel lacks the function.
 */
int twinpage_shim_split(void *mm, unsigned long addr)
{
	struct page *page;
	int err = -EBUSY;

	if (!twinpage_has(TWINPAGE_SHIM_HAS_SPLIT))
		return -EOPNOTSUPP;
	page = get_huge(mm, addr);
	if (!page)
		return -ENOENT;
	if (folio_trylock(page_folio(page))) {
		err = static_call(twinpage_split)(page, NULL, 0);
		/* The folio of the page is another one after a split. */
		folio_unlock(page_folio(page));
	}
	folio_put(page_folio(page));
	return err ? -EBUSY : 0;
}
