/* SPDX-License-Identifier: MIT */
/* fuzz/libfuzzer.c - a target as libFuzzer calls it. */
#include "fuzz/fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size <= fuzz_target.max_size)
		fuzz_target.run(data, size);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	struct prng p = { seed };

	return fuzz_target.mutate(data, size, max, &p);
}

size_t fuzz_mutate_bytes(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	return LLVMFuzzerMutate(data, size, max);
}
