#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/writes.sh [-v] - a real Linux writes to qcow2 disks that byre serves, over vhost-user
# with two queues each, and over NBD.
#
# Two disks that byre made for each: one over a qcow2 backing file with an ext4, one empty. In the
# guest fio writes and verifies, on the bare disk and in a file; files are made and removed, with
# discards.
# Then QEMU's tools find nothing wrong with the images, e2fsck nothing with the file system, QEMU
# writes to an image itself, and a second guest reads what is there and goes on. -v shows the log.
# shellcheck source=tools/guest/lib.sh
. "$(dirname "$0")/lib.sh"
for arg in "$@"; do
	case $arg in
	-v) verbose=1 ;;
	*) usage ;;
	esac
done

make_disks()
{
	mkdir "$W/tree"
	seq 100000 >"$W/tree/text"
	head -c 3000000 /dev/urandom >"$W/tree/noise"
	mkfs.ext4 -q -d "$W/tree" "$W/base.raw" 64M >/dev/null
	qemu-img convert -c -f raw -O qcow2 "$W/base.raw" "$W/base.qcow2"
	for over in vub nbd; do
		"$BYRE" create -q -f qcow2 -b base.qcow2 -F qcow2 "$W/$over-system.qcow2"
		"$BYRE" create -q -f qcow2 "$W/$over-empty.qcow2" 128M
	done
}

# What others think of the images.
judge()
{
	local over image i
	for over in vub nbd; do
		for image in $over-system $over-empty; do
			qemu-img check "$W/$image.qcow2" >"$W/check.log" 2>&1 ||
				{ cat "$W/check.log" >&2; fail "$1: $image.qcow2"; }
		done
		qemu-img convert -O raw "$W/$over-system.qcow2" "$W/system.raw"
		e2fsck -fn "$W/system.raw" >"$W/fsck.log" 2>&1 ||
			{ cat "$W/fsck.log" >&2; fail "$1, $over: the file system"; }
		for i in 1 77 200; do
			debugfs -R "cat turn1/$i" "$W/system.raw" 2>/dev/null |
				grep -qx "turn 1 file $i" ||
				fail "$1, $over: the guest's files are not there"
		done
	done
}

turn()
{
	echo "$1" >"$W/job/turn"
	serve --loops 2 --vhost-user "$W/system" --queues 2 "$W/vub-system.qcow2" \
		--vhost-user "$W/empty" --queues 2 "$W/vub-empty.qcow2" \
		--name system "$W/nbd-system.qcow2" --name empty "$W/nbd-empty.qcow2"
	"$here/boot.sh" -t 500 -m 1024 -j "$W/job" -l "$W/console" \
		"vub:$W/system,num-queues=2" "vub:$W/empty,num-queues=2" \
		"rw:$(uri system)" "rw:$(uri empty)" ||
		fail "turn $1: the guest is not content"
	end_byre
	judge "turn $1"
}

mkdir "$W/job"
cp "$here/writes-job.sh" "$W/job/run.sh"
take_fio "$W/job"
make_disks
turn 1
# Behind what fio verifies in the second turn.
for over in vub nbd; do
	qemu-io -f qcow2 -c 'write -P 5 50M 8M' -c 'discard 52M 1M' "$W/$over-empty.qcow2" \
		>/dev/null
	qemu-img check -q "$W/$over-empty.qcow2" || fail "QEMU wrote, and now something is wrong"
done
turn 2
for over in vub nbd; do
	qemu-io -r -f qcow2 -c 'read -P 5 50M 2M' -c 'read -P 5 53M 5M' "$W/$over-empty.qcow2" \
		>"$W/io.log"
	! grep -q failed "$W/io.log" || fail "what QEMU wrote is gone"
done
echo "what two guests wrote is there, and QEMU finds nothing wrong"
