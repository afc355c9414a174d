#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 900
# takes: 100
# A real Linux on rings of every kind, with QEMU as it is installed and with QEMU 10 where
# tools/qemu10 has unpacked it: what it wrote is in the image, and a disk that grows grows in the
# guest.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 cpio qemu-io
# shellcheck source=tools/cache.sh
. "$top/tools/cache.sh"

mkdir "$W/job"
cat >"$W/job/run.sh" <<'END'
set -e
[ "$(dd if=/dev/vda bs=64k count=16 2>/dev/null | tr -d '\007' | wc -c)" = 0 ]
dd if=/dev/urandom of=/x bs=1M count=4 2>/dev/null
dd if=/x of=/dev/vda bs=1M seek=8 conv=fsync 2>/dev/null
blkdiscard -o 4194304 -l 1048576 /dev/vda
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda bs=1M skip=8 count=4 2>/dev/null | cmp - /x
sum=$(md5sum </x)
echo "wrote ${sum%% *}"
size=$(cat /sys/block/vda/size)
echo "size $size"
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	[ "$(cat /sys/block/vda/size)" = "$size" ] || break
	sleep 1
done
echo "size $(cat /sys/block/vda/size)"
END

serve()
{
	"$BYRE" serve --loops 2 -f raw --vhost-user "$W/sock" --queues 2 "$W/disk" \
		>"$W/byre.log" 2>&1 </dev/null &
	others+=($!)
}

# The guest's last block is there.
has_written()
{
	dd if="$W/disk" bs=4k skip=3071 count=1 status=none | tr -d '\0' | grep -qa .
}

# boots_on PROPERTIES
boots_on()
{
	truncate -s 32M "$W/disk"
	qemu-io -f raw -c "write -P 7 0 1M" "$W/disk" >/dev/null
	serve
	"$top/tools/guest/boot.sh" -t 120 -j "$W/job" "vub:$W/sock,$1" >"$W/output" 2>"$W/errors" &
	boot=$!
	wait_for 110 has_written || { cat "$W/output" "$W/errors" "$W/byre.log" >&2; fail "$1"; }
	sleep 2
	truncate -s 48M "$W/disk"
	kill -HUP "${others[0]}"
	wait $boot || { cat "$W/output" "$W/errors" "$W/byre.log" >&2; fail "$1: the guest"; }
	local sum
	sum=$(dd if="$W/disk" bs=1M skip=8 count=4 status=none | md5sum)
	grep -qx "wrote ${sum%% *}" "$W/output" || fail "$1: the image has something else"
	grep -qx "size 98304" "$W/output" || { cat "$W/output"; fail "$1: the disk has not grown"; }
	kill "${others[0]}"
	wait "${others[0]}" || fail "byre does not end cleanly"
	others=()
	rm "$W/disk"
}

for properties in num-queues=2 packed=on,num-queues=2 indirect_desc=off,event_idx=off \
	packed=on,event_idx=off,indirect_desc=off; do
	boots_on "$properties"
done
[ -x "$CACHE/qemu10/usr/bin/qemu-system-x86_64" ] || exit 0
export QEMU="$CACHE/qemu10/run qemu-system-x86_64"
boots_on num-queues=2
boots_on packed=on,num-queues=2
