/* SPDX-License-Identifier: MIT */
/* fuzz/vub_message.c - a front end that says anything.
 *
 * An input is records: request, flags, descriptors (a byte each), the payload's length (le16), the
 * payload. The descriptors' byte: how many (3 bits), and of which kind the first is. What
 * is sent is a message whose header has that length, less the flag that it has another. */
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "fuzz/vub.h"

enum { HEAD = 5, KINDS = 4, RECORDS_MAX = 64, LIES = 0x80 };

static int pool[KINDS];

static void make_pool(void)
{
	pool[0] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pool[1] = memfd_create("guest", MFD_CLOEXEC);
	pool[2] = memfd_create("short", MFD_CLOEXEC);
	pool[3] = eventfd(5, EFD_CLOEXEC | EFD_NONBLOCK);
	FUZZ_CHECK(pool[1] >= 0 && !ftruncate(pool[1], VUB_MEMORY), "memfd");
	FUZZ_CHECK(pool[2] >= 0 && !ftruncate(pool[2], 100), "memfd");
}

static size_t say_record(int sock, const uint8_t *data, size_t size)
{
	uint16_t len;
	struct vhost_user_header head;
	uint8_t message[sizeof(head) + 1024];
	int fds[8];
	unsigned nfds;

	if (size < HEAD)
		return 0;
	memcpy(&len, data + 3, sizeof(len));
	len &= 1023;
	if (len > size - HEAD)
		len = (uint16_t)(size - HEAD);
	head = (struct vhost_user_header){ data[0], data[1] & 0xf, len };
	if (data[1] & LIES)
		head.size += data[1] >> 4 & 7;
	memcpy(message, &head, sizeof(head));
	memcpy(message + sizeof(head), data + HEAD, len);
	nfds = data[2] & 7;
	for (unsigned i = 0; i < nfds; i++)
		fds[i] = pool[((data[2] >> 3) + i) % KINDS];
	vub_fuzz_send(sock, message, sizeof(head) + len, fds, nfds);
	return HEAD + len;
}

static void run(const uint8_t *data, size_t size)
{
	int sock;
	size_t n;

	if (!pool[1])
		make_pool();
	sock = vub_fuzz_begin();
	for (unsigned i = 0; i < RECORDS_MAX && (n = say_record(sock, data, size)); i++) {
		data += n;
		size -= n;
		if (i % 4 == 3 && !vub_fuzz_pump(sock))
			break;
	}
	vub_fuzz_pump(sock);
	vub_fuzz_end(sock);
}

/* A message as it should be. */
static size_t good_record(uint8_t *out, struct prng *p)
{
	static const struct {
		uint8_t request, size, fds, kind;
	} good[] = {
		{ 1, 0, 0, 0 }, { 2, 8, 0, 0 }, { 3, 0, 0, 0 }, { 5, 40, 1, 1 },
		{ 6, 16, 1, 1 }, { 7, 0, 1, 0 }, { 8, 8, 0, 0 }, { 9, 40, 0, 0 },
		{ 10, 8, 0, 0 }, { 11, 8, 0, 0 }, { 12, 8, 1, 0 }, { 13, 8, 1, 3 },
		{ 14, 8, 1, 3 }, { 15, 0, 0, 0 }, { 16, 8, 0, 0 }, { 17, 0, 0, 0 },
		{ 18, 8, 0, 0 }, { 21, 0, 1, 0 }, { 24, 72, 0, 0 }, { 25, 13, 0, 0 },
		{ 31, 24, 0, 0 }, { 32, 24, 1, 1 }, { 34, 0, 0, 0 }, { 36, 0, 0, 0 },
		{ 37, 40, 1, 1 }, { 38, 40, 0, 0 },
	};
	unsigned i = (unsigned)prng_below(p, sizeof(good) / sizeof(good[0]));
	uint64_t words[16] = { 0 };
	uint16_t len = good[i].size;

	for (unsigned w = 0; w < 16; w++)
		words[w] = prng_below(p, 3) ? prng_below(p, 2) << prng_below(p, 17)
					    : prng_below(p, VUB_MEMORY);
	switch (good[i].request) {
	case 2: words[0] = 0x174006e64ULL | prng_below(p, 2) << 34; break;
	case 5: words[0] = 1; words[2] = VUB_MEMORY; words[3] = words[1]; words[4] = 0; break;
	case 8: words[0] = prng_below(p, 2) | (8ULL << 32); break;
	case 9: words[1] &= ~15ULL; words[2] &= ~3ULL; words[3] &= ~1ULL; break;
	case 12: case 13: case 14: words[0] = prng_below(p, 2); break;
	case 16: words[0] = 0xb22bULL; break;
	case 18: words[0] = prng_below(p, 2) | 1ULL << 32; break;
	case 24: words[0] = 60ULL << 32; words[1] = 0; break;
	case 31: words[2] = 2 | 8 << 16; break;
	case 32: words[0] = 8192; words[1] = 0; words[2] = 2 | 8 << 16; break;
	default: break;
	}
	out[0] = good[i].request;
	out[1] = VHOST_USER_VERSION | (prng_below(p, 2) ? VHOST_USER_NEED_REPLY : 0);
	out[2] = (uint8_t)(good[i].fds | good[i].kind << 3);
	memcpy(out + 3, &len, sizeof(len));
	memcpy(out + HEAD, words, len);
	return HEAD + len;
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	uint8_t record[HEAD + sizeof(uint64_t[16])];
	size_t at = 0, n;

	if (size && prng_below(p, 3) == 0)
		return fuzz_mutate_bytes(data, size, max, p);
	n = good_record(record, p);
	if (size + n > max)
		return fuzz_mutate_bytes(data, size, max, p);
	while (at < size && prng_below(p, 4)) {         /* to the border of some record */
		uint16_t len = 0;

		if (size - at < HEAD)
			break;
		memcpy(&len, data + at + 3, sizeof(len));
		len &= 1023;
		at += (size_t)HEAD + len < size - at ? (size_t)HEAD + len : size - at;
	}
	memmove(data + at + n, data + at, size - at);
	memcpy(data + at, record, n);
	return size + n;
}

const struct fuzz_target fuzz_target = { "vub_message", 4096, run, mutate };
