#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Installs what was built:
#
#	scripts/install.sh tools	the command, its manual pages and completions
#	scripts/install.sh module FILE	the module FILE, for the kernel that it is for
#
# PREFIX says where the tools go (/usr/local). What is installed goes below
# DESTDIR, if that is set.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}

# twinpage ARGUMENT...: the command that was built, in the root that it was
# built in: this machine may have an older C library.
twinpage() {
	"$TOP/scripts/root.sh" "$TOP/build/bin/twinpage" "$@"
}

install_tools() {
	local made=$TOP/build/share to=$DESTDIR$PREFIX
	[ -x "$TOP/build/bin/twinpage" ] || die "there is no build/bin/twinpage: make tools"
	rm -rf "$made"
	mkdir -p "$made/man"
	twinpage man "$made/man"
	twinpage completions bash >"$made/bash"
	twinpage completions zsh >"$made/zsh"
	twinpage completions fish >"$made/fish"
	say "twinpage in $to"
	install -D -m 755 "$TOP/build/bin/twinpage" "$to/sbin/twinpage"
	install -D -m 644 -t "$to/share/man/man1" "$made"/man/*.1
	install -D -m 644 "$made/bash" "$to/share/bash-completion/completions/twinpage"
	install -D -m 644 "$made/zsh" "$to/share/zsh/site-functions/_twinpage"
	install -D -m 644 "$made/fish" "$to/share/fish/vendor_completions.d/twinpage.fish"
}

install_module() {
	local file=$1 vermagic release to root=()
	[ -e "$file" ] || die "there is no $file: make it first"
	# A machine that only builds may have no modinfo; the root has.
	command -v modinfo >/dev/null || root=("$TOP/scripts/root.sh")
	vermagic=$("${root[@]}" modinfo -F vermagic "$file")
	release=${vermagic%% *}
	[ -n "$release" ] || die "$file does not say which kernel it is for"
	to=$DESTDIR/lib/modules/$release/updates
	say "twinpage.ko for $release in $to"
	install -D -m 644 "$file" "$to/twinpage.ko"
	# Below another root it is up to that.
	[ -n "$DESTDIR" ] || depmod "$release"
}

case "${1:-} $#" in
"tools 1") install_tools ;;
"module 2") install_module "$2" ;;
*) die "usage: scripts/install.sh tools | module FILE" ;;
esac
