/* SPDX-License-Identifier: MIT */
#include "job/copy_plan.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bits.h"
#include "blk/port.h"

enum { SECTOR = 512 };

/* As long as one request of qemu-img's may be. */
#define RUN_MAX align_down((uint64_t)INT32_MAX, SECTOR)

int plan_init(struct copy_plan *p, const struct copy_opts *o)
{
	*p = (struct copy_plan) { .o = o, .keeps = true };
	p->sources = calloc(o->nsources, sizeof(*p->sources));
	if (!p->sources)
		return -ENOMEM;
	for (unsigned i = 0; i < o->nsources; i++) {
		struct plan_source *s = &p->sources[i];

		s->pc = o->sources[i];
		s->start = p->total;
		p->total += port_size(s->pc->port);
		s->end = p->total;
	}
	plan_restart(p);
	p->is_second = false;
	return 0;
}

void plan_fini(struct copy_plan *p)
{
	free(p->sources);
	free(p->kept);
}

void plan_restart(struct copy_plan *p)
{
	for (unsigned i = 0; i < p->o->nsources; i++)
		p->sources[i].ahead.len = 0;
	p->off = 0;
	p->run = (struct plan_run) { 0 };
	p->is_second = true;
	p->next_kept = 0;
}

static struct plan_source *source_at(const struct copy_plan *p, uint64_t off)
{
	unsigned i = 0;

	while (off >= p->sources[i].end)
		i++;
	return &p->sources[i];
}

const struct plan_source *plan_source_at(const struct copy_plan *p, uint64_t off,
					 uint64_t *ret_off)
{
	const struct plan_source *s = source_at(p, off);

	*ret_off = off - s->start;
	return s;
}

/* ---- what is there ---- */

/* Makes s->ahead begin at @off of the source. */
static int look_ahead_wait(const struct copy_plan *p, struct plan_source *s, uint64_t off)
{
	uint64_t passed = off - s->ahead_off, size = s->end - s->start;
	struct map_cursor cursor;
	int rc;

	if (off >= s->ahead_off && passed < s->ahead.len) {
		s->ahead.len -= passed;
		s->ahead.host_off += passed;
		s->ahead_off = off;
		return 0;
	}
	s->ahead.len = 0;
	map_cursor_init(&cursor, s->pc, off, size);
	rc = map_next_wait(&cursor, &s->ahead);
	if (rc && p->o->salvage) {
		if (p->o->on_lost)
			p->o->on_lost(p->o->arg, COPY_MAP_FAILED, off, rc);
		/* Perhaps it can be read all the same. */
		s->ahead = (struct map_run) { .len = MIN((uint64_t)SECTOR, size - off),
					      .flags = MAP_DATA };
		rc = 0;
	}
	s->ahead_off = off;
	return rc;
}

/* Does what is not in the source itself go on? Where the target has it, too, it does not matter
 * what it is, and in how many pieces. */
static bool is_more_below(const struct copy_plan *p, const struct map_run *run,
			  const struct map_run *next)
{
	return p->o->target_has_backing && run->depth && next->depth;
}

/* The run at @off of the source, at most @max bytes of it: all pieces in which the map tells it. */
static int merged_wait(const struct copy_plan *p, struct plan_source *s, uint64_t off,
		       uint64_t max, struct map_run *ret)
{
	int rc = look_ahead_wait(p, s, off);
	struct map_run run = s->ahead;

	if (rc)
		return rc;
	/* A sector that is lost makes a cluster of data: no need to hear of all its sectors. */
	while (run.len < max && !(p->o->salvage && p->o->cluster)) {
		/* An error there is met again when it is its turn. */
		if (look_ahead_wait(p, s, off + run.len) ||
		    (!map_is_more(&run, &s->ahead) && !is_more_below(p, &run, &s->ahead)))
			break;
		run.len += s->ahead.len;
	}
	run.len = MIN(run.len, max);
	*ret = run;
	return 0;
}

static enum copy_status status_of(const struct copy_plan *p, const struct map_run *run,
				  bool is_behind_backing)
{
	if (p->o->target_has_backing && run->depth)
		return COPY_SHOWS;
	if (!(run->flags & MAP_ZERO))
		return COPY_DATA;
	return is_behind_backing ? COPY_SHOWS : COPY_ZERO;
}

/* Keeps what was found, for the second time. */
static void keep(struct copy_plan *p)
{
	struct plan_run *grown;
	size_t max = MAX(2 * p->kept_max, (size_t)64);

	if (p->is_second || !p->keeps)
		return;
	if (p->nkept == p->kept_max) {
		grown = max <= PLAN_RUNS_MAX ? realloc(p->kept, max * sizeof(*grown)) : NULL;
		p->keeps = grown;
		if (!grown)
			return;
		p->kept = grown;
		p->kept_max = max;
	}
	p->kept[p->nkept++] = p->run;
}

/* Finds out what is at p->off. */
static int find_run_wait(struct copy_plan *p, uint64_t *ret_fault_off)
{
	struct plan_source *s = source_at(p, p->off);
	uint64_t max = MIN(s->end - p->off, RUN_MAX), align = s->pc->port->node->align;
	bool is_behind = false;
	struct map_run run;
	uint64_t tail;
	int rc;

	if (p->is_second && p->next_kept < p->nkept) {
		p->run = p->kept[p->next_kept++];
		return 0;
	}
	if (p->o->target_has_backing) {
		is_behind = p->off >= p->o->backing_size;
		if (!is_behind)
			max = MIN(max, p->o->backing_size - p->off);
	}
	*ret_fault_off = p->off - s->start;
	rc = merged_wait(p, s, p->off - s->start, max, &run);
	if (rc)
		return rc;
	run.len = MIN(align_up(run.len, SECTOR), max);
	/* The next run shall not begin where it cannot be read well. */
	tail = (p->off - s->start + run.len) % align;
	if (run.len > tail && p->off + run.len < s->end)
		run.len -= tail;
	p->run = (struct plan_run) {
		.off = p->off,
		.end = p->off + run.len,
		.status = status_of(p, &run, is_behind),
		.file = run.flags & MAP_HOST ? run.file : NULL,
		.host_off = run.host_off,
		.is_compressed = run.flags & MAP_COMPRESSED,
	};
	keep(p);
	return 0;
}

int plan_look_wait(struct copy_plan *p, struct copy_chunk *ret, uint64_t *ret_fault_off)
{
	int rc = 0;

	*ret = (struct copy_chunk) { .off = p->off };
	if (p->off == p->total)
		return 0;
	if (p->run.end <= p->off)
		rc = find_run_wait(p, ret_fault_off);
	if (rc)
		return rc;
	ret->len = p->run.end - p->off;
	ret->status = p->run.status;
	if (ret->status == COPY_DATA && p->run.file) {
		ret->file = p->run.file;
		ret->host_off = p->run.host_off + (p->off - p->run.off);
	}
	return 0;
}

void plan_pass(struct copy_plan *p, uint64_t len)
{
	p->off += len;
}

int plan_next_wait(struct copy_plan *p, struct copy_chunk *ret, uint64_t *ret_fault_off)
{
	uint64_t cluster = p->o->cluster;
	int rc = plan_look_wait(p, ret, ret_fault_off);

	if (rc || !ret->len)
		return rc;
	if (ret->status == COPY_DATA)
		ret->len = MIN(ret->len, cluster ? cluster : (uint64_t)COPY_CHUNK_BYTES);
	/* Compressed, a cluster is written whole. */
	if (cluster && ret->len < cluster) {
		ret->len = MIN(cluster, p->total - p->off);
		ret->status = COPY_DATA;
		if (p->off + ret->len > p->run.end)
			ret->file = NULL;
	} else if (cluster) {
		ret->len = align_down(ret->len, cluster);
	}
	ret->is_compressed = ret->status == COPY_DATA && !cluster && p->run.is_compressed;
	plan_pass(p, ret->len);
	return 0;
}
