#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long asan-long
# limit: 1800
# takes: 25
# kill -9 of byre while a guest writes over vhost-user, a restart, again and again: with requests in
# flight tracked in memory that the front end holds, the guest goes on without an error and nothing
# that it wrote is lost; on raw disks and on qcow2 images whose metadata is preallocated, over split
# and packed rings. Without tracking, the front end puts what was not answered into empty rings.
. "$(dirname "$0")/lib.sh"
need qemu-img
writer=$(dirname "$BYRE")/../../tests/vub/writer
[ -x "$writer" ] || skip "there is no $writer"

seed=${SEED:-$RANDOM}
kills=4
[ "${SUITE:-}" != long ] || kills=20

start()
{
	start_byre disk --loops 2 --vhost-user "$W/disk.vu" --queues 1 -f "$1" "$W/disk.$1" \
		-f raw "$W/nbd"
}

# kill_and_go_on FORMAT OPTIONS
kill_and_go_on()
{
	local writing status=0
	start "$1"
	"$writer" "$W/disk.vu,reconnect=120,$2" "$seed" $((kills + 2)) "$W/dump" \
		>"$W/writer.log" 2>&1 &
	writing=$!
	for _ in $(seq $kills); do
		sleep 0.$((3 + RANDOM % 6))
		kill_byre disk "$W/disk.$1" "$W/nbd"
		wait_for 10 is_free "$W/disk.vu" || fail "what was killed still listens"
		start "$1"
	done
	wait $writing || status=$?
	[ $status = 0 ] || {
		cat "$W/writer.log" >&2
		fail "$1, $2, seed $seed: the guest saw an error or lost what it wrote"
	}
	stop_byre disk
	qemu-img compare -q -f raw -F "$1" "$W/dump" "$W/disk.$1" ||
		fail "$1, $2, seed $seed: the image does not hold what was written"
	seed=$((seed + 1))
}

truncate -s 1M "$W/nbd"
truncate -s 16M "$W/disk.raw"
qemu-img create -q -f qcow2 -o preallocation=metadata "$W/disk.qcow2" 16M
for options in packed=off packed=on queue-size=16 packed=on,indirect=off event-idx=off; do
	kill_and_go_on raw "$options"
done
for options in packed=off packed=on; do
	kill_and_go_on qcow2 "$options"
done
kill_and_go_on raw inflight=off
kill_and_go_on raw packed=on,inflight=off
