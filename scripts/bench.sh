#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Measures what merging costs, ksmd against Twinpage, in instructions:
#
#	scripts/bench.sh [--size PAGES]... [--only MEASURE]...
#	scripts/bench.sh --list
#
# in one kernel, the stock one, over the same memory, one after the other. Results
# are in build/report/bench.json and .md. Documentation/benchmarks.md says what the
# measures are.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root_user

if [ "${1:-}" = --list ]; then
	"$TOP/scripts/tools.sh" >/dev/null 2>&1
	exec "$TOP/scripts/root.sh" "$TOP/build/bin/twinpage-bench" --list
fi
REPORT=$TOP/build/report
rm -f "$REPORT"/bench.{json,md}
mkdir -p "$REPORT"
"$TOP/scripts/prepare.sh" root stock initrd >/dev/null
build_payload stock
say "booting a host that counts instructions; it speaks from here on"
# Caches of slabs that are merged with others' cannot be told apart.
"$TOP/scripts/vm.sh" --kernel stock --count --mem 3072 --timeout 7200 --out "$REPORT" \
	--append slab_nomerge "${PAYLOAD[@]}" -- twinpage-bench "$@" ||
	die "the benchmark failed with status $?; see $REPORT/output.log"
say "report: build/report/bench.json"
