# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The userland of the KVM host under test: busybox, an unmodified QEMU with
# what it needs to start guests, the stock kernel for those guests, and the
# stock kernel's modules that the tests want.

INITRD_MODULES="kvm-amd zram loop hwpoison-inject virtio_balloon virtio_net
virtio-rng virtio_blk tun"
INITRD_FIRMWARE="/usr/share/seabios/bios-256k.bin /usr/share/seabios/bios.bin
/usr/share/seabios/vgabios-stdvga.bin /usr/share/qemu/efi-e1000e.rom
/usr/share/qemu/efi-virtio.rom /usr/share/qemu/kvmvapic.bin
/usr/share/qemu/linuxboot.bin /usr/share/qemu/linuxboot_dma.bin
/usr/share/qemu/multiboot.bin /usr/share/qemu/multiboot_dma.bin
/usr/share/qemu/pvh.bin /usr/share/qemu/qboot.rom"
INITRD_PROGRAMS="/usr/bin/qemu-system-x86_64"
INITRD_LIBRARIES="libc.so.6 libm.so.6 libgcc_s.so.1 libpthread.so.0 libdl.so.2 librt.so.1"

initrd_key() {
	{
		printf '%s\n' "$(source_key)" "$(source_release 2>/dev/null)" \
			"$INITRD_MODULES" "$INITRD_FIRMWARE" "$INITRD_PROGRAMS" \
			"$INITRD_LIBRARIES"
		declare -f build_initrd copy_programs copy_modules
	} | hash_of
}

initrd_path() {
	printf '%s/initrd%s-%s\n' "$CACHE" "$OF_FLAVOUR" "$(initrd_key)"
}

# copy_programs TREE: the programs with their libraries and firmware.
copy_programs() {
	local tree=$1 program library applet
	mkdir -p "$tree/bin" "$tree/lib64" "$tree/lib" "$tree/usr/bin"
	cp /bin/busybox "$tree/bin/"
	for applet in $(busybox --list); do
		[ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
	done
	for program in $INITRD_PROGRAMS; do
		cp "$program" "$tree/usr/bin/"
		ldd "$program" | grep -o '/[^ ]*'
	done | sort -u | while read -r library; do
		cp -L "$library" "$tree/lib/"
	done
	for library in $INITRD_LIBRARIES; do
		cp -L "/lib/x86_64-linux-gnu/$library" "$tree/lib/"
	done
	mv "$tree/lib/ld-linux-x86-64.so.2" "$tree/lib64/"
	strip --strip-unneeded "$tree"/lib/*.so* 2>/dev/null || true
	for library in $INITRD_FIRMWARE; do
		install -D -m 644 "$library" "$tree/usr/share/qemu/$(basename "$library")"
	done
}

# copy_modules TREE DEB RELEASE: the wanted modules and all they depend on.
copy_modules() {
	local tree=$1 deb=$2 release=$3 module file
	depmod -b "$deb/usr" "$release"
	for module in $INITRD_MODULES; do
		modprobe -d "$deb/usr" -S "$release" --show-depends "$module" || return 1
	done | awk '{ print $2 }' | sort -u | while read -r file; do
		module=$tree/lib/modules/$release/$(basename "$file" .xz)
		mkdir -p "$(dirname "$module")"
		xz -dc "$file" >"$module"
	done
	depmod -b "$tree" "$release"
}

# build_initrd SOURCE OUTPUT: runs in the root.
build_initrd() {
	local tree release
	set -o pipefail
	release=$(cat "$1/release")
	tree=$(mktemp -d)
	copy_programs "$tree"
	copy_modules "$tree" "$1/deb" "$release"
	mkdir -p "$tree/guest"
	cp "$1/deb/usr/lib/modules/$release/vmlinuz" "$tree/guest/"
	(cd "$tree" && find . | cpio -o -H newc | zstd -q -T0 -10) >"$2/base.cpio.zst"
	cp "$1/deb/usr/lib/modules/$release/vmlinuz" "$2/vmlinuz-stock"
	rm -rf "$tree"
}

prepare_initrd() {
	local path
	prepare_source
	path=$(initrd_path)
	[ ! -d "$path" ] || return 0
	lock initrd
	[ ! -d "$path" ] || return 0
	rm -rf --one-file-system "$path.tmp"
	mkdir -p "$path.tmp"
	progress "userland of the test host" "$CACHE/log/initrd.log" '.' \
		in_root env INITRD_MODULES="$INITRD_MODULES" INITRD_FIRMWARE="$INITRD_FIRMWARE" \
		INITRD_PROGRAMS="$INITRD_PROGRAMS" INITRD_LIBRARIES="$INITRD_LIBRARIES" \
		bash -ec "$(declare -f copy_programs copy_modules build_initrd)"'; "$@"' \
		bash build_initrd "$(source_path)" "$path.tmp"
	publish "$path.tmp" "$path"
}
