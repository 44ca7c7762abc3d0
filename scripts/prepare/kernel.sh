# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Kernels of our own from the stock source: small, with KUnit and with checkers
# that the stock kernel lacks. "debug" and "kasan" have those that exclude each
# other; "kcsan" is debug with one more, which only "make torture" uses.

# kernel_fragments NAME: the files with its options.
kernel_fragments() {
	printf '%s\n' "$TOP/scripts/kernel/common.config"
	[ "$1" != kcsan ] || printf '%s\n' "$TOP/scripts/kernel/debug.config"
	printf '%s\n' "$TOP/scripts/kernel/$1.config"
}

# kernel_options NAME: its fragments without their comments, and its name.
kernel_options() {
	kernel_fragments "$1" | xargs grep -h '^CONFIG_'
	echo "CONFIG_LOCALVERSION=\"-twinpage-$1\""
}

kernel_key() {
	{
		printf '%s\n' "$1 1" "$(kernel_cc "$1")" "$(source_key)" \
			"$(source_release 2>/dev/null)"
		kernel_options "$1"
	} | hash_of
}

kernel_path() {
	printf '%s/%s%s-%s\n' "$CACHE" "$1" "$OF_FLAVOUR" "$(kernel_key "$1")"
}

debug_path() {
	kernel_path debug
}

kasan_path() {
	kernel_path kasan
}

kcsan_path() {
	kernel_path kcsan
}

# unset_options CONFIG: the wanted options that CONFIG does not have.
unset_options() {
	local line
	while read -r line; do
		case $line in
		*=n) ! grep -q "^${line%=n}=" "$1" || echo "$line" ;;
		*) grep -qxF "$line" "$1" || echo "$line" ;;
		esac
	done
}

# configure_kernel SOURCE BUILD CC: runs in the root; BUILD.options has what the
# kernel is to have.
configure_kernel() {
	local source=$1 build=$2 cc=$3
	make -C "$source" O="$build" CC="$cc" tinyconfig
	(cd "$build" && "$source/scripts/kconfig/merge_config.sh" -m .config "$build.options")
	make -C "$source" O="$build" CC="$cc" olddefconfig
}

# build_kernel BUILD CC
build_kernel() {
	make -C "$1" CC="$2" -j"$JOBS" bzImage modules
}

# prepare_kernel NAME: an interrupted build goes on where it stopped, since all
# that it depends on is in its key.
prepare_kernel() {
	local name=$1 path cc missing
	prepare_source
	path=$(kernel_path "$name")
	cc=$(kernel_cc "$name")
	[ ! -d "$path" ] || return 0
	lock "$name"
	[ ! -d "$path" ] || return 0
	mkdir -p "$path.tmp"
	kernel_options "$name" >"$path.tmp.options"
	progress "$name kernel: configuration" "$CACHE/log/$name-config.log" '^  [A-Z]' \
		in_root_do configure_kernel "$(source_path)/src" "$path.tmp" "$cc"
	rm "$path.tmp.options"
	missing=$(kernel_options "$name" | unset_options "$path.tmp/.config" | tr '\n' ' ')
	[ -z "$missing" ] || die "$name kernel: the configuration dropped: $missing"
	progress "$name kernel (15 to 20 minutes on 2 cores, once)" \
		"$CACHE/log/$name.log" '^  [A-Z]' in_root_do build_kernel "$path.tmp" "$cc"
	settle "$path"
	publish "$path.tmp" "$path"
}

prepare_debug() {
	prepare_kernel debug
}

prepare_kasan() {
	prepare_kernel kasan
}

prepare_kcsan() {
	prepare_kernel kcsan
}
