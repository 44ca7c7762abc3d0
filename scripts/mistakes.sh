#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Puts mistakes into the module on purpose, and sees whether the tests notice:
#
#	scripts/mistakes.sh [NAME...]
#
# Each scripts/mistakes/NAME.patch says what is wrong, and in lines "Test:
# KERNEL TEST" which tests must fail with it. A TEST is one of twinpage-e2e, or
# kunit:CASE. A mistake that no test can notice has a line "Unseen: REASON", and
# only has to apply. Each runs in a machine of its own; a machine that dies, or
# whose kernel complains, has noticed too. KERNELS="stock" leaves out the tests
# on other kernels. Logs are in build/log/mistakes. The last line is "N passed,
# N failed": a mistake that a test does not notice failed.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root_user
LOG=$TOP/build/log/mistakes
TREE=$CACHE/mistakes/tree
KERNELS=${KERNELS:-stock debug}
PASSED=0 FAILED=0

# fresh_tree: what is to be spoilt: the files of the checkout, as they are.
fresh_tree() {
	mkdir -p "$TREE"
	git -C "$TOP" ls-files -z -co --exclude-standard -- \
		Kbuild Makefile rust kunit-tests scripts |
		tar -C "$TOP" --null -T - -c | tar -C "$TREE" -x
}

# run_e2e KERNEL TEST LOG: an end-to-end test, in a host like that of test.sh,
# but which ends at once when its kernel goes wrong.
run_e2e() {
	local payload=() program
	payload=(--file "$TREE/build/$1/twinpage.ko:/twinpage.ko")
	for program in "$TOP"/build/bin/*; do
		payload+=(--file "$program:/usr/bin/$(basename "$program")")
	done
	"$TOP/scripts/vm.sh" --kernel "$1" --timeout 1800 --mem 3072 --numa 2 --check-log \
		--append oops=panic --out "$LOG/$2.$1" "${payload[@]}" \
		-- twinpage-e2e --only "$2" >"$3" 2>&1
}

# run_kunit CASE LOG: all KUnit cases, since loading the module runs them.
run_kunit() {
	"$TOP/scripts/vm.sh" --kernel debug --timeout 1200 --check-log --append oops=panic \
		--out "$LOG/$1.debug" \
		--file "$TREE/build/debug/twinpage_kunit.ko:/twinpage_kunit.ko" \
		-- sh -c 'insmod /twinpage_kunit.ko
			cat /sys/kernel/debug/kunit/twinpage_*/results' >"$2" 2>&1
}

# noticed KERNEL TEST LOG: does the test fail, or the machine? Says how. Nothing
# follows from a machine whose time was up, unless its kernel complained: tests
# have limits of their own.
noticed() {
	local rc=0 name=${2#kunit:} console
	console=$LOG/$name.$1/console.log
	case $2 in
	kunit:*) run_kunit "$name" "$3" || rc=$? ;;
	*) run_e2e "$@" || rc=$? ;;
	esac
	if grep -qE "^ *not ok [0-9]+ (- )?$name\$" "$3"; then
		echo "it fails"
	elif [ "$rc" -ge 124 ] && grep -q "twinpage-init: job starts" "$console" &&
		! "$TOP/scripts/dmesg-clean.sh" "$console" >/dev/null 2>&1; then
		echo "the kernel complains"
	elif [ "$rc" -eq 125 ] && grep -q "twinpage-init: job starts" "$console"; then
		echo "the machine dies"
	else
		return 1
	fi
}

# report OK WHAT
report() {
	if [ "$1" = ok ]; then
		PASSED=$((PASSED + 1))
	else
		FAILED=$((FAILED + 1))
	fi
	echo "$1 $((PASSED + FAILED)) - $2"
}

# make_mistake NAME: put it in, see what its tests say, take it out.
make_mistake() {
	local patch=$TOP/scripts/mistakes/$1.patch kernel test how built=''
	say "$1: $(sed -n 's/^\(What\|Unseen\): *//p' "$patch" | paste -sd ' ')"
	patch -s -d "$TREE" -p1 <"$patch" || die "$1.patch does not apply: bring it up to date"
	while read -r kernel test; do
		[[ " $KERNELS " == *" $kernel "* ]] || continue
		if [[ $built != *"$kernel"* ]]; then
			"$TREE/scripts/module.sh" "$kernel" modules >"$LOG/$1.build.$kernel" 2>&1 ||
				die "$1 does not build for $kernel: see $LOG/$1.build.$kernel"
			built+=" $kernel"
		fi
		if how=$(noticed "$kernel" "$test" "$LOG/$1.$kernel.${test#kunit:}.log"); then
			report ok "$1: $test notices ($kernel): $how"
		else
			report 'not ok' "$1: $test does not notice ($kernel)"
		fi
	done < <(sed -n 's/^Test: *//p' "$patch")
	patch -s -R -d "$TREE" -p1 <"$patch"
}

mkdir -p "$LOG"
names=("$@")
if [ $# -eq 0 ]; then
	for patch in "$TOP"/scripts/mistakes/*.patch; do
		names+=("$(basename "$patch" .patch)")
	done
fi
lock mistakes
rm -rf "$TREE"
fresh_tree
"$TOP/scripts/tools.sh" >"$LOG/tools.log" 2>&1 || die "the tools do not build: $LOG/tools.log"
for name in "${names[@]}"; do
	make_mistake "$name" </dev/null
done
echo "$PASSED passed, $FAILED failed"
[ "$FAILED" -eq 0 ]
