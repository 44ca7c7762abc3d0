/* SPDX-License-Identifier: GPL-2.0 */
/* flush.c: the one function whose prototype modules do not get to see. */
#ifndef TWINPAGE_SHIM_FLUSH_H
#define TWINPAGE_SHIM_FLUSH_H

struct mm_struct;

void twinpage_flush_bind(unsigned long addr);
void twinpage_flush(struct mm_struct *mm, unsigned long start, unsigned long end);

#endif /* TWINPAGE_SHIM_FLUSH_H */
