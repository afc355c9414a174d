#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: default long
# limit: 600
# takes: 30
# The malloc library on aarch64: its unit tests, its threads, its fuzz target.
. "$(dirname "$0")/lib.sh"
# shellcheck disable=SC2154  # top, W: lib.sh

cc=aarch64-linux-gnu-gcc
command -v "$cc" >/dev/null || skip "no $cc"
command -v qemu-aarch64 >/dev/null || skip "no qemu-aarch64"
cd "$top"
# A fork of QEMU may take a lock of GLib's slices along that another thread had, and wait for it for
# ever in the child; malloc() has none such.
export G_SLICE=always-malloc

flags=(-std=gnu17 -O2 -g -static -pthread -D_GNU_SOURCE -Itests/cross -Iinclude -Isrc -I. -Wall
	-Wextra -Wno-unused-parameter -Werror -fno-builtin -fno-strict-aliasing
	-ftls-model=initial-exec -mno-outline-atomics -DTEST_EMULATED)
protocols="src/mem/handover.c src/mem/inbox.c src/mem/lock.c"
library="$protocols src/tlsf/tlsf.c"
for part in census class decay heap large os pages registry slab stock sweep; do
	library="$library src/mem/$part.c"
done

# What is in quotes are lists of files.
# shellcheck disable=SC2086
build()
{
	local to=$1
	shift
	"$cc" "${flags[@]}" $* -o "$W/$to"
}

# malloc() under another name, beside the C library's; and what most programs have in common, once.
"$cc" "${flags[@]}" -include mem/test_names.h -c src/mem/api.c -o "$W/api.o"
for source in $library src/mem/test_elsewhere.c; do
	"$cc" "${flags[@]}" -c "$source" -o "$W/$(basename "$source" .c).o"
done
common=$(echo "$W"/*.o)
build handover_test src/mem/handover_test.c "$protocols"
build handover_stress_test -DMEM_STEP_HOOK src/mem/handover_stress_test.c "$protocols"
for t in pages_test slab_test heap_test heap_stress_test; do
	build "$t" "src/mem/$t.c" "$common"
done
build fuzz-malloc fuzz/malloc.c fuzz/mutate.c fuzz/plain.c "$common"

for t in handover_test handover_stress_test pages_test slab_test heap_test heap_stress_test; do
	echo "== $t"
	qemu-aarch64 "$W/$t"
done
cd "$W"
qemu-aarch64 ./fuzz-malloc -n 100 "$top/fuzz/corpus/malloc"
