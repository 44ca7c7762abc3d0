// SPDX-License-Identifier: GPL-2.0
/* Merged copies: frames of the module's own, mapped by guests read-only. */
#include <crypto/sha2.h>
#include <linux/uaccess.h>

#include "mm.h"

/**
 * twinpage_shim_frame_copy - a fresh frame with the bytes of a kept page.
 * @page: a page kept by twinpage_shim_look(); guests may write to it meanwhile,
 *	so what the frame holds is compared again before anybody maps it.
 *
 * A guest's frame is never adopted: whoever owned it may have chosen it for a
 * weakness (Razavi et al., Flip Feng Shui, USENIX Security 2016). Sleeps.
 *
 * Return: the frame with one reference, which twinpage_shim_frame_put() gives
 * up; NULL if there is no memory to spare.
 */
void *twinpage_shim_frame_copy(void *page)
{
	struct page *copy;
	void *from, *to;

	/* Not movable: nothing could find its mappings to move it. */
	copy = alloc_pages_node(page_to_nid((struct page *)page),
				GFP_USER | __GFP_NORETRY | __GFP_NOWARN, 0);
	if (!copy)
		return NULL;
	from = kmap_local_page(page);
	to = kmap_local_page(copy);
	copy_page(to, from);
	kunmap_local(to);
	kunmap_local(from);
#if IS_ENABLED(CONFIG_DEBUG_VM)
	page_folio(copy)->mapping = (void *)FOLIO_MAPPING_KSM;
	__folio_set_swapbacked(page_folio(copy));
#endif
	/* Orders the bytes before the page table entry that shows them. */
	__folio_mark_uptodate(page_folio(copy));
	return copy;
}

/**
 * twinpage_shim_frame_set_token - keep a number with a frame.
 * @frame: the frame, owned by the caller; looks may read the number meanwhile.
 * @token: the number; twinpage_shim_look() reports it.
 */
void twinpage_shim_frame_set_token(void *frame, unsigned int token)
{
	WRITE_ONCE(((struct page *)frame)->private, token);
}

/**
 * twinpage_shim_frame_put - let go of a frame.
 * @frame: the frame. Those who map it keep it, and whoever has it in a pipe may
 *	put it into a file's cache when they are gone (fs/fuse/dev.c:
 *	fuse_try_move_folio), whose owner takes a token for a pointer
 *	(fs/iomap/buffered-io.c:iomap_finish_folio_read).
 */
void twinpage_shim_frame_put(void *frame)
{
	twinpage_shim_frame_set_token(frame, 0);
	put_page(frame);
}

/**
 * twinpage_shim_frame_pfn - frame number.
 * @frame: the frame.
 */
unsigned long twinpage_shim_frame_pfn(void *frame)
{
	return page_to_pfn((struct page *)frame);
}

/**
 * twinpage_shim_frame_mappings - how many page table entries map a frame.
 * @frame: the frame.
 *
 * Zero is final: fork needs a mapping to copy, and the frame is in no cache. Who
 * got it through a pipe may map it all the same (vm_insert_pages), by a reference
 * of his own. The reference count would not do, pins and peeks raise it.
 */
unsigned int twinpage_shim_frame_mappings(void *frame)
{
	return folio_mapcount(page_folio((struct page *)frame));
}

/**
 * twinpage_shim_frame_is_broken - whether a frame has a hardware memory error.
 * @frame: the frame.
 *
 * Reading it from the kernel is a machine check that nobody handles.
 */
int twinpage_shim_frame_is_broken(void *frame)
{
	return PageHWPoison((struct page *)frame);
}

/**
 * twinpage_shim_frame_read - copy the bytes of a frame.
 * @frame: the frame.
 * @bytes: out: PAGE_SIZE bytes.
 *
 * Return: 0; not 0 if it has a hardware memory error that comes to light by
 * this, where the processor can go on after one.
 */
int twinpage_shim_frame_read(void *frame, void *bytes)
{
	void *addr = kmap_local_page(frame);
	unsigned long left = copy_mc_to_kernel(bytes, addr, PAGE_SIZE);

	kunmap_local(addr);
	return left != 0;
}

/**
 * twinpage_shim_frame_sha256 - SHA-256 of a frame, which never changes.
 * @frame: the frame.
 * @digest: out: 32 bytes.
 */
void twinpage_shim_frame_sha256(void *frame, unsigned char *digest)
{
	void *addr = kmap_local_page(frame);

	sha256(addr, PAGE_SIZE, digest);
	kunmap_local(addr);
}
