/* SPDX-License-Identifier: MIT */
/* fuzz/qcow2_refcount.c - refcount tables and blocks, and everything else that a check looks at.
 *
 * Also held: the numbers that a check ends with do not contradict each other or what it told. */
#include <string.h>

#include "fmt/qcow2/bitmap.h"
#include "fmt/qcow2/check.h"
#include "fmt/qcow2/qcow2.h"
#include "fuzz/image.h"

struct told {
	struct session *s;
	uint64_t lines;
};

static void say(void *arg, bool is_named, char *text)
{
	struct told *t = arg;

	t->lines++;
	if (t->lines < 1000)
		session_note(t->s, text, strlen(text));
}

static void use(struct session *s)
{
	struct told told = { .s = s };
	struct qcow2_check_say how = { .fn = say, .arg = &told };
	struct qcow2_opts opts = { .for_check = true, .metadata_only = true };
	struct qcow2_check c = { 0 };
	struct err err = { 0 };
	int rc;

	if (session_open_wait(s, &opts))
		return;
	rc = qcow2_bitmaps_judge_wait(s->top, &err);
	session_note_result(s, rc, &err);
	if (rc)
		return;
	err = (struct err){ 0 };
	rc = qcow2_check_wait(s->top, &how, &c, &err);
	session_note_result(s, rc, &err);
	if (rc)
		return;
	session_note(s, &c.corruptions, sizeof(c.corruptions));
	session_note(s, &c.leaks, sizeof(c.leaks));
	session_note(s, &c.check_errors, sizeof(c.check_errors));
	session_note(s, &c.allocated, sizeof(c.allocated));
	session_note(s, &c.image_end, sizeof(c.image_end));
	FUZZ_CHECK(!(c.corruptions + c.leaks + c.check_errors) || told.lines, "found, not told");
	FUZZ_CHECK(c.compressed <= c.allocated, "%llu of %llu compressed",
		   (unsigned long long)c.compressed, (unsigned long long)c.allocated);
}

static void run(const uint8_t *data, size_t size)
{
	session_run(data, size, use);
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	return image_mutate(data, size, max, p, SPOT_HEADER | SPOT_L1 | SPOT_L2 | SPOT_REFTABLE |
			    SPOT_REFBLOCK | SPOT_SNAPSHOT | SPOT_BITMAP | SPOT_SIZE | SPOT_BYTES);
}

const struct fuzz_target fuzz_target = { "qcow2_refcount", IMAGE_PACKED_MAX, run, mutate };
