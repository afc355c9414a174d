#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/system.sh [-p DEVICE_PROPERTIES] [-v] - Debian, with all of its root on a qcow2 that
# byre serves over vhost-user, and two disks more.
#
# In the guest fio writes and verifies with blocks of random sizes, in files and on a bare disk;
# space is discarded, trimmed and zeroed, and the system is shut down. Then QEMU's tools find
# nothing wrong with the images, e2fsck nothing with the file systems, the disks hold what the guest
# said they do, and what was trimmed has been given back. QEMU is as for boot.sh. -v shows the log.
# shellcheck source=tools/guest/lib.sh
. "$(dirname "$0")/lib.sh"
properties=num-queues=2
while getopts p:v option; do
	case $option in
	p) properties=$OPTARG ;;
	v) verbose=1 ;;
	*) usage ;;
	esac
done

# 1K blocks that an image takes of the medium.
taken()
{
	du -k "$W/$1.qcow2" | cut -f 1
}

# wait_for_phase NAME: until the guest is there; false if it ends before.
wait_for_phase()
{
	until grep -q "^phase $1" "$W/output"; do
		kill -0 "${boots[0]}" 2>/dev/null || return 1
		sleep 0.5
	done
}

# said NAME: the sum that the guest has printed.
said()
{
	tr -d '\r' <"$W/output" | sed -n "s/^sum $1 //p"
}

same()
{
	[ "$(said "$1")" = "$(sha256sum <"$2" | cut -c 1-64)" ] ||
		fail "$1: the image does not hold what the guest says it wrote"
}

judge()
{
	local name
	for name in root bare trimmed; do
		qemu-img check "$W/$name.qcow2" >"$W/check.log" 2>&1 ||
			{ cat "$W/check.log" >&2; fail "$name.qcow2"; }
		qemu-img convert -O raw "$W/$name.qcow2" "$W/$name.raw"
	done
	for name in root trimmed; do
		e2fsck -fn "$W/$name.raw" >"$W/fsck.log" 2>&1 ||
			{ cat "$W/fsck.log" >&2; fail "the file system of $name"; }
	done
	same bare "$W/bare.raw"
	same trimmed "$W/trimmed.raw"
	debugfs -R "dump /var/tmp/kept $W/kept" "$W/root.raw" 2>/dev/null
	same kept "$W/kept"
}

disk=$("$here/debian.sh" | tail -n 1)
mkdir "$W/job"
cp "$here/system-job.sh" "$W/job/run.sh"
take_fio "$W/job"
"$BYRE" convert -O qcow2 "$disk" "$W/root.qcow2"
"$BYRE" create -q -f qcow2 "$W/bare.qcow2" 96M
"$BYRE" create -q -f qcow2 "$W/trimmed.qcow2" 256M
start_byre --loops 2 --vhost-user "$W/root" "$W/root.qcow2" --vhost-user "$W/bare" \
	"$W/bare.qcow2" --vhost-user "$W/sock" "$W/trimmed.qcow2"
: >"$W/output"
"$here/boot.sh" -r /dev/vda -j "$W/job" -t 900 -m 1024 -l "$W/console" -o "$W/output" \
	"vub:$W/root,$properties" "vub:$W/bare,$properties" "vub:$W/sock,$properties" \
	>"$W/boot.log" 2>&1 &
boots=($!)
full=0
! wait_for_phase filled || full=$(taken trimmed)
status=0
wait "${boots[0]}" || status=$?
boots=()
cat "$W/output"
if [ $status != 0 ]; then
	cat "$W/boot.log" "$W/byre.log" >&2
	tail -n 30 "$W/console" >&2
	fail "the guest is not content (status $status)"
fi
grep -a "ARRIVED" "$W/console"
! grep -aE "ARRIVED WRONG|I/O error|EXT4-fs error" "$W/console" || fail "Debian reads wrong data"
end_byre
! grep -q "is stopped" "$W/byre.log" || fail "a queue was stopped"
judge
left=$(taken trimmed)
echo "filled: $full KiB, trimmed: $left KiB, $(tail -n 2 "$W/check.log" | head -n 1)"
[ "$full" -gt 110000 ] || fail "the disk that was to be filled took $full KiB only"
[ "$left" -lt 20480 ] || fail "of $full KiB $left were left after fstrim"
echo "Debian was content on $properties, and its images are right"
