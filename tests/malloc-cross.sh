#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: long
# limit: 3000
# The cases of how malloc behaves (malloc.sh) on aarch64, emulated, with a shared library.
. "$(dirname "$0")/lib.sh"
export G_SLICE=always-malloc             # as mem-cross.sh says
# shellcheck disable=SC2154  # top, W: lib.sh

cc=aarch64-linux-gnu-gcc
command -v "$cc" >/dev/null || skip "no $cc"
command -v qemu-aarch64 >/dev/null || skip "no qemu-aarch64"
cd "$top"

flags=(-std=gnu17 -O2 -g -pthread -D_GNU_SOURCE -Iinclude -Isrc -fno-builtin -fno-strict-aliasing
	-mno-outline-atomics)
parts=
for part in handover inbox lock census class heap large os pages registry slab stock api cxx \
	elsewhere gperftools report start tune; do
	parts="$parts src/mem/$part.c"
done
# shellcheck disable=SC2086  # a list of files
"$cc" "${flags[@]}" -Wall -Wextra -Wno-unused-parameter -Werror -fPIC -fvisibility=hidden \
	-ftls-model=initial-exec -DBYRE_VERSION='"cross"' -shared $parts src/tlsf/tlsf.c \
	-o "$W/libbyre_malloc.so" -ldl -Wl,--version-script=src/mem/malloc.map \
	-Wl,-z,nodelete -Wl,-z,now
"$cc" "${flags[@]}" -w -shared -fPIC tests/malloc/allocating.c -o "$W/liballocating.so"
"$cc" "${flags[@]}" -w -rdynamic \
	tests/malloc/{behave,content,size,align,info,thread,fork,early,limit,misuse,churn}.c \
	-o "$W/behave" "$W/libbyre_malloc.so" -Wl,-rpath,"$W" -ldl

export QEMU_LD_PREFIX=${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}
MALLOC_RUNNER=qemu-aarch64 MALLOC_IS=byre qemu-aarch64 "$W/behave"
