#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Every static check; warnings are errors:
#
#	scripts/check.sh [--bless] [CHECK...]
#
# prints "ok CHECK" or "FAILED CHECK" with what it found, and a count at the
# end. The checks are the functions check_* of scripts/check/. --bless writes
# the two ratchet files anew, which is a change to review.
set -euo pipefail
HERE=$(dirname "$0")
# shellcheck source=scripts/lib.sh
. "$HERE/lib.sh"
need_root_user
# shellcheck source=scripts/check/text.sh
. "$HERE/check/text.sh"
# shellcheck source=scripts/check/lints.sh
. "$HERE/check/lints.sh"
# shellcheck source=scripts/check/ratchets.sh
. "$HERE/check/ratchets.sh"

# files PATHSPEC...: the files of the project, also those not committed yet.
files() {
	git ls-files --cached --others --exclude-standard --deduplicate -- "$@" |
		while read -r file; do
			[ ! -f "$file" ] || printf '%s\n' "$file"
		done
}

# none: fails if there is anything on standard input, and shows it.
none() {
	! grep .
}

# in_each COMMAND...: COMMAND with the files named on standard input, if any.
in_each() {
	local list
	mapfile -t list
	[ "${#list[@]}" -eq 0 ] || "$TOP/scripts/root.sh" "$@" "${list[@]}"
}

# findings LOG N: the first N lines of what a check had to say.
findings() {
	awk -v n="$2" '!/^==> / && NF && n-- > 0' "$1"
}

# run_check NAME: without pipefail, since a search that finds nothing "fails";
# what a check means to judge is the last command of its pipeline.
run_check() {
	local name=$1 log=$TOP/build/log/check-$1.log start=$SECONDS rc
	set +e
	(
		set -e +o pipefail
		"check_$name"
	) >"$log" 2>&1 </dev/null
	rc=$?
	set -e
	if [ "$rc" -eq 0 ]; then
		printf 'ok %s (%s s)\n' "$name" $((SECONDS - start))
		PASSED=$((PASSED + 1))
		return 0
	fi
	printf 'FAILED %s: %s\n' "$name" "$(findings "$log" 1)"
	findings "$log" 30 | sed 's/^/    | /'
	FAILED=$((FAILED + 1))
}

cd "$TOP"
git rev-parse --git-dir >/dev/null 2>&1 || die "check.sh needs the git checkout"
mkdir -p build/log
if [ "${1:-}" = --bless ]; then
	bless
	exit 0
fi
CHECKS=("$@")
[ $# -gt 0 ] || mapfile -t CHECKS < <(compgen -A function check_ | sed 's/^check_//')
"$TOP/scripts/prepare.sh" root >/dev/null
# All of them need both kernels, which take so long to build that it should be seen.
[ $# -gt 0 ] || "$TOP/scripts/prepare.sh" stock debug >/dev/null
PASSED=0 FAILED=0
for name in "${CHECKS[@]}"; do
	declare -F "check_$name" >/dev/null || die "there is no check '$name'"
	run_check "$name"
done
echo "$PASSED passed, $FAILED failed"
[ "$FAILED" -eq 0 ]
