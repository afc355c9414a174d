/* SPDX-License-Identifier: MIT */
#include "sim/pages.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/prng.h"

enum { BUCKETS_MIN = 256 };

static struct sim_page **bucket_of(const struct sim_pages *p, uint64_t number)
{
	return &p->buckets[mix64(number) & (p->nbuckets - 1)];
}

void sim_pages_init(struct sim_pages *p, const struct sim_pages *below, uint64_t garbage)
{
	*p = (struct sim_pages){ .below = below, .garbage = garbage, .nbuckets = BUCKETS_MIN };
	p->buckets = calloc(p->nbuckets, sizeof(*p->buckets));
	assert(p->buckets);
}

void sim_pages_clear(struct sim_pages *p)
{
	for (unsigned i = 0; i < p->n; i++)
		*bucket_of(p, p->all[i]->number) = NULL;
	for (unsigned i = 0; i < p->n; i++) {
		p->all[i]->next = p->free;
		p->free = p->all[i];
	}
	p->n = 0;
}

void sim_pages_fini(struct sim_pages *p)
{
	struct sim_page *page;

	sim_pages_clear(p);
	while ((page = p->free)) {
		p->free = page->next;
		free(page);
	}
	free(p->all);
	free(p->buckets);
}

static void grow(struct sim_pages *p)
{
	p->room = MAX(2 * p->room, (unsigned)BUCKETS_MIN);
	p->all = realloc(p->all, p->room * sizeof(struct sim_page *));
	assert(p->all);
	if (p->nbuckets >= p->room)
		return;
	free(p->buckets);
	p->nbuckets = p->room;
	p->buckets = calloc(p->nbuckets, sizeof(struct sim_page *));
	assert(p->buckets);
	for (unsigned i = 0; i < p->n; i++) {
		struct sim_page **b = bucket_of(p, p->all[i]->number);

		p->all[i]->next = *b;
		*b = p->all[i];
	}
}

static struct sim_page *own(const struct sim_pages *p, uint64_t number)
{
	struct sim_page *page = *bucket_of(p, number);

	while (page && page->number != number)
		page = page->next;
	return page;
}

const struct sim_page *sim_pages_find(const struct sim_pages *p, uint64_t number)
{
	const struct sim_page *page = NULL;

	for (; p && !page; p = p->below)
		page = own(p, number);
	return page;
}

struct sim_page *sim_pages_get(struct sim_pages *p, uint64_t number)
{
	struct sim_page *page = own(p, number), **b;
	const struct sim_page *from;

	if (page)
		return page;
	if (p->n == p->room)
		grow(p);
	page = p->free;
	if (page)
		p->free = page->next;
	else
		page = malloc(sizeof(*page));
	assert(page);
	from = sim_pages_find(p, number);
	if (from) {
		memcpy(page, from, sizeof(*page));
	} else {
		memset(page->seq, 0, sizeof(page->seq));
		sim_garbage(p->garbage, number * SIM_PAGE, page->bytes, SIM_PAGE);
	}
	page->number = number;
	b = bucket_of(p, number);
	page->next = *b;
	*b = page;
	p->all[p->n++] = page;
	return page;
}

void sim_pages_copy(struct sim_pages *p, const struct sim_pages *from)
{
	for (unsigned i = 0; i < from->n; i++)
		memcpy(sim_pages_get(p, from->all[i]->number)->bytes, from->all[i]->bytes,
		       SIM_PAGE);
}

void sim_garbage(uint64_t seed, uint64_t off, void *buf, uint64_t len)
{
	uint8_t *to = buf;

	if (!seed) {
		memset(buf, 0, len);
		return;
	}
	for (uint64_t at = off, end = off + len; at < end;) {
		uint64_t word = mix64(seed + at / 8), in = at % 8, n = MIN(8 - in, end - at);

		memcpy(to, (uint8_t *)&word + in, n);
		to += n;
		at += n;
	}
}

void sim_pages_read(const struct sim_pages *p, uint64_t off, void *buf, uint64_t len)
{
	uint8_t *to = buf;

	while (len) {
		uint64_t in = off % SIM_PAGE, n = MIN(SIM_PAGE - in, len);
		const struct sim_page *page = sim_pages_find(p, off / SIM_PAGE);

		if (page)
			memcpy(to, page->bytes + in, n);
		else
			sim_garbage(p->garbage, off, to, n);
		to += n;
		off += n;
		len -= n;
	}
}

void sim_pages_write(struct sim_pages *p, uint64_t off, const void *buf, uint64_t len)
{
	const uint8_t *from = buf;

	while (len) {
		uint64_t in = off % SIM_PAGE, n = MIN(SIM_PAGE - in, len);

		memcpy(sim_pages_get(p, off / SIM_PAGE)->bytes + in, from, n);
		from += n;
		off += n;
		len -= n;
	}
}

void sim_pages_fill(struct sim_pages *p, uint64_t off, uint64_t len, uint64_t garbage)
{
	while (len) {
		uint64_t in = off % SIM_PAGE, n = MIN(SIM_PAGE - in, len);

		/* Zeros over nothing are nothing. */
		if (garbage || p->garbage || sim_pages_find(p, off / SIM_PAGE))
			sim_garbage(garbage, off, sim_pages_get(p, off / SIM_PAGE)->bytes + in, n);
		off += n;
		len -= n;
	}
}
