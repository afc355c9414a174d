#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 300
# byre convert has 64 MiB of memory at most, and 2 MiB more for each thread that works, whatever the
# options, and whatever the image says.
. "$(dirname "$0")/lib.sh"
need python3 qemu-img
cd "$W"

threads=$(nproc)
limit=$((64 + 2 * (threads > 2 ? threads : 2)))

# converts ARGUMENTS...: convert succeeds, and has no more than that.
converts()
{
	python3 -S - "$BYRE" $limit "$@" <<-'END_PYTHON' || fail "convert $*"
	import os, sys
	byre, limit, *args = sys.argv[1:]
	pid = os.posix_spawn(byre, [byre, "convert", *args], os.environ)
	_, status, used = os.wait4(pid, 0)
	print(used.ru_maxrss // 1024, "MiB:", *args, flush=True)
	sys.exit(status != 0 or used.ru_maxrss > int(limit) << 10)
	END_PYTHON
}

# What hardly becomes smaller: all buffers are full.
python3 - <<'END_PYTHON'
import random
r = random.Random(1)
with open("source.raw", "wb") as f:
    for i in range(20):
        f.write(r.randbytes((2 << 20) - 40000) + bytes(40000))
END_PYTHON
large=cluster_size=2M,compression_type=zstd
converts -c -f raw -O qcow2 -o $large source.raw packed
for options in "-o $large,compression_level=13" "-o $large,compression_level=12" \
	"-o cluster_size=2M,compression_level=12" \
	"-o compression_type=zstd,cluster_size=1M,compression_level=18"; do
	# shellcheck disable=SC2086  # words
	converts -c -m 16 -W -O qcow2 $options packed new
	qemu-img compare -q source.raw new || fail "$options: other content"
done
for depth in 1 16; do
	converts -m $depth -O raw packed new
	converts -m $depth -O qcow2 -o cluster_size=2M packed new
done

# Streams that are much longer than their clusters, of which each reader takes the beginning.
python3 - <<'END_PYTHON'
import struct, zlib
BITS, N = 21, 24
C = 1 << BITS
z = zlib.compressobj(9, zlib.DEFLATED, -15)
stream = b"".join(z.compress(bytes(C)) for _ in range(30)) + z.flush()
step = 128 << 10
assert len(stream) < step
header = struct.pack(">IIQIIQIIQQIIQQQQII", 0x514649fb, 3, 0, 0, BITS, N * C, 0, 1, 3 * C, C, 1, 0,
                     0, 0, 0, 0, 4, 104)
entry = [1 << 62 | (len(stream) - 1) // 512 << 62 - (BITS - 8) | 5 * C + i * step for i in range(N)]
with open("longer", "wb") as f:
    for data in (header, struct.pack(">Q", 2 * C), struct.pack(">7H", 1, 1, 1, 1, 1, 16, 8),
                 struct.pack(">Q", 4 * C | 1 << 63), struct.pack(f">{N}Q", *entry)):
        f.write(data.ljust(C, b"\0"))
    for i in range(N):
        f.write(stream.ljust(step, b"\0"))
    f.truncate(7 * C)
END_PYTHON
truncate -s 48M zeros
converts -m 16 -f qcow2 -O raw longer new
cmp zeros new || fail "streams that are longer: other content"
converts -c -O qcow2 -o $large,compression_level=19 longer new
