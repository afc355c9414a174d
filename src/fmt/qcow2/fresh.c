/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/fresh.h"

#include <stdlib.h>

#include "base/prng.h"

struct fresh_note {
	uint64_t cluster;
	uint32_t units;                 /* 0: no note */
};

void fresh_fini(struct fresh *f)
{
	free(f->notes);
	f->notes = NULL;
}

static struct fresh_note *note_of(const struct fresh *f, uint64_t cluster)
{
	return &f->notes[mix64(cluster) % FRESH_NOTES];
}

void fresh_set(struct fresh *f, uint64_t cluster, uint32_t units)
{
	if (!units) {
		fresh_written(f, cluster, UINT32_MAX);
		return;
	}
	if (!f->notes)
		f->notes = calloc(FRESH_NOTES, sizeof(*f->notes));
	if (f->notes)
		*note_of(f, cluster) = (struct fresh_note){ cluster, units };
}

void fresh_written(struct fresh *f, uint64_t cluster, uint32_t units)
{
	struct fresh_note *n;

	if (!f->notes)
		return;
	n = note_of(f, cluster);
	if (n->cluster == cluster)
		n->units &= ~units;
}

uint32_t fresh_units(const struct fresh *f, uint64_t cluster)
{
	const struct fresh_note *n;

	if (!f->notes)
		return 0;
	n = note_of(f, cluster);
	return n->cluster == cluster ? n->units : 0;
}
