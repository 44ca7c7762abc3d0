# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Checks that only read text.

# Directories of one machine, and hosts that packages come from.
PLACES='(^|[^]})*[:alnum:]_."$-])/(work|root)($|[^[:alnum:]_.-])|[a-z]+\.debian\.org'

# What cannot carry a comment or is written by a tool.
NO_SPDX='(^|/)Cargo\.lock$|\.json$|\.png$|\.svg$'

check_ascii() {
	files | grep -vE '\.(png|svg)$' | xargs -r -d '\n' grep -nP '[^\x00-\x7F]' | none
}

check_spdx() {
	local file
	files | grep -vE "$NO_SPDX" | while read -r file; do
		head -n 2 "$file" | grep -q SPDX-License-Identifier || echo "$file has no SPDX line"
	done | none
}

# check_leftovers: what must be finished before it is committed.
check_leftovers() {
	local words='(TO[D]O|FIX[M]E|XX[X])\b|(to[d]o|unimplemente[d]|db[g])!\('
	files '*.rs' '*.c' '*.h' '*.sh' '*.rst' '*.md' Makefile Kbuild |
		xargs -r grep -nE "\\b($words)" | none
}

# check_mistakes: those that "make mistakes" makes still fit the code.
check_mistakes() {
	local patch
	for patch in scripts/mistakes/*.patch; do
		git apply --check "$patch" 2>/dev/null || echo "$patch does not apply"
	done | none
}

# What kernels print when something broke, as each of several checkers says it.
ALARMS='BUG: KASAN: use-after-free in twinpage_shim_look+0x10/0x20 [twinpage]
BUG: KCSAN: data-race in twinpage_shim_compare / memcpy
BUG kmalloc-64 (Tainted: G    B   O       ): Right Redzone overwritten
BUG: Bad page state in process qemu  pfn:12345
pagealloc: memory corruption
pagealloc: single bit error
WARNING: possible circular locking dependency detected
INFO: task twinpaged:77 blocked for more than 122 seconds.
kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)'

# check_alarms: each of them is noticed, and a quiet log is not.
check_alarms() {
	local log=$TOP/build/log/alarm line
	while read -r line; do
		printf '[    1.000000] %s\n' "$line" >"$log"
		! "$TOP/scripts/dmesg-clean.sh" "$log" >/dev/null 2>&1 || echo "unnoticed: $line"
	done <<<"$ALARMS" | none || return 1
	echo '[    1.000000] DEBUG (all): page_poison=1' >"$log"
	"$TOP/scripts/dmesg-clean.sh" "$log"
}

# check_places: nothing may depend on where this machine keeps things.
check_places() {
	files | grep -v '^scripts/check/' |
		xargs -r -d '\n' grep -nE "$PLACES" | none
}

# check_unsafe_allowed: the one place that may lift the ban on unsafe code.
check_unsafe_allowed() {
	local found
	found=$(files rust | xargs -r grep -n 'allow(unsafe_code)')
	if [ "$(wc -l <<<"$found")" -ne 1 ] || [[ $found != rust/sys/mod.rs:* ]]; then
		printf '%s\n' "allow(unsafe_code) belongs into rust/sys/mod.rs alone:" "$found"
		return 1
	fi
}

BANNED='always safe|this is ok|safe because we know|see above|ffi call|trust'

# check_safety_phrases: comments that claim safety instead of arguing it.
check_safety_phrases() {
	# shellcheck disable=SC2016
	files '*.rs' | xargs -r awk -v banned="$BANNED" '
		/\/\/.*SAFETY:/ { inside = 1 }
		!/\/\// { inside = 0 }
		inside && tolower($0) ~ banned {
			print FILENAME ":" FNR ": " $0
		}' | none
}

# check_safety_comments: clippy asks for them too, but not in code that is
# configured out.
check_safety_comments() {
	# shellcheck disable=SC2016
	files '*.rs' | xargs -r awk '
		FNR == 1 { seen = -100 }
		/SAFETY:|# Safety/ { seen = FNR }
		{ code = $0; sub(/\/\/.*/, "", code); gsub(/"[^"]*"/, "", code) }
		code ~ /(^|[^[:alnum:]_])unsafe[ \t]*(\{|impl)/ && FNR - seen > 12 {
			print FILENAME ":" FNR ": no SAFETY comment: " $0
		}' | none
}

# check_sizes: a file or function that has outgrown one idea. Tests may be
# long: they are read one at a time.
check_sizes() {
	local file lines limit
	# shellcheck disable=SC2016
	{
		files '*.rs' '*.c' '*.h' '*.sh' | while read -r file; do
			limit=600
			[[ $file != */tests/* ]] || limit=1000
			lines=$(wc -l <"$file")
			[ "$lines" -le "$limit" ] || echo "$file has $lines lines"
		done
		files '*.sh' | xargs -r awk '
			/^[a-z_0-9]+\(\) \{/ { start = FNR; name = $1 }
			/^\}/ && start {
				lines = FNR - start - 1
				if (lines > 40) print FILENAME ": " name, lines " lines"
				start = 0
			}'
	} | none
}

# check_commits: "area: Imperative subject" of 60 columns, a body of 75.
check_commits() {
	git log --no-merges --format='%h%x09%s' | awk -F '\t' '
		$2 !~ /^[[:alnum:]_.\/, -]+: [A-Z]/ { print $1 ": no \"area: Subject\": " $2 }
		length($2) > 60 { print $1 ": subject over 60 columns: " $2 }
		$2 ~ /\.$|^(fixup|squash|amend)!/ { print $1 ": " $2 }' >build/log/commits
	git log --no-merges --format='@%h%n%b' | awk '
		/^@/ { id = substr($0, 2); next }
		length($0) > 75 && !/^ |https?:/ { print id ": body over 75 columns: " $0 }
	' >>build/log/commits
	none <build/log/commits
}
