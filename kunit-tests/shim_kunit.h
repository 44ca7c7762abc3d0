/* SPDX-License-Identifier: GPL-2.0 */
/* What the C half of twinpage_kunit.ko offers beyond the shim. */
#ifndef TWINPAGE_SHIM_KUNIT_H
#define TWINPAGE_SHIM_KUNIT_H

unsigned long twinpage_kunit_map(unsigned long addr, unsigned long bytes,
				 int shared);
unsigned long twinpage_kunit_entry(unsigned long addr);

#endif /* TWINPAGE_SHIM_KUNIT_H */
