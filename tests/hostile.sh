#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long asan tsan
# limit: 600
# Clients that send garbage, lie about lengths, never read or vanish: byre lives, other clients go
# on undisturbed, and nothing is left behind - no descriptors, no memory that grows.
. "$(dirname "$0")/lib.sh"
need python3 nbdcopy

seed=${SEED:-$RANDOM}
rounds=110
[ "${SUITE:-}" = quick ] || rounds=330
random_file "$W/source" $((8 << 20))
cp "$W/source" "$W/disk"
start_byre victim --loops 2 -f raw --read-only "$W/disk"
pid=${byres[victim]}
uri=$(uri victim)

# A peaceful client, all the while.
(
	trap - EXIT
	while [ ! -e "$W/over" ]; do
		nbdcopy "$uri" - | cmp - "$W/source" || { echo "disturbed" >"$W/disturbed"; break; }
		sleep 0.2
	done
) &
peaceful=$!
nbdinfo "$uri" >/dev/null
sleep 0.3
"$here/hostile.py" "$uri" "$seed" $rounds || fail "the attacker itself, seed $seed"
: >"$W/over"
wait $peaceful
[ ! -e "$W/disturbed" ] || fail "a peaceful client was disturbed, seed $seed"
kill -0 "$pid" || fail "byre died, seed $seed"

nothing_left()
{
	wait_for 25 has_descriptors "$pid" 60 ||
		fail "$(descriptors "$pid") descriptors are left open, seed $seed"
}
# The most that there was: memory that nobody uses goes back, sooner or later.
peak()
{
	awk '/^VmHWM/ { print $2 }' "/proc/$pid/status"
}
nothing_left
before=$(peak)
"$here/hostile.py" "$uri" $((seed + 1)) $rounds
nothing_left
after=$(peak)
# Sanitizers keep freed memory aside.
case $BYRE in
*san/*) ;;
*) [ "$after" -lt $((before + 65536)) ] || fail "memory: $before, then $after KiB, seed $seed" ;;
esac
echo "memory: $before, then $after KiB"
nbdcopy "$uri" - | cmp - "$W/source"
