#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Goes on for MINUTES (60) with what the tests do for seconds:
#
#	MINUTES=n SEED=n scripts/torture.sh [STAGE...]
#
# with the stages fuzz (QEMU's stream, every decoder of the wire), sim (the
# engine in a made-up host), chaos (live migrations of which a part is killed),
# debug, kasan and kcsan (twinpage-torture, everything at once against the module,
# on that kernel) and interfaces (twinpage-fuzz, every ioctl and file of the module,
# on the kasan kernel); all of them, each for its share of the time, if none is
# named. SEED is printed and repeats a run; so do the seeds that a failure prints.
# twinpage-torture has VMS=n VMs (5) and QEMUS=n QEMU guests (1).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root_user
LOG=$TOP/build/log
SHOWN='^test .*FAILED|panicked at|runs from seed|streams in|^test result|^WRONG|^seed '
MINUTES=${MINUTES:-60}
SEED=${SEED:-$((RANDOM * 32768 + RANDOM))}
VMS=${VMS:-5}
QEMUS=${QEMUS:-1}
STAGES=(fuzz sim chaos debug kasan kcsan interfaces)
BATCH=20

# cargo_test ARGUMENT...: run tests; what they say is shown and kept.
cargo_test() {
	"$TOP/scripts/root.sh" cargo test --locked "$@" -- --nocapture
}

# stage_fuzz SECONDS: the decoders are four tests, and two run at a time here.
stage_fuzz() {
	export TWINPAGE_FUZZ_SECONDS=$(($1 / 3)) TWINPAGE_FUZZ_SEED=$SEED
	cargo_test -p twinpage-stream --test stream fuzzed
	cargo_test -p twinpage-wire --test wire fuzz::
}

# batches SECONDS COMMAND...: run COMMAND with the next SEED until time is up.
batches() {
	local end=$((SECONDS + $1))
	shift
	while [ "$SECONDS" -lt "$end" ]; do
		"$@"
		SEED=$((SEED + BATCH))
	done
}

sim_batch() {
	TWINPAGE_SEED=$SEED TWINPAGE_CASES=$BATCH cargo_test -p twinpage-engine --test sim
}

chaos_batch() {
	TWINPAGE_CHAOS_SEED=$SEED TWINPAGE_CHAOS_RUNS=$BATCH \
		cargo_test -p twinpage-migrate --test live exactly_one_side
}

stage_sim() {
	batches "$1" sim_batch
}

stage_chaos() {
	TWINPAGE_PEERS=$("$TOP/scripts/prepare.sh" peers)
	export TWINPAGE_PEERS
	batches "$1" chaos_batch
}

# PIECE: seconds after which a machine is booted anew, so that its log, its leaks
# and its broken frames are looked at now and then.
PIECE=1200

# machine_piece KERNEL SECONDS PROGRAM...: one machine with this seed, which fills free
# pages with a pattern and looks for changes of it. QEMU guests boot before, one by one.
machine_piece() {
	local kernel=$1 seconds=$2 limit
	limit=$((seconds * 2 + 900 + QEMUS * 300))
	shift 2
	"$TOP/scripts/vm.sh" --kernel "$kernel" --timeout "$limit" --mem 3072 \
		--numa 2 --append page_poison=1 --check-log \
		--out "$LOG/torture-$kernel-$SEED" "${PAYLOAD[@]}" \
		-- "$@" --seconds "$seconds" --seed "$SEED"
}

# pieces KERNEL SECONDS PROGRAM...: one machine after the other, each with the
# next SEED. A run with an even seed has ksmd in it, so both kinds have a share.
pieces() {
	local kernel=$1 left=$2 count
	shift 2
	build_payload "$kernel"
	count=$(((left + PIECE - 1) / PIECE))
	[ "$count" -gt 1 ] || count=2
	for ((piece = 0; piece < count; piece++)); do
		machine_piece "$kernel" $((left / count)) "$@"
		SEED=$((SEED + 1))
	done
}

# everything KERNEL SECONDS: everything at once on that kernel.
everything() {
	pieces "$1" "$2" twinpage-torture --vms "$VMS" --qemu "$QEMUS"
}

stage_debug() {
	everything debug "$1"
}

stage_kasan() {
	everything kasan "$1"
}

stage_kcsan() {
	everything kcsan "$1"
}

stage_interfaces() {
	pieces kasan "$1" twinpage-fuzz --operations 1000000000
}

# run STAGE SECONDS: what matters is shown, all of it is in the log. The stage
# is no condition of anything, so that the first command that fails ends it.
run() {
	local log=$LOG/torture-$1.log rc
	say "$1 for $2 s; all of it goes to $log"
	set +e
	(
		set -e
		"stage_$1" "$2"
	) 2>&1 </dev/null | tee "$log" | grep -E --line-buffered "$SHOWN" >&2
	rc=${PIPESTATUS[0]}
	set -e
	if [ "$rc" -ne 0 ]; then
		tail -n 20 "$log" >&2
		die "$1 broke something; the seed printed last in $log repeats it"
	fi
}

[[ $MINUTES =~ ^[1-9][0-9]{0,4}$ ]] || die "MINUTES is a number of minutes, not '$MINUTES'"
[[ $SEED =~ ^[0-9]{1,15}$ ]] || die "SEED is a number, not '$SEED'"
[[ $VMS =~ ^[1-9][0-9]?$ ]] || die "VMS is a number of VMs, not '$VMS'"
[[ $QEMUS =~ ^[0-9]$ ]] || die "QEMUS is a number of QEMU guests, not '$QEMUS'"
[ $# -gt 0 ] || set -- "${STAGES[@]}"
for stage in "$@"; do
	declare -F "stage_$stage" >/dev/null ||
		die "torture.sh knows the stages ${STAGES[*]}, not '$stage'"
done
mkdir -p "$LOG"
"$TOP/scripts/prepare.sh" root >/dev/null
say "MINUTES=$MINUTES SEED=$SEED VMS=$VMS QEMUS=$QEMUS"
cd "$TOP/tools"
for stage in "$@"; do
	run "$stage" $((MINUTES * 60 / $#))
done
say "nothing broke"
