#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Which lines the tests reach:
#
#	scripts/coverage.sh [engine] [module]
#
# engine: those of the engine by its cargo tests; llvm-cov tells.
# module: those of the whole module, as the stock kernel loads it, by its
# end-to-end tests. The emulator notes each instruction before it first runs, and
# the module's debug information says of which line it is. The compiler may have
# given an instruction to one of several lines, or none to a line.
#
# Each prints a line a file, and leaves what was missed in build/report/coverage-NAME.txt.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root_user
LOG=$TOP/build/log
WORK=$TOP/build/coverage
REPORT=$TOP/build/report
LLVM=llvm-19

# tools: llvm-profdata and llvm-cov of the version that rustc uses, unpacked into
# a directory of their own.
tools() {
	local path=$CACHE/$LLVM
	[ ! -x "$path/usr/lib/$LLVM/bin/llvm-cov" ] || return 0
	lock "$LLVM"
	rm -rf "$path.tmp"
	mkdir -p "$path.tmp"
	(cd "$path.tmp" && "$TOP/scripts/root.sh" sh -c "apt-get update &&
		apt-get download $LLVM && dpkg-deb -x $LLVM*.deb . &&
		rm $LLVM*.deb") >"$LOG/coverage.log" 2>&1 ||
		die "apt-get could not fetch $LLVM: is the network there? (log: $LOG/coverage.log)"
	rm -rf "$path"
	mv "$path.tmp" "$path"
}

# measure: runs in the root.
measure() {
	export RUSTFLAGS=-Cinstrument-coverage LLVM_PROFILE_FILE=$WORK/%p-%m.profraw
	export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/coverage
	cd "$TOP/tools"
	cargo test --locked -p twinpage-engine
	cargo test --locked -p twinpage-engine --no-run --message-format json |
		jq -r 'select(.executable) | "--object=" + .executable' >"$WORK/objects"
	"$BIN/llvm-profdata" merge --sparse "$WORK"/*.profraw -o "$WORK/merged"
	mapfile -t objects <"$WORK/objects"
	"$BIN/llvm-cov" export "${objects[@]}" --instr-profile="$WORK/merged" --format=lcov \
		>"$WORK/lcov"
}

# engine_lines: a line FILE:LINE:HITS each, below rust/. Generic code is compiled into
# each test that uses it, and named by another path there: what one of them reached is
# reached.
engine_lines() {
	tools
	progress "tests of the engine, instrumented" "$LOG/coverage.log" \
		'^ +Compiling|^test result' "$TOP/scripts/root.sh" env TOP="$TOP" WORK="$WORK" \
		BIN="$CACHE/$LLVM/usr/lib/$LLVM/bin" \
		bash -euo pipefail -c "$(declare -f measure)"'; measure'
	awk -F '[:,]' '
	/^SF:/ { ours = /\/rust\/engine\/[^\/]*$/; file = $0; sub(/.*\/rust\//, "", file) }
	ours && /^DA:/ && $3 >= hits[file ":" $2] { hits[file ":" $2] = $3 }
	END { for (line in hits) print line ":" hits[line] }' "$WORK/lcov"
}

# instructions SECTION: of each instruction of the module its number in the section, and
# the innermost line below rust/ that it is of.
# shellcheck disable=SC2016
instructions() {
	local ko=build/stock/twinpage.ko
	"$TOP/scripts/root.sh" sh -c '
		objdump -d --no-show-raw-insn -j "$2" "$1" |
			sed -n "s/^ *\([0-9a-f]*\):.*/0x\1/p" |
			addr2line -a -i -e "$1" -j "$2"' sh "$TOP/$ko" "$1" |
		awk -v rust="$TOP/rust/" '
		/^0x/ { number = $1; found = 0; next }
		!found && index($1, rust) == 1 && /:[0-9]+/ {
			found = 1
			print number, substr($1, length(rust) + 1)
		}'
}

# SUM: what awk needs to calculate with addresses of modules, which differ in 30 bits: it
# prints larger numbers with six digits when they are indices.
# shellcheck disable=SC2016
SUM='
function low(address,    i, sum) {
	sub(/^0x/, "", address)
	if (length(address) > 8)
		address = substr(address, length(address) - 7)
	sum = 0
	for (i = 1; i <= length(address); i++)
		sum = sum * 16 + index("123456789abcdef", substr(address, i, 1))
	return sum % 1073741824
}'

# module_lines: as engine_lines, of all of the module. Its code may have been at several
# places: wherever it was when an instruction ran, that is reached.
module_lines() {
	local section ran=$LOG/e2e-stock
	rm -f "$ran/executed.log"
	EXECUTED=1 "$TOP/scripts/test.sh" e2e-stock >&2 ||
		say "some test failed; what was reached counts all the same"
	[ -s "$ran/executed.log" ] || die "no end-to-end test ran (log: $LOG/e2e-stock.log)"
	for section in .text .init.text .exit.text; do
		instructions "$section" | awk -v section="$section" "$SUM"'
		FILENAME ~ /sections/ { if ($1 == section) places[low($2)]; next }
		FILENAME ~ /executed/ { ran[low($1)]; next }
		{
			hits[$2] += 0
			for (place in places)
				if ((place + low($1)) in ran)
					hits[$2] = 1
		}
		END { for (line in hits) print line ":" hits[line] }' \
			"$ran/sections.log" "$ran/executed.log" -
	done | sort -t : -k 1,1 -k 2,2n -k 3,3nr | sort -t : -k 1,1 -k 2,2n -u
}

# report NAME: what is reached, from the lines of NAME_lines.
report() {
	local lines=$WORK/$1.lines missed=$REPORT/coverage-$1.txt
	"$1_lines" | sort -t : -k 1,1 -k 2,2n >"$lines"
	awk -F : '
	{ lines[$1]++; reached[$1] += $3 > 0; all++; well += $3 > 0 }
	END {
		for (file in lines) printf "%-24s %5d lines %6.1f %%\n", file, lines[file],
			100 * reached[file] / lines[file] | "sort"
		close("sort")
		printf "%-24s %5d lines %6.1f %%\n", "all", all, 100 * well / all
	}' "$lines"
	while IFS=: read -r file line hits; do
		[ "$hits" -gt 0 ] || printf '%s:%s:%s\n' "$file" "$line" \
			"$(sed -n "${line}p" "$TOP/rust/$file")"
	done <"$lines" >"$missed"
	say "lines of the $1 that were not reached: $missed"
}

[ $# -gt 0 ] || set -- engine module
for name in "$@"; do
	declare -F "${name}_lines" >/dev/null ||
		die "coverage.sh knows engine and module, not '$name'"
done
rm -rf "$WORK"
mkdir -p "$LOG" "$WORK" "$REPORT"
"$TOP/scripts/prepare.sh" root >/dev/null
for name in "$@"; do
	report "$name"
done
