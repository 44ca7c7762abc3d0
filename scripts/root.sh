#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs a command in the build root (a Debian directory with all tools), with
# the checkout, the cache and the work directory bound at their own paths:
#
#	scripts/root.sh COMMAND ARGUMENT...
#
# Mounts are made in a mount namespace that ends with the command, so there is
# nothing to clean up. TWINPAGE_BIND="DIR DIR" binds more directories.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

if [ -n "${TWINPAGE_IN_ROOT:-}" ]; then
	exec "$@"
fi
need_root_user
[ $# -gt 0 ] || die "usage: scripts/root.sh COMMAND ARGUMENT..."
ROOT=${TWINPAGE_ROOT:-$("$TOP/scripts/prepare.sh" root)}
in_use "$ROOT"

# passed_on: the variables of the caller that make sense in the root.
passed_on() {
	local name
	while read -r name; do
		case $name in
		TERM | COLUMNS | NO_COLOR | SOURCE_DATE_EPOCH | RUST_BACKTRACE | \
			*_proxy | *_PROXY | TWINPAGE_* | CARGO_TERM_* | CARGO_NET_* | \
			GIT_INDEX_FILE | PROPTEST_*)
			printf '%s=%s\0' "$name" "${!name}"
			;;
		esac
	done < <(compgen -e)
}

# inside: the part that runs in the namespace; its arguments are the root, the
# work directory, the bound directories up to "--", then the command.
# shellcheck disable=SC2016
inside='
set -eu
root=$1 cwd=$2
shift 2
while [ "$1" != -- ]; do
	mkdir -p "$root$1"
	mount --rbind "$1" "$root$1"
	shift
done
shift
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
for f in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
	[ -s "$f" ] || continue
	[ -e "$root$f" ] || : >"$root$f"
	mount --bind "$(readlink -f "$f")" "$root$f"
done
exec chroot "$root" /bin/sh -c "cd \"\$1\" && shift && exec \"\$@\"" sh "$cwd" "$@"
'

mapfile -d '' -t VARS < <(passed_on)
read -r -a BIND <<<"${TWINPAGE_BIND:-}"
# Each checkout has its own build products; crates are downloaded once for all.
TARGET=$CACHE/target/$(hash_of <<<"$TOP")
mkdir -p "$CACHE/home" "$CACHE/cargo" "$TARGET"
exec unshare --mount --propagation private env -i "${VARS[@]}" \
	HOME="$CACHE/home" LANG=C.UTF-8 LC_ALL=C.UTF-8 \
	PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	CARGO_HOME="$CACHE/cargo" CARGO_TARGET_DIR="$TARGET" \
	GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*' \
	TWINPAGE_IN_ROOT=1 \
	/bin/sh -c "$inside" root.sh "$ROOT" "$PWD" "$TOP" "$CACHE" /tmp "${BIND[@]}" -- "$@"
