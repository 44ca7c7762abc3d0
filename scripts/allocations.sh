#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Lists the places in the module that ask for memory, a line each:
#
#	scripts/allocations.sh KERNEL
#
# the section, the offset in it to which the allocator returns, and the function. The
# end-to-end tests let each of them get none (refusals.rs). The module for KERNEL must be
# there.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

# The functions by which the module asks for memory, or that need some for what they do. In
# Rust, one that is asked for 0 bytes gives memory back. What a function jumps to at its end
# returns to its caller, and is not listed.
ALLOCATORS='^(rust_helper_kv?realloc_node_align|(__kmalloc_cache|alloc_pages_node)_noprof'
ALLOCATORS+='|alloc_workqueue_noprof|shrinker_alloc|handle_mm_fault|kthread_create_on_node'
ALLOCATORS+='|kobject_create_and_add|sysfs_create_group|debugfs_create_(dir|file_full)'
ALLOCATORS+='|misc_register|register_kprobe|single_open)'

[ $# -eq 1 ] || die "allocations.sh wants the name of a kernel"
ko=$TOP/build/$1/twinpage.ko
for section in .text .init.text; do
	"$TOP/scripts/root.sh" objdump -dr --no-show-raw-insn -j "$section" "$ko" |
		awk -v allocators="$ALLOCATORS" -v section="$section" '
		/^[0-9a-f]+ <.*>:$/ { name = substr($2, 2, length($2) - 3); next }
		/R_X86_64_PLT32/ { asks = calls && $NF ~ allocators && !frees; next }
		/^ *[0-9a-f]+:/ {
			sub(/:$/, "", $1)
			if (asks)
				print section, "0x" $1, name
			asks = 0
			calls = $2 == "call"
			# The size is handed on to a function that rounds it up first.
			if (/,%[er]si$/ && !/mov +%rdx,%rsi$/)
				frees = /xor +%esi,%esi$/
		}'
done | "$TOP/scripts/root.sh" c++filt | sed "s/\[[0-9a-f]*\]//g"
