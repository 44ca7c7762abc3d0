# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The programs that migration is tested against beside those of the build root:
# the QEMU of the Debian before, whose stream differs in some ways, and real
# servers for the store of a fleet. Nobody enters PEERS/SUITE as a root: each
# of its programs is started as PEERS/start/PROGRAM, from anywhere, and runs
# with the loader, libraries and firmware of its own Debian.

PEERS_SUITES="bookworm trixie"

# peers_packages SUITE and peers_programs SUITE: what is taken of it.
peers_packages() {
	case $1 in
	bookworm) echo qemu-system-x86,redis-server ;;
	trixie) echo valkey-server ;;
	esac
}

peers_programs() {
	case $1 in
	bookworm) echo qemu-system-x86_64 redis-server redis-cli ;;
	trixie) echo valkey-server valkey-cli ;;
	esac
}

peers_key() {
	{
		printf '%s\n' "peers 2" "$PEERS_SUITES"
		declare -f peers_packages peers_programs peers_bootstrap peers_starter \
			peers_starters
	} | hash_of
}

peers_path() {
	printf '%s/peers-%s\n' "$CACHE" "$(peers_key)"
}

# peers_bootstrap DIR: the unpacking itself, without what only people read.
peers_bootstrap() {
	local suite
	mkdir -p "$1"
	for suite in $PEERS_SUITES; do
		TMPDIR=/tmp mmdebstrap --verbose --variant=minbase --components=main \
			--include="$(peers_packages "$suite")" \
			--dpkgopt='path-exclude=/usr/share/doc/*' \
			--dpkgopt='path-exclude=/usr/share/man/*' \
			--dpkgopt='path-exclude=/usr/share/locale/*' \
			"$suite" "$1/$suite" || return 1
	done
}

# peers_starter DIR SUITE PROGRAM: PROGRAM of DIR/SUITE as DIR/start/PROGRAM.
peers_starter() {
	local libraries=usr/lib/x86_64-linux-gnu firmware=
	# shellcheck disable=SC2016 # The program that is written expands it.
	[ "$3" = "${3#qemu-}" ] ||
		firmware=$(printf ' -L "$top/%s"' usr/share/qemu usr/share/seabios \
			usr/lib/ipxe/qemu)
	cat >"$1/start/$3" <<-END
		#!/bin/sh
		top=\$(dirname "\$(dirname "\$0")")/$2
		export QEMU_MODULE_DIR="\$top/$libraries/qemu"
		exec "\$top/lib64/ld-linux-x86-64.so.2" \\
		    --library-path "\$top/$libraries:\$top/$libraries/pulseaudio" \\
		    "\$top/usr/bin/$3"$firmware "\$@"
	END
	chmod 755 "$1/start/$3"
}

# peers_starters DIR: all of them. The links to loaders are absolute as they are
# unpacked, which would be the loader of somebody else.
peers_starters() {
	local suite program
	mkdir -p "$1/start"
	for suite in $PEERS_SUITES; do
		ln -sfn ../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 \
			"$1/$suite/lib64/ld-linux-x86-64.so.2"
		for program in $(peers_programs "$suite"); do
			peers_starter "$1" "$suite" "$program"
		done
	done
}

# peers_start DIR: does all of it start, and does QEMU find its modules?
peers_start() {
	local program
	for program in "$1"/start/*; do
		"$program" --version || return 1
	done
	echo quit | timeout 60 "$1/start/qemu-system-x86_64" -accel tcg -M pc -S \
		-display none -monitor stdio
}

# prepare_peers: what does not start is not published.
prepare_peers() {
	local path
	path=$(peers_path)
	[ ! -d "$path" ] || return 0
	need_root_user
	host_tool mmdebstrap mmdebstrap debian-archive-keyring gpg
	lock peers
	[ ! -d "$path" ] || return 0
	rm -rf --one-file-system "$path.tmp"
	progress "peers of the migration tests (parts of Debian $PEERS_SUITES, about 350 MB)" \
		"$CACHE/log/peers.log" '^(Unpacking|Setting up|Get:)' peers_bootstrap "$path.tmp"
	peers_starters "$path.tmp"
	progress "peers: do they start" "$CACHE/log/peers-start.log" . peers_start "$path.tmp"
	publish "$path.tmp" "$path"
}
