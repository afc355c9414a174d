/* SPDX-License-Identifier: MIT */
/* Bitmaps are named in an image's header, and the power fails after any of the writes: of those
 * that no flush has followed, each sector is there or not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"
#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/create.h"
#include "fmt/qcow2/format.h"
#include "fmt/qcow2/header.h"
#include "fmt/qcow2/test_mem.h"

enum { CLUSTER = 65536, SECTOR = 512, NAME_AT = 60000, ROOM = 1 << 20 };
static const char backing[] = "a backing file";

struct cut {
	bool has_backing, is_unfinished, breaks_t35;
	struct loop *loop;
	struct test_mem *file;
	struct qcow2_bitmaps_copy named;
	uint8_t old[CLUSTER];           /* durable */
	unsigned nimages, nopen, nbad;
};

/* What the power cut leaves: all bitmaps or none, and the backing file, if it opens at all. */
static void judge(struct cut *c, const uint8_t *image)
{
	const struct qcow2_header_disk *d = (const void *)image;
	struct qcow2_header h = { 0 };
	size_t need;

	c->nimages++;
	if (be32_get(d->version) & QCOW2_VERSION_UNFINISHED)
		return;                 /* by nobody, whatever else it says */
	if (qcow2_header_parse(image, CLUSTER, &h, &need, NULL)) {
		c->nbad++;
		return;
	}
	c->nopen++;
	c->nbad += h.nb_bitmaps && (h.nb_bitmaps != c->named.n ||
				    h.bitmaps_off != c->named.directory_off ||
				    h.bitmaps_bytes != c->named.directory_bytes);
	c->nbad += c->has_backing != !!h.backing_name ||
		   (h.backing_name && strcmp(h.backing_name, backing));
	qcow2_header_fini(&h);
}

/* All fates of the sectors that @now has changed. */
static void judge_all(struct cut *c, const uint8_t *now)
{
	uint8_t *image = malloc(CLUSTER);
	unsigned changed[8], n = 0;

	for (unsigned i = 0; i < CLUSTER / SECTOR; i++)
		if (memcmp(c->old + i * SECTOR, now + i * SECTOR, SECTOR)) {
			assert_true(n < ARRAY_SIZE(changed));
			changed[n++] = i;
		}
	for (unsigned fate = 0; fate < 1U << n; fate++) {
		memcpy(image, c->old, CLUSTER);
		for (unsigned k = 0; k < n; k++)
			if (fate >> k & 1)
				memcpy(image + changed[k] * SECTOR, now + changed[k] * SECTOR,
				       SECTOR);
		judge(c, image);
	}
	free(image);
}

/* Called before a request takes effect: a write is seen at the flush that follows it. */
static void watch(void *arg, const struct req *req)
{
	struct cut *c = arg;

	if (req->kind != REQ_FLUSH)
		return;
	judge_all(c, c->file->bytes);
	memcpy(c->old, c->file->bytes, CLUSTER);
}

/* As it is when the mark of an image in use has been there (mark.c). */
static void move_name(uint8_t *image)
{
	struct qcow2_header_disk *d = (void *)image;
	uint64_t from = be64_get(d->backing_file_offset);

	memcpy(image + NAME_AT, image + from, strlen(backing));
	memset(image + from, 0, strlen(backing));
	d->backing_file_offset = be64_make(NAME_AT);
}

static int name_wait(void *arg)
{
	struct cut *c = arg;
	struct qcow2_create_opts co = { .size = ROOM, .version = 3, .cluster_size = CLUSTER,
					.is_unfinished = c->is_unfinished };
	struct err err = { 0 };

	if (c->has_backing) {
		co.backing_name = backing;
		co.backing_format = "raw";
	}
	c->file = test_mem_new(c->loop, ROOM);
	assert_int_equal(qcow2_create_wait(&c->file->node, NULL, &co, &err), 0);
	if (c->has_backing)
		move_name(c->file->bytes);
	memcpy(c->old, c->file->bytes, CLUSTER);
	c->named = (struct qcow2_bitmaps_copy){ .n = 3, .directory_off = 5 * CLUSTER,
						.directory_bytes = 96,
						.breaks_t35 = c->breaks_t35 };
	assert_int_equal(node_open_home_wait(&c->file->node, &err), 0);
	c->file->watch = watch;
	c->file->watch_arg = c;
	assert_int_equal(qcow2_bitmaps_name_wait(&c->file->node, &c->named, &err), 0);
	c->nopen = 0;
	judge(c, c->file->bytes);
	assert_int_equal(c->nopen, 1);
	node_put_wait(&c->file->node);
	return 0;
}

/* How many of the images that a power cut can leave are bad. */
static unsigned bad_images(bool has_backing, bool is_unfinished, bool breaks_t35)
{
	struct cut *c = calloc(1, sizeof(*c));
	struct loop_opts lo = { .backend = LOOP_SIM, .sim_seed = 1 };
	unsigned nbad;

	*c = (struct cut){ .has_backing = has_backing, .is_unfinished = is_unfinished,
			   .breaks_t35 = breaks_t35 };
	assert_int_equal(loop_new(&lo, &c->loop, NULL), 0);
	loop_call(c->loop, name_wait, c);
	loop_free(c->loop);
	assert_true(c->nimages > 4);
	nbad = c->nbad;
	free(c);
	return nbad;
}

static void t35_a_power_cut_leaves_all_bitmaps_or_none(void **state)
{
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(bad_images(i & 1, i & 2, false), 0);
	assert_true(bad_images(false, false, true) > 0);
	assert_true(bad_images(true, false, true) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(t35_a_power_cut_leaves_all_bitmaps_or_none),
	};

	return cmocka_run_group_tests_name("qcow2_bitmap_copy", tests, NULL, NULL);
}
