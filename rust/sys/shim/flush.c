// SPDX-License-Identifier: GPL-2.0
/*
 * flush_tlb_mm_range(). Its header hides the prototype from modules, so this
 * file is compiled as if it were built in: a change of the prototype then fails
 * the build. Nothing here uses what MODULE changes.
 */
#undef MODULE
#include <linux/mm.h>
#include <linux/static_call.h>
#include <asm/tlbflush.h>

#include "flush.h"

DEFINE_STATIC_CALL_NULL(twinpage_flush_tlb, flush_tlb_mm_range);

void twinpage_flush_bind(unsigned long addr)
{
	static_call_update(twinpage_flush_tlb, (void *)addr);
}

void twinpage_flush(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	static_call(twinpage_flush_tlb)(mm, start, end, PAGE_SHIFT, false);
}
