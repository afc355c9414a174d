/* SPDX-License-Identifier: MIT */
/* fuzz/vub_split.c - a guest that writes anything to a split ring: vub_ring.c has the format. */
#include <stdbool.h>

#include "fuzz/vub_ring.h"

static void run(const uint8_t *data, size_t size)
{
	vub_ring_run(data, size, false);
}

const struct fuzz_target fuzz_target = { "vub_split", 4096, run, vub_ring_mutate };
