#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Measures what merging costs, ksmd against Twinpage, in instructions:
#
#	scripts/bench.sh [--size PAGES]... [--only MEASURE]...
#	scripts/bench.sh --list
#
# over the same memory, one after the other in one kernel: the stock one, the stock
# one with the memory of real Debian guests (made at first use, which takes a while)
# or with such guests that boot in it, and the debug kernel, which knows how long
# locks are held. --only keeps the other rows of the last run. Results are in
# build/report/bench.json and .md, with plots beside them. One more measure, "engine",
# is the engine's parts by themselves, beside what others do: build/report/engine.md.
# Documentation/benchmarks.md says what the measures are.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/prepare/debian.sh
. "$(dirname "$0")/prepare/debian.sh"
need_root_user
REPORT=$TOP/build/report

# bench ARGUMENT...: the program, on this machine.
bench() {
	"$TOP/scripts/root.sh" "$TOP/build/bin/twinpage-bench" "$@"
}

# host NAME ARGUMENT...: boots a host and measures there. It counts instructions, but not
# where guests boot: they hang or crash then. Caches of slabs that are merged with others'
# cannot be told apart.
host() {
	local name=$1 kernel=stock memory=3072 options=(--count) disk image
	shift
	case $name in
	real)
		# So little that ksmtuned finds it short.
		memory=1700
		say "four Debian guests (made at first use: some 8 minutes)"
		"$TOP/scripts/bench-migrate.sh" --guests | tee >(cat >&2) >"$REPORT/guests"
		while read -r disk; do
			options+=(--disk "$disk")
		done < <(sed -n 's/^ram //p' "$REPORT/guests")
		rm "$REPORT/guests"
		;;
	boot)
		memory=1700
		image=$(prepare_image | tail -n 1)
		in_use "$image"
		options=(--disk "$image/image.raw" --file "$image/vmlinuz:/debian/vmlinuz"
			--file "$image/initrd:/debian/initrd")
		;;
	debug) kernel=debug ;;
	esac
	build_payload "$kernel"
	[ ! -s "$REPORT/bench.json" ] || {
		cp "$REPORT/bench.json" "$REPORT/before.json"
		options+=(--file "$REPORT/before.json:/before.json")
		set -- --keep /before.json "$@"
	}
	say "booting the host '$name'; it speaks from here on"
	"$TOP/scripts/vm.sh" --kernel "$kernel" --mem "$memory" --timeout 14400 \
		--out "$REPORT" --append slab_nomerge "${PAYLOAD[@]}" "${options[@]}" \
		-- twinpage-bench --host "$name" "$@" ||
		die "the benchmark failed with status $?; see $REPORT/output.log"
	rm -f "$REPORT/before.json"
}

# engine: its benchmarks, on a host that has come to rest.
engine() {
	local program
	program=$("$TOP/scripts/root.sh" cargo bench --manifest-path "$TOP/tools/Cargo.toml" \
		--locked -p twinpage-engine --no-run --message-format json |
		sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
	[ -x "$program" ] || die "cargo made no benchmark of the engine"
	say "the engine's parts"
	"$TOP/scripts/vm.sh" --kernel stock --count --mem 3072 --timeout 7200 \
		--file "$program:/engine" -- sh -c 'sleep 10; /engine --counted' | tee >(cat >&2) |
		{ printf '| what | | |\n| --- | --: | --- |\n' && grep '^|'; } >"$REPORT/engine.md"
}

mkdir -p "$REPORT"
"$TOP/scripts/prepare.sh" root stock initrd >/dev/null
progress "userspace programs" "$TOP/build/log/tools.log" '^ +Compiling' "$TOP/scripts/tools.sh"
if [ "${1:-}" = --list ]; then
	bench --list
	echo engine
	exit
fi
[[ " $* " == *" --only "* ]] || rm -f "$REPORT/bench.json"
if [[ " $* " != *" --only "* || " $* " == *" --only engine"* ]]; then
	engine
fi
for name in stock real boot debug; do
	[ -z "$(bench --list --host "$name" "$@")" ] || host "$name" "$@"
done
say "report: build/report"
