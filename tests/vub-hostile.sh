#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long asan tsan-long
# limit: 600
# Front ends that put nonsense into rings, take their memory away or send messages that make no
# sense: byre lives, the disk they had takes the next front end, another disk goes on undisturbed,
# and nothing is left behind.
. "$(dirname "$0")/lib.sh"
need qemu-img
hostile=$(dirname "$BYRE")/../../tests/vub/hostile
[ -x "$hostile" ] || skip "there is no $hostile"

seed=${SEED:-$RANDOM}
rounds=4
[ "${SUITE:-}" != long ] || rounds=64
random_file "$W/source" $((8 << 20))
for disk in read-only other; do
	cp "$W/source" "$W/$disk"
done
qemu-img convert -f raw -O qcow2 "$W/source" "$W/written"
start_byre disks --loops 2 --vhost-user "$W/read-only.vu" -f raw --read-only "$W/read-only" \
	--vhost-user "$W/written.vu" --queues 2 -f qcow2 "$W/written" \
	--vhost-user "$W/other.vu" -f raw "$W/other" -f raw "$W/source"
pid=${byres[disks]}

rss()
{
	awk '/^VmRSS/ { print $2 }' "/proc/$pid/status"
}

is_small()
{
	[ "$(rss)" -lt $((before + 16384)) ]
}

# attack DISK SEED
attack()
{
	"$hostile" "$W/$1.vu" "$W/other.vu" "$2" $rounds >"$W/hostile.log" || {
		tail -n 3 "$W/hostile.log" >&2
		fail "$1, seed $2"
	}
	kill -0 "$pid" || fail "byre died, seed $2"
}

attack read-only "$seed"
attack written $((seed + 1))
wait_for 25 has_descriptors "$pid" 60 ||
	fail "$(descriptors "$pid") descriptors are left open, seed $seed"
open=$(descriptors "$pid") before=$(rss)
attack read-only $((seed + 2))
attack written $((seed + 3))
wait_for 25 has_descriptors "$pid" "$open" || fail "descriptors: $open, then $(descriptors "$pid")"
# Memory that nobody uses goes back within seconds. Sanitizers keep it aside.
case $BYRE in
*san/*) ;;
*) wait_for 20 is_small || fail "memory: $before, then $(rss) KiB, seed $seed" ;;
esac
stop_byre disks
cmp "$W/read-only" "$W/source" || fail "a read-only disk was written"
cmp "$W/other" "$W/source" || fail "another disk was written"
qemu-img check -q "$W/written" || fail "the image that was attacked is damaged"
