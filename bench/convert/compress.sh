#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What does it cost to write a file system of 1.5 GiB into a compressed image, and how large does
# that become? byre's compressed writes, by a driver that copies cluster by cluster, beside qemu-img
# convert -c, with as many threads; deflate and zstd. Then byre past the page cache, beside itself
# through it: the driver, and `byre convert -c`, each with a sync behind it; what the first costs
# in parts of the second; and what of it the kernel saw, where perf can look.
# IMAGE=FILE takes a raw file that is there; else one is made of files below /usr.
# Medians of processor seconds, of seconds with everything on the medium, and the size.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

threads=$(nproc)
driver=$programs/convert/compress
image=${IMAGE:-}
target=$W/target.qcow2

# A file system of programs, libraries and texts.
make_image()
{
	local root=$W/root part
	mkdir "$root"
	for part in bin include share/doc share/man lib/python3 lib/gcc; do
		[ ! -d "/usr/$part" ] || cp -a --parents "/usr/$part" "$root" 2>/dev/null || true
	done
	image=$W/image.raw
	truncate -s 1536M "$image"
	mkfs.ext4 -q -d "$root" "$image"
	rm -rf "$root"
}

# of PEER TYPE CACHE: prints what writes $target, a shell command.
of()
{
	local options=compression_type=${2/deflate/zlib}
	local how="-c -m $threads -t $3 -f raw -O qcow2 -o $options $image $target && sync $target"
	case $1 in
	byre) echo "qemu-img create -q -f qcow2 -o $options $target $size &&
		$driver --threads $threads --cache $3 $image $target >/dev/null && sync $target" ;;
	byre-convert) echo "$BYRE convert $how" ;;
	qemu10-img) echo "$qemu10 qemu-img convert $how" ;;
	*) echo "qemu-img convert $how" ;;
	esac
}

# measure PEER TYPE CACHE: a line "CELL CPU SECONDS SIZE" to $W/results.
measure()
{
	rm -f "$target"
	python3 - "$1/$2/$3" "$target" "$(of "$@")" >>"$W/results" <<-'END'
	import os, resource, subprocess, sys, time
	start = time.monotonic()
	subprocess.run(sys.argv[3], shell=True, check=True)
	seconds = time.monotonic() - start
	used = resource.getrusage(resource.RUSAGE_CHILDREN)
	print(sys.argv[1], round(used.ru_utime + used.ru_stime, 2), round(seconds, 2),
	      os.path.getsize(sys.argv[2]))
	END
	qemu-img check -q "$target"
}

# report: medians, and what they are beside qemu-img's; then O_DIRECT beside the page cache, run by
# run: both of a pair ran one after the other.
report()
{
	python3 - "$W/results" <<-'END'
	import statistics, sys
	cells = {}
	for line in open(sys.argv[1]):
	    cell, *numbers = line.split()
	    cells.setdefault(cell, []).append([float(n) for n in numbers])
	median = {c: [statistics.median(x) for x in zip(*v)] for c, v in cells.items()}
	print(f"{'':34} {'cpu s':>8} {'s':>8} {'MiB':>8}   to qemu-img: cpu, time, size")
	for cell, (cpu, seconds, size) in median.items():
	    base = median["/".join(["qemu-img"] + cell.split("/")[1:2] + ["writeback"])]
	    print(f"{cell:34} {cpu:8.2f} {seconds:8.2f} {size / 2**20:8.1f}   "
	          f"{cpu / base[0]:.3f} {seconds / base[1]:.3f} {size / base[2]:.4f}")
	for peer in ("byre", "byre-convert"):
	    pairs = list(zip(cells[peer + "/deflate/none"], cells[peer + "/deflate/writeback"]))
	    cpu, seconds = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
	    print(f"{peer}: O_DIRECT / cached and a sync: cpu {cpu:.3f}, time {seconds:.3f}")
	END
}

# What the kernel was asked to write past the page cache, of the image file alone.
kernel_view()
{
	local inode
	rm -f "$target"
	perf record -q -a -e iomap:iomap_dio_rw_begin -o "$W/perf.data" -- \
		sh -c "$(of byre deflate none)" 2>/dev/null || return 0
	inode=$(printf '0x%x' "$(stat -c %i "$target")")
	perf script -i "$W/perf.data" 2>/dev/null | python3 -c '
import re, sys
data, small, odd, again, seen, tried = 0, 0, 0, 0, set(), set()
for line in sys.stdin:
    m = re.search(r" ino (\S+) .*offset (\w+) length (\w+) .*[^_]flags (\S+)", line)
    if not m or m[1] != sys.argv[1] or "WRITE" not in m[4]:
        continue
    off, n = int(m[2], 16), int(m[3], 16)
    # What could not be begun without waiting comes again from another thread.
    if "NOWAIT" in m[4]:
        tried.add((off, n))
    elif (off, n) in tried:
        tried.remove((off, n))
        continue
    if n < 65536:
        small += 1
        continue
    data += 1
    odd += (off | n) % 4096 != 0
    blocks = range(off // 4096, (off + n) // 4096)
    again += sum(b in seen for b in blocks)
    seen.update(blocks)
print(f"O_DIRECT, seen by the kernel: {data} writes of 64 KiB and more, {odd} unaligned, "
      f"{again} blocks written twice; {small} smaller ones: metadata, and the end")' "$inode"
}

[ -n "$image" ] || make_image
size=$(stat -c %s "$image")
cat "$image" >/dev/null
for run in $(seq "$runs"); do
	for type in deflate zstd; do
		for peer in byre "${qemu_imgs[@]}"; do
			[ "$peer/$type" = byre/deflate ] || measure "$peer" $type writeback
		done
	done
	caches="none writeback"
	[ $((run % 2)) = 0 ] || caches="writeback none"
	for peer in byre byre-convert; do
		for cache in $caches; do
			measure "$peer" deflate "$cache"
		done
	done
done
report
! command -v perf >/dev/null || kernel_view
