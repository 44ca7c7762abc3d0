#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs the tests and adds them up:
#
#	scripts/test.sh [STAGE...]
#
# with the stages cargo, kunit, e2e-debug, e2e-stock, torture-debug and torture-kasan;
# all of them if none is named. LANES of them (2) run at a time. With BUDGET=MINUTES
# what may not end within them does not begin, and counts as skipped: a stage, or an
# end-to-end test. ONLY=PATTERN chooses among the end-to-end tests. Logs go to
# build/log; with EXECUTED=1 they say which instructions of the module those tests ran
# (vm.sh --executed).
# The last line is "N passed, N failed", with ", N skipped" where some were.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root_user
LOG=$TOP/build/log
LANES=${LANES:-2}
BUDGET=${BUDGET:-}
ALL=(cargo kunit e2e-debug e2e-stock torture-debug torture-kasan)
WATCHED='^( {4})?(not ok|ok) [0-9]|^WRONG|^    .*: [0-9]+ steps, |^==> '
WATCHED+='|^test result|^test .*FAILED|^error'
PASSED=0 FAILED=0 SKIPPED=0 BAD=()

title_of() {
	case $1 in
	cargo) echo "cargo tests of the engine and the tools" ;;
	kunit) echo "KUnit on the debug kernel" ;;
	e2e-stock) echo "end to end, stock kernel" ;;
	e2e-debug) echo "end to end, debug kernel" ;;
	torture-debug) echo "everything at once, debug kernel" ;;
	torture-kasan) echo "everything at once, kernel with KASAN" ;;
	*) die "test.sh knows the stages ${ALL[*]}, not '$1'" ;;
	esac
}

# stage_cargo: some tests talk to programs of another Debian. What is random is the
# same each time; "make torture" looks for what else there is.
stage_cargo() {
	cd "$TOP/tools"
	export TWINPAGE_CHAOS_SEED=${TWINPAGE_CHAOS_SEED:-1}
	export TWINPAGE_FUZZ_SEED=${TWINPAGE_FUZZ_SEED:-1}
	TWINPAGE_PEERS=$("$TOP/scripts/prepare.sh" peers)
	export TWINPAGE_PEERS
	progress "building the cargo tests" "$LOG/cargo-build.log" '^ +Compiling' \
		"$TOP/scripts/root.sh" cargo test --workspace --locked --no-run
	"$TOP/scripts/root.sh" cargo test --workspace --locked --no-fail-fast
}

# stage_kunit: the suites run when the module is loaded; debugfs has what each
# said, free of what else the kernel had to say. The kernel's own suites, which
# are there before, are not ours to count.
stage_kunit() {
	"$TOP/scripts/module.sh" debug modules
	# shellcheck disable=SC2016
	"$TOP/scripts/vm.sh" --kernel debug --timeout 1200 --check-log --out "$LOG/kunit" \
		--file "$TOP/build/debug/twinpage_kunit.ko:/twinpage_kunit.ko" \
		-- sh -c 'cd /sys/kernel/debug/kunit && ls >/tmp/before
			insmod /twinpage_kunit.ko || exit 1
			for suite in $(ls | grep -vxFf /tmp/before); do
				cat "$suite/results"
			done
			rmmod twinpage_kunit'
}

# build_test_hmm: the kernel's own test of device memory, which the stock kernel
# does not ship, from its source; what it is called with goes into PAYLOAD.
build_test_hmm() {
	local build source dir=$TOP/build/test_hmm
	build=$("$TOP/scripts/prepare.sh" stock)
	source=$("$TOP/scripts/prepare.sh" source)
	mkdir -p "$dir"
	cp "$source/src/lib/test_hmm.c" "$source/src/lib/test_hmm_uapi.h" "$dir/"
	echo 'obj-m := test_hmm.o' >"$dir/Kbuild"
	"$TOP/scripts/root.sh" make -s -C "$build" CC="$(kernel_cc stock)" M="$dir" \
		CONFIG_DEBUG_INFO_BTF_MODULES= modules
	PAYLOAD+=(--file "$dir/test_hmm.ko:/test_hmm.ko")
}

# seconds_left: for tests to begin in, so that the last ones end within the budget.
seconds_left() {
	local left=$((BUDGET * 60 - SECONDS - 600))
	echo $((left > 0 ? left : 0))
}

# stage_e2e KERNEL: the end-to-end program judges from inside the host, which has
# two NUMA nodes.
stage_e2e() {
	build_payload "$1"
	if [ "$1" = stock ]; then
		build_test_hmm
	else
		"$TOP/scripts/allocations.sh" "$1" >"$TOP/build/$1/allocations"
		PAYLOAD+=(--file "$TOP/build/$1/allocations:/allocations")
	fi
	"$TOP/scripts/vm.sh" --kernel "$1" --timeout 5400 --mem 3072 --numa 2 --check-log \
		${EXECUTED:+--executed} --out "$LOG/e2e-$1" "${PAYLOAD[@]}" \
		-- twinpage-e2e ${ONLY:+--only "$ONLY"} ${BUDGET:+--seconds "$(seconds_left)"}
}

# stage_torture KERNEL: a slice of what "make torture" goes on with, always the
# same: a run without ksmd, in which it can be seen that domains are kept apart,
# and one with it. The seconds are what it works; it boots and ends besides.
stage_torture() {
	local seed=1
	[ "$1" = debug ] || seed=3
	build_payload "$1"
	"$TOP/scripts/vm.sh" --kernel "$1" --timeout 1500 --mem 3072 --numa 2 --check-log \
		--append page_poison=1 --out "$LOG/torture-$1" "${PAYLOAD[@]}" \
		-- sh -c "twinpage-torture --seconds 90 --seed $seed --qemu 1 &&
			twinpage-torture --seconds 60 --seed $((seed + 1)) &&
			echo ok 1 - torture || { echo not ok 1 - torture; exit 1; }
			twinpage-fuzz --operations 10000 --seconds 240 --seed $seed &&
			echo ok 2 - interfaces || { echo not ok 2 - interfaces; exit 1; }"
}

# tally LOG: "passed failed skipped" of the lines of cargo, KUnit (the second
# level) and our own program.
tally() {
	awk '
	/^test result:/ { passed += $4; failed += $6; skipped += $8; next }
	/^(    )?ok [0-9]/ && / # SKIP/ { skipped++; next }
	/^    (not )?ok [0-9]/ { level2 = 1; if ($1 == "ok") passed++; else failed++; next }
	/^(not )?ok [0-9]/ { if ($1 == "ok") top_ok++; else top_bad++ }
	END {
		if (!level2) { passed += top_ok; failed += top_bad }
		print passed + 0, failed + 0, skipped + 0
	}' "$1"
}

# surprises STAGE LOG: tests that were skipped, though scripts/skips.txt has others of this
# stage, and though there was time.
surprises() {
	local known
	known=$(sed -n "s/^$1 //p" "$TOP/scripts/skips.txt")
	[ -z "$known" ] || grep -av 'SKIP no time is left' "$2" |
		sed -n 's/^ok [0-9]* - \([^ ]*\) # SKIP .*/\1/p' |
		grep -vxFe "$known" || true
}

# watch STAGE: of its output, what is worth showing while it runs.
watch() {
	grep --line-buffered -aE "$WATCHED" |
		sed -u "s/^ */    $1: /" || true
}

# reasons LINES MORE LOG: the tests that failed, what was said just before, and MORE
# lines after each of them.
reasons() {
	grep -aE -B 3 -A "$2" '(^|    )not ok |^test .*FAILED|panicked at' "$3" | head -n "$1" |
		cut -c1-160 | sed 's/^/    | /' >&2 || true
}

# excuse STAGE STATUS LOG: why a stage failed.
excuse() {
	say "$1 failed with status $2; the end of $3:"
	tail -n 20 "$3" | cut -c1-160 | sed 's/^/    | /' >&2
	reasons 60 4 "$3"
}

# run_stage STAGE NUMBER: run it, and leave its numbers in its .count. A stage that
# fails otherwise than by a test, or that ran no test, counts as one failed test.
run_stage() {
	local stage=$1 start=$SECONDS log=$LOG/$1.log rc=0 passed failed skipped name
	say "$2 $(title_of "$stage")"
	set +e
	(
		set -e
		"stage_${stage%-*}" "${stage#*-}"
	) 2>&1 </dev/null | tee "$log" | watch "$stage" >&2
	rc=${PIPESTATUS[0]}
	set -e
	read -r passed failed skipped < <(tally "$log")
	for name in $(surprises "$stage" "$log"); do
		say "$stage: $name was skipped, which scripts/skips.txt does not say it may be"
		failed=$((failed + 1))
	done
	if [ "$failed" -eq 0 ] && { [ "$rc" -ne 0 ] || [ "$passed" -eq 0 ]; }; then
		failed=1
	fi
	[ "$failed" -eq 0 ] || excuse "$stage" "$rc" "$log"
	say "$stage: $passed passed, $failed failed, $skipped skipped in $((SECONDS - start)) s"
	echo "$passed $failed $skipped" >"$LOG/$stage.count"
}

# minutes_of STAGE: what it may take on two processors that it has to share, with the
# kernel that it may have to build first.
minutes_of() {
	local kernel=${1#*-} minutes=25
	[ "$1" != kunit ] || kernel=debug
	case $kernel in
	debug | kasan) "$TOP/scripts/prepare.sh" --have "$kernel" || minutes=$((minutes + 35)) ;;
	esac
	echo "$minutes"
}

# fits STAGE: whether the budget has time for it; if not, that is its result.
fits() {
	local left minutes
	[ -n "$BUDGET" ] || return 0
	left=$((BUDGET - SECONDS / 60))
	minutes=$(minutes_of "$1")
	[ "$minutes" -gt "$left" ] || return 0
	say "$1: skipped: it may take $minutes minutes, and $left of BUDGET=$BUDGET are left"
	echo "0 0 1" >"$LOG/$1.count"
	return 1
}

# add_up STAGE: its numbers, if it came to its end.
add_up() {
	local passed=0 failed=1 skipped=0
	[ ! -s "$LOG/$1.count" ] || read -r passed failed skipped <"$LOG/$1.count"
	[ "$failed" -eq 0 ] || BAD+=("$1")
	PASSED=$((PASSED + passed)) FAILED=$((FAILED + failed)) SKIPPED=$((SKIPPED + skipped))
}

# stop: ends the stages that run.
# shellcheck disable=SC2317
stop() {
	local job
	for job in $(jobs -p); do
		kill -- "-$job" 2>/dev/null || true
	done
	exit 130
}

STAGES=("$@")
[ $# -gt 0 ] || STAGES=("${ALL[@]}")
[[ $BUDGET =~ ^([1-9][0-9]{0,3})?$ ]] || die "BUDGET is a number of minutes, not '$BUDGET'"
[[ $LANES =~ ^[1-9]$ ]] || die "LANES is how many stages run at a time, not '$LANES'"
for stage in "${STAGES[@]}"; do
	title_of "$stage" >/dev/null
done
mkdir -p "$LOG"
"$TOP/scripts/prepare.sh" root >/dev/null
# Each stage is a process group of its own.
set -m
trap stop INT TERM
number=0
for stage in "${STAGES[@]}"; do
	number=$((number + 1))
	rm -f "$LOG/$stage.count"
	while [ "$(jobs -rp | wc -l)" -ge "$LANES" ]; do
		wait -n || true
	done
	! fits "$stage" || run_stage "$stage" "[$number/${#STAGES[@]}]" &
done
wait
for stage in "${STAGES[@]}"; do
	add_up "$stage"
done
# Who sees no more than the end of a long run still learns what failed.
for stage in "${BAD[@]}"; do
	say "$stage failed:"
	reasons 12 1 "$LOG/$stage.log"
done
summary="$PASSED passed, $FAILED failed"
[ "$SKIPPED" -eq 0 ] || summary+=", $SKIPPED skipped"
echo "$summary"
[ "$FAILED" -eq 0 ] && [ "$PASSED" -gt 0 ]
