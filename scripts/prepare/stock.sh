# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A build directory in which modules for the stock kernel can be built. Its
# headers package lacks the Rust metadata, so they are made here from the same
# source, configuration and compilers; no kernel is compiled.

stock_key() {
	printf '%s\n' "stock 1" "$(kernel_cc stock)" "$(source_key)" \
		"$(source_release 2>/dev/null)" | hash_of
}

stock_path() {
	printf '%s/stock%s-%s\n' "$CACHE" "$OF_FLAVOUR" "$(stock_key)"
}

# settle BUILD: make a build directory that was made as BUILD.tmp right for
# BUILD; its Makefile is the one place that knows its own path.
settle() {
	sed -i "s|$1\.tmp|$1|g" "$1.tmp/Makefile"
}

# configure_stock SOURCE BUILD CC RELEASE: runs in the root. The release files get
# the stock release, because a module's vermagic must match it.
configure_stock() {
	local src=$1 build=$2 cc=$3 release=$4 headers=$1/../deb/usr/src/linux-headers-$4
	cp "$headers/.config" "$build/.config"
	make -C "$src" O="$build" CC="$cc" olddefconfig
	make -C "$src" O="$build" CC="$cc" -j"$JOBS" prepare modules_prepare
	cp "$headers/Module.symvers" "$build/"
	echo "$release" >"$build/include/config/kernel.release"
	echo "#define UTS_RELEASE \"$release\"" >"$build/include/generated/utsrelease.h"
	grep -qx CONFIG_RUST=y "$build/.config" ||
		{ echo "error: $release is built without CONFIG_RUST" && return 1; }
}

prepare_stock() {
	local path
	prepare_source
	path=$(stock_path)
	[ ! -d "$path" ] || return 0
	lock stock
	[ ! -d "$path" ] || return 0
	rm -rf --one-file-system "$path.tmp"
	mkdir -p "$path.tmp"
	progress "module build directory for $(source_release) (about 3 minutes)" \
		"$CACHE/log/stock.log" '^  [A-Z]' \
		in_root_do configure_stock "$(source_path)/src" "$path.tmp" "$(kernel_cc stock)" \
		"$(source_release)"
	settle "$path"
	publish "$path.tmp" "$path"
}
