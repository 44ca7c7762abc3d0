# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A kernel of our own from the stock source: small, with KUnit and with the
# checkers that the stock kernel lacks.

DEBUG_CONFIG=$TOP/scripts/kernel/debug.config

debug_key() {
	{
		printf '%s\n' "debug 1" "$KERNEL_CC" "$(source_key)" \
			"$(source_release 2>/dev/null)"
		debug_options
	} | hash_of
}

# debug_options: the fragment without its comments.
debug_options() {
	grep '^CONFIG_' "$DEBUG_CONFIG"
}

debug_path() {
	printf '%s/debug-%s\n' "$CACHE" "$(debug_key)"
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

# configure_debug SOURCE BUILD FRAGMENT: runs in the root.
configure_debug() {
	make -C "$1" O="$2" CC="$KERNEL_CC" tinyconfig
	(cd "$2" && "$1/scripts/kconfig/merge_config.sh" -m .config "$3")
	make -C "$1" O="$2" CC="$KERNEL_CC" olddefconfig
}

build_debug() {
	make -C "$2" CC="$KERNEL_CC" -j"$JOBS" bzImage modules
}

# prepare_debug: an interrupted build goes on where it stopped, since all that
# it depends on is in its key.
prepare_debug() {
	local path missing
	prepare_source
	path=$(debug_path)
	[ ! -d "$path" ] || return 0
	lock debug
	[ ! -d "$path" ] || return 0
	mkdir -p "$path.tmp"
	progress "debug kernel: configuration" "$CACHE/log/debug-config.log" '^  [A-Z]' \
		in_root_do configure_debug "$(source_path)/src" "$path.tmp" "$DEBUG_CONFIG"
	missing=$(debug_options | unset_options "$path.tmp/.config" | tr '\n' ' ')
	[ -z "$missing" ] || die "debug kernel: the configuration dropped: $missing"
	progress "debug kernel (15 to 20 minutes on 2 cores, once)" \
		"$CACHE/log/debug.log" '^  [A-Z]' \
		in_root_do build_debug "$(source_path)/src" "$path.tmp"
	settle "$path"
	publish "$path.tmp" "$path"
}
