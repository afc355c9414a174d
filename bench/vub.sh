#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What does a guest's request over vhost-user-blk cost the daemon, how long does it take, and what
# does a second queue cost? byre's own front end asks byre and qemu-storage-daemon in turn: random
# 4 KiB reads and writes in place of an allocated qcow2, 32 under way, through the page cache and
# past it (cache=none); one at a time for the latency; two queues with 32 each. CPU is the
# daemon's, user and system. bare-ring is a loop over io_uring that does the same to the same
# file, with nobody in between; nobody wakes it up, and it wakes up nobody, so it stands beside a
# front end that polls, too. Each server starts with all of the image in the page cache, or none
# of it: what is past the cache takes pages out of it, and pays for those that are there. -s gives
# the number of requests: 60,000 for each second.
# shellcheck source=bench/lib.sh
. "$(dirname "$0")/lib.sh"

programs=$(cd "$(dirname "$BYRE")/../../bench" && pwd)
count=$((seconds * 60000))
peers=(byre qemu-storage-daemon qemu-storage-daemon-uring)
[ ! -x "$qemu10" ] || peers+=(qemu10-storage-daemon qemu10-storage-daemon-uring)

# vub_command PEER IMAGE CACHE: the command that serves IMAGE on $sock with two queues.
vub_command()
{
	local newer=() aio=threads direct=false node how
	[ "${1#qemu10}" = "$1" ] || newer=("$qemu10")
	[ "${1%-uring}" = "$1" ] || aio=io_uring
	[ "$3" = writeback ] || direct=true
	node='{"driver":"qcow2","node-name":"d","cache":{"direct":'$direct'},"file":{'
	node+='"driver":"file","filename":"'$2'","aio":"'$aio'","cache":{"direct":'$direct'}}}'
	how=type=vhost-user-blk,id=e,node-name=d,writable=on,num-queues=2
	how+=,addr.type=unix,addr.path=$sock
	case $1 in
	byre)
		set -- "$BYRE" serve --loops 2 --vhost-user "$sock" --queues 2 --cache "$3" \
			-f qcow2 "$2" ;;
	*) set -- qemu-storage-daemon --blockdev "$node" --export "$how" ;;
	esac
	printf '%s\n' "${newer[@]}" "$@"
}

# settle IMAGE CACHE: all of it is in the page cache, or nothing, and nothing is dirty. It is read
# page by page, as guests do: read-ahead makes large folios, where ext4 takes 20 us to write 4 KiB.
# And three times: at its first reads the kernel moves a page between its lists.
settle()
{
	python3 - "$1" "$2" <<-'END'
	import os, sys
	fd = os.open(sys.argv[1], os.O_RDWR)
	os.fsync(fd)
	os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
	if sys.argv[2] != "none":
	    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
	    for _ in range(3):
	        for off in range(0, os.fstat(fd).st_size, 4096):
	            os.pread(fd, 4096, off)
	END
}

# vub_start PEER IMAGE CACHE
vub_start()
{
	local argv
	settle "$2" "$3"
	mapfile -t argv < <(vub_command "$@")
	launch "$1" "${argv[@]}"
}

# us_per_op NS OPS
us_per_op()
{
	awk -v t="$1" -v n="$2" 'BEGIN { printf "%.3f\n", t / n / 1e3 }'
}

front=queues=1
# measure PEER WHAT [BENCH_OPTION...]: rate and CPU of $count requests to $W/results.WHAT.
measure()
{
	local peer=$1 what=$2 before after took
	shift 2
	before=$(cpu_ns)
	took=$("$BYRE" bench -c "$count" -d 32 --random 1 "$@" "vhost-user:$sock,$front" |
		sed -n 's/^Run completed in \(.*\) seconds.*/\1/p')
	after=$(cpu_ns)
	echo "$peer $(awk -v n="$count" -v s="$took" 'BEGIN { printf "%.0f", n / s }')" \
		"$(us_per_op $((after - before)) "$count")" >>"$W/results.$what"
}

# The median and the 99th percentile of single requests; three times, for what else the machine does
# is seen in the 99th.
measure_latency()
{
	local peer=$1 what=$2
	shift 2
	for _ in 1 2 3; do
		"$BYRE" bench -c $((count / 12)) -d 1 --random 1 --latency "$@" \
			"vhost-user:$sock,queues=1"
	done | sed -n "s/^Latency: p50 \([0-9.]*\) us, p99 \([0-9.]*\) us.*/$peer \1 \2/p" \
		>>"$W/results.$what"
}

measure_loops()
{
	local peer=$1 loops=$2 before after
	before=$(cpu_ns)
	"$programs/two-loops" --loops "$loops" --count "$count" --random \
		"vhost-user:$sock,queues=$loops" >"$W/loops"
	after=$(cpu_ns)
	echo "$peer-$loops-queues $(sed 's/.*"ops_per_s": \([0-9]*\).*/\1/' "$W/loops")" \
		"$(us_per_op $((after - before)) $((count * loops)))" >>"$W/results.queues"
}

# measure_bare WHAT OPTION...: the floor, on the image itself: nobody may use it meanwhile.
measure_bare()
{
	local what=$1
	shift
	"$programs/floor" --random --depth 32 --count "$count" "$@" "$W/bare" |
		sed 's/.*"seconds": \([0-9.]*\), "cpu": \([0-9.]*\),.*/\1 \2/' |
		awk -v n="$count" '{ printf "bare-ring %.0f %.3f\n", n / $1, $2 / n * 1e6 }' \
		>>"$W/results.$what"
}

head -c 512M /dev/urandom >"$W/raw"
qemu-img convert -f raw -O qcow2 "$W/raw" "$W/disk.qcow2"
mv "$W/raw" "$W/bare"
for run in $(seq "$runs"); do
	for peer in "${peers[@]}"; do
		vub_start "$peer" "$W/disk.qcow2" writeback
		measure "$peer" read
		measure "$peer" write --write
		front=queues=1,poll=on measure "$peer" read-polled
		measure_latency "$peer" read-latency
		measure_latency "$peer" write-latency --write
		for loops in 1 2; do
			measure_loops "$peer" $loops
		done
		stop
		vub_start "$peer" "$W/disk.qcow2" none
		measure "$peer" read-direct
		measure "$peer" write-direct --write
		measure_latency "$peer" read-direct-latency
		stop
	done
	settle "$W/bare" writeback
	measure_bare read
	sed -n '$p' "$W/results.read" >>"$W/results.read-polled"
	measure_bare write --write
	settle "$W/bare" none
	measure_bare read-direct --direct
	measure_bare write-direct --direct --write
	[ -n "$json" ] || echo "run $run of $runs done" >&2
done
for what in read read-polled write read-direct write-direct; do
	mv "$W/results.$what" "$W/results"
	[ -n "$json" ] || echo "== $what"
	table "$what 1/s more" "cpu us/request less"
done
for what in read-latency write-latency read-direct-latency; do
	mv "$W/results.$what" "$W/results"
	[ -n "$json" ] || echo "== $what"
	table "p50-$what us less" "p99-$what us less"
done
sed -i 's/^byre-1-queues /byre /' "$W/results.queues"
mv "$W/results.queues" "$W/results"
[ -n "$json" ] || echo "== queues"
table "reads 1/s more" "cpu us/read less"
