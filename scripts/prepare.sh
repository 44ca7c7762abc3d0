#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Prepares what the build and the tests need, once, in the cache:
#
#	scripts/prepare.sh root|source|stock|debug|kasan|kcsan|initrd|peers...
#
# prints the path of each. What is there already costs nothing and needs no
# network. "prepare.sh --newest" asks again which kernel is the newest, and
# "prepare.sh --have THING" whether THING is there already.
set -euo pipefail
HERE=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$HERE/lib.sh"
# shellcheck source=scripts/prepare/root.sh
. "$HERE/prepare/root.sh"
# shellcheck source=scripts/prepare/source.sh
. "$HERE/prepare/source.sh"
# shellcheck source=scripts/prepare/stock.sh
. "$HERE/prepare/stock.sh"
# shellcheck source=scripts/prepare/kernel.sh
. "$HERE/prepare/kernel.sh"
# shellcheck source=scripts/prepare/initrd.sh
. "$HERE/prepare/initrd.sh"
# shellcheck source=scripts/prepare/peers.sh
. "$HERE/prepare/peers.sh"

THINGS='root|source|stock|debug|kasan|kcsan|initrd|peers'
[ $# -gt 0 ] || die "usage: scripts/prepare.sh $THINGS..."
if [ "$1" = --have ]; then
	[[ ${2:-} =~ ^($THINGS)$ ]] || die "prepare.sh knows $THINGS, not '${2:-}'"
	[ -d "$("${2}_path")" ]
	exit
fi
for thing in "$@"; do
	case $thing in
	root | source | stock | debug | kasan | kcsan | initrd | peers)
		"prepare_$thing"
		"${thing}_path"
		;;
	--newest)
		forget_source
		;;
	*)
		die "prepare.sh knows $THINGS, not '$thing'"
		;;
	esac
done
