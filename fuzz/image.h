/* SPDX-License-Identifier: MIT */
/* fuzz/image.h - qcow2 images as fuzz inputs: packed, changed, and as files in memory.
 *
 * An image is packed as the file's size (be64), a seed for what is done with it (be64), and then
 * pieces: offset (be64), length (be32), bytes. What no piece covers is zero; later pieces cover
 * earlier ones. So a file may claim any size, and an input stays small. fuzz/seeds.py packs
 * and unpacks. */
#ifndef FUZZ_IMAGE_H
#define FUZZ_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "blk/blk.h"
#include "fuzz/fuzz.h"

enum {
	IMAGE_PIECES_MAX = 1024,
	IMAGE_PACKED_MAX = 128 << 10,
};
#define IMAGE_SIZE_MAX (1ULL << 56)

struct image_piece {
	uint64_t off;
	uint32_t len;
	uint8_t *bytes;                 /* owned */
};

struct image {
	uint64_t size;                  /* bytes, of the file */
	uint64_t seed;
	unsigned n;
	struct image_piece pieces[IMAGE_PIECES_MAX];
};

/* Whatever the bytes, there is an image in them; NULL: fewer than 16. */
struct image *image_unpack(const uint8_t *data, size_t size);
void image_free(struct image *im);      /* NULL is fine */
/* Returns the bytes used; pieces that do not fit are left out. */
size_t image_pack(const struct image *im, uint8_t *out, size_t max);
/* What lies at [@off, @off + @len), zeros behind the end. */
void image_read(const struct image *im, uint64_t off, void *buf, uint64_t len);
/* Puts bytes there, behind the end too (the size stays). */
void image_write(struct image *im, uint64_t off, const void *buf, uint32_t len);

/* ---- image_mutate.c ---- */

/* What a target wants changed, as bits. */
enum image_spot {
	SPOT_HEADER = 1,
	SPOT_EXTENSION = 2,
	SPOT_L1 = 4,
	SPOT_L2 = 8,
	SPOT_REFTABLE = 16,
	SPOT_REFBLOCK = 32,
	SPOT_SNAPSHOT = 64,
	SPOT_BITMAP = 128,
	SPOT_DATA = 256,
	SPOT_SIZE = 512,                /* the file's */
	SPOT_SEED = 1024,
	SPOT_BYTES = 2048,              /* of the packed form, blindly */
	SPOT_KINDS = 12,
};

/* A mutate() for a target that wants @spots. */
size_t image_mutate(uint8_t *data, size_t size, size_t max, struct prng *p, unsigned spots);

/* ---- session.c: an image as a node on a simulated loop ---- */

struct session {
	const struct image *im;
	struct loop *loop;
	struct prng prng;               /* what to do: the same in every run of an image */
	struct node *file;              /* over the image */
	struct node *top;               /* the qcow2 node, once open */
	struct qcow2_cache *cache;
	uint64_t hash;                  /* of all that was answered */
};

/* Runs fn(s) in a fiber for the image packed in @data, with I/O completing in one order, and for
 * some inputs in another as well, which must give the same hash. */
void session_run(const uint8_t *data, size_t size, void (*fn)(struct session *s));

struct qcow2_opts;
/* Opens the image, with a data file and a backing file where it wants them. 0 or -errno; that
 * and the words go into the hash. The session closes it. */
int session_open_wait(struct session *s, const struct qcow2_opts *opts);
void session_note(struct session *s, const void *data, size_t n);
void session_note_result(struct session *s, int rc, const struct err *err);

#endif
