#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long asan
# limit: 600
# takes: 30
# byre convert on file systems that can share blocks (XFS, btrfs): the copy is equal, shares what
# the source stores, costs no space and no page cache, and changing it does not change the source.
# What cannot be shared, or shall not, is copied.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io filefrag fincore python3 mkfs.xfs mkfs.btrfs
[ "$(id -u)" = 0 ] || skip "only root mounts file systems"
cd "$W"

# make FILE: data, holes, and zeros that are stored, in a disk that ends within a block.
make()
{
	python3 - "$1" <<-'END'
	import random, sys
	r = random.Random(3)
	size = (24 << 20) + 1536
	with open(sys.argv[1], "wb") as f:
	    f.truncate(size)
	    for i in range(24):
	        f.seek(r.randrange(size >> 16) << 16)
	        f.write(r.randbytes(r.randrange(1, 20) << 14)[:size - f.tell()])
	    f.seek(5 << 20)
	    f.write(bytes(1 << 20) + r.randbytes(70000))
	    f.seek(size - 2000)
	    f.write(r.randbytes(2000))
	END
}

# extents FILE: bytes that are shared with other files, and bytes that are not.
extents()
{
	filefrag -b4096 -v "$1" | awk -F: '$1 ~ /^ *[0-9]+$/ {
		if ($0 ~ /shared/) shared += $4; else own += $4
	} END { print shared * 4096, own * 4096 }'
}

used()
{
	sync -f .
	df --output=used -B1 . | tail -n 1
}

# convert ARGUMENTS... SOURCE TARGET: sets `shared`, `own` and `cost`, in bytes.
convert()
{
	local before
	what="convert $*"
	before=$(used)
	"$BYRE" convert "$@" || fail "$what"
	same "${@: -2:1}" "${@: -1}"
	cost=$(($(used) - before))
	read -r shared own < <(extents "${@: -1}")
}

same()
{
	local status=0
	qemu-img compare "$1" "$2" >compare.log 2>&1 || status=$?
	# Disks of other sizes are the same where what is missing is zero.
	[ $status = 0 ] || { cat compare.log >&2; fail "$what: the images differ"; }
}

# shares [KIB]: all data is shared, but for what metadata and an end within a block take; and a
# file that is made for an image has a first block, for which XFS allocates 1 MiB.
shares()
{
	[ "$shared" -ge $((stored - 65536)) ] || fail "$what: $shared bytes are shared of $stored"
	[ "$own" -le $((${1:-1028} << 10)) ] || fail "$what: $own bytes are not shared"
	[ "$cost" -le $((3 << 20)) ] || fail "$what: it takes $cost bytes"
}

is_plain()
{
	[ "$shared" = 0 ] || fail "$what: $shared bytes are shared"
}

# What -n makes of a target that holds something else.
over()
{
	random_file there.raw "$(stat -c %s source.raw)" 9
	sync -f .
	convert -n "$@" source.raw there.raw
	[ "$shared" -ge $((stored - 65536)) ] || fail "$what: $shared bytes are shared"
	rm there.raw
}

can_share()
{
	make source.raw
	cp --reflink=never source.raw plain.raw
	sync -f .
	read -r shared own < <(extents plain.raw)
	what="a plain copy" is_plain
	rm plain.raw
	[ "$own" -gt 0 ] || fail "$what: it has no extents"
	stored=$(qemu-img map --output=json -f raw source.raw | python3 -c 'import json, sys
print(sum(run["length"] for run in json.load(sys.stdin) if run["data"]))')

	for options in "" "-C" "-t none" "-t writethrough -W" "-T none -m 1 -r 100M" \
		"-t unsafe --keep-cache"; do
		# shellcheck disable=SC2086  # words
		convert $options source.raw new.raw
		shares
		rm new.raw
		# shellcheck disable=SC2086
		convert $options -O qcow2 source.raw new.qcow2
		shares 2048
		qemu-img check -q new.qcow2 || fail "$what: check"
		mv new.qcow2 source.qcow2
		# shellcheck disable=SC2086
		convert $options source.qcow2 new.raw
		shares
		rm new.raw
		# shellcheck disable=SC2086
		convert $options -O qcow2 source.qcow2 new.qcow2
		shares 2048
		qemu-img check -q new.qcow2 || fail "$what: check"
		rm new.qcow2
	done
	over
	over -t none
	convert -O qcow2 -o extended_l2=on,cluster_size=128k source.raw new.qcow2
	shares 2048
	convert -O qcow2 -o data_file=data,data_file_raw=on source.raw new.qcow2
	rm new.qcow2 data
	# Clusters smaller than blocks.
	convert -O qcow2 -o cluster_size=2k source.raw new.qcow2
	is_plain
	convert new.qcow2 new.raw
	rm new.qcow2 new.raw

	# Chains, snapshots, sources one behind the other.
	"$BYRE" create -q -f qcow2 -b source.qcow2 -F qcow2 top.qcow2
	qemu-io -c "write -P 7 3M 1M" top.qcow2 >/dev/null
	sync -f .
	convert top.qcow2 new.raw
	shares
	convert -O qcow2 -B source.qcow2 -F qcow2 top.qcow2 new.qcow2
	[ "$shared" = $((1 << 20)) ] || fail "$what: $shared bytes are shared"
	qemu-img snapshot -c one top.qcow2
	qemu-io -c "write -P 8 3M 2M" top.qcow2 >/dev/null
	cp new.raw before.raw
	"$BYRE" convert -l one top.qcow2 new.raw
	qemu-img compare -f raw -F raw before.raw new.raw >/dev/null || fail "a snapshot"
	cp --reflink=never source.raw second.raw
	cat source.raw second.raw >both.raw
	"$BYRE" convert source.raw second.raw new.raw
	qemu-img compare -f raw -F raw both.raw new.raw >/dev/null || fail "two sources"
	rm new.raw new.qcow2 before.raw both.raw second.raw

	# What is not, and why.
	cp "$BYRE" qemu-img
	BYRE=./qemu-img convert source.raw new.raw
	is_plain
	BYRE=./qemu-img convert -C source.raw new.raw
	shares
	rm qemu-img
	for options in "-S 0" "-S 4k" "--salvage" "-o preallocation=full" "-c -O qcow2"; do
		# shellcheck disable=SC2086
		convert $options source.raw new
		is_plain
		rm new
	done

	# The copy is the copy's.
	sum=$(sha256sum <source.raw)
	convert source.raw new.raw
	qemu-io -f raw -c "write -P 5 0 24M" new.raw >/dev/null
	[ "$sum" = "$(sha256sum <source.raw)" ] || fail "writing to the copy changed the source"
	rm new.raw

	for cached in 0 1; do
		at_times leaves_the_cache $cached
	done
}

# leaves_the_cache CACHED: next to nothing comes into the page cache, and what was there stays,
# where the source is CACHED (1) or not (0): btrfs may keep pages of what is looked at to find out
# the format.
leaves_the_cache()
{
	local before after
	sync -f .
	python3 -c 'import os
fd = os.open("source.raw", os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)'
	[ "$1" = 0 ] || cat source.raw >/dev/null
	before=$(cached_pages source.raw)
	"$BYRE" convert source.raw new.raw || fail "convert"
	after=$(cached_pages source.raw)
	[ "$after" -ge "$before" ] || fail "pages of the source are gone"
	[ "$after" -le $((before + 16)) ] || fail "pages of the source stay"
	[ "$(cached_pages new.raw)" = 0 ] || fail "pages of the target"
	rm new.raw
}

# Where the file system refuses.
cannot_share()
{
	make elsewhere.raw
	qemu-img convert -O qcow2 elsewhere.raw elsewhere.qcow2
	for source in elsewhere.raw elsewhere.qcow2; do
		for options in "-O raw" "-O qcow2" "-C -O raw" "-O raw -t none"; do
			# shellcheck disable=SC2086
			(cd "$1" && convert $options "$W/$source" new && is_plain && rm new)
		done
	done
	# A chain of which a part is here, and a part there.
	cd "$1"
	"$BYRE" create -q -f qcow2 -b "$W/elsewhere.qcow2" -F qcow2 top.qcow2
	qemu-io -c "write -P 7 3M 1M" top.qcow2 >/dev/null
	sync -f .
	convert top.qcow2 new.raw
	[ "$shared" = $((1 << 20)) ] || fail "$what: $shared bytes are shared"
	rm new.raw top.qcow2
	# btrfs shares nothing between files with checksums and files without.
	if [ "$1" = btrfs ]; then
		: >nocow.raw
		chattr +C nocow.raw
		cat "$W/elsewhere.raw" >nocow.raw
		sync -f .
		for options in "-O raw" "-O qcow2" "-C"; do
			# shellcheck disable=SC2086
			convert $options nocow.raw new
			is_plain
			rm new
		done
		rm nocow.raw
	fi
	cd "$W"
}

for fs in xfs btrfs; do
	mkdir $fs
	truncate -s 512M $fs.img
	case $fs in
	xfs) mkfs.xfs -q -m reflink=1 xfs.img || continue ;;
	btrfs) mkfs.btrfs -q btrfs.img >/dev/null 2>&1 || continue ;;
	esac
	mount -o loop $fs.img $fs 2>/dev/null || continue
	mounted+=("$W/$fs")
	cd $fs
	can_share
	cd "$W"
	cannot_share $fs
done
[ ${#mounted[@]} -gt 0 ] || skip "neither XFS nor btrfs can be mounted"
