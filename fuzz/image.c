/* SPDX-License-Identifier: MIT */
#include "fuzz/image.h"

#include <string.h>

#include "base/endian.h"

enum { HEAD_BYTES = 16, PIECE_HEAD_BYTES = 12 };

static uint8_t *copy_of(const void *bytes, size_t n)
{
	uint8_t *copy = malloc(n);

	FUZZ_CHECK(copy, "no memory");
	memcpy(copy, bytes, n);
	return copy;
}

struct image *image_unpack(const uint8_t *data, size_t size)
{
	const uint8_t *end = data + size;
	struct image *im;

	if (size < HEAD_BYTES)
		return NULL;
	im = calloc(1, sizeof(*im));
	FUZZ_CHECK(im, "no memory");
	im->size = MIN(be64_load(data), IMAGE_SIZE_MAX);
	im->seed = be64_load(data + 8);
	data += HEAD_BYTES;
	while (end - data > PIECE_HEAD_BYTES && im->n < IMAGE_PIECES_MAX) {
		uint64_t off = be64_load(data);
		uint32_t len = be32_load(data + 8);

		data += PIECE_HEAD_BYTES;
		len = MIN(len, (uint32_t)(end - data));
		if (len && off < IMAGE_SIZE_MAX)
			im->pieces[im->n++] = (struct image_piece){ off, len, copy_of(data, len) };
		data += len;
	}
	return im;
}

void image_free(struct image *im)
{
	for (unsigned i = 0; im && i < im->n; i++)
		free(im->pieces[i].bytes);
	free(im);
}

size_t image_pack(const struct image *im, uint8_t *out, size_t max)
{
	size_t at = HEAD_BYTES;

	if (max < HEAD_BYTES)
		return 0;
	be64_store(out, im->size);
	be64_store(out + 8, im->seed);
	for (unsigned i = 0; i < im->n; i++) {
		const struct image_piece *pc = &im->pieces[i];

		if (pc->len + (size_t)PIECE_HEAD_BYTES > max - at)
			continue;
		be64_store(out + at, pc->off);
		be32_store(out + at + 8, pc->len);
		memcpy(out + at + PIECE_HEAD_BYTES, pc->bytes, pc->len);
		at += PIECE_HEAD_BYTES + pc->len;
	}
	return at;
}

void image_read(const struct image *im, uint64_t off, void *buf, uint64_t len)
{
	uint64_t end = off + len;

	memset(buf, 0, len);
	end = MIN(end, im->size);
	for (unsigned i = 0; i < im->n; i++) {
		const struct image_piece *pc = &im->pieces[i];
		uint64_t from = MAX(off, pc->off), to = MIN(end, pc->off + pc->len);

		if (from < to)
			memcpy((uint8_t *)buf + (from - off), pc->bytes + (from - pc->off),
			       to - from);
	}
}

void image_write(struct image *im, uint64_t off, const void *buf, uint32_t len)
{
	for (unsigned i = im->n; i--;) {
		struct image_piece *pc = &im->pieces[i];

		if (off >= pc->off && range_within(off - pc->off, len, pc->len)) {
			memcpy(pc->bytes + (off - pc->off), buf, len);
			return;
		}
		if (ranges_overlap(off, len, pc->off, pc->len))
			break;                  /* it must cover this one */
	}
	if (im->n < IMAGE_PIECES_MAX && off < IMAGE_SIZE_MAX)
		im->pieces[im->n++] = (struct image_piece){ off, len, copy_of(buf, len) };
}
