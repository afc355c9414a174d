#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 1200
# takes: 35
# byre with each malloc that -Dmalloc knows: built, it serves and copies 4 GiB, and gives its free
# memory back when it has nothing to do. Prints what is resident before, at the most, and after.
. "$(dirname "$0")/lib.sh"
# shellcheck disable=SC2154  # top, W, BYRE: lib.sh
need meson ninja nbdcopy qemu-img

GiB=$((1 << 30))
size=$((4 * GiB))
most=$((24 << 10))              # KiB: what may be left beyond the start, whichever malloc

# library MALLOC: what its library is called.
library()
{
	case $1 in
	tcmalloc) echo libtcmalloc_minimal ;;
	*) echo "lib$1" ;;
	esac
}

# build MALLOC: $program, for compilers to be done with soon; byre's own malloc is in what is tested
# anyway. False if that malloc is not installed. All are built in one folder: what they are made of
# is the same.
build()
{
	local dir=$top/build/mallocs
	program=$dir/src/cmd/byre
	[ "$1" != byre ] || { program=$BYRE; return; }
	[ -f "$dir/build.ninja" ] || meson setup "$dir" "$top" -Dtests=false -Ddebug=false \
		-Doptimization=1 -Dmalloc=glibc >"$W/build.log" 2>&1 ||
		{ cat "$W/build.log" >&2; fail "meson setup"; }
	# Where its library is missing, ninja says so: it is ninja that looks again.
	meson configure "$dir" -Dmalloc="$1"
	ninja -C "$dir" src/cmd/byre >"$W/build.log" 2>&1 || {
		! grep -q "library '.*' not found" "$W/build.log" || return 1
		cat "$W/build.log" >&2
		fail "byre is not built with -Dmalloc=$1"
	}
}

# resident FIELD: KiB of the daemon that runs.
resident()
{
	awk -v field="$1:" '$1 == field { print $2 }' "/proc/${byres[disk]}/status"
}

is_small()
{
	[ "$(resident VmRSS)" -le $((before + most)) ]
}

has_its_malloc()
{
	case $1 in
	byre) grep -q " byre_malloc_release$" <(nm "$program") ;;
	glibc) ! grep -qE "malloc" <(ldd "$program") ;;
	*) grep -q "$(library "$1")" "/proc/${byres[disk]}/maps" ;;
	esac
}

one()
{
	local peak start=$SECONDS
	qemu-img create -q -f qcow2 "$W/copy.qcow2" $size
	BYRE=$program start_byre disk --format raw --name from "$W/from.raw" \
		--format qcow2 --name to --detect-zeroes unmap "$W/copy.qcow2"
	has_its_malloc "$1" || fail "built with -Dmalloc=$1, byre has another"
	before=$(resident VmRSS)
	nbdcopy --no-extents -C 4 "$(uri disk from)" "$(uri disk to)"
	peak=$(resident VmHWM)
	# It looks every two seconds; its buffers go a second or two after their last use.
	wait_for 20 is_small || fail "$1: $(resident VmRSS) KiB stay of $peak"
	printf '%-10s %8d %8d %8d   %d s\n' "$1" "$before" "$peak" "$(resident VmRSS)" \
		$((SECONDS - start))
	stop_byre disk
	qemu-img compare -q "$W/from.raw" "$W/copy.qcow2" || fail "$1: the copy is not the same"
	rm "$W/copy.qcow2"
}

# A MiB of data in each 64, holes in between: those are read and sent, too.
truncate -s $size "$W/from.raw"
random_file "$W/piece" $((1 << 20))
for ((at = 0; at < size >> 20; at += 64)); do
	dd if="$W/piece" of="$W/from.raw" bs=1M seek=$at conv=notrunc status=none
done
tested=0
printf '%-10s %8s %8s %8s\n' "KiB of" before peak after
for malloc in byre glibc tcmalloc jemalloc mimalloc; do
	if build $malloc; then
		one $malloc
		tested=$((tested + 1))
	else
		echo "$malloc: not installed, left out"
	fi
done
[ $tested -ge 2 ] || fail "byre and the C library's are there always"
