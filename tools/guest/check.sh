#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tools/guest/check.sh [--flip[=DISK]] [-v] - a real Linux on disks that byre serves: one byte
# wrong, and it fails.
#
# Four disks, each with an ext4 of its own: `chain` (a qcow2 that holds what differs from its
# backing qcow2), `compressed` (qcow2, zlib), `subclusters` (qcow2 with extended L2 entries, zstd)
# and `raw`, which the guest writes to for good, over vhost-user with two queues; the others it
# has over NBD, and QEMU keeps the writes to them to itself.
# The sums are those of the raw files that the images were made of, so byre and the tools that
# made the images have to agree with them, not with each other.
# With --flip there is one disk more, a copy of DISK (default: chain) with one byte of its image
# changed behind byre's back; the guest has to notice that, and nothing else. -v shows the byre log.
# shellcheck source=tools/guest/lib.sh
. "$(dirname "$0")/lib.sh"
flip=
for arg in "$@"; do
	case $arg in
	--flip) flip=chain ;;
	--flip=*) flip=${arg#--flip=} ;;
	-v) verbose=1 ;;
	*) usage ;;
	esac
done

# make_tree DIR SEED: files small and large, compressible and not, and with holes.
make_tree()
{
	local i
	mkdir -p "$1/many/deep"
	for i in $(seq 150); do
		echo "file $i of disk $2" >"$1/many/deep/$i"
	done
	seq "$2" 200000 >"$1/text"
	head -c 5000001 /dev/urandom >"$1/noise"
	truncate -s 6M "$1/holes"
	echo "disk $2" | dd of="$1/holes" bs=1 seek=3333333 conv=notrunc status=none
}

# make_disk NAME SEED: $W/NAME.source, an ext4, and what the guest has to find in it.
make_disk()
{
	make_tree "$W/$1.tree" "$2"
	mkfs.ext4 -q -L "$1" -d "$W/$1.tree" "$W/$1.source" 24M >/dev/null
}

# note NAME: the sums of $W/NAME.source and of the files of NAME.tree, for the guest.
note()
{
	echo "$1 $(sha256sum <"$W/$1.source" | cut -c 1-64)" >>"$W/job/disks"
	(cd "$W/$1.tree" && find . -type f | sort | xargs sha256sum) >"$W/job/$1.files"
}

# The overlay differs from the base in two files of the same file system.
make_chain()
{
	make_disk chain 1
	qemu-img convert -O qcow2 "$W/chain.source" "$W/base.qcow2"
	seq 7 150000 >"$W/chain.tree/newer"
	rm "$W/chain.tree/many/deep/77"
	debugfs -w -f - "$W/chain.source" >/dev/null 2>&1 <<-END
	write $W/chain.tree/newer newer
	rm many/deep/77
	END
	(cd "$W" && qemu-img create -q -f qcow2 -b chain.source -F raw chain.image &&
		qemu-img rebase -f qcow2 -F qcow2 -b base.qcow2 chain.image)
	note chain
}

make_disks()
{
	mkdir "$W/job"
	cp "$here/job.sh" "$W/job/run.sh"
	make_chain
	make_disk compressed 2
	qemu-img convert -c -O qcow2 "$W/compressed.source" "$W/compressed.image"
	make_disk subclusters 3
	qemu-img convert -O qcow2 -o extended_l2=on,cluster_size=128k,compression_type=zstd \
		"$W/subclusters.source" "$W/subclusters.image"
	make_disk raw 4
	cp "$W/raw.source" "$W/raw.image"
	for name in compressed subclusters raw; do
		note "$name"
	done
}

# flip_byte IMAGE: in a copy of it, one byte of the largest run of data that the guest can see, in
# whichever file.
flip_byte()
{
	local sum
	sum=$(sed -n "s/^$1 //p" "$W/job/disks")
	echo "flipped $sum" >>"$W/job/disks"
	mkdir "$W/flipped"
	cp "$W/$1.image" "$W/base.qcow2" "$W/flipped/"
	cp "$W/job/$1.files" "$W/job/flipped.files"
	(cd "$W/flipped" && qemu-img map --output=json "$1.image" >map.json &&
		python3 - "$1.image" <<-'END'
	import json, sys
	run = max((r for r in json.load(open("map.json")) if r["data"]), key=lambda r: r["length"])
	name, at = sys.argv[1], -100000         # compressed: any byte near the end of the file
	if "offset" in run:
	    name = "base.qcow2" if run["depth"] else name
	    at = run["offset"] + run["length"] // 2
	with open(name, "r+b") as f:
	    f.seek(at, 2 if at < 0 else 0)
	    where = f.tell()
	    byte = f.read(1)[0]
	    f.seek(where)
	    f.write(bytes([byte ^ 1]))
	print(f"changed byte {where} of {name}")
	END
	)
}

# What the guest wrote to the raw disk has to be in the file, and the file system whole.
check_raw()
{
	e2fsck -fn "$W/raw.image" >"$W/fsck.log" 2>&1 || { cat "$W/fsck.log"; return 1; }
	debugfs -R "cat written-by-guest" "$W/raw.image" 2>/dev/null | cmp - <(seq 100000)
}

make_disks
flipped=() flipped_uri=()
if [ -n "$flip" ]; then
	flip_byte "$flip"
	flipped=(--read-only --name flipped "$W/flipped/$flip.image")
	[ "$flip" != raw ] || flipped=(-f raw "${flipped[@]}")
	flipped_uri=("$(uri flipped)")
fi
serve --read-only --name chain "$W/chain.image" \
	--read-only --name compressed "$W/compressed.image" \
	--read-only --name subclusters "$W/subclusters.image" --loops 2 "${flipped[@]}" \
	-f raw --vhost-user "$W/raw.sock" --queues 2 --name raw "$W/raw.image"
(cd "$W" && sha256sum base.qcow2 chain.image compressed.image subclusters.image) >"$W/before"
status=0
"$here/boot.sh" -j "$W/job" -l "$W/console" "$(uri chain)" "$(uri compressed)" \
	"$(uri subclusters)" "vub:$W/raw.sock,num-queues=2" "${flipped_uri[@]}" |
	tee "$W/output" || status=$?
end_byre
if [ -n "$flip" ]; then
	{ [ "$status" = 1 ] && grep -q "^WRONG flipped" "$W/output"; } ||
		fail "the changed byte went unnoticed (status $status)"
	! grep "^WRONG" "$W/output" | grep -qv "^WRONG flipped" || exit 1
	echo "the guest noticed the changed byte"
else
	[ "$status" = 0 ] || exit 1
fi
check_raw || fail "what the guest wrote is not in the raw image"
(cd "$W" && sha256sum --quiet -c before) || fail "an image changed"
echo "all that the guest read is right, and what it wrote is there"
