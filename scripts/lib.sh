# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What every script of this directory shares: messages, the cache and its
# locks, and long commands with visible progress. To be sourced.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/twinpage
JOBS=$(nproc)
export TOP CACHE JOBS

# say TEXT...: one line about what goes on.
say() {
	printf '==> %s\n' "$*" >&2
}

# die TEXT...: one line that names the cause, then failure.
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# hash_of: content key of what comes in on standard input.
hash_of() {
	sha256sum | cut -c1-12
}

# kernel_cc NAME: the compiler of a kernel and of its modules.
kernel_cc() {
	case $1 in
	kasan) echo clang-19 ;;
	*) echo x86_64-linux-gnu-gcc-14 ;;
	esac
}

need_root_user() {
	[ "$(id -u)" -eq 0 ] ||
		die "this needs root: it makes a chroot with its own mounts (try: sudo make ...)"
	[ "$(uname -m)" = x86_64 ] ||
		die "this needs an x86-64 machine, and this one is $(uname -m)"
}

# host_tool COMMAND PACKAGE...: install PACKAGE when COMMAND is missing here.
host_tool() {
	local tool=$1 log
	shift
	! command -v "$tool" >/dev/null || return 0
	command -v apt-get >/dev/null ||
		die "$tool is missing and there is no apt-get here: install $* yourself"
	say "installing $* (for $tool)"
	log=$(mktemp)
	if ! { apt-get update && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
		tail -n 5 "$log" >&2
		rm -f "$log"
		die "apt-get could not install $*: is the network there?"
	fi
	rm -f "$log"
}

HELD=()

# lock NAME: hold the lock NAME of the cache until this shell ends.
lock() {
	local fd
	mkdir -p "$CACHE/locks"
	exec {fd}>"$CACHE/locks/$1"
	HELD+=("$fd")
	flock -n "$fd" && return 0
	say "waiting for another run ($1)"
	flock "$fd"
}

# in_use PATH: keep PATH from being removed until this shell's children end.
in_use() {
	local fd
	exec {fd}<"$1"
	flock -s "$fd"
}

# publish TMP PATH: TMP is whole now and becomes PATH, with a stable name
# beside it; older keys of the same thing go unless somebody works in them.
publish() {
	local tmp=$1 path=$2 name old
	name=$(basename "${path%-*}")
	mv -T "$tmp" "$path"
	ln -sfn "$(basename "$path")" "$CACHE/$name"
	for old in "$CACHE/$name"-????????????{,.tmp}; do
		if [ "$old" = "$path" ] || [ ! -e "$old" ] || ! flock -n "$old" true; then
			continue
		fi
		say "removing $(basename "$old"), which is out of date"
		rm -rf --one-file-system "$old"
	done
}

# ticker LABEL LOG PATTERN: say now and then how much of LOG matches PATTERN.
ticker() {
	local label=${1%% (*} log=$2 pattern=$3 start=$SECONDS
	local shown=-1 count pause=10 fd
	# It may outlive an interrupted script for a moment; its locks must not.
	for fd in "${HELD[@]}"; do
		exec {fd}>&-
	done
	while kill -0 "$$" 2>/dev/null; do
		# A pause without a process, which would be left behind.
		read -r -t "$pause" <> <(:) || true
		[ $((SECONDS - start)) -lt 60 ] || pause=30
		count=$(grep -cE "$pattern" "$log" || true)
		[ "$count" != "$shown" ] || continue
		shown=$count
		printf '    %s: %s steps, %s s\n' "$label" "$count" $((SECONDS - start)) >&2
	done
}

# progress LABEL LOG PATTERN COMMAND...: run COMMAND with its output in LOG
# and show its pace. LABEL may end in a hint in parentheses. On failure the
# log's end and one closing line.
progress() {
	local label=${1%% (*} log=$2 pattern=$3 start=$SECONDS ticker_pid rc=0
	say "$1"
	shift 3
	mkdir -p "$(dirname "$log")"
	: >"$log"
	ticker "$label" "$log" "$pattern" &
	ticker_pid=$!
	"$@" >"$log" 2>&1 </dev/null || rc=$?
	kill "$ticker_pid" 2>/dev/null || true
	wait "$ticker_pid" 2>/dev/null || true
	if [ "$rc" -ne 0 ]; then
		tail -n 15 "$log" | cut -c1-200 | sed 's/^/    | /' >&2
		die "$label: failed with status $rc: $(cause_in "$log") (log: $log)"
	fi
	say "$label: done in $((SECONDS - start)) s"
}

# cause_in LOG: the line of LOG that most likely says why.
cause_in() {
	grep -E '(error|E:|fatal|No space|cannot|Cannot|failed|not found)' "$1" |
		grep -vE '^(make|CC|  CC)' | head -n 1 | cut -c1-160 | grep . ||
		tail -n 1 "$1" | cut -c1-160
}

# build_payload KERNEL: build what a host with that kernel gets to test, and
# set PAYLOAD to the arguments of vm.sh that put it there.
build_payload() {
	local program
	"$TOP/scripts/module.sh" "$1" -s modules
	progress "userspace programs" "$TOP/build/log/tools.log" '^ +Compiling' \
		"$TOP/scripts/tools.sh"
	PAYLOAD=(--file "$TOP/build/$1/twinpage.ko:/twinpage.ko")
	for program in "$TOP"/build/bin/*; do
		PAYLOAD+=(--file "$program:/usr/bin/$(basename "$program")")
	done
}
