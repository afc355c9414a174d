#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 1800
# takes: 35
# byre writes qcow2 images of every kind. With a data file, raw or not: what it holds is there for
# QEMU, too, which goes on writing. With persistent bitmaps: QEMU finds in them what was written.
# With lazy refcounts: what is left dirty, by byre or by QEMU, is repaired by either.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/qcow2-lib.sh"
need qemu-img qemu-io qemu-nbd xxd
cd "$W"
size=$((24 << 20))
truncate -s $size empty.raw
random_file noise.raw $size
seed=100

# turns WHAT CLUSTER OPTIONS...
turns()
{
	seed=$((seed + 1))
	take_turns good "$1" $seed "$2" 60 --loops $((1 + seed % 2)) "${@:3}"
}

# ---- data files ----

for cluster in 4096 65536 2097152; do
	for cache in writeback writethrough; do
		[ $cache = writeback ] || [ $cluster = 65536 ] || continue
		rm -f disk.qcow2 data.raw
		qemu-img create -q -f qcow2 -o cluster_size=$cluster,data_file=data.raw \
			disk.qcow2 $size
		cp empty.raw model.raw
		turns "a data file, $cluster, $cache" $cluster --cache $cache --discard on
		rm -f disk.qcow2 data.raw
		qemu-img create -q -f qcow2 -o cluster_size=$cluster \
			-o data_file=data.raw,data_file_raw=on disk.qcow2 $size
		cp empty.raw model.raw
		turns "a raw data file, $cluster, $cache" $cluster --cache $cache
		cmp model.raw data.raw || fail "a raw data file, $cluster: not what the guest sees"
		qemu-img info disk.qcow2 >info.log
		grep -q 'data file raw: true' info.log || fail "a raw data file is none any more"
	done
done
rm -f disk.qcow2 data.raw
qemu-img create -q -f qcow2 -o data_file=data.raw -b noise.raw -F raw disk.qcow2
cp noise.raw model.raw
turns "a data file over a backing file" 65536

# A disk that ends within a cluster: its data file ends with the disk.
rm -f disk.qcow2 data.raw
qemu-img create -q -f qcow2 -o data_file=data.raw disk.qcow2 1000448
start_byre end disk.qcow2
qemu-io -f raw -c 'write -P 7 999424 1024' -c 'write -z 990000 5000' "$(uri end)" >io.log
stop_byre end
[ "$(stat -c %s data.raw)" = 1000448 ] || fail "the data file goes on behind the end of the disk"
whole disk.qcow2 "a disk that ends within a cluster"

# ---- bitmaps ----

# bits IMAGE BITMAP: prints where it has bits, as QEMU reads it.
bits()
{
	rm -f nbd.sock
	qemu-nbd -r -f qcow2 -B "$2" -k "$W/nbd.sock" "$1" &
	others+=($!)
	wait_for 20 is_listening "$W/nbd.sock" || fail "qemu-nbd -B $2 does not serve"
	qemu-img map --output=json --image-opts "driver=nbd,server.type=unix,$(
		)server.path=$W/nbd.sock,x-dirty-bitmap=qemu:dirty-bitmap:$2"
	wait $! || true
}

# with_bitmaps OPTIONS...: an image with bitmaps of several kinds.
with_bitmaps()
{
	rm -f disk.qcow2 data.raw
	qemu-img create -q -f qcow2 "$@" disk.qcow2 $size
	qemu-img bitmap --add -g 512 disk.qcow2 fine
	qemu-img bitmap --add -g 64k disk.qcow2 usual
	qemu-img bitmap --add -g 4k --disable disk.qcow2 disabled
}

# Those that QEMU has after the same commands, on a copy.
for options in cluster_size=65536 cluster_size=512 data_file=data.raw; do
	with_bitmaps -o $options
	for turn in 1 2; do
		cp disk.qcow2 other.qcow2
		seed=$((seed + 1))
		python3 "$here/qcow2-write.py" $seed $size 65536 40 >commands
		start_byre bits --loops 2 disk.qcow2
		io_all "$(uri bits)" raw commands
		qemu-img info -U disk.qcow2 >info.log
		grep -q in-use info.log || fail "$options: bitmaps in use are not marked"
		stop_byre bits
		whole disk.qcow2 "$options, bitmaps"
		qemu-img info disk.qcow2 >info.log
		! grep -q in-use info.log || fail "$options: bitmaps are marked after the end"
		io_all other.qcow2 qcow2 commands
		for bitmap in fine usual disabled; do
			bits disk.qcow2 $bitmap >"bits.$bitmap"
			bits other.qcow2 $bitmap >bits.qemu
			cmp bits.qemu "bits.$bitmap" || fail "$options: '$bitmap' is not QEMU's"
		done
	done
done

# Killed, and written again: the bitmap counts no more, and is not touched.
with_bitmaps -o cluster_size=65536
start_byre victim disk.qcow2
qemu-io -f raw -c 'write -q 1M 64k' -c flush "$(uri victim)"
kill_byre victim disk.qcow2
qemu-img info disk.qcow2 >info.log
[ "$(grep -c in-use info.log)" = 2 ] || { cat info.log >&2; fail "killed: marks"; }
start_byre next disk.qcow2
qemu-io -f raw -c 'write -q 2M 64k' "$(uri next)"
stop_byre next
qemu-img info disk.qcow2 >info.log
[ "$(grep -c in-use info.log)" = 2 ] || { cat info.log >&2; fail "killed, and again: marks"; }
whole disk.qcow2 "killed with bitmaps"

# Killed, and its data file is away: that is told, and leaks at most are gone.
rm -f disk.qcow2 data.raw
qemu-img create -q -f qcow2 -o data_file=data.raw disk.qcow2 $size
start_byre victim disk.qcow2
qemu-io -f raw -c 'write -q -P 5 1M 64k' -c flush "$(uri victim)"
kill_byre victim disk.qcow2 data.raw
mv data.raw away.raw
byre_refuses 'data\.raw.*No such file' disk.qcow2
mv away.raw data.raw
whole disk.qcow2 "killed, opened without its data file"
qemu-io -f qcow2 -c 'read -q -P 5 1M 64k' disk.qcow2 || fail "killed: what was flushed is gone"

# ---- lazy refcounts ----

is_dirty()
{
	# The lowest bit of the incompatible features.
	[ $((0x$(xxd -s 79 -l 1 -p "$1") & 1)) = 1 ]
}

for cluster in 512 65536; do
	rm -f disk.qcow2
	qemu-img create -q -f qcow2 -o cluster_size=$cluster,lazy_refcounts=on disk.qcow2 $size
	cp empty.raw model.raw
	turns "lazy refcounts, $cluster" $cluster
	! is_dirty disk.qcow2 || fail "lazy refcounts: dirty after a clean end"
done

# A byre that is killed leaves the image dirty; QEMU repairs it, or the next byre.
for next in qemu byre; do
	python3 "$here/qcow2-write.py" $((seed++)) $size 65536 60 >commands
	echo flush >>commands
	start_byre victim disk.qcow2
	io_all "$(uri victim)" raw commands
	io_all model.raw raw commands
	kill_byre victim disk.qcow2
	is_dirty disk.qcow2 || fail "lazy refcounts: killed, and not dirty"
	if [ $next = qemu ]; then
		qemu-io -f qcow2 -c 'read 0 512' disk.qcow2 >io.log 2>&1
	else
		start_byre next disk.qcow2
		stop_byre next
	fi
	! is_dirty disk.qcow2 || fail "lazy refcounts: $next leaves it dirty"
	whole disk.qcow2 "lazy refcounts, killed, then $next"
	same_as_model disk.qcow2 "lazy refcounts, killed, then $next"
done

# And what QEMU left.
qemu-io -f qcow2 -c 'write -q -P 3 3M 1M' -c 'write -q -z -u 5M 1M' -c flush -c 'sigraise 9' \
	disk.qcow2 >/dev/null 2>&1 || true
io_all model.raw raw <(printf 'write -P 3 3M 1M\nwrite -z 5M 1M\n')
is_dirty disk.qcow2 || fail "QEMU was to leave the image dirty"
turns "lazy refcounts, left dirty by QEMU" 65536
