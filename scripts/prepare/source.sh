# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The stock kernel as its distribution ships it: the packages unpacked
# (deb/) and the source tree they were built from, untouched (src/). With
# TWINPAGE_FLAVOUR another of its kernels; what is of that is kept beside the rest.

BACKPORTS=trixie-backports
KERNEL_FLAVOUR=${TWINPAGE_FLAVOUR:-deb13-cloud-amd64}
OF_FLAVOUR=${TWINPAGE_FLAVOUR:+-of-$TWINPAGE_FLAVOUR}

source_key() {
	printf '%s\n' "source 1" "$BACKPORTS" "$KERNEL_FLAVOUR" "$(root_key)" | hash_of
}

source_path() {
	printf '%s/source%s-%s\n' "$CACHE" "$OF_FLAVOUR" "$(source_key)"
}

# source_release: the release string of the stock kernel that was taken.
source_release() {
	cat "$(source_path)/release"
}

# newest SERIES: the newest release of SERIES (a regular expression).
newest() {
	in_root apt-cache search --names-only "^linux-binary-$1\\.[0-9]+\\+$KERNEL_FLAVOUR\$" |
		sed -n 's/^linux-binary-\([^ ]*\) .*/\1/p' | sort -V | tail -n 1
}

# in_root COMMAND...: like root.sh, for use while root.sh is being prepared.
in_root() {
	TWINPAGE_ROOT=$(root_path) "$TOP/scripts/root.sh" "$@"
}

# in_root_do FUNCTION ARGUMENT...: a shell function, run in the root.
in_root_do() {
	in_root env JOBS="$JOBS" \
		bash -ec "$(declare -f "$1")"'; "$@"' bash "$@"
}

choose_release() {
	local release
	release=$(newest '7\.3')
	if [ -z "$release" ]; then
		release=$(newest '7\.[0-9]+')
		[ -n "$release" ] || die "$BACKPORTS offers no 7.x kernel;" \
			"name a configured kernel tree with CONFIG_RUST=y: make KDIR=/path/to/tree"
		say "note: no 7.3 kernel in $BACKPORTS, taking $release"
	fi
	say "stock kernel: $release"
	printf '%s\n' "$release"
}

fetch_debs() {
	local release=$1 series=$2
	apt-get download "linux-binary-$release" "linux-modules-$release" \
		"linux-headers-$release" "linux-source-$series"
	local deb
	for deb in *.deb; do
		echo "Unpacking $deb"
		dpkg-deb -x "$deb" deb
		rm "$deb"
	done
	echo "Unpacking the source tree"
	mkdir src
	tar -C src --strip-components=1 -xf "deb/usr/src/linux-source-$series.tar.xz"
	rm "deb/usr/src/linux-source-$series.tar.xz"
	echo "$release" >release
}

prepare_source() {
	local path release
	prepare_root
	path=$(source_path)
	[ ! -d "$path" ] || return 0
	lock source
	[ ! -d "$path" ] || return 0
	progress "list of packages" "$CACHE/log/apt.log" '^(Get|Hit):' \
		in_root apt-get update --error-on=any
	release=$(choose_release)
	rm -rf --one-file-system "$path.tmp"
	mkdir -p "$path.tmp"
	(cd "$path.tmp" && progress "kernel $release: packages and source (230 MB)" \
		"$CACHE/log/source.log" '^(Get:|Unpacking)' \
		in_root_do fetch_debs "$release" "$(cut -d. -f1,2 <<<"$release")")
	publish "$path.tmp" "$path"
}

# forget_source: the next run looks for the newest kernel again.
forget_source() {
	lock source
	rm -rf "$(source_path)"
}
