#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 900
# takes: 50
# A real Linux on rings of every kind, with QEMU as it is installed and with QEMU 10 where
# tools/qemu10 has unpacked it: what it wrote is in the image, and a disk that grows grows in the
# guest.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 cpio qemu-io
# shellcheck source=tools/cache.sh
. "$top/tools/cache.sh"

# Each disk in turn; then all have grown.
mkdir "$W/job"
cat >"$W/job/run.sh" <<'END'
set -e
cd /sys/block
disks=$(echo vd?)
for disk in $disks; do
	dev=/dev/$disk
	[ "$(dd if=$dev bs=64k count=16 2>/dev/null | tr -d '\007' | wc -c)" = 0 ]
	dd if=/dev/urandom of=/x bs=1M count=4 2>/dev/null
	dd if=/x of=$dev bs=1M seek=8 conv=fsync 2>/dev/null
	blkdiscard -o 4194304 -l 1048576 $dev
	echo 3 >/proc/sys/vm/drop_caches
	dd if=$dev bs=1M skip=8 count=4 2>/dev/null | cmp - /x
	sum=$(md5sum </x)
	echo "wrote $disk ${sum%% *}"
done
# Only the host knows when it has seen that.
for disk in $disks; do
	for i in $(seq 600); do
		[ "$(cat $disk/size)" = 65536 ] || break
		sleep 0.1
	done
	echo "size $disk $(cat $disk/size)"
done
END

serve()
{
	local i args=()
	for ((i = 0; i < $#; i++)); do
		truncate -s 32M "$W/disk$i"
		qemu-io -f raw -c "write -P 7 0 1M" "$W/disk$i" >/dev/null
		args+=(-f raw --vhost-user "$W/sock$i" --queues 2 "$W/disk$i")
	done
	"$BYRE" serve --loops 2 "${args[@]}" >"$W/byre.log" 2>&1 </dev/null &
	others+=($!)
	wait_for 20 is_listening "$W/sock$(($# - 1))" || fail "byre does not listen"
}

# has_written FILE: the guest's last block is there.
has_written()
{
	[ "$(dd if="$1" bs=4k skip=3071 count=1 status=none | tr -d '\0' | wc -c)" -gt 0 ]
}

has_written_or_gone()
{
	has_written "$1" || is_gone "$boot"
}

# boots_on PROPERTIES...: a guest with a disk for each.
boots_on()
{
	local i devices=() letters=(a b c d) sum
	serve "$@"
	for ((i = 0; i < $#; i++)); do
		devices+=("vub:$W/sock$i,${@:i + 1:1}")
	done
	"$top/tools/guest/boot.sh" -t 400 -j "$W/job" "${devices[@]}" >"$W/output" \
		2>"$W/errors" &
	boot=$!
	for ((i = 0; i < $#; i++)); do
		wait_for 110 has_written_or_gone "$W/disk$i" && has_written "$W/disk$i" ||
			{ cat "$W/output" "$W/errors" "$W/byre.log" >&2; fail "$*: disk $i"; }
	done
	truncate -s 48M "$W"/disk?
	kill -HUP "${others[0]}"
	wait $boot || { cat "$W/output" "$W/errors" "$W/byre.log" >&2; fail "$*: the guest"; }
	for ((i = 0; i < $#; i++)); do
		sum=$(dd if="$W/disk$i" bs=1M skip=8 count=4 status=none | md5sum)
		grep -qx "wrote vd${letters[i]} ${sum%% *}" "$W/output" ||
			{ cat "$W/output"; fail "$*: disk $i has something else"; }
		grep -qx "size vd${letters[i]} 98304" "$W/output" ||
			{ cat "$W/output"; fail "$*: disk $i has not grown"; }
	done
	kill "${others[0]}"
	wait "${others[0]}" || fail "byre does not end cleanly"
	others=()
	rm "$W"/disk?
}

boots_on num-queues=2 packed=on,num-queues=2 indirect_desc=off,event_idx=off \
	packed=on,event_idx=off,indirect_desc=off
[ -x "$CACHE/qemu10/usr/bin/qemu-system-x86_64" ] || exit 0
export QEMU="$CACHE/qemu10/run qemu-system-x86_64"
boots_on num-queues=2 packed=on,num-queues=2
