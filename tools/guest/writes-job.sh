# SPDX-License-Identifier: MIT
# tools/guest/writes-job.sh - runs in the guest as /job/run.sh: writes, and reads what it wrote.
#
# Of each pair of disks the first has an ext4, the second nothing. /job/turn is 1 at first; then the
# second holds what turn 1 wrote. fio is the host's, with its libraries and their loader, in
# /job/fio.
# shellcheck shell=sh
turn=$(cat turn)
failed=0

fio()
{
	/job/fio/loader --library-path /job/fio /job/fio/fio --ioengine=psync --direct=1 \
		--verify=crc32c --verify_fatal=1 --randseed=7 --allrandrepeat=1 "$@" \
		>/tmp/fio 2>&1 ||
		{
			cat /tmp/fio
			echo "WRONG $1"
			failed=1
			return
		}
	echo "ok    $1"
}

right()
{
	if "$@"; then echo "ok    $*"; else echo "WRONG $*"; failed=1; fi
}

# on_disk DISK: fio on a bare disk.
on_disk()
{
	pattern="--filename=$1 --rw=randwrite --bsrange=4k-64k --size=48M"
	if [ "$turn" = 1 ]; then
		# shellcheck disable=SC2086  # words
		fio --name=random $pattern --fsync=20
		fio --name=parallel --filename="$1" --rw=randrw --bs=4k --offset=64M --size=12M \
			--offset_increment=16M --numjobs=3 --verify_backlog=200 --fdatasync=50
	else
		# shellcheck disable=SC2086  # words
		fio --name=random $pattern --verify_only
	fi
}

# in_files DISK: on its file system.
in_files()
{
	right mount -t ext4 -o discard "$1" /mnt
	if [ "$turn" = 2 ]; then
		right cmp /mnt/first/0 /mnt/first/1
		right test "$(sha256sum </mnt/big)" = "$(seq 400000 | sha256sum)"
		rm -r /mnt/first
	fi
	mkdir /mnt/turn"$turn"
	for i in $(seq 200); do
		echo "turn $turn file $i" >/mnt/turn"$turn"/"$i"
	done
	[ "$turn" = 2 ] || {
		mkdir /mnt/first
		dd if=/dev/urandom of=/mnt/first/0 bs=1M count=6 2>/dev/null
		cp /mnt/first/0 /mnt/first/1
		seq 400000 >/mnt/big
	}
	fio --name=in-a-file --filename=/mnt/file --rw=randwrite --bs=4k --size=8M --fsync=30
	sync
	right umount /mnt
}

on_disk /dev/vdb
in_files /dev/vda
on_disk /dev/vdd
in_files /dev/vdc
exit $failed
