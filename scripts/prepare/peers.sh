# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The programs that migration is tested against beside those of the build root:
# the QEMU of the Debian before, whose stream differs in some ways, and a real
# server for the store of a fleet. Nobody enters this directory as a root: each
# of PEERS_PROGRAMS is started as PEERS/start/PROGRAM, from anywhere, and runs
# with the loader, libraries and firmware of its own Debian.

PEERS_SUITE=bookworm
PEERS_PACKAGES="qemu-system-x86 redis-server"
PEERS_PROGRAMS="qemu-system-x86_64 redis-server redis-cli"

peers_key() {
	{
		printf '%s\n' "peers 1" "$PEERS_SUITE" "$PEERS_PACKAGES" "$PEERS_PROGRAMS"
		declare -f peers_bootstrap peers_starters
	} | hash_of
}

peers_path() {
	printf '%s/peers-%s\n' "$CACHE" "$(peers_key)"
}

# peers_bootstrap TMP: the unpacking itself, without what only people read.
peers_bootstrap() {
	TMPDIR=/tmp mmdebstrap --verbose --variant=minbase --components=main \
		--include="${PEERS_PACKAGES// /,}" \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		"$PEERS_SUITE" "$1"
}

# peers_starters DIR: PROGRAM of DIR as DIR/start/PROGRAM. The link to the loader
# is absolute as it is unpacked, which would be the loader of somebody else.
peers_starters() {
	local libraries=usr/lib/x86_64-linux-gnu program firmware
	ln -sfn "../${libraries#usr/}/ld-linux-x86-64.so.2" "$1/lib64/ld-linux-x86-64.so.2"
	mkdir -p "$1/start"
	for program in $PEERS_PROGRAMS; do
		firmware=
		# shellcheck disable=SC2016 # The program that is written expands it.
		[ "$program" = "${program#qemu-}" ] ||
			firmware=$(printf ' -L "$top/%s"' usr/share/qemu usr/share/seabios \
				usr/lib/ipxe/qemu)
		cat >"$1/start/$program" <<-END
			#!/bin/sh
			top=\$(dirname "\$(dirname "\$0")")
			export QEMU_MODULE_DIR="\$top/$libraries/qemu"
			exec "\$top/lib64/ld-linux-x86-64.so.2" \\
			    --library-path "\$top/$libraries:\$top/$libraries/pulseaudio" \\
			    "\$top/usr/bin/$program"$firmware "\$@"
		END
		chmod 755 "$1/start/$program"
	done
}

# peers_start DIR: does all of it start, and does QEMU find its modules?
peers_start() {
	local program
	for program in $PEERS_PROGRAMS; do
		"$1/start/$program" --version || return 1
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
	progress "peers of the migration tests (Debian $PEERS_SUITE, about 250 MB)" \
		"$CACHE/log/peers.log" '^(Unpacking|Setting up|Get:)' peers_bootstrap "$path.tmp"
	peers_starters "$path.tmp"
	progress "peers: do they start" "$CACHE/log/peers-start.log" . peers_start "$path.tmp"
	publish "$path.tmp" "$path"
}
