#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Which lines of the engine its cargo tests reach:
#
#	scripts/coverage.sh
#
# prints a line a file, and leaves what was missed in build/report/coverage.txt.
# The engine is the same source in the module; the rest of the module, which
# needs a kernel, is not measured.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root_user
LOG=$TOP/build/log/coverage.log
WORK=$TOP/build/coverage
REPORT=$TOP/build/report/coverage.txt
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
		rm $LLVM*.deb") >"$LOG" 2>&1 ||
		die "apt-get could not fetch $LLVM: is the network there? (log: $LOG)"
	rm -rf "$path"
	mv "$path.tmp" "$path"
}

# measure: runs in the root.
measure() {
	export RUSTFLAGS=-Cinstrument-coverage LLVM_PROFILE_FILE=$WORK/%p-%m.profraw
	export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/coverage
	rm -rf "$WORK"
	cd "$TOP/tools"
	cargo test --locked -p twinpage-engine
	cargo test --locked -p twinpage-engine --no-run --message-format json |
		jq -r 'select(.executable) | "--object=" + .executable' >"$WORK/objects"
	"$BIN/llvm-profdata" merge --sparse "$WORK"/*.profraw -o "$WORK/merged"
	mapfile -t objects <"$WORK/objects"
	"$BIN/llvm-cov" export "${objects[@]}" --instr-profile="$WORK/merged" --format=lcov \
		>"$WORK/lcov"
}

mkdir -p "$TOP/build/log" "$(dirname "$REPORT")"
"$TOP/scripts/prepare.sh" root >/dev/null
tools
progress "tests of the engine, instrumented" "$LOG" '^ +Compiling|^test result' \
	"$TOP/scripts/root.sh" env TOP="$TOP" WORK="$WORK" BIN="$CACHE/$LLVM/usr/lib/$LLVM/bin" \
	bash -euo pipefail -c "$(declare -f measure)"'; measure'

# Generic code is compiled into each test that uses it, and named by another path
# there: what one of them reached is reached.
awk -F '[:,]' '
	/^SF:/ { ours = /\/rust\/engine\/[^\/]*$/; file = $0; sub(/.*\//, "", file) }
	ours && /^DA:/ && $3 >= hits[file ":" $2] { hits[file ":" $2] = $3 }
	END { for (line in hits) print line ":" hits[line] }' "$WORK/lcov" |
	sort -t : -k 1,1 -k 2,2n >"$WORK/lines"
awk -F : '
	{ lines[$1]++; reached[$1] += $3 > 0; all++; well += $3 > 0 }
	END {
		for (file in lines) printf "%-16s %5d lines %6.1f %%\n", file, lines[file],
			100 * reached[file] / lines[file] | "sort"
		close("sort")
		printf "%-16s %5d lines %6.1f %%\n", "all", all, 100 * well / all
	}' "$WORK/lines"
while IFS=: read -r file line hits; do
	[ "$hits" -gt 0 ] || printf '%s:%s:%s\n' "$file" "$line" \
		"$(sed -n "${line}p" "$TOP/rust/engine/$file")"
done <"$WORK/lines" >"$REPORT"
say "lines that were not reached: $REPORT"
