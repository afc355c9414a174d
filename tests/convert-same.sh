#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long tsan-long
# limit: 2400
# takes: 60
# The same input and options give the same file, byte for byte, whatever the number of requests
# under way and of threads, on both loop backends: compressed or not, from files and from chains.
# Small clusters outgrow their refcount table; x5_growth_does_not_depend_on_commits in pack_test.c
# leaves out what makes that come out the same, and sees it.
# Nor does it matter what an image held that is written to (-n), and when what becomes free there is
# durably free: a slow one commits while it runs. Where a snapshot shares its tables, or zeros hide
# what a backing file holds, both compressed clusters and zeros take clusters for tables.
# With -W the order of writes is free, and so is where things lie; the content is the same.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io python3
cd "$W"

mixed_file source.raw $((10 << 20)) 5 noise text zeros
qemu-img convert -f raw -O qcow2 -c source.raw base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 30M
qemu-io -c 'write -P 7 1M 300k' -c 'write -z 5M 200k' -c 'write -P 8 29M 4k' top.qcow2 >/dev/null

# differs WHAT: the two files, from where on.
differs()
{
	cmp first "$2" >&2 || true
	fail "$1: not the same bytes"
}

# Long enough that small clusters outgrow a refcount table again and again.
for _ in 1 2 3 4; do
	cat source.raw
done >long.raw

while read -r options; do
	images="source.raw top.qcow2"
	hows=("uring" "uring -m 1" "uring -m 2" "uring -m 16" "posix" "posix -m 3")
	if [[ $options == *OUTGROWN* ]]; then
		images=long.raw
		hows=("uring" "uring -m 1" "posix -m 3")
	fi
	options=${options% OUTGROWN}
	for image in $images; do
		rm -f first
		for how in "${hows[@]}"; do
			rm -f new
			what="BYRE_LOOP=${how%% *} convert ${how#* } $options $image"
			parallel=${how#*[gx]}
			# shellcheck disable=SC2086  # words
			BYRE_LOOP=${how%% *} "$BYRE" convert $parallel $options $image new ||
				fail "$what"
			[ -e first ] || mv new first
			[ ! -e new ] || cmp -s first new || differs "$what" new
		done
	done
done <<'END'
-O raw
-O qcow2
-O qcow2 -o cluster_size=4k,compat=0.10
-O qcow2 -S 0 -o extended_l2=on,lazy_refcounts=on
-c -O qcow2
-c -O qcow2 -o compression_type=zstd
-c -O qcow2 -o cluster_size=4k,refcount_bits=1
-c -O qcow2 -o compression_type=zstd,compression_level=9,cluster_size=1M -t writeback
-c -O qcow2 -t writethrough
-c -O qcow2 -t directsync -o cluster_size=4k
-O qcow2 -o cluster_size=512 OUTGROWN
-c -O qcow2 -o cluster_size=1k,refcount_bits=64 OUTGROWN
-O qcow2 -o cluster_size=2k,refcount_bits=64 OUTGROWN
END

numbers=("uring" "uring -m 1" "uring -m 2" "uring -m 3" "uring -m 5" "uring -m 16" "posix -m 3"
	"posix -m 16")

# Something else was there.
tail -c 7M source.raw >other.raw
truncate -s 10M other.raw
while read -r before; do
	# shellcheck disable=SC2086  # words
	"$BYRE" convert -O qcow2 ${before% SNAPSHOT} other.raw before || fail "$before"
	hows=("uring" "uring -m 1 -r 1700k" "posix -m 3")
	if [[ $before == *SNAPSHOT ]]; then
		qemu-img snapshot -c one before || fail "$before"
		hows=("${numbers[@]}")
	fi
	for options in "" "-c"; do
		rm -f first
		for how in "${hows[@]}"; do
			cp before new
			what="BYRE_LOOP=${how%% *} convert -n ${how#* } $options, over $before"
			parallel=${how#*[gx]}
			# shellcheck disable=SC2086
			BYRE_LOOP=${how%% *} "$BYRE" convert -n $parallel $options -O qcow2 \
				source.raw new || fail "$what"
			if [ ! -e first ]; then
				"$BYRE" check -q new || fail "$what: check"
				"$BYRE" compare -q new source.raw || fail "$what: other content"
				mv new first
			fi
			[ ! -e new ] || cmp -s first new || differs "$what" new
		done
	done
done <<'END'
-c -o cluster_size=512
-o cluster_size=4k
-c -o cluster_size=512 SNAPSHOT
-o cluster_size=512 SNAPSHOT
-c -o cluster_size=4k SNAPSHOT
-c SNAPSHOT
END

# Zeros over a backing file that holds something everywhere.
mixed_file under.raw $((10 << 20)) 9 noise text
qemu-img create -q -f qcow2 -b under.raw -F raw over.qcow2 10M
for ((i = 0; i < 40; i++)); do
	echo "write -z $((i * 256))k $((64 + i % 3 * 64))k"
	echo "write -P $i $((i * 256 + 128))k 100k"
done | qemu-io over.qcow2 >/dev/null
for cluster in 512 4k; do
	rm -f first
	for how in "${numbers[@]}"; do
		rm -f new
		what="BYRE_LOOP=${how%% *} convert ${how#* } -c -B, clusters of $cluster"
		# shellcheck disable=SC2086
		BYRE_LOOP=${how%% *} "$BYRE" convert ${how#*[gx]} -c -O qcow2 -B under.raw -F raw \
			-o cluster_size=$cluster over.qcow2 new || fail "$what"
		[ -e first ] || mv new first
		[ ! -e new ] || cmp -s first new || differs "$what" new
	done
done

"$BYRE" convert -O raw top.qcow2 want.raw
for options in "-O qcow2" "-c -O qcow2"; do
	# shellcheck disable=SC2086
	"$BYRE" convert -W $options top.qcow2 new || fail "-W $options"
	"$BYRE" check -q new || fail "-W $options: check"
	"$BYRE" compare -q -F raw new want.raw || fail "-W $options: other content"
done
