#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Measures migration: QEMU alone in three ways against twinpage, over the same
# limited link, with guests that are the same each time:
#
#	scripts/bench-migrate.sh [--only WORD,...] [--keep]
#	scripts/bench-migrate.sh --guests
#	scripts/bench-migrate.sh --list
#
# --guests only makes the Debian guests, and says which files have their memory.
# --list says which words there are (workloads, links, methods), --keep keeps
# the rows of the last run that are not measured again. The first run makes a
# Debian image and ages guests of it, which the cache keeps. Results are in
# build/report/bench-migrate.json and .md.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/prepare/debian.sh
. "$(dirname "$0")/prepare/debian.sh"
need_root_user

SCRATCH='' BENCH=''

# shellcheck disable=SC2317
cleanup() {
	# Its emulators and proxies are of its process group, and end with it.
	[ -z "$BENCH" ] || kill -- "-$BENCH" 2>/dev/null || true
	rm -rf "$SCRATCH"
}

main() {
	local image initrd commit
	image=$(prepare_image | tail -n 1)
	initrd=$("$TOP/scripts/prepare.sh" root initrd | tail -n 1)
	in_use "$image"
	in_use "$initrd"
	progress "userspace programs" "$TOP/build/log/tools.log" '^ +Compiling' \
		"$TOP/scripts/tools.sh"
	commit=$("$TOP/scripts/root.sh" git -C "$TOP" describe --always --dirty)
	mkdir -p "$CACHE/vm" "$CACHE/bench" "$TOP/build/report"
	lock bench
	SCRATCH=$(mktemp -d -p "$CACHE/vm")
	trap cleanup EXIT
	trap 'exit 130' INT TERM
	# Job control gives the bench a process group of its own.
	set -m
	TWINPAGE_COMMIT=$commit TWINPAGE_OUT=$TOP/build/report \
		TWINPAGE_GUEST=$TOP/build/bin/twinpage-guest \
		TWINPAGE_TOOL=$TOP/build/bin/twinpage \
		TWINPAGE_KERNEL=$initrd/vmlinuz-stock \
		"$TOP/scripts/root.sh" "$TOP/build/bin/twinpage-bench-migrate" \
		--image "$image" --cache "$CACHE/bench" --scratch "$SCRATCH" "$@" &
	BENCH=$!
	set +m
	wait "$BENCH"
}

main "$@"
exit $?
