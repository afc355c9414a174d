#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 600
# takes: 20
# examples/embed.c needs nothing but the region library's sources, on any machine and however they
# are optimized. What is built by meson is run as a unit test.
. "$(dirname "$0")/lib.sh"

# shellcheck disable=SC2154  # top, W: lib.sh
sources=$(find "$top/src/tlsf" "$top/src/region" -name '*.c' ! -name '*_test.c')
flags=(-std=gnu17 -ffreestanding -fno-builtin -fno-stack-protector -fno-strict-aliasing
	-I"$top/include" -I"$top/src" -nostdlib -static)

# build_and_run COMPILER FLAGS RUNNER...
build_and_run()
{
	local cc=$1 more=$2
	shift 2
	for level in -O1 -O2 -O3; do
		# shellcheck disable=SC2086  # lists of words
		"$cc" "${flags[@]}" $level $more "$top/examples/embed.c" $sources -o "$W/embed" ||
			fail "$cc $level does not build it"
		"$@" "$W/embed" >"$W/out" 2>&1 || fail "$cc $level: $(cat "$W/out")"
	done
}

built=0
for cc in gcc clang i686-linux-gnu-gcc aarch64-linux-gnu-gcc; do
	command -v $cc >/dev/null || continue
	runner=env more='-no-pie -fno-tree-loop-distribute-patterns -fno-tree-slp-vectorize'
	case $cc in
	clang) more= ;;
	i686*) [ "$(uname -m)" = x86_64 ] || continue ;;
	aarch64*) command -v qemu-aarch64 >/dev/null || continue
		runner=qemu-aarch64 more="$more -mno-outline-atomics" ;;
	esac
	build_and_run $cc "$more" $runner
	built=$((built + 1))
done
[ $built -gt 0 ] || skip "no compiler"
