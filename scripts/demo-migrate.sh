#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The demonstration of migration: two emulated KVM hosts on one cable, each with
# the module; a guest moves from one to the other while it writes, and a verdict
# is drawn from outside. What was measured is in build/report.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root_user

REPORT=$TOP/build/report
TIMEOUT=1800
WORK=''
MACHINES=()

# host ROLE PLUG MIB: boot the host that plays ROLE; it speaks from here on.
host() {
	local role=$1 plug=$2 mib=$3
	"$TOP/scripts/vm.sh" --kernel stock --smp 1 --mem "$mib" --timeout "$TIMEOUT" \
		--check-log --net "$plug:$WORK/cable" --out "$REPORT/migrate-$role" \
		--file "$WORK/key:/key" "${PAYLOAD[@]}" -- twinpage-demo-migrate "$role" 2>&1 |
		sed -u "s/^/$(printf '%-11s' "$role") | /"
}

# grace GROUP: a host whose peer failed has nobody to wait for; it gets a minute.
grace() {
	local second
	for ((second = 0; second < 60; second++)); do
		kill -0 -- "-$1" 2>/dev/null || return 0
		sleep 1
	done
	kill -- "-$1" 2>/dev/null || true
}

# shellcheck disable=SC2317
cleanup() {
	local machine
	for machine in "${MACHINES[@]}"; do
		# The pipeline's own process group: the emulator ends with it.
		kill -- "-$machine" 2>/dev/null || true
	done
	rm -rf "$WORK"
}

main() {
	local rc=0 other machine
	"$TOP/scripts/prepare.sh" root stock initrd >/dev/null
	build_payload stock
	rm -rf "$REPORT"/migrate-{source,destination} "$REPORT/migrate.json"
	mkdir -p "$REPORT" "$CACHE/vm"
	WORK=$(mktemp -d -p "$CACHE/vm")
	trap cleanup EXIT
	trap 'exit 130' INT TERM
	"$TOP/scripts/root.sh" "$TOP/build/bin/twinpage" migrate keygen "$WORK/key"
	say "booting two KVM hosts (emulated, so give them a minute); they speak from here on"
	# Job control gives each host a process group of its own.
	set -m
	host destination server 1792 &
	MACHINES+=($!)
	host source client 1024 &
	MACHINES+=($!)
	set +m
	wait -n -p machine "${MACHINES[@]}" || rc=$?
	[ "$machine" = "${MACHINES[0]}" ] && other=${MACHINES[1]} || other=${MACHINES[0]}
	[ "$rc" -eq 0 ] || grace "$other"
	wait "$other" || rc=$?
	[ -s "$REPORT/migrate-source/migrate.json" ] ||
		die "the demo left no report; its logs: build/report/migrate-*/output.log"
	cp "$REPORT/migrate-source/migrate.json" "$REPORT/migrate.json"
	[ "$rc" -eq 0 ] || die "the demo failed with status $rc; see build/report/migrate-*"
	say "report: build/report/migrate.json"
}

main "$@"
exit $?
