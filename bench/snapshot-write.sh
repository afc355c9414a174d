#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What does the first write to a cluster cost after an internal snapshot was taken? An image full of
# data, one snapshot; then writes 1,314,816 bytes apart, each to another cluster of 64 KiB, which
# the snapshot holds, too: 200 writeback, from open to close; 2,000 writethrough, one and 32 under
# way. Then whole clusters one behind the other, writethrough, against the same writes to a raw
# file: to a fresh image, again, and after a snapshot. Syncs and bytes are counted in the kernel
# (bench/syncs.py); what was copied is what was written beyond the data.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

stride=1314816 size=$((4 << 30))
case $(stat -f -c %T "$W") in ext*) ;; *) echo "$0: $W is not on ext4" >&2; exit 77 ;; esac

# Data in every cluster that is written.
python3 - "$W/base.raw" 2000 $stride $size <<'END'
import random, sys
count, stride, size = map(int, sys.argv[2:])
r = random.Random(1)
with open(sys.argv[1], "wb") as f:
    f.truncate(size)
    for i in range(count):
        f.seek(i * stride % size // 65536 * 65536)
        f.write(r.randbytes(65536))
END
qemu-img convert -f raw -O qcow2 "$W/base.raw" "$W/scattered.qcow2"
rm "$W/base.raw"

# image STATE: makes $W/disk.qcow2, or $W/disk.raw.
image()
{
	rm -f "$W"/disk.*
	case $1 in
	raw) truncate -s $size "$W/disk.raw" ;;
	fresh) qemu-img create -q -f qcow2 "$W/disk.qcow2" $size ;;
	rewrite | snapshot)
		qemu-img create -q -f qcow2 "$W/disk.qcow2" $size
		qemu-io -f qcow2 -c 'write -q -P 9 0 256M' "$W/disk.qcow2" >/dev/null ;;
	scattered) cp "$W/scattered.qcow2" "$W/disk.qcow2" ;;
	esac
	case $1 in snapshot | scattered) qemu-img snapshot -c one "$W/disk.qcow2" ;; esac
	sync "$W"/disk.*
}

# writes PEER STATE COUNT BYTES STRIDE DEPTH CACHE: a line of results.
writes()
{
	local argv disk=$W/disk.qcow2 format=qcow2
	mapfile -t argv < <(img_command "$1")
	image "$2"
	[ "$2" != raw ] || { disk=$W/disk.raw format=raw; }
	python3 "$bench/syncs.py" "$disk" "${argv[@]}" bench -w -c "$3" -s "$4" -S "$5" -d "$6" \
		-t "$7" -f $format "$disk" >"$W/line" || return
	read -r seconds_used syncs written <"$W/line"
	echo "$1 $seconds_used $syncs ${more:+$((written - $3 * $4))}" >>"$W/results"
}

# compare TITLE STATE COUNT BYTES STRIDE DEPTH CACHE: all peers, in turns.
compare()
{
	local title=$1
	shift
	rm -f "$W/results"
	for _ in $(seq "$runs"); do
		for peer in byre "${qemu_imgs[@]}"; do
			writes "$peer" "$@"
		done
	done
	[ -n "$json" ] || echo "--- $title"
	table "time s less" "syncs 1 less" ${more:+"$more"}
}

more="copied B less"
compare "4 KiB after a snapshot, writeback, 1 under way, 200" scattered 200 4096 $stride 1 writeback
for depth in 1 32; do
	compare "4 KiB after a snapshot, writethrough, $depth under way, 2000" \
		scattered 2000 4096 $stride $depth writethrough
done
more=
for depth in 1 32; do
	for state in raw fresh rewrite snapshot; do
		compare "64 KiB, $state, writethrough, $depth under way, 400" \
			$state 400 65536 65536 $depth writethrough
	done
done
