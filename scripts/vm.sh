#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Boots a KVM host under QEMU's software emulation and runs a command in it:
#
#	scripts/vm.sh --kernel stock|debug|kasan|kcsan [OPTION...] -- COMMAND ARGUMENT...
#
#	--mem MIB        memory of the host (default 2048)
#	--smp N          its processors (default 3); COMMAND runs on all but the first
#	--numa N         split memory and processors among N nodes
#	--thread MODE    of the emulation: multi (default) or single
#	--count          one processor, on which an instruction takes a nanosecond of
#	                 its clock: times are numbers of instructions
#	--timeout S      give up after S seconds (default 900)
#	--append ARGS    more kernel parameters
#	--net ROLE:PATH  a virtio network card; two machines with the same PATH, one
#	                 as server and one as client, are on one cable
#	--file H:G       put the file H of this machine at G in the host under test
#	--disk FILE      FILE as a disk of the host, the next /dev/vd?, to be read only
#	--out DIR        keep console.log, output.log and what COMMAND left in /out
#	--executed       and executed.log: the addresses of all instructions of the stock
#	                 kernel's modules that were ever run, a line each
#	--check-log      fail when the kernel log has something to explain
#
# The command's output comes here as it is written, kernel messages go to
# console.log. The exit status is the command's; 124: the time was up; 125: the
# machine died; 126: the kernel log is not clean.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
need_root_user

KERNEL='' MEM=2048 SMP=3 THREAD=multi TIMEOUT=900 APPEND='' OUT='' CHECK_LOG='' NET='' NUMA=1
DISKS=() FILES=() CLOCK=() TRACE=() CPU=max,+svm,+npt
# An emulated processor stands still while its machine is busy; that is no
# lockup, nor a broken timer.
KERNEL_LOG='loglevel=7 printk.time=1 watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=180'
KERNEL_LOG+=' sysctl.kernel.hung_task_timeout_secs=600'
# An interrupt in the middle of identify_cpu(), which clears the CPU's features for
# a moment, finds KASAN in doubt about the depth of page tables: four levels then.
ALWAYS="console=ttyS0 rdinit=/init panic=-1 no_timer_check no5lvl $KERNEL_LOG"

# Where a kernel that chooses its own place puts modules
# (arch/x86/include/asm/pgtable_64_types.h).
MODULES=0xffffffffc0000000..0xfffffffffeffffff

# count: the machine counts instructions. One that moves or fills bytes counts once for
# each, so the kernel shall not use those where others do.
count() {
	SMP=1 THREAD=single CLOCK=(-icount "shift=0,sleep=off") CPU+=,-erms,-fsrm,-fsrs,-fzrm
}

parse() {
	while [ $# -gt 0 ]; do
		case $1 in
		--check-log) CHECK_LOG=1 && shift && continue ;;
		--count) count && shift && continue ;;
		--executed) TRACE=(-d in_asm -dfilter "$MODULES") && shift && continue ;;
		--) shift && break ;;
		esac
		[ $# -ge 2 ] || die "vm.sh: $1 wants a value"
		case $1 in
		--kernel) KERNEL=$2 ;;
		--mem) MEM=$2 ;;
		--smp) SMP=$2 ;;
		--numa) NUMA=$2 ;;
		--thread) THREAD=$2 ;;
		--timeout) TIMEOUT=$2 ;;
		--append) APPEND+=" $2" ;;
		--net) NET=$2 ;;
		--file) FILES+=("$2") ;;
		--disk) DISKS+=("$2") ;;
		--out) OUT=$2 ;;
		*) die "vm.sh does not know the option $1" ;;
		esac
		shift 2
	done
	[ $# -gt 0 ] || die "vm.sh: no command given (after --)"
	COMMAND=("$@")
	case $KERNEL in
	stock | debug | kasan | kcsan) ;;
	*) die "vm.sh: --kernel must be stock, debug, kasan or kcsan" ;;
	esac
	case $NET in
	'' | server:?* | client:?*) ;;
	*) die "vm.sh: --net wants server:PATH or client:PATH, not '$NET'" ;;
	esac
}

# quoted WORD...: the words as a command for a POSIX shell.
quoted() {
	local word
	for word in "$@"; do
		printf "'%s' " "${word//\'/\'\\\'\'}"
	done
	printf '\n'
}

# own_modules: the modules of a kernel of our own; the userland that is kept has
# those of the stock kernel.
own_modules() {
	local build release module
	build=$("$TOP/scripts/prepare.sh" "$KERNEL")
	release=$(cat "$build/include/config/kernel.release")
	for module in virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-amd lib/test_hmm; do
		[ ! -f "$build/$module.ko" ] ||
			FILES+=("$build/$module.ko:/lib/modules/$release/$(basename "$module").ko")
	done
}

# stage DIR: what is new in this run, as a tree to lay over the userland.
stage() {
	local tree=$1 pair
	mkdir -p "$tree/job"
	cp "$TOP/scripts/initrd/init" "$tree/init"
	quoted "${COMMAND[@]}" >"$tree/job/run"
	printf 'CHECK_LEAKS=%s\n' "$CHECK_LOG" >"$tree/job/options"
	for pair in "${FILES[@]}"; do
		[ -f "${pair%%:*}" ] || die "vm.sh: there is no file ${pair%%:*}"
		mkdir -p "$(dirname "$tree/${pair#*:}")"
		cp -L "${pair%%:*}" "$tree/${pair#*:}"
	done
}

# kernel_image: the bzImage to boot.
kernel_image() {
	case $KERNEL in
	stock) echo "$INITRD/vmlinuz-stock" ;;
	*) echo "$("$TOP/scripts/prepare.sh" "$KERNEL")/arch/x86/boot/bzImage" ;;
	esac
}

# cable: arguments of the emulator for the network card, a word each.
cable() {
	local mac=52:54:00:77:00:01 plug="server=on"
	case $NET in
	'') return ;;
	client:*) mac=52:54:00:77:00:02 plug="server=off,reconnect-ms=500" ;;
	esac
	printf '%s\0' -netdev "stream,id=cable,$plug,addr.type=unix,addr.path=${NET#*:}" \
		-device "virtio-net-pci,netdev=cable,mac=$mac,romfile="
}

# disks: arguments of the emulator for the disks, a word each.
disks() {
	local number
	for number in "${!DISKS[@]}"; do
		printf '%s\0' -device "virtio-blk-pci,drive=disk$number" -drive \
			"file=${DISKS[number]},format=raw,if=none,id=disk$number,readonly=on"
	done
}

# nodes: what makes the emulator show several NUMA nodes, the processors dealt out to them.
nodes() {
	local node socket
	[ "$NUMA" -gt 1 ] || return 0
	for ((node = 0; node < NUMA; node++)); do
		echo "-object memory-backend-ram,id=node$node,size=$((MEM / NUMA))M"
		echo "-numa node,nodeid=$node,memdev=node$node"
	done
	for ((socket = 0; socket < SMP; socket++)); do
		echo "-numa cpu,node-id=$((socket % NUMA)),socket-id=$socket"
	done
}

# machine DIR IMAGE: run the emulator; its files are in DIR.
machine() {
	local dir=$1 image=$2 name ports=() numa
	read -r -d '' -a numa < <(nodes) || true
	mapfile -d '' -t ports < <(cable && disks)
	for name in job files status; do
		ports+=(-chardev "file,id=$name,path=$dir/$name"
			-device "virtserialport,chardev=$name,name=$name")
	done
	exec timeout --kill-after=10 "$TIMEOUT" "$TOP/scripts/root.sh" \
		nice -n 5 qemu-system-x86_64 -nodefaults -no-user-config \
		-M q35 -accel "tcg,thread=$THREAD" "${CLOCK[@]}" -cpu "$CPU" \
		-smp "$SMP,sockets=$SMP" -m "$MEM" "${numa[@]}" -display none -no-reboot \
		"${TRACE[@]}" -D "$dir/translated" \
		-kernel "$image" -initrd "$dir/initrd" \
		-append "$ALWAYS$APPEND" \
		-serial "file:$dir/console.log" \
		-device virtio-serial-pci "${ports[@]}" \
		</dev/null >"$dir/qemu.log" 2>&1
}

# switch_off DIR PID: ends a machine that has given its status and stays on.
switch_off() {
	local _
	while [ ! -s "$1/status" ]; do
		kill -0 "$2" 2>/dev/null || return 0
		sleep 1
	done
	for _ in {1..120}; do
		kill -0 "$2" 2>/dev/null || return 0
		sleep 1
	done
	touch "$1/stuck"
	kill "$2"
}

# verdict DIR STATUS: the exit status of the whole, with its reason.
verdict() {
	local dir=$1 qemu=$2 status
	if [ -s "$dir/status" ]; then
		status=$(cat "$dir/status")
		if [ -e "$dir/stuck" ]; then
			say "vm.sh: the machine did not switch off"
			status=125
		fi
	elif [ "$qemu" -eq 124 ] || [ "$qemu" -eq 137 ]; then
		say "vm.sh: the time ($TIMEOUT s) was up; the console's last lines:"
		status=124
	else
		say "vm.sh: the machine died; the console's last lines:"
		status=125
	fi
	if [ ! -s "$dir/status" ]; then
		tail -n 30 "$dir/console.log" | tr -d '\r' | sed 's/^/    | /' >&2
		sed 's/^/    | /' "$dir/qemu.log" >&2
		"$TOP/scripts/dmesg-clean.sh" "$dir/console.log" >&2 || true
	elif [ -n "$CHECK_LOG" ] && ! "$TOP/scripts/dmesg-clean.sh" "$dir/console.log" >&2; then
		[ "$status" -ne 0 ] || status=126
	fi
	return "$status"
}

# keep DIR: what is to outlive the run.
keep() {
	[ -n "$OUT" ] || return 0
	mkdir -p "$OUT"
	cp "$1/console.log" "$OUT/"
	cp "$1/job" "$OUT/output.log"
	[ ${#TRACE[@]} -eq 0 ] || sed -n 's/^\(0x[0-9a-f]*\):  .*/\1/p' "$1/translated" |
		sort -u >"$OUT/executed.log"
	[ ! -s "$1/files" ] || tar -C "$OUT" --no-same-owner -xf "$1/files"
}

# shellcheck disable=SC2317
cleanup() {
	[ -z "$MACHINE" ] || kill "$MACHINE" 2>/dev/null || true
	rm -rf "$WORK"
}

# Read whole before it runs, so that the file may change meanwhile.
main() {
	parse "$@"
	MACHINE=''
	INITRD=$("$TOP/scripts/prepare.sh" initrd)
	IMAGE=$(kernel_image)
	in_use "$INITRD"
	in_use "${IMAGE%/arch/*}"
	mkdir -p "$CACHE/vm"
	# What a killed run left behind.
	find "$CACHE/vm" -maxdepth 1 -name 'run.*' -mmin +1440 -exec rm -rf {} +
	WORK=$(mktemp -d -p "$CACHE/vm")
	trap cleanup EXIT
	trap 'exit 130' INT TERM

	[ "$KERNEL" = stock ] || own_modules
	stage "$WORK/tree"
	cp "$INITRD/base.cpio.zst" "$WORK/initrd"
	# shellcheck disable=SC2016
	(cd "$WORK/tree" && "$TOP/scripts/root.sh" sh -c \
		'truncate -s %4 "$1" && find . | cpio -o -H newc --quiet >>"$1"' sh "$WORK/initrd")
	touch "$WORK/job" "$WORK/files" "$WORK/status" "$WORK/console.log"
	machine "$WORK" "$IMAGE" &
	MACHINE=$!
	switch_off "$WORK" "$MACHINE" >/dev/null 2>&1 &
	tail -n +1 -f -s 0.2 --pid="$MACHINE" "$WORK/job"
	rc=0
	wait "$MACHINE" || rc=$?
	MACHINE=''
	keep "$WORK"
	verdict "$WORK" "$rc"
}

main "$@"
exit $?
