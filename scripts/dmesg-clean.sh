#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Judges a kernel log:
#
#	scripts/dmesg-clean.sh LOG
#
# prints each line that tells of a kernel error, with what follows it, and
# fails when there is one that nothing below explains.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# What a kernel says when something is wrong in it (extended expressions). A
# call trace alone is no error: injected failures and the OOM killer of a test
# print one.
PATTERNS='BUG:
BUG at
BUG [^ ]+ \(
WARNING:
Oops
[Bb]ad page
Bad rss-counter
Bad swap
Bad page map
general protection
invalid opcode
unable to handle
double fault
Kernel panic
possible circular locking
possible recursive locking
inconsistent lock state
suspicious RCU usage
INFO: task .* blocked
INFO: rcu.*stall
soft lockup
hard LOCKUP
sleeping function called
scheduling while atomic
DEBUG_LOCKS_WARN_ON
lock held when returning
page_table_check
pagealloc: (memory corruption|single bit error|corrupted page)
kmemleak: unreferenced object
kmemleak: .*memory leaks
list_(add|del) corruption
ODEBUG:
refcount_t:
KASAN:
UBSAN:
rust_kernel: panicked
panicked at
Unexpected reboot
Out of memory: Killed'

if [ $# -ne 1 ] || [ ! -r "$1" ]; then
	die "usage: scripts/dmesg-clean.sh LOG"
fi
found=$(tr -d '\r' <"$1" | grep -anE -A 25 "$(tr '\n' '|' <<<"$PATTERNS" | sed 's/|$//')" || true)
if grep -qE '^[0-9]+:' <<<"$found"; then
	say "the kernel log $1 is not clean:"
	head -n 120 <<<"$found" | sed 's/^/    | /'
	exit 1
fi
