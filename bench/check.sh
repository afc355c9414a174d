#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# byre check and qemu-img check on 1 TiB of 64 KiB clusters, cached: in order, and in pieces of 2
# MiB in random order; and check -r all (rebuild) of the one in order with a refcount block lost and
# another used twice. Seconds (user + system, and by the clock) and peak memory.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=bench/img-lib.sh
. "$bench/img-lib.sh"

# measure PEER IMAGE [OPTION]...: appends "PEER CPU CLOCK MiB". What it says is not looked at: a
# repair that found something ends with an exit code of its own.
measure()
{
	local argv peer=$1
	shift
	mapfile -t argv < <(img_command "$peer")
	/usr/bin/time -q -o "$W/time" -f '%U %S %e %M' "${argv[@]}" check -f qcow2 "$@" \
		>/dev/null 2>&1 || true
	awk -v who="$peer" '{ print who, $1 + $2, $3, $4 / 1024 }' "$W/time" >>"$W/results"
}

# Copies image $1 to $2, without block 100, and with block 5 as block 300, too.
damage()
{
	cp --sparse=always "$1" "$2"
	python3 - "$2" <<-'END'
		import struct
		import sys
		with open(sys.argv[1], "r+b") as f:
		    f.seek(48)
		    table = struct.unpack(">Q", f.read(8))[0]
		    f.seek(table + 8 * 5)
		    block = f.read(8)
		    for i, entry in ((100, bytes(8)), (300, block)):
		        f.seek(table + 8 * i)
		        f.write(entry)
	END
}

show()
{
	[ -n "$json" ] || echo "--- $1"
	table "cpu s less" "clock s less" "peak MiB less"
	rm -f "$W/results"
}

for kind in ordered fragmented; do
	python3 "$bench/tib_image.py" "$kind" "$W/$kind"
	for _ in $(seq "$runs"); do
		for peer in byre "${qemu_imgs[@]}"; do
			measure "$peer" "$W/$kind"
		done
	done
	show "$kind"
	[ "$kind" = ordered ] || rm "$W/$kind"
done
for _ in $(seq "$runs"); do
	for peer in byre "${qemu_imgs[@]}"; do
		damage "$W/ordered" "$W/rebuild"
		measure "$peer" "$W/rebuild" -r all
	done
done
show rebuild
