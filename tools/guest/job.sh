# SPDX-License-Identifier: MIT
# tools/guest/job.sh - runs in the guest as /job/run.sh: do the disks hold what the host put there?
#
# /job/disks has a line a disk: its name and the SHA-256 of its
# content; /job/NAME.files has the sums of the files of its ext4.
# shellcheck shell=sh
failed=0

check()
{
	if [ "$2" = "$3" ]; then
		echo "ok    $1"
	else
		echo "WRONG $1: $2, and the host says $3"
		failed=1
	fi
}

# check_files NAME: the files of the file system at /mnt, before and after writes of our own.
check_files()
{
	if (cd /mnt && sha256sum -c "/job/$1.files") >/tmp/sums 2>&1; then
		echo "ok    $1: $(wc -l <"/job/$1.files") files"
	else
		echo "WRONG $1: $(grep -v ': OK$' /tmp/sums | head -n 5)"
		failed=1
	fi
}

mounted()
{
	mount -t ext4 "$2" /mnt && return
	echo "WRONG $1: its file system cannot be mounted"
	failed=1
	return 1
}

use()
{
	mounted "$1" "$2" || return
	check_files "$1"
	seq 100000 >/mnt/written-by-guest
	sync
	umount /mnt
	echo 3 >/proc/sys/vm/drop_caches
	mounted "$1" "$2" || return
	check_files "$1"
	check "$1: what the guest wrote" "$(sha256sum </mnt/written-by-guest | cut -c 1-64)" \
		"$(seq 100000 | sha256sum | cut -c 1-64)"
	umount /mnt
}

letters=abcdefgh
n=1
while read -r name sum; do
	device=/dev/vd$(echo $letters | cut -c $n)
	n=$((n + 1))
	check "$name: the whole disk" "$(sha256sum <"$device" | cut -c 1-64)" "$sum"
	use "$name" "$device"
done <disks
exit $failed
