#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What does a first write to a cluster cost, and what one in place? 2,000 writes of 4 KiB, 1,314,816
# bytes apart, each to another cluster of 64 KiB: on a fresh image, over a backing file that has
# data there, and where it takes clusters again that were freed; writethrough and writeback, one
# and 32 under way. Then 4 KiB at random in place, by processor time. 3 runs unless -n says more.
#
# Syncs and bytes are counted in the kernel (bench/syncs.py); metadata is what was written beyond
# the data and what lies around it in its clusters (copies, zeros). Byre's own count of syncs must
# be the kernel's less 1: that with which any file is let go.
set -- -n 3 "$@"
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

count=2000 stride=1314816 cluster=65536 size=$((4 << 30))
case $(stat -f -c %T "$W") in ext*) ;; *) echo "$0: $W is not on ext4" >&2; exit 77 ;; esac

# The clusters that are written have data in the backing file.
python3 - "$W/base.raw" $count $stride $cluster $size <<'END'
import random, sys
count, stride, cluster, size = map(int, sys.argv[2:])
r = random.Random(1)
with open(sys.argv[1], "wb") as f:
    f.truncate(size)
    for i in range(count):
        f.seek(i * stride % size // cluster * cluster)
        f.write(r.randbytes(cluster))
END
qemu-img create -q -f qcow2 "$W/fresh" $size
qemu-img create -q -f qcow2 -b base.raw -F raw "$W/backing"
# 8192 clusters that were used and freed; the file stays as long as it was.
qemu-img create -q -f qcow2 "$W/recycled" $size
qemu-io -f qcow2 -d unmap -c 'write -q -P 9 3G 512M' -c 'discard -q 3G 512M' "$W/recycled"
head -c 256M /dev/urandom >"$W/place.raw"
qemu-img convert -f raw -O qcow2 "$W/place.raw" "$W/place"
rm "$W/place.raw"

# compare_syncs KERNEL LOG: is byre's own count the kernel's?
compare_syncs()
{
	local told
	told=$(sed -n 's/.* \([0-9]*\) syncs.*/\1/p' "$2")
	[ "$((told + 1))" = "$1" ] && return
	echo "$0: the kernel saw $1 syncs, byre tells of ${told:-none}" >&2
	exit 1
}

# writes PEER STATE DEPTH CACHE: a line of results.
writes()
{
	local argv image=$W/disk.qcow2 around=0 seconds_used syncs written
	mapfile -t argv < <(img_command "$1")
	cp --sparse=always "$W/$2" "$image"
	sync "$image"
	BYRE_LOG=debug python3 "$bench/syncs.py" "$image" "${argv[@]}" bench -w -c $count -s 4096 \
		-S $stride -d "$3" -t "$4" -f qcow2 "$image" >"$W/line" 2>"$W/told" ||
		{ cat "$W/told" >&2; return 1; }
	read -r seconds_used syncs written <"$W/line"
	if [ "$1" = byre ]; then
		compare_syncs "$syncs" "$W/told"
		around=$(sed -n 's/.* \([0-9]*\) bytes around.*/\1/p' "$W/told")
	elif [ "$2" = backing ]; then
		around=$((count * (cluster - 4096)))
	fi
	echo "$1 $seconds_used $syncs $((written - count * 4096 - around))" >>"$W/results"
}

in_place()
{
	local argv n=$((seconds * 40000)) run
	mapfile -t argv < <(img_command "$1")
	# 40503 pages on, wrapped, visits every page of 256 MiB in a scattered order.
	run=("${argv[@]}" bench -w -c "$n" -s 4096 -S $((40503 * 4096)) -d 32 -i io_uring
		-t writeback -f qcow2 "$W/place")
	read -r _ rate < <(measure_cpu $n "${run[@]}")
	read -r _ _ written < <(python3 "$bench/syncs.py" "$W/place" "${run[@]}")
	echo "$1 $rate $((written - n * 4096))" >>"$W/results"
}

for state in fresh backing recycled; do
	for cache in writethrough writeback; do
		for depth in 1 32; do
			rm -f "$W/results"
			for _ in $(seq "$runs"); do
				for peer in byre "${qemu_imgs[@]}"; do
					writes "$peer" $state $depth $cache
				done
			done
			[ -n "$json" ] || echo "--- $state, $cache, $depth under way"
			table "time s less" "syncs 1 less" "metadata B less"
		done
	done
done

rm -f "$W/results"
for _ in $(seq "$runs"); do
	for peer in byre "${qemu_imgs[@]}"; do
		in_place "$peer"
	done
done
[ -n "$json" ] || echo "--- in place, 32 under way, writeback"
table "writes 1/cpu-s more" "metadata B less"
