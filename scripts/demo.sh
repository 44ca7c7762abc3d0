#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The demonstration: a stock kernel as KVM host, three guests, memory that
# comes together, and a verdict. What was measured is in build/report.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root_user

REPORT=$TOP/build/report
rm -f "$REPORT"/demo.json "$REPORT"/console.log "$REPORT"/output.log
mkdir -p "$REPORT"
"$TOP/scripts/prepare.sh" root stock initrd >/dev/null
build_payload stock
say "booting the KVM host (emulated, so give it a minute); it speaks from here on"
rc=0
"$TOP/scripts/vm.sh" --kernel stock --mem 3072 --timeout 900 --check-log --out "$REPORT" \
	"${PAYLOAD[@]}" -- twinpage-demo || rc=$?
[ -s "$REPORT/demo.json" ] || die "the demo left no report; its log: $REPORT/output.log"
[ "$rc" -eq 0 ] || die "the demo failed with status $rc; see build/report"
say "report: build/report/demo.json"
