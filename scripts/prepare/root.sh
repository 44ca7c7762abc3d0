# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The build root: a Debian trixie directory with every tool that is needed,
# so that the machine itself needs next to nothing.

ROOT_SUITE=trixie
ROOT_PACKAGES="ca-certificates rustc cargo rust-src rustfmt rust-clippy bindgen
clang-19 libclang-19-dev lld-19 gcc-14 gcc libc6-dev make bc bison flex
libelf-dev libssl-dev libdw-dev dwarves kmod cpio xz-utils zstd rsync python3
perl qemu-system-x86 qemu-utils busybox-static shellcheck git pkg-config procps
file jq iproute2"

root_key() {
	printf '%s\n' "root 1" "$ROOT_SUITE" "$ROOT_PACKAGES" | hash_of
}

root_path() {
	printf '%s/root-%s\n' "$CACHE" "$(root_key)"
}

# root_bootstrap TMP: the unpacking itself. The backports line is derived from
# the one that mmdebstrap wrote, so that it names the same mirror.
root_bootstrap() {
	# shellcheck disable=SC2016
	local hook='set -e
sed -n "s/ trixie main/ trixie-backports main/p" "$1/etc/apt/sources.list" |
	head -n 1 >"$1/etc/apt/sources.list.d/backports.list"
[ -s "$1/etc/apt/sources.list.d/backports.list" ]
chroot "$1" apt-get update'
	TMPDIR=/tmp mmdebstrap --verbose --variant=minbase --components=main \
		--skip=cleanup/apt --include="${ROOT_PACKAGES//[[:space:]]/,}" \
		--customize-hook="$hook" "$ROOT_SUITE" "$1"
}

prepare_root() {
	local path
	path=$(root_path)
	[ ! -d "$path" ] || return 0
	need_root_user
	host_tool mmdebstrap mmdebstrap debian-archive-keyring gpg
	lock root
	[ ! -d "$path" ] || return 0
	rm -rf --one-file-system "$path.tmp"
	progress "build root (Debian $ROOT_SUITE, about 2 GB)" "$CACHE/log/root.log" \
		'^(Unpacking|Setting up|Get:)' root_bootstrap "$path.tmp"
	publish "$path.tmp" "$path"
}
