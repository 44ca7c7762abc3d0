# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# A real Debian as a disk image, for guests whose migration is measured: systemd,
# some services of which each guest runs others, and an agent that takes
# commands. It boots from its kernel and initramfs, which lie beside it.

IMAGE_SUITE=trixie
IMAGE_PACKAGES="systemd-sysv dbus udev linux-image-cloud-amd64 initramfs-tools
e2fsprogs kmod procps iproute2 less vim-tiny cron rsyslog logrotate ca-certificates
openssh-server perl python3 python3-yaml python3-requests sqlite3 redis-server
nginx-light git man-db"
IMAGE_MIB=1792

image_key() {
	{
		printf '%s\n' "debian 1" "$IMAGE_SUITE" "$IMAGE_PACKAGES" "$IMAGE_MIB"
		declare -f image_tree image_agent
	} | hash_of
}

# image_agent TREE: what lets the bench give the guest commands: a shell that
# reads lines from the second serial port.
image_agent() {
	cat >"$1/usr/local/sbin/bench-agent" <<-'AGENT'
		#!/bin/sh
		# One command a line; the answer's last line is "done" and its status.
		stty raw -echo
		echo ready
		while read -r line; do
			sh -c "$line" </dev/null >/var/log/bench.log 2>&1
			echo "done $?"
		done
	AGENT
	chmod 755 "$1/usr/local/sbin/bench-agent"
	cat >"$1/etc/systemd/system/bench-agent.service" <<-'UNIT'
		[Unit]
		Description=Commands from the second serial port
		After=multi-user.target

		[Service]
		ExecStart=/usr/local/sbin/bench-agent
		StandardInput=tty
		StandardOutput=tty
		TTYPath=/dev/ttyS1

		[Install]
		WantedBy=multi-user.target
	UNIT
	chroot "$1" systemctl enable bench-agent.service
	# Each guest runs other services: none of them by itself.
	chroot "$1" systemctl disable redis-server.service nginx.service ssh.service \
		apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer
	echo debian >"$1/etc/hostname"
	echo '/dev/vda / ext4 defaults 0 1' >"$1/etc/fstab"
	chroot "$1" passwd -d root
}

# image_tree TREE: a real Debian, with what a small server has.
image_tree() {
	TMPDIR=/tmp mmdebstrap --verbose --variant=minbase --components=main \
		--skip=cleanup/apt --include="${IMAGE_PACKAGES//[[:space:]]/,}" \
		"$IMAGE_SUITE" "$1"
	image_agent "$1"
}

# build_image DIR: tree, file system, kernel and initramfs.
build_image() {
	image_tree "$1/tree"
	cp "$1"/tree/boot/vmlinuz-* "$1/vmlinuz"
	cp "$1"/tree/boot/initrd.img-* "$1/initrd"
	mke2fs -q -t ext4 -d "$1/tree" "$1/image.raw" "${IMAGE_MIB}M"
	rm -rf --one-file-system "$1/tree"
}

# prepare_image: the Debian image, in the cache; prints where it is.
prepare_image() {
	local path
	path=$CACHE/debian-$(image_key)
	if [ ! -d "$path" ]; then
		host_tool mmdebstrap mmdebstrap debian-archive-keyring gpg
		host_tool mke2fs e2fsprogs
		lock debian
		rm -rf --one-file-system "$path.tmp"
		mkdir -p "$path.tmp"
		progress "Debian image of the guests (about 700 MB)" "$CACHE/log/debian.log" \
			'^(Unpacking|Setting up|Get:)' build_image "$path.tmp"
		publish "$path.tmp" "$path"
	fi
	echo "$path"
}
