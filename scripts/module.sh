#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds the kernel modules for one of the prepared kernels, in the root:
#
#	scripts/module.sh stock|debug|kasan|kcsan [MAKE-ARGUMENT...]
#
# The result is in build/KERNEL of the checkout, or in OUTPUT, which is
# emptied first if FRESH is set.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

kernel=${1:-}
case $kernel in
stock | debug | kasan | kcsan) shift ;;
*) die "usage: scripts/module.sh stock|debug|kasan|kcsan [MAKE-ARGUMENT...]" ;;
esac
case $TOP in
*[[:space:]:%]*) die "the kernel's build cannot work in a path with a space, ':' or '%': $TOP" ;;
esac

build=$("$TOP/scripts/prepare.sh" "$kernel")
[ -e "$build" ] || die "prepare.sh gave no build directory for the $kernel kernel"
in_use "$build"
output=$TOP/${OUTPUT:-build/$kernel}
# Two builds in one directory break each other.
lock "build-$(hash_of <<<"$output")"
[ -z "${FRESH:-}" ] || rm -rf "$output"
mkdir -p "$output"
say "modules for $(cat "$build/include/config/kernel.release") in ${output#"$TOP/"}"
exec "$TOP/scripts/root.sh" make --no-print-directory -C "$build" -j"$JOBS" \
	CC="$(kernel_cc "$kernel")" M="$TOP" MO="$output" \
	CONFIG_DEBUG_INFO_BTF_MODULES= "$@"
