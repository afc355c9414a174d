/* SPDX-License-Identifier: MIT */
#include "sim/crash.h"

#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

void crash_init(struct crash *c, const struct sim_log *log, const struct sim_pages *base,
		uint64_t size, bool is_device)
{
	*c = (struct crash){ .log = log, .is_device = is_device, .durable_size = size };
	sim_pages_init(&c->durable, NULL, base->garbage);
	sim_pages_copy(&c->durable, base);
	sim_pages_init(&c->image, &c->durable, base->garbage);
}

void crash_fini(struct crash *c)
{
	sim_pages_fini(&c->image);
	sim_pages_fini(&c->durable);
	free(c->open);
}

/* What @op makes of the part [@in, @in + @len) of page @page, which lies within its wide range. */
static void put(const struct sim_op *op, struct sim_page *page, uint64_t in, uint64_t len)
{
	uint64_t off = page->number * SIM_PAGE + in;

	if (op->kind == SIM_WRITE)
		memcpy(page->bytes + in, op->bytes + (off - op->wide_off), len);
	else
		sim_garbage(op->garbage, off, page->bytes + in, len);
}

/* The sectors of @op that a fate can keep: whole ones, and those that the log has whole. */
static void sectors_of(const struct sim_op *op, uint32_t at, uint64_t *ret_off, uint64_t *ret_end)
{
	bool is_wide = op->kind == SIM_WRITE && op->effect < at;

	*ret_off = is_wide ? op->wide_off : align_up(op->off, SIM_SECTOR);
	*ret_end = is_wide ? op->wide_off + op->wide_len :
			     align_down(op->off + op->len, SIM_SECTOR);
	*ret_end = MAX(*ret_end, *ret_off);
}

static void cut_durable(struct crash *c, const struct sim_op *op)
{
	for (uint64_t off = op->off; off < c->durable_size; off += SIM_SECTOR) {
		struct sim_page *page = sim_pages_get(&c->durable, off / SIM_PAGE);

		put(op, page, off % SIM_PAGE, SIM_SECTOR);
		page->seq[off % SIM_PAGE / SIM_SECTOR] = op->effect + 1;
	}
	c->durable_size = MIN(c->durable_size, op->off);
}

static void make_durable(struct crash *c, const struct sim_op *op)
{
	uint64_t off, end;
	uint32_t seq = op->effect + 1;

	if (op->kind == SIM_TRUNCATE) {
		cut_durable(c, op);
		return;
	}
	if (op->kind == SIM_GROW) {
		c->durable_size = MAX(c->durable_size, op->off + op->len);
		return;
	}
	/* Zeros and discards of parts of sectors: the part. */
	if (op->kind == SIM_WRITE) {
		sectors_of(op, c->at + 1, &off, &end);
	} else {
		off = op->off;
		end = op->off + op->len;
	}
	if (op->kind != SIM_DISCARD && !c->is_device && op->len && !op->disk)
		c->durable_size = MAX(c->durable_size, op->off + op->len);
	while (off < end) {
		uint64_t next = MIN(align_down(off, SIM_SECTOR) + SIM_SECTOR, end);
		struct sim_page *page = sim_pages_get(&c->durable, off / SIM_PAGE);
		uint32_t *at = &page->seq[off % SIM_PAGE / SIM_SECTOR];

		if (seq > *at) {
			put(op, page, off % SIM_PAGE, next - off);
			*at = seq;
		}
		off = next;
	}
}

static void open_add(struct crash *c, uint32_t op)
{
	if (c->nopen == c->open_room) {
		c->open_room = MAX(2 * c->open_room, 64u);
		c->open = realloc(c->open, c->open_room * sizeof(*c->open));
		assert(c->open);
	}
	c->open[c->nopen++] = op;
}

/* All that was done on disk @disk before event @before becomes durable; or @only one, and the cuts
 * before it. */
static void open_end(struct crash *c, unsigned disk, uint32_t before, uint32_t only)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < c->nopen; i++) {
		const struct sim_op *op = &c->log->ops[c->open[i]];

		if (only == SIM_NEVER ? op->disk == disk && op->done < before :
		    c->open[i] == only || (op->kind == SIM_TRUNCATE && c->open[i] < only))
			make_durable(c, op);
		else
			c->open[kept++] = c->open[i];
	}
	c->nopen = kept;
}

void crash_advance(struct crash *c, uint32_t k)
{
	for (; c->at < k; c->at++) {
		const struct sim_event *e = &c->log->events[c->at];
		const struct sim_op *op = &c->log->ops[e->op];

		if (e->kind == SIM_SUBMIT && op->kind != SIM_SYNC)
			open_add(c, e->op);
		if (e->kind != SIM_DONE || op->res)
			continue;
		if (op->kind == SIM_SYNC)
			open_end(c, op->disk, op->submit, SIM_NEVER);
		else if (op->is_fua)
			open_end(c, op->disk, 0, e->op);
	}
}

/* ---- fates ---- */

enum luck { LOST, KEPT, TORN };

static enum luck luck_of(const struct crash *c, uint64_t fate, struct prng *p, uint32_t i,
			 uint32_t pivot)
{
	const struct sim_op *op = &c->log->ops[c->open[i]];

	switch (fate) {
	case FATE_ALL_LOST:
		return LOST;
	case FATE_ALL_KEPT:
		return KEPT;
	case FATE_ONLY_NEWEST:
		return i >= pivot ? KEPT : LOST;
	case FATE_ALL_BUT_NEWEST:
		return i >= pivot ? LOST : KEPT;
	case FATE_ONLY_DATA:
		return op->is_data ? KEPT : LOST;
	case FATE_ONLY_METADATA:
		return op->is_data ? LOST : KEPT;
	case FATE_ONLY_OLDEST:
		return i == 0 ? KEPT : LOST;
	case FATE_ALL_TORN:
		return TORN;
	default:
		break;
	}
	switch (fate % 4) {
	case 0:
		return i == pivot ? KEPT : LOST;
	case 1:
		return i == pivot ? LOST : KEPT;
	default:
		return (enum luck)prng_below(p, 3);
	}
}

/* Brings what of @op @p lets through to the image. */
static void keep(struct crash *c, const struct sim_op *op, bool is_torn, struct prng *p)
{
	uint32_t seq = op->effect < c->at ? op->effect + 1 : SIM_NEVER;
	uint64_t off, end, odds = is_torn ? 1 + prng_below(p, 7) : 8;

	if (op->kind == SIM_GROW)               /* size_of() has seen to it */
		return;
	sectors_of(op, c->at, &off, &end);
	if (!op->disk)
		end = MIN(end, c->size);
	while (off < end) {
		uint64_t next = MIN(off + SIM_SECTOR, end);

		if (odds == 8 || prng_below(p, 8) < odds) {
			const struct sim_page *d = sim_pages_find(&c->durable, off / SIM_PAGE);

			if (!d || d->seq[off % SIM_PAGE / SIM_SECTOR] < seq)
				put(op, sim_pages_get(&c->image, off / SIM_PAGE), off % SIM_PAGE,
				    next - off);
		}
		off = next;
	}
}

static bool is_cut(uint64_t fate, const struct sim_op *op)
{
	return fate != FATE_ALL_LOST && mix64(fate + op->submit) % 2;
}

/* How long the file is: all that it was, what is durable, or anything between. */
static uint64_t size_of(const struct crash *c, uint64_t fate, struct prng *p)
{
	uint64_t max = c->durable_size;

	if (c->is_device)
		return max;
	for (uint32_t i = 0; i < c->nopen; i++) {
		const struct sim_op *op = &c->log->ops[c->open[i]];

		if (op->kind == SIM_TRUNCATE)
			max = is_cut(fate, op) ? MIN(max, op->off) : max;
		else if (op->kind != SIM_DISCARD && op->len && !op->disk)
			max = MAX(max, op->off + op->len);
	}
	if (max < c->durable_size)
		return max;
	if (fate < FATES_NAMED)
		return fate == FATE_ALL_LOST ? c->durable_size : max;
	switch (prng_below(p, 4)) {
	case 0:
		return c->durable_size;
	case 1:
		return c->durable_size +
		       align_down(prng_below(p, max - c->durable_size + 1), SIM_SECTOR);
	default:
		return max;
	}
}

void crash_make(struct crash *c, uint64_t fate)
{
	struct prng p = { mix64(fate + 77) };
	uint32_t pivot = 0, n = c->nopen;
	bool is_shuffled;
	uint32_t *order;

	sim_pages_clear(&c->image);
	c->size = size_of(c, fate, &p);
	if (!n)
		return;
	if (c->size < c->durable_size)
		sim_pages_fill(&c->image, c->size, c->durable_size - c->size, 0);
	pivot = n - 1 - (uint32_t)prng_below(&p, MIN(n, 8u));
	if (fate >= FATES_NAMED)
		pivot = (uint32_t)prng_below(&p, n);
	is_shuffled = fate >= FATES_NAMED && prng_below(&p, 2);
	order = malloc(n * sizeof(*order));
	assert(order);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t j = is_shuffled ? (uint32_t)prng_below(&p, i + 1) : i;

		order[i] = order[j];
		order[j] = i;
	}
	for (uint32_t i = 0; i < n; i++) {
		enum luck luck = luck_of(c, fate, &p, order[i], pivot);

		if (luck != LOST)
			keep(c, &c->log->ops[c->open[order[i]]], luck == TORN, &p);
	}
	free(order);
}
