#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/writes.sh [-v] - a real Linux writes to qcow2 disks that byre serves.
#
# Two disks that byre made: one over a qcow2 backing file with an ext4, one empty. In the guest fio
# writes and verifies, on the bare disk and in a file; files are made and removed, with discards.
# Then QEMU's tools find nothing wrong with the images, e2fsck nothing with the file system, QEMU
# writes to an image itself, and a second guest reads what is there and goes on. -v shows the log.
# shellcheck source=tools/guest/lib.sh
. "$(dirname "$0")/lib.sh"
case ${1:-} in
'') ;;
-v) verbose=1 ;;
*) usage ;;
esac

# fio, what it is linked with, and what loads that.
take_fio()
{
	local fio loader
	fio=$(command -v fio) || fail "fio is not installed"
	mkdir -p "$W/job/fio"
	cp "$fio" "$W/job/fio/fio"
	ldd "$fio" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | while read -r library; do
		cp -L "$library" "$W/job/fio/"
	done
	loader=$(ldd "$fio" | awk '$1 ~ /^\/.*ld-/ { print $1 }')
	cp -L "$loader" "$W/job/fio/loader"
}

make_disks()
{
	mkdir "$W/tree"
	seq 100000 >"$W/tree/text"
	head -c 3000000 /dev/urandom >"$W/tree/noise"
	mkfs.ext4 -q -d "$W/tree" "$W/base.raw" 64M >/dev/null
	qemu-img convert -c -f raw -O qcow2 "$W/base.raw" "$W/base.qcow2"
	"$BYRE" create -q -f qcow2 -b base.qcow2 -F qcow2 "$W/system.qcow2"
	"$BYRE" create -q -f qcow2 "$W/empty.qcow2" 128M
}

# What others think of the images.
judge()
{
	local image
	for image in system empty; do
		qemu-img check "$W/$image.qcow2" >"$W/check.log" 2>&1 ||
			{ cat "$W/check.log" >&2; fail "$1: $image.qcow2"; }
	done
	qemu-img convert -O raw "$W/system.qcow2" "$W/system.raw"
	e2fsck -fn "$W/system.raw" >"$W/fsck.log" 2>&1 ||
		{ cat "$W/fsck.log" >&2; fail "$1: the file system"; }
	for i in 1 77 200; do
		debugfs -R "cat turn1/$i" "$W/system.raw" 2>/dev/null | grep -qx "turn 1 file $i" ||
			fail "$1: the guest's files are not there"
	done
}

turn()
{
	echo "$1" >"$W/job/turn"
	serve --loops 2 --name system "$W/system.qcow2" --name empty "$W/empty.qcow2"
	"$here/boot.sh" -t 300 -m 1024 -j "$W/job" -l "$W/console" \
		"rw:$(uri system)" "rw:$(uri empty)" ||
		fail "turn $1: the guest is not content"
	end_byre
	judge "turn $1"
}

mkdir "$W/job"
cp "$here/writes-job.sh" "$W/job/run.sh"
take_fio
make_disks
turn 1
# Behind what fio verifies in the second turn.
qemu-io -f qcow2 -c 'write -P 5 50M 8M' -c 'discard 52M 1M' "$W/empty.qcow2" >/dev/null
qemu-img check -q "$W/empty.qcow2" || fail "QEMU wrote, and now something is wrong"
turn 2
qemu-io -r -f qcow2 -c 'read -P 5 50M 2M' -c 'read -P 5 53M 5M' "$W/empty.qcow2" >"$W/io.log"
! grep -q failed "$W/io.log" || fail "what QEMU wrote is gone"
echo "what two guests wrote is there, and QEMU finds nothing wrong"
