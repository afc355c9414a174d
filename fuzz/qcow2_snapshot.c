/* SPDX-License-Identifier: MIT */
/* fuzz/qcow2_snapshot.c - the table of internal snapshots: listed, looked up, read from.
 *
 * Also held: each snapshot that is listed is found by its id. */
#include <stdatomic.h>
#include <string.h>

#include "fmt/qcow2/info.h"
#include "fmt/qcow2/qcow2.h"
#include "fuzz/image.h"

enum { READ_BYTES = 8 << 10 };

static void note_text(struct session *s, const char *text)
{
	FUZZ_CHECK(text, "no text");
	session_note(s, text, strlen(text) + 1);
}

/* Lists them; returns the name or id of one, owned, or NULL. */
static char *list(struct session *s)
{
	struct qcow2_info info = { 0 };
	struct err err = { 0 };
	int rc = qcow2_info_wait(s->top, &info, &err);
	char *one = NULL;

	session_note_result(s, rc, &err);
	for (size_t i = 0; !rc && i < info.nsnapshots; i++) {
		const struct qcow2_snapshot_info *sn = &info.snapshots[i];

		note_text(s, sn->id);
		note_text(s, sn->name);
		session_note(s, &sn->vm_state_bytes, sizeof(sn->vm_state_bytes));
	}
	if (!rc && info.nsnapshots) {
		const struct qcow2_snapshot_info *sn =
			&info.snapshots[prng_below(&s->prng, info.nsnapshots)];

		one = strdup(prng_below(&s->prng, 2) && sn->name[0] ? sn->name : sn->id);
	}
	qcow2_info_fini(&info);
	return one;
}

static void read_some(struct session *s)
{
	uint64_t size = atomic_load(&s->top->size);
	uint8_t bytes[READ_BYTES];

	for (unsigned i = 0; size && i < 4; i++) {
		uint64_t off = prng_below(&s->prng, i & 1 ? size : MIN(size, (uint64_t)1 << 20));
		uint64_t len = MIN(size - off, (uint64_t)READ_BYTES);
		int rc = chan_read_wait(s->top->home_chan, off, bytes, len);

		session_note(s, &rc, sizeof(rc));
		if (!rc)
			session_note(s, bytes, len);
	}
}

static void use(struct session *s)
{
	struct qcow2_opts opts = { 0 };
	char *name;

	if (session_open_wait(s, &opts))
		return;
	name = list(s);
	read_some(s);
	/* The same file as the snapshot's; the node over it must go first. */
	if (name) {
		struct node *active = s->top;

		s->file = node_get(s->file);
		s->top = NULL;
		node_put_wait(active);
		opts.snapshot = name;
		if (!session_open_wait(s, &opts))
			read_some(s);
	}
	free(name);
}

static void run(const uint8_t *data, size_t size)
{
	session_run(data, size, use);
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	return image_mutate(data, size, max, p, SPOT_HEADER | SPOT_SNAPSHOT | SPOT_L1 | SPOT_SIZE |
			    SPOT_SEED | SPOT_BYTES);
}

const struct fuzz_target fuzz_target = { "qcow2_snapshot", IMAGE_PACKED_MAX, run, mutate };
