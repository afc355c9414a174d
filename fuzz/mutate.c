/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "base/bits.h"
#include "fuzz/fuzz.h"

uint64_t fuzz_number(struct prng *p, uint64_t old, unsigned bytes)
{
	uint64_t max = bytes == 8 ? UINT64_MAX : (1ULL << bytes * 8) - 1;
	uint64_t top = max / 2 + 1;

	switch (prng_below(p, 10)) {
	case 0: return 0;
	case 1: return max - prng_below(p, 3);
	case 2: return (top - 1 + prng_below(p, 3)) & max;
	case 3: return (old + 1) & max;
	case 4: return (old - 1) & max;
	case 5: return old ^ 1ULL << prng_below(p, bytes * 8);
	case 6: return prng_below(p, 70000) & max;
	case 7: return (1ULL << prng_below(p, bytes * 8)) - prng_below(p, 2);
	case 8: return (old << 1 | old >> (bytes * 8 - 1)) & max;
	default: return prng_next(p) & max;
	}
}

size_t fuzz_mutate_blindly(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	size_t at = size ? prng_below(p, size) : 0, n;

	if (!size || (prng_below(p, 4) == 0 && size < max)) {
		n = 1 + prng_below(p, MIN(max - size, (size_t)16));
		memmove(data + at + n, data + at, size - at);
		for (size_t i = 0; i < n; i++)
			data[at + i] = (uint8_t)prng_next(p);
		return size + n;
	}
	n = 1 + prng_below(p, MIN(size - at, (size_t)16));
	switch (prng_below(p, 4)) {
	case 0:
		memmove(data + at, data + at + n, size - at - n);
		return size - n;
	case 1:
		data[at] ^= (uint8_t)(1U << prng_below(p, 8));
		return size;
	case 2:
		memmove(data + prng_below(p, size - n + 1), data + at, n);
		return size;
	default:
		data[at] = (uint8_t)fuzz_number(p, data[at], 1);
		return size;
	}
}

size_t fuzz_mutate_calls(uint8_t *data, size_t size, size_t max, size_t head, size_t call,
			 struct prng *p)
{
	size_t calls = size > head ? (size - head) / call : 0, at;

	if (calls < 2 || size + call > max || prng_below(p, 3) == 0)
		return fuzz_mutate_bytes(data, size, max, p);
	at = head + prng_below(p, calls) * call;
	if (prng_below(p, 4) == 0) {
		memmove(data + at, data + at + call, size - at - call);
		return size - call;
	}
	memmove(data + at + call, data + at, size - at);
	if (prng_below(p, 2)) {
		for (size_t i = 0; i < call; i++)
			data[at + i] = (uint8_t)prng_next(p);
	}
	return size + call;
}
