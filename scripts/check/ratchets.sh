# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Numbers that may only change on purpose, and what the module asks of the
# kernel.

# panics: the panicking functions that the module refers to. Each is a place
# where the compiler could not prove that something cannot happen.
panics() {
	"$TOP/scripts/module.sh" stock -s modules >&2
	"$TOP/scripts/root.sh" nm -u build/stock/rust/twinpage_main.o |
		sed -n 's/.*9panicking//; T; s/[0-9]\+/::/g; s/^:://; s/::$//; p' | sort -u
}

# unsafe_blocks: how many each file of rust/sys has.
unsafe_blocks() {
	files 'rust/sys/*.rs' | sort | while read -r file; do
		printf '%s %s\n' "$file" "$(sed 's,//.*,,' "$file" |
			grep -oE '\bunsafe[[:space:]]*(\{|impl)' | wc -l)"
	done
}

# ratchet FILE: compare standard input with FILE.
ratchet() {
	diff -u <(grep -v '^#' "$1") - ||
		{ echo "if this is meant: scripts/check.sh --bless" && false; }
}

check_panic_ratchet() {
	panics >build/log/panics
	ratchet scripts/panics.txt <build/log/panics
}

check_unsafe_ratchet() {
	unsafe_blocks | ratchet scripts/unsafe.txt
}

# check_symbols: the module may only link to what the stock kernel exports.
check_symbols() {
	local stock
	stock=$("$TOP/scripts/prepare.sh" stock)
	"$TOP/scripts/module.sh" stock -s modules >&2
	"$TOP/scripts/root.sh" nm -u build/stock/twinpage.ko >build/log/undefined
	comm -23 <(awk '{ print $2 }' build/log/undefined | sort -u) \
		<(cut -f 2 "$stock/Module.symvers" | sort -u) | none
}

bless() {
	{
		echo "# SPDX-License-Identifier: GPL-2.0"
		echo "# Panicking functions that twinpage_main.o refers to (check.sh --bless)."
		panics
	} >build/log/panics
	{
		echo "# SPDX-License-Identifier: GPL-2.0"
		echo "# Unsafe blocks and impls of each file of rust/sys (check.sh --bless)."
		unsafe_blocks
	} >build/log/unsafe
	mv build/log/panics scripts/panics.txt
	mv build/log/unsafe scripts/unsafe.txt
	say "wrote scripts/panics.txt and scripts/unsafe.txt"
}
