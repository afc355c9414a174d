#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 1800
# What is data, zeros or nowhere after random writes, zeroes and discards: the same whether byre or
# QEMU did them. Places in the file differ; what doc/COMPATIBILITY.md lists is left out.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io
cd "$W"
size=$((8 << 20))

# status IMAGE KEY...: runs of clusters and what they are, as qemu-img sees them.
status()
{
	local image=$1
	shift
	qemu-img map -f qcow2 --output=json "$image" | python3 -c '
import json, sys
last = None
for run in json.load(sys.stdin):
    run["zero"] &= not run["data"]          # a hole of the file below, within a cluster
    what = {k: run[k] for k in sys.argv[1:]}
    if last and last[1] == what:
        last[0][1] = run["start"] + run["length"]
        continue
    if last:
        print(*last)
    last = [[run["start"], run["start"] + run["length"]], what]
print(*last)' "$@"
}

random_file noise.raw $size
qemu-img convert -f raw -O qcow2 noise.raw noise.qcow2
seed=1
rounds=1
[ "${SUITE:-}" != long ] || rounds=20
for cluster in 512 4096 65536; do
	for options in compat=1.1 compat=0.10; do
		for backing in '' '-b noise.raw -F raw' '-b noise.qcow2 -F qcow2'; do
			for round in $(seq $rounds); do
				what="seed $((++seed)), clusters of $cluster, $options $backing"
				python3 "$here/qcow2-write.py" $seed $size $cluster 25 |
					grep -v '^aio\|^read\|^flush' >commands
				for of in theirs ours; do
					rm -f $of.qcow2
					# shellcheck disable=SC2086  # words
					qemu-img create -q -f qcow2 $backing $of.qcow2 $size \
						-o cluster_size=$cluster,$options
				done
				qemu-io -f qcow2 -d unmap theirs.qcow2 <commands >io.log 2>&1
				start_byre ours --discard unmap ours.qcow2
				qemu-io -f raw -d unmap "$(uri ours)" <commands >io.log 2>&1
				stop_byre ours
				keys=(depth zero data)
				# Zeros where nothing is, and nothing below, leave no trace.
				[ -z "$backing" ] || keys+=(present)
				status theirs.qcow2 "${keys[@]}" >theirs
				status ours.qcow2 "${keys[@]}" >ours
				diff theirs ours >differ || {
					head -n 20 differ >&2
					fail "$what"
				}
			done
		done
	done
done
