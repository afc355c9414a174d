#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long tsan-long
# limit: 1200
# While the file system of a disk is full, what a guest has written is read back, whether it reached
# the file or waits in memory; writes and flushes fail. When there is room again they work, and
# nothing is lost.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/qcow2-lib.sh"
need qemu-img qemu-io
cd "$W"
size=$((16 << 20))
[ "$(id -u)" = 0 ] && mkdir small && mount -t tmpfs -o size=4m none small 2>/dev/null ||
	skip "no small file system can be mounted"
mounted+=("$W/small")

# io COMMANDS...: of qemu-io, through byre; what it says in io.log. It flushes when it ends, and
# does not tell what comes of that.
io()
{
	local arguments=(-t writeback) command
	for command in "$@"; do
		arguments+=(-c "$command")
	done
	qemu-io -f raw "${arguments[@]}" "$(uri writer)" >io.log 2>&1
}

works()
{
	io "$@" || { cat io.log >&2; fail "$what: $*"; }
	! grep -E 'failed|error|cannot|invalid' io.log >&2 || fail "$what: $*"
}

fails()
{
	! io "$@" || { cat io.log >&2; fail "$what: $* does not fail"; }
	[ "$*" = flush ] || grep -q 'No space left' io.log ||
		{ cat io.log >&2; fail "$what: $* fails otherwise"; }
}

# full_and_back CREATE_OPTIONS SERVE_OPTIONS...
full_and_back()
{
	local create=$1 i
	local written=('write -P 1 0 1M' 'write -P 2 2M 300k' 'write -P 3 3000000 5000') later
	shift
	what="$create $*"
	rm -f small/* model.raw
	truncate -s $size model.raw
	# shellcheck disable=SC2086  # words
	qemu-img create -q -f qcow2 $create small/disk.qcow2 $size
	start_byre writer --loops 2 "$@" small/disk.qcow2
	works "${written[@]}"
	works flush
	head -c 4M /dev/zero >small/other 2>/dev/null || true
	# Most of each cluster: they wait for the rest, in memory.
	for ((i = 0; i < 24; i++)); do
		later+=("write -s noise.raw $((4 << 20 | i << 16)) 60k")
	done
	works "${later[@]}" 'write -P 4 8M 512'
	written+=("${later[@]}" 'write -P 4 8M 512')
	printf '%s\n' "${written[@]}" >commands
	io_all model.raw raw commands
	for i in 1 2; do
		same_content model.raw raw "$(uri writer)"
		works 'read -P 2 2M 300k' 'read -P 4 8M 512' 'read -P 0 8389120 65024' 'map'
		fails flush
		fails 'write -s noise.raw 10M 4M'
	done
	rm small/other
	works flush
	works 'write -P 5 10M 6M'
	works flush
	echo 'write -P 5 10M 6M' >commands
	io_all model.raw raw commands
	same_content model.raw raw "$(uri writer)"
	stop_byre writer
	good small/disk.qcow2 "$what"
}

random_file noise.raw $((64 << 10))
for options in "" "-o compression_type=zstd" "-o extended_l2=on"; do
	full_and_back "$options" --compress
	full_and_back "$options" --compress --cache none
done
