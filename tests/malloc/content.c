/* SPDX-License-Identifier: MIT */
/* tests/malloc/content.c - sizes worth trying, and contents that tell whose they are. */
#include <fcntl.h>

#include "case.h"

#define AROUND(n) (n) - 17, (n) - 16, (n) - 1, (n), (n) + 1, (n) + 16

const size_t some_sizes[] = {
	1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, AROUND(128),
	AROUND(256), AROUND(512), 777, AROUND(1024), AROUND(2048), 3000, AROUND(4096), 5000,
	AROUND(8192), 12288, AROUND(16384), AROUND(32768), 50000, AROUND(65536), 100000,
	AROUND(131072), AROUND(262144), 300000, AROUND(1 << 20), AROUND(4 << 20), 5000000,
	AROUND(16 << 20),
};
const unsigned some_sizes_count = ARRAY_SIZE(some_sizes);

static uint64_t word_at(uint64_t seed, size_t i)
{
	return (seed + i / 8) * 0x9e3779b97f4a7c15ULL;
}

static unsigned char byte_at(uint64_t seed, size_t i)
{
	uint64_t w = word_at(seed, i);

	return ((unsigned char *)&w)[i % 8];
}

/* The builtins are instructions, though the compiler is told to know nothing of the C library. */
void fill(void *p, size_t size, uint64_t seed)
{
	unsigned char *to = p;
	size_t i = 0;

	for (; i + 8 <= size; i += 8) {
		uint64_t w = word_at(seed, i);

		__builtin_memcpy(to + i, &w, 8);
	}
	for (; i < size; i++)
		to[i] = byte_at(seed, i);
}

bool is_filled(const void *p, size_t size, uint64_t seed)
{
	const unsigned char *from = p;
	size_t i = 0;

	for (; i + 8 <= size; i += 8) {
		uint64_t w = word_at(seed, i);

		if (__builtin_memcmp(from + i, &w, 8))
			return false;
	}
	for (; i < size; i++) {
		if (from[i] != byte_at(seed, i))
			return false;
	}
	return true;
}

bool is_zero(const void *p, size_t size)
{
	const unsigned char *from = p;

	return size == 0 || (from[0] == 0 && !memcmp(from, from + 1, size - 1));
}

size_t resident_bytes(void)
{
	char text[256];
	int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	unsigned long total, resident;
	ssize_t n;

	CHECK(fd >= 0);
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	CHECK(n > 0);
	text[n] = '\0';
	CHECK(sscanf(text, "%lu %lu", &total, &resident) == 2);
	return resident * PAGE;
}
