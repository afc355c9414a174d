# SPDX-License-Identifier: MIT
# tools/guest/system-job.sh - runs in Debian as /run/job/run.sh: uses its disks as a system does.
#
# /dev/vda is the root, /dev/vdb and /dev/vdc are empty. fio is the host's, in /run/job/fio. What
# the host has to find is printed as "sum NAME SHA-256"; that the host may look, as "phase NAME".
# shellcheck shell=sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
failed=0

right()
{
	if "$@" >/tmp/log 2>&1; then
		echo "ok    $*"
	else
		cat /tmp/log
		echo "WRONG $*"
		failed=1
	fi
}

# verify NAME FIO_OPTIONS...: writes and reads back in blocks of random sizes.
verify()
{
	name=$1
	shift
	right /run/job/fio/loader --library-path /run/job/fio /run/job/fio/fio --name="$name" \
		--ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 "$@"
}

sum()
{
	echo "sum $1 $(sha256sum <"$2" | cut -c 1-64)"
}

is_zero()
{
	dd if="$1" bs=1M skip="$2" count="$3" iflag=direct >/tmp/range 2>/dev/null &&
		[ "$(wc -c </tmp/range)" = "$(($3 << 20))" ] &&
		[ "$(tr -d '\0' </tmp/range | wc -c)" = 0 ]
}

# The root: files of a file system that lives on byre with all else.
verify root --filename=/var/tmp/file --rw=randwrite --bsrange=1k-200k --size=40M --fsync=50
verify root-mixed --directory=/var/tmp --rw=randrw --bsrange=4k-64k --size=12M --numjobs=2 \
	--verify_backlog=100
head -c 3000000 /dev/urandom >/var/tmp/kept
sum kept /var/tmp/kept
rm /var/tmp/file /var/tmp/root-mixed*
right fstrim -v /

# A disk without a file system: any sector, any length.
verify bare --filename=/dev/vdb --rw=randwrite --bsrange=512-256k --size=48M
verify bare-verified --filename=/dev/vdb --rw=randrw --bsrange=512-64k --offset=64M --size=24M \
	--verify_backlog=64 --fdatasync=64
right blkdiscard -o 8M -l 16M /dev/vdb
right is_zero /dev/vdb 8 16
right blkdiscard -z -o 30M -l 3M /dev/vdb
right is_zero /dev/vdb 30 3
sync
sum bare /dev/vdb

# A file system that is filled and emptied.
right mkfs.ext4 -q -E nodiscard /dev/vdc
mkdir /tmp/m
right mount /dev/vdc /tmp/m
verify filled --directory=/tmp/m --rw=randwrite --bsrange=4k-128k --size=60M --numjobs=2
seq 200000 >/tmp/m/kept
sync
echo "phase filled"
sleep 6                         # while the host looks
rm /tmp/m/filled*
sync
right fstrim -v /tmp/m
right umount /tmp/m
sum trimmed /dev/vdc
dmesg | grep -E 'I/O error|blocked for more|EXT4-fs (error|warning)' && failed=1
[ "$(systemctl is-system-running)" != degraded ] || { systemctl --failed; failed=1; }
exit $failed
