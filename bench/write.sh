#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What does a first write to a cluster cost, and what one in place? 2,000 writes of 4 KiB, 1,314,816
# bytes apart, each to another cluster of 64 KiB: on a fresh image, over a backing file that has
# data there, and where it takes clusters again that it had freed; writethrough and writeback, one
# and 32 under way. Syncs and bytes are counted in the kernel (bench/syncs.py), metadata is what was
# written beyond the data and its copies. Then 4 KiB at random in place, by processor time.
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

# image STATE: makes $W/disk.qcow2.
image()
{
	rm -f "$W/disk.qcow2"
	case $1 in
	fresh) qemu-img create -q -f qcow2 "$W/disk.qcow2" $size ;;
	backing) qemu-img create -q -f qcow2 -b base.raw -F raw "$W/disk.qcow2" ;;
	recycled)
		qemu-img create -q -f qcow2 "$W/disk.qcow2" $size
		# Behind all that is written later; freed, the clusters stay in the file.
		qemu-io -f qcow2 -d unmap -c 'write -q -P 9 3G 512M' -c 'discard -q 3G 512M' \
			"$W/disk.qcow2" >/dev/null
		qemu-io -f qcow2 -c 'write -q -P 9 4000M 64k' "$W/disk.qcow2" >/dev/null ;;
	esac
	sync "$W/disk.qcow2"
}

# writes PEER STATE DEPTH CACHE: a line of results.
writes()
{
	local argv data=$((count * 4096))
	mapfile -t argv < <(img_command "$1")
	image "$2"
	# What goes to new clusters besides the data: the rest of each is copied.
	[ "$2" != backing ] || data=$((count * cluster))
	python3 "$bench/syncs.py" "$W/disk.qcow2" "${argv[@]}" bench -w -c $count -s 4096 \
		-S $stride -d "$3" -t "$4" -f qcow2 "$W/disk.qcow2" >"$W/line" || return
	read -r seconds_used syncs written <"$W/line"
	echo "$1 $seconds_used $syncs $((written - data))" >>"$W/results"
}

in_place()
{
	local argv n=$((seconds * 40000))
	mapfile -t argv < <(img_command "$1")
	python3 - "$W/line" "$W/place.qcow2" "$bench/syncs.py" $n "${argv[@]}" <<-'END'
	import resource, subprocess, sys
	line, image, syncs, n, *tool = sys.argv[1:]
	# 40503 pages on, wrapped, visits every page of 256 MiB in a scattered order.
	run = tool + ["bench", "-w", "-c", n, "-s", "4096", "-S", str(40503 * 4096), "-d", "32",
	              "-i", "io_uring", "-t", "writeback", "-f", "qcow2", image]
	subprocess.run(run, stdout=subprocess.DEVNULL, check=True)
	used = resource.getrusage(resource.RUSAGE_CHILDREN)
	cpu = used.ru_utime + used.ru_stime
	counted = subprocess.run([sys.executable, syncs, image] + run, capture_output=True,
	                         text=True, check=True).stdout.split()
	with open(line, "w") as f:
	    print(round(int(n) / cpu), int(counted[2]) - int(n) * 4096, file=f)
	END
	echo "$1 $(cat "$W/line")" >>"$W/results"
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
head -c 256M /dev/urandom >"$W/place.raw"
qemu-img convert -f raw -O qcow2 "$W/place.raw" "$W/place.qcow2"
rm "$W/place.raw"
for _ in $(seq "$runs"); do
	for peer in byre "${qemu_imgs[@]}"; do
		in_place "$peer"
	done
done
[ -n "$json" ] || echo "--- in place, 32 under way, writeback"
table "writes 1/cpu-s more" "metadata B less"
