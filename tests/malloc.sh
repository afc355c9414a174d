#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 3000
# takes: 60
# Malloc behaves: the C library's, as the reference; byre's by preload, linked as a shared and as a
# static library; byre's in programs that have a sanitizer or run in Valgrind; and the same cases
# fail with a malloc that has something wrong.
. "$(dirname "$0")/lib.sh"
# shellcheck disable=SC2154  # top, W, BYRE: lib.sh

build=$(cd "$(dirname "$BYRE")/../.." && pwd)
cases=$build/tests/malloc/behave
library=$build/src/mem/libbyre_malloc.so
archive=$build/src/mem/libbyre_malloc.a
sources="$top/tests/malloc"
[ -x "$cases" ] || skip "there is no $cases"
passed=0 failed=0 skipped=0
# The C library's, and byre's linked instead of preloaded, which is the same, are churned less.
less="MALLOC_CHURN=4000 MALLOC_SECONDS=1"
if [ "${SUITE:-}" = long ]; then
	export MALLOC_CHURN=1000000 MALLOC_SECONDS=60
	less=
fi

# counted TITLE COMMAND...: the command prints TAP, whose lines are counted.
counted()
{
	local title=$1 status=0
	shift
	echo "== $title"
	"$@" >"$W/tap" 2>&1 || status=$?
	cat "$W/tap"
	skipped=$((skipped + $(grep -c '^ok .*# SKIP' "$W/tap" || true)))
	passed=$((passed + $(grep '^ok ' "$W/tap" | grep -vc '# SKIP' || true)))
	failed=$((failed + $(grep -c '^not ok ' "$W/tap" || true)))
	if ! grep -q '^1\.\.' "$W/tap" ||
		{ [ $status != 0 ] && ! grep -q '^not ok ' "$W/tap"; }; then
		echo "not ok - $title did not end well (status $status)"
		failed=$((failed + 1))
	fi
}

# held NAME COMMAND...: one more case, of this script's own.
held()
{
	local name=$1 status=0
	shift
	"$@" || status=$?
	if [ $status = 0 ]; then
		echo "ok - $name"
		passed=$((passed + 1))
	else
		echo "not ok - $name (status $status)"
		failed=$((failed + 1))
	fi
}

# Each name is that of the case that must fail with it.
broken()
{
	local name
	for name in zero_sizes free_keeps_errno products_that_wrap calloc_zeroes_what_was_used \
		realloc_keeps_contents realloc_to_zero_frees posix_memalign_aligns \
		posix_memalign_refuses aligned_alloc_of_any_size malloc_trim_gives_back \
		every_size threads_by_the_thousand thread_that_only_frees \
		fork_while_others_allocate free_twice_small free_twice_large free_stack \
		churn_of_all_calls; do
		held "a broken malloc fails $name" not_with_broken "$name"
	done
}

not_with_broken()
{
	local limit=60
	[ "$1" != fork_while_others_allocate ] || limit=8       # a child waits for ever
	! BROKEN=$1 timeout -k 1 $limit env LD_PRELOAD="$build/tests/malloc/libbroken.so" \
		"$cases" "$1" >"$W/broken.log" 2>&1 && ! grep -q SKIP "$W/broken.log"
}

flags=(-std=gnu17 -O2 -D_GNU_SOURCE -fno-builtin -I"$top/src" -I"$top/include" -pthread
	-rdynamic -w)

# What users do: a program that names the library when it is linked.
linked()
{
	local kind=$1
	shift
	mkdir -p "$W/$kind"
	cp "$build/tests/malloc/liballocating.so" "$W/$kind/"
	gcc "${flags[@]}" "$sources"/{behave,content,size,align,info,thread,fork,early,limit}.c \
		"$sources"/{misuse,churn,back}.c -o "$W/$kind/behave" "$@" -ldl
	# shellcheck disable=SC2086  # words
	counted "byre's, $kind" env MALLOC_IS=byre $less "$W/$kind/behave"
	if command -v g++ >/dev/null; then
		g++ -std=c++17 -O2 "$sources/new.cc" -o "$W/$kind/new" "$@"
		counted "byre's, C++, $kind" "$W/$kind/new"
	fi
}

sees_stale()
{
	local log=$1
	shift
	if "$@" >"$log" 2>&1 || ! grep -qE "heap-use-after-free|Invalid read" "$log"; then
		cat "$log"
		return 1
	fi
}

# Programs with a malloc of their own to find errors with keep it.
left_alone()
{
	local cc stale=$W/stale
	for cc in gcc clang; do
		command -v $cc >/dev/null || continue
		$cc -O1 -g -w -fsanitize=address "$sources/stale.c" -o "$stale-$cc" \
			"$library" -Wl,-rpath,"${library%/*}"
		held "ASan of $cc, linked" sees_stale "$W/log" "$stale-$cc"
	done
	if command -v clang >/dev/null; then    # gcc's ASan wants to be the first library itself
		clang -O1 -g -w -fsanitize=address "$sources/stale.c" -o "$stale-alone"
		held "ASan of clang, preloaded" sees_stale "$W/log" \
			env LD_PRELOAD="$library" "$stale-alone"
	fi
	if command -v valgrind >/dev/null; then
		held "Valgrind, preloaded" sees_stale "$W/log" env LD_PRELOAD="$library" \
			valgrind --error-exitcode=9 "$build/tests/malloc/stale"
	fi
}

# shellcheck disable=SC2086  # words
counted "the C library's" env MALLOC_LATE= $less "$cases"
if command -v g++ >/dev/null; then
	g++ -std=c++17 -O2 "$sources/new.cc" -o "$W/new"
	counted "the C library's, C++" "$W/new"
fi
broken
if [ -e "$library" ]; then
	counted "byre's, preloaded" env LD_PRELOAD="$library" MALLOC_IS=byre "$cases"
	held "byre's opened late" env MALLOC_LATE="$library" "$cases" malloc_opened_late
	[ ! -x "$W/new" ] || counted "byre's, C++, preloaded" env LD_PRELOAD="$library" "$W/new"
	linked shared "$library" -Wl,-rpath,"$(dirname "$library")"
	[ ! -e "$archive" ] ||
		linked static -Wl,--whole-archive "$archive" -Wl,--no-whole-archive
	left_alone
fi
[ -z "${COUNTS:-}" ] || echo "$passed $failed $skipped" >"$COUNTS"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
