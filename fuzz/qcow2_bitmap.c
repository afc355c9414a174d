/* SPDX-License-Identifier: MIT */
/* fuzz/qcow2_bitmap.c - the directory of persistent bitmaps and their tables, and what else an
 * image says of itself (info.h). */
#include <string.h>

#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/info.h"
#include "fmt/qcow2/qcow2.h"
#include "fuzz/image.h"

enum { TABLES_MAX = 16, ENTRIES_MAX = 1 << 16 };

struct walk {
	struct session *s;
	unsigned n;
	unsigned tables;                /* read so far */
};

static int one(void *arg, const struct qcow2_bitmap *b)
{
	struct walk *w = arg;
	const struct qcow2 *q = qcow2_of(w->s->top);
	uint64_t *entries;
	int rc;

	w->n++;
	FUZZ_CHECK(memchr(b->name, 0, sizeof(b->name)), "a name without end");
	FUZZ_CHECK(b->granularity_bits >= BITMAP_GRANULARITY_BITS_MIN &&
		   b->granularity_bits <= BITMAP_GRANULARITY_BITS_MAX, "%u", b->granularity_bits);
	session_note(w->s, b->name, strlen(b->name));
	session_note(w->s, &b->flags, sizeof(b->flags));
	if (b->table_entries > ENTRIES_MAX || w->tables++ >= TABLES_MAX)
		return 0;
	rc = qcow2_bitmap_table_wait(w->s->file->home_chan, &q->header, b, &entries);
	session_note(w->s, &rc, sizeof(rc));
	if (!rc) {
		session_note(w->s, entries, (size_t)b->table_entries * 8);
		free(entries);
	}
	return 0;
}

static void note_info(struct session *s)
{
	struct qcow2_info info = { 0 };
	struct err err = { 0 };
	int rc = qcow2_info_wait(s->top, &info, &err);

	session_note_result(s, rc, &err);
	for (size_t i = 0; !rc && i < info.nbitmaps; i++) {
		session_note(s, info.bitmaps[i].name, strlen(info.bitmaps[i].name));
		session_note(s, &info.bitmaps[i].granularity, sizeof(info.bitmaps[i].granularity));
	}
	if (!rc && info.luks)
		session_note(s, info.luks->uuid, strlen(info.luks->uuid));
	qcow2_info_fini(&info);
}

static void use(struct session *s)
{
	struct qcow2_opts opts = { .metadata_only = true };
	struct walk w = { .s = s };
	struct err err = { 0 };
	int rc;

	if (session_open_wait(s, &opts))
		return;
	note_info(s);
	rc = qcow2_bitmaps_each_wait(s->file->home_chan, &qcow2_of(s->top)->header, one, &w, &err);
	session_note_result(s, rc, &err);
	FUZZ_CHECK(rc || w.n <= qcow2_of(s->top)->header.nb_bitmaps, "%u bitmaps", w.n);
	err = (struct err){ 0 };
	rc = qcow2_bitmaps_judge_wait(s->top, &err);
	session_note_result(s, rc, &err);
	session_note(s, &(bool){ qcow2_bitmaps_warning(s->top) }, sizeof(bool));
}

static void run(const uint8_t *data, size_t size)
{
	session_run(data, size, use);
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	return image_mutate(data, size, max, p, SPOT_HEADER | SPOT_EXTENSION | SPOT_BITMAP |
			    SPOT_SNAPSHOT | SPOT_SIZE | SPOT_BYTES);
}

const struct fuzz_target fuzz_target = { "qcow2_bitmap", IMAGE_PACKED_MAX, run, mutate };
