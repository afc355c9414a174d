#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 600
# byre convert that is killed at any moment leaves no image that could be taken for whole: what it
# was making in qcow2 is refused by everybody until all of it is there (Q11). With -n, where the
# image was there before, it is not: so the test can see what half an image is.
. "$(dirname "$0")/lib.sh"
need qemu-img
cd "$W"

random_file source.raw $((12 << 20))
qemu-img convert -f raw -O qcow2 source.raw source.qcow2
qemu-img bitmap --add source.qcow2 bitmap

# is_whole FORMAT: new opens, and holds what the source does.
is_whole()
{
	qemu-img compare -q -f raw -F "$1" source.raw new 2>/dev/null
}

# has_begun BYTES: new is longer, or it is too late.
has_begun()
{
	[ "$(stat -c %s new)" -gt "$1" ] || is_gone "$pid"
}

# killed BYTES MILLISECONDS ARGUMENTS...: so long after new has become longer than BYTES ("-": after
# the start), of the 1.5 s that it takes at least; true if it was not done by then.
killed()
{
	local bytes=$1 ms=$2 status=0
	shift 2
	"$BYRE" convert -r 8M "$@" >log 2>&1 </dev/null &
	pid=$!
	others+=("$pid")
	[ "$bytes" = - ] || wait_for 20 has_begun "$bytes" || fail "convert $* does not begin"
	sleep "$(printf '%d.%03d' $((ms / 1000)) $((ms % 1000)))"
	kill -KILL $pid 2>/dev/null || true
	wait $pid 2>/dev/null || status=$?
	[ $status != 0 ]
}

halves=0 wholes=0 none=0
while read -r options; do
	for turn in 0 1 2 3; do
		rm -f new
		begun=0
		[ $turn != 0 ] || begun=-
		# shellcheck disable=SC2086  # words
		killed $begun $((turn * 450 + RANDOM % 200)) $options new || true
		[ -e new ] || { none=$((none + 1)); continue; }
		wait_for 10 is_unlocked new || fail "killed, but its locks stay"
		if ! [ -s new ]; then
			none=$((none + 1))
		elif is_whole qcow2; then
			wholes=$((wholes + 1))
		elif qemu-img info -f qcow2 new >info 2>&1; then
			cat info >&2
			fail "convert $options, killed: half an image is taken for whole"
		else
			halves=$((halves + 1))
			# A header that is not there yet is none.
			! grep -q "Unsupported qcow2 version" info ||
				byre_refuses "ended early" -r -f qcow2 new
		fi
	done
done <<'END'
-O qcow2 source.raw
-O qcow2 -o compat=0.10 source.raw
-c -O qcow2 source.raw
-O qcow2 -o lazy_refcounts=on,cluster_size=4k source.raw
-O qcow2 --bitmaps source.qcow2
END
[ $halves -gt 0 ] || fail "no conversion was killed half way"
echo "$halves halves, $wholes wholes, $none not begun"

# Once more, and it is there.
"$BYRE" convert -O qcow2 --bitmaps source.qcow2 new || fail "over what was left"
is_whole qcow2 || fail "over what was left: other content"
qemu-img check -q new || fail "over what was left: check"
[[ $(qemu-img info new) == *"name: bitmap"* ]] || fail "the bitmap is missing"

# The same into an image that is there: the judge sees it.
seen=0
for ms in 100 400 700; do
	qemu-img create -q -f qcow2 new 12M
	killed "$(stat -c %s new)" $ms -n -O qcow2 source.raw new || continue
	wait_for 10 is_unlocked new || fail "killed, but its locks stay"
	is_whole qcow2 || ! qemu-img info -f qcow2 new >/dev/null 2>&1 || seen=1
done
[ $seen = 1 ] || fail "the test cannot see half an image"
