#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 600
# takes: 15
# The region library is freestanding, and does what it does on 32 bits and on aarch64, too.
. "$(dirname "$0")/lib.sh"
# shellcheck disable=SC2154  # top, W: lib.sh

core="$top/src/tlsf/tlsf.c $top/src/region/region.c $top/src/region/region_block.c
	$top/src/region/region_look.c $top/src/region/region_poison.c"
common=(-std=gnu17 -g -I"$top/include" -I"$top/src" -I"$top" -Wall -Wextra
	-Wno-unused-parameter -Werror -fno-strict-aliasing -fno-pie -no-pie)
alone=(-c -ffreestanding -fno-builtin -fno-stack-protector)

# check_machine COMPILER RUNNER... : what is undefined in the library, then the tests.
check_machine()
{
	local cc=$1 dir=$W/$1 source left
	shift
	mkdir -p "$dir"
	for source in $core; do
		"$cc" -O2 "${common[@]}" "${alone[@]}" -fno-tree-loop-distribute-patterns \
			-fno-tree-slp-vectorize "$source" -o "$dir/$(basename "$source" .c).o"
	done
	"$cc" -nostdlib -no-pie -r "$dir"/*.o -o "$dir/all"
	left=$("${cc%gcc}nm" -u "$dir/all")
	[ -z "$left" ] || fail "$cc: the library needs$left"
	for source in region_test damage_test; do
		"$cc" -O2 -static "${common[@]}" -I"$top/tests/cross" \
			"$top/src/region/$source.c" "$dir"/*.o -o "$dir/$source"
	done
	"$cc" -O2 -static "${common[@]}" "$top"/fuzz/{region,mutate,plain}.c "$dir"/*.o \
		-o "$dir/fuzz-region"
	"$@" "$dir/region_test"
	"$@" "$dir/damage_test"
	(cd "$dir" && "$@" ./fuzz-region -n 200 "$top/fuzz/corpus/region")
}

machines=0
if command -v gcc >/dev/null; then
	check_machine gcc env
	machines=$((machines + 1))
fi
if command -v i686-linux-gnu-gcc >/dev/null && [ "$(uname -m)" = x86_64 ]; then
	check_machine i686-linux-gnu-gcc env
	machines=$((machines + 1))
fi
if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null; then
	check_machine aarch64-linux-gnu-gcc qemu-aarch64
	machines=$((machines + 1))
fi
[ "$machines" -gt 0 ] || skip "no compiler for another machine"
