#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long tsan-long
# limit: 1800
# takes: 35
# What byre serve --compress writes is compressed, and QEMU finds in it what was written and nothing
# wrong: clusters and refcounts of all sizes, deflate and zstd, both versions, subclusters, backing
# files; new clusters, and clusters that are compressed already, which QEMU does not overwrite that
# way. Where QEMU has written meanwhile, it goes on. A byre that was killed leaves leaks at most.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/qcow2-lib.sh"
# shellcheck source=tools/cache.sh
. "$top/tools/cache.sh"
need qemu-img qemu-io
cd "$W"
size=$((8 << 20))
qemu10=$CACHE/qemu10/run
truncate -s $size empty.raw
random_file noise.raw $size

# judged IMAGE WHAT: by the older QEMU, and by the newer one where it is there.
judged()
{
	good "$@"
	[ -x "$qemu10" ] || return 0
	"$qemu10" qemu-img check -q "$1" >check.log 2>&1 ||
		{ cat check.log >&2; fail "$2: the newer check"; }
	"$qemu10" qemu-img compare -q -f qcow2 -F raw "$1" model.raw ||
		fail "$2: the newer QEMU reads something else"
}

compressed_clusters()
{
	qemu-img check --output=json "$1" | python3 -c '
import json, sys
print(json.load(sys.stdin).get("compressed-clusters", 0))'
}

# judged_compressed IMAGE WHAT: in the first turn, byre has compressed. Of a few large clusters each
# may have been zeroed in part, which undoes it.
judged_compressed()
{
	judged "$@"
	[[ $2 != *"turn 1" ]] || [ "$cluster" -gt 65536 ] ||
		[ "$(compressed_clusters "$1")" -gt 0 ] || fail "$2: nothing is compressed"
}

# back_and_forth SEED WHAT CLUSTER CREATE_OPTIONS...: byre, QEMU, byre.
back_and_forth()
{
	local seed=$1 what=$2 cluster=$3
	shift 3
	rm -f disk.qcow2
	qemu-img create -q -f qcow2 "$@" disk.qcow2 $size
	case "$*" in
	*-b*) cp noise.raw model.raw ;;
	*) cp empty.raw model.raw ;;
	esac
	take_turns judged_compressed "$what" "$seed" "$cluster" 40 --compress \
		--loops $((1 + seed % 2)) --cache "${modes[seed % ${#modes[@]}]}"
}

modes=(writeback none unsafe directsync)
seed=1
for cluster in 512 4096 65536 2097152; do
	for options in compat=1.1 compat=0.10 refcount_bits=1 compression_type=zstd \
		extended_l2=on,compression_type=zstd lazy_refcounts=on,refcount_bits=64; do
		[[ $options != extended* ]] || [ $cluster -ge 16384 ] || continue
		for backing in '' '-b noise.raw -F raw'; do
			seed=$((seed + 1))
			[ "${SUITE:-}" = long ] || [ $((seed % 2)) = 0 ] || continue
			# shellcheck disable=SC2086  # words
			back_and_forth $seed "$cluster $options $backing" $cluster \
				-o cluster_size=$cluster,$options $backing
		done
	done
done

# ---- over what qemu-img compressed ----

for type in zlib zstd; do
	qemu-img convert -c -f raw -O qcow2 -o compression_type=$type noise.raw disk.qcow2
	cp noise.raw model.raw
	for turn in 1 2; do
		python3 "$here/qcow2-write.py" $((seed++)) $size 65536 40 >commands
		write_byre disk.qcow2 commands --compress
		judged disk.qcow2 "over a compressed image ($type), turn $turn"
	done
done

# ---- killed: leaks at most, and what was flushed is there ----

qemu-img create -q -f qcow2 disk.qcow2 $size
cp empty.raw model.raw
start_byre victim --compress disk.qcow2
printf 'write -P 3 0 3M\nwrite -P 4 100000 5000\nflush\n' >commands
io_all "$(uri victim)" raw commands
io_all model.raw raw commands
printf 'write -P 5 4M 2M\n' >lost
io_all "$(uri victim)" raw lost
kill_byre victim disk.qcow2
qemu-img check disk.qcow2 >check.log 2>&1 || [ $? = 3 ] || { cat check.log >&2; fail "killed"; }
qemu-io -f qcow2 -r -c 'read -P 3 0 100000' -c 'read -P 4 100000 5000' \
	-c 'read -P 3 105000 3000000' disk.qcow2 >io.log 2>&1 || fail "killed: qemu-io"
! grep -q 'failed\|error' io.log || { cat io.log >&2; fail "what was flushed is not there"; }

# ---- refused ----

qemu-img create -q -f qcow2 -o data_file=data.raw external.qcow2 $size
byre_refuses 'Compression is not possible with an external data file' --compress external.qcow2
byre_refuses 'only qcow2 images are written compressed' --compress -f raw model.raw
