# SPDX-License-Identifier: MIT
# tests/lib.sh - sourced by every test script, from any directory.
#
# A script is one behaviour; it exits 0 (held), 77 (skipped, a line says why) or anything else.
# Its second and third lines say when it runs and how long it may take; a fourth, where that is not
# about ten seconds, how long it does, so that those begin first:
#	# suites: quick default long
#	# limit: 60
#	# takes: 20
# What it starts with start_byre is ended and looked at when it leaves: a byre that does not end
# cleanly on SIGTERM, or whose log shows a sanitizer's report, fails the test.
# shellcheck shell=bash
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
BYRE=${BYRE:-$top/build/src/cmd/byre}
W=$(mktemp -d "${TMPDIR:-/tmp}/byre-test.XXXXXX")
declare -A byres=()             # name -> pid, of those that run
declare -a others=()            # pids of other programs to end
declare -a mounted=()           # file systems to take away
export ASAN_OPTIONS=${ASAN_OPTIONS:-abort_on_error=0:exitcode=99:detect_leaks=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1:halt_on_error=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-exitcode=99}

fail()
{
	echo "FAIL: $*" >&2
	exit 1
}

skip()
{
	echo "skipped: $*"
	exit 77
}

# need TOOL...: without one of them the test is skipped.
need()
{
	local tool
	for tool in "$@"; do
		command -v "$tool" >/dev/null || skip "$tool is not installed"
	done
}

# wait_for SECONDS COMMAND...: until the command succeeds; false if it does not in time. SECONDS are
# those of a machine that does nothing else, five times as many are waited. A busy one gets more:
# what is counted is how often it was tried.
wait_for()
{
	local tries=$((5 * 20 * $1))
	shift
	until "$@" 2>/dev/null; do
		[ $((tries--)) -gt 0 ] || return 1
		sleep 0.05
	done
}

is_listening()
{
	# A listening unix socket has the flag 0x10000.
	grep -q " 00010000 .* $1\$" /proc/net/unix
}

is_up_or_gone()
{
	is_listening "$2" || ! kill -0 "$1"
}

# start_byre NAME ARGUMENTS...: byre serve on $W/NAME.sock, log in $W/NAME.log; returns when it
# listens. The pid is ${byres[NAME]}.
start_byre()
{
	local name=$1
	shift
	[ -x "$BYRE" ] || fail "there is no $BYRE: build first"
	# shellcheck disable=SC2086  # words: a whole run under other options
	"$BYRE" serve ${BYRE_SERVE_OPTIONS:-} --nbd "unix:$W/$name.sock" "$@" \
		>"$W/$name.log" 2>&1 </dev/null &
	byres[$name]=$!
	wait_for 20 is_up_or_gone $! "$W/$name.sock" || fail "byre does not listen"
	! is_gone $! || fail "byre serve $* did not start"
}

# uri NAME [EXPORT]: where start_byre's NAME can be reached.
uri()
{
	echo "nbd+unix:///${2:-}?socket=$W/$1.sock"
}

# end_byre NAME: SIGTERM; 0 if it ended cleanly, else a message and 1.
end_byre()
{
	local pid=${byres[$1]} status=0
	unset "byres[$1]"
	kill -TERM "$pid" 2>/dev/null || true
	end_within "$pid" 20 || {
		kill -KILL "$pid"
		echo "byre '$1' did not end on SIGTERM" >&2
		return 1
	}
	wait "$pid" || status=$?
	if [ "$status" != 0 ]; then
		cat "$W/$1.log" >&2
		echo "byre '$1' ended with status $status" >&2
		return 1
	fi
	no_report "$1"
}

stop_byre()
{
	end_byre "$1" || fail "byre '$1' did not end cleanly"
}

is_unlocked()
{
	! grep -q ":$(stat -c %i "$1") " /proc/locks
}

is_free()
{
	! is_listening "$1"
}

# kill_byre NAME [IMAGE]...: SIGKILL; returns when it is gone, its socket, and its locks on IMAGEs:
# the kernel takes a ring down behind the process.
kill_byre()
{
	local name=$1 image
	shift
	kill -KILL "${byres[$name]}"
	wait "${byres[$name]}" 2>/dev/null || true
	unset "byres[$name]"
	wait_for 10 is_free "$W/$name.sock" || fail "byre '$name' is killed, but its socket stays"
	for image; do
		wait_for 10 is_unlocked "$image" ||
			fail "byre '$name' is killed, but its locks on $image stay"
	done
}

# descriptors PID: how many it has open.
descriptors()
{
	find "/proc/$1/fd" -mindepth 1 | wc -l
}

has_descriptors()
{
	[ "$(descriptors "$1")" -le "$2" ]
}

# serve_qemu NAME FILE OPTIONS...: qemu-nbd on $W/NAME.sock, its export is `exp`; returns when it
# listens. The pid is the last of $others.
serve_qemu()
{
	local name=$1 file=$2
	shift 2
	rm -f "$W/$name.sock"
	qemu-nbd -t -x exp -k "$W/$name.sock" -e 8 "$@" "$file" >"$W/$name.log" 2>&1 </dev/null &
	others+=($!)
	wait_for 20 is_listening "$W/$name.sock" || fail "qemu-nbd does not listen"
}

no_report()
{
	if grep -qE 'runtime error:|(Address|Thread|Leak)Sanitizer' "$W/$1.log"; then
		cat "$W/$1.log" >&2
		echo "a sanitizer complains about byre '$1'" >&2
		return 1
	fi
}

is_gone()
{
	case $(awk '/^State:/ { print $2 }' "/proc/$1/status" 2>/dev/null) in
	Z | "") return 0 ;;
	esac
	return 1
}

end_within()
{
	wait_for "$2" is_gone "$1"
}

# byre_refuses TEXT ARGUMENTS...: byre serve must end by itself, not 0, with TEXT in its message.
byre_refuses()
{
	local text=$1 status=0
	shift
	# shellcheck disable=SC2086
	timeout 120 "$BYRE" serve ${BYRE_SERVE_OPTIONS:-} --nbd "unix:$W/refused.sock" "$@" \
		>"$W/refused.log" 2>&1 </dev/null || status=$?
	no_report refused || fail "byre serve $*: see above"
	case $status in
	0 | 124 | 137) cat "$W/refused.log" >&2; fail "byre serve $*: not refused ($status)" ;;
	1 | 2) ;;
	*) cat "$W/refused.log" >&2; fail "byre serve $*: status $status, not 1 or 2" ;;
	esac
	grep -qiE -- "$text" "$W/refused.log" || {
		cat "$W/refused.log" >&2
		fail "byre serve $*: the message does not have '$text'"
	}
}

# same_content FILE FORMAT URI: the guest's view of FILE and what byre serves, byte for byte.
same_content()
{
	qemu-img compare -U -f "$2" -F raw "$1" "$3" >"$W/compare.log" 2>&1 || {
		cat "$W/compare.log" >&2
		fail "what $3 serves is not the content of $1"
	}
}

# cached_pages FILE: how many pages of it are in the page cache.
cached_pages()
{
	fincore --bytes --noheadings -o PAGES "$1" | tr -d ' '
}

# at_times COMMAND...: it succeeds once in ten times. For what is said of the page cache: the kernel
# takes pages that nobody seems to want whenever it likes, also where there is much free memory
# (DAMON), and keeps those that are written or looked at just then; but not each time.
at_times()
{
	local try

	for try in {2..10}; do
		! ("$@") || return 0
		echo "again, for the time $try" >&2
	done
	"$@"
}

# poke FILE OFFSET HEX: changes bytes of a file.
poke()
{
	python3 - "$@" <<-'END'
	import sys
	with open(sys.argv[1], "r+b") as f:
	    f.seek(int(sys.argv[2]))
	    f.write(bytes.fromhex(sys.argv[3]))
	END
}

# random_file FILE BYTES [SEED]: the same bytes for the same seed.
random_file()
{
	python3 - "$@" <<-'END'
	import random, sys
	r = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
	left = int(sys.argv[2])
	with open(sys.argv[1], "wb") as f:
	    while left:
	        n = min(left, 1 << 20)
	        f.write(r.randbytes(n))
	        left -= n
	END
}

# mixed_file FILE BYTES SEED KIND...: pieces of all lengths; each is of one of the KINDs, which are
# noise, text and zeros: the more often one is named, the more there is of it.
mixed_file()
{
	python3 - "$@" <<-'END'
	import random, sys
	name, size, seed, *kinds = sys.argv[1:]
	size, r = int(size), random.Random(int(seed))
	piece = {
	    "noise": r.randbytes,
	    "text": lambda n: (b"%d " % r.randrange(1 << 40) * (n // 2))[:n],
	    "zeros": bytes,
	}
	with open(name, "wb") as f:
	    while f.tell() < size:
	        f.write(piece[r.choice(kinds)](r.randrange(1, 300) * 512))
	    f.truncate(size)
	END
}

# is_ours PID: it is a child of this shell. The number of one that has ended is somebody else's
# before long: a program's of another test.
is_ours()
{
	[ "$(awk '/^PPid:/ { print $2 }' "/proc/$1/status" 2>/dev/null)" = $$ ]
}

finish()
{
	local status=$? name pid dir
	trap - EXIT INT TERM
	cd /
	for pid in "${others[@]}"; do
		! is_ours "$pid" || kill "$pid" 2>/dev/null || true
	done
	for name in "${!byres[@]}"; do
		if [ "$status" = 0 ] || [ "$status" = 77 ]; then
			end_byre "$name" || status=1
		else
			echo "--- log of byre '$name':" >&2
			tail -n 30 "$W/$name.log" >&2
			kill -KILL "${byres[$name]}" 2>/dev/null || true
		fi
	done
	for dir in "${mounted[@]}"; do
		umount "$dir" || umount -l "$dir" || true
	done
	rm -rf "$W"
	exit "$status"
}
trap finish EXIT
trap 'exit 143' INT TERM
