/* SPDX-License-Identifier: MIT */
/* fuzz/vub_ring.h - a guest that writes anything to its ring. */
#ifndef FUZZ_VUB_RING_H
#define FUZZ_VUB_RING_H

#include "fuzz/fuzz.h"

void vub_ring_run(const uint8_t *data, size_t size, bool is_packed);
size_t vub_ring_mutate(uint8_t *data, size_t size, size_t max, struct prng *p);

#endif
