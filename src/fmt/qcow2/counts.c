/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/counts.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

enum { LIST_MAX = 15 };

/* The forms of a chunk, by the tag of its pointer; in the order of their growth. */
enum form { FORM_LIST = 0, FORM_8 = COUNTS_TAG_BYTES, FORM_16 = 2, FORM_64 = 3, FORM_NONE = 4 };

/* Few clusters, in no order. */
struct few {
	uint16_t n;
	uint16_t at[LIST_MAX];
	uint16_t value[LIST_MAX];
};

static enum form form_of(uintptr_t chunk)
{
	return chunk ? (enum form)(chunk & COUNTS_TAG_MASK) : FORM_NONE;
}

static void *array_of(uintptr_t chunk)
{
	return (void *)(chunk & ~(uintptr_t)COUNTS_TAG_MASK);
}

static size_t form_bytes(enum form f)
{
	switch (f) {
	case FORM_LIST: return sizeof(struct few);
	case FORM_8: return COUNTS_CHUNK;
	case FORM_16: return COUNTS_CHUNK * sizeof(uint16_t);
	case FORM_64: return COUNTS_CHUNK * sizeof(uint64_t);
	case FORM_NONE: break;
	}
	return 0;
}

int counts_init(struct counts *c, uint64_t clusters, uint64_t max)
{
	uint64_t nchunks = div_round_up(clusters, COUNTS_CHUNK);

	assert(max && max <= UINT64_MAX >> COUNTS_MARK_BITS);
	c->chunks = calloc(MAX(nchunks, 1ULL), sizeof(*c->chunks));
	if (!c->chunks)
		return -ENOMEM;
	c->clusters = clusters;
	c->nchunks = nchunks;
	c->max = max;
	c->bytes = 0;
	c->limit = COUNTS_FREE_BYTES;
	return 0;
}

int counts_grow(struct counts *c, uint64_t clusters)
{
	uint64_t nchunks = div_round_up(clusters, COUNTS_CHUNK);
	uintptr_t *chunks;

	if (nchunks > c->nchunks) {
		chunks = realloc(c->chunks, nchunks * sizeof(*chunks));
		if (!chunks)
			return -ENOMEM;
		memset(chunks + c->nchunks, 0, (nchunks - c->nchunks) * sizeof(*chunks));
		c->chunks = chunks;
		c->nchunks = nchunks;
	}
	c->clusters = MAX(c->clusters, clusters);
	return 0;
}

void counts_fini(struct counts *c)
{
	for (uint64_t i = 0; i < c->nchunks; i++)
		free(array_of(c->chunks[i]));
	free(c->chunks);
	*c = (struct counts) { 0 };
}

static uint16_t *few_find(struct few *few, unsigned at)
{
	for (unsigned i = 0; i < few->n; i++)
		if (few->at[i] == at)
			return &few->value[i];
	return NULL;
}

static uint64_t value_at(uintptr_t chunk, unsigned at)
{
	uint16_t *v;

	switch (form_of(chunk)) {
	case FORM_8: return ((uint8_t *)array_of(chunk))[at];
	case FORM_16: return ((uint16_t *)array_of(chunk))[at];
	case FORM_64: return ((uint64_t *)array_of(chunk))[at];
	case FORM_LIST:
		v = few_find(array_of(chunk), at);
		return v ? *v : 0;
	case FORM_NONE: break;
	}
	return 0;
}

uint64_t counts_value(const struct counts *c, uint64_t k)
{
	assert(k < c->clusters);
	return value_at(c->chunks[k >> COUNTS_CHUNK_BITS], k & (COUNTS_CHUNK - 1));
}

static void array_set(uintptr_t chunk, unsigned at, uint64_t value)
{
	switch (form_of(chunk)) {
	case FORM_8: ((uint8_t *)array_of(chunk))[at] = (uint8_t)value; return;
	case FORM_16: ((uint16_t *)array_of(chunk))[at] = (uint16_t)value; return;
	case FORM_64: ((uint64_t *)array_of(chunk))[at] = value; return;
	case FORM_LIST: case FORM_NONE: break;
	}
	assert(false);
}

/* Does the chunk, as it is, have room for @value at @at? */
static bool has_room(uintptr_t chunk, unsigned at, uint64_t value)
{
	struct few *few = array_of(chunk);

	switch (form_of(chunk)) {
	case FORM_8: return value <= UINT8_MAX;
	case FORM_16: return value <= UINT16_MAX;
	case FORM_64: return true;
	case FORM_LIST:
		return value <= UINT16_MAX && (few->n < LIST_MAX || few_find(few, at));
	case FORM_NONE: break;
	}
	return false;
}

/* The form that @from becomes when it lacks the room for @value. */
static enum form larger_form(uintptr_t from, uint64_t value)
{
	const struct few *few = array_of(from);
	uint64_t most = value;

	if (form_of(from) == FORM_NONE && value <= UINT16_MAX)
		return FORM_LIST;
	if (form_of(from) == FORM_LIST)
		for (unsigned i = 0; i < few->n; i++)
			most = MAX(most, (uint64_t)few->value[i]);
	return most <= UINT8_MAX ? FORM_8 : most <= UINT16_MAX ? FORM_16 : FORM_64;
}

static int grow(struct counts *c, uint64_t i, uint64_t value)
{
	uintptr_t from = c->chunks[i], to;
	enum form form = larger_form(from, value);
	struct few *few = array_of(from);
	void *array;

	if (c->bytes + form_bytes(form) > c->limit)
		return -ENOMEM;
	array = calloc(1, form_bytes(form));
	if (!array)
		return -ENOMEM;
	to = (uintptr_t)array | form;
	if (form_of(from) == FORM_LIST)
		for (unsigned n = 0; n < few->n; n++)
			array_set(to, few->at[n], few->value[n]);
	else if (form_of(from) != FORM_NONE)
		for (unsigned n = 0; n < COUNTS_CHUNK; n++)
			array_set(to, n, value_at(from, n));
	c->bytes += form_bytes(form) - form_bytes(form_of(from));
	free(array_of(from));
	c->chunks[i] = to;
	return 0;
}

static int set(struct counts *c, uint64_t k, uint64_t value)
{
	uint64_t i = k >> COUNTS_CHUNK_BITS;
	unsigned at = k & (COUNTS_CHUNK - 1);
	struct few *few;
	uint16_t *v;

	if (!has_room(c->chunks[i], at, value) && grow(c, i, value))
		return -ENOMEM;
	if (form_of(c->chunks[i]) != FORM_LIST) {
		array_set(c->chunks[i], at, value);
		return 0;
	}
	few = array_of(c->chunks[i]);
	v = few_find(few, at);
	if (!v) {
		few->at[few->n] = (uint16_t)at;
		v = &few->value[few->n++];
	}
	*v = (uint16_t)value;
	return 0;
}

int counts_add(struct counts *c, uint64_t k, uint64_t n, unsigned marks, uint64_t *ret_over)
{
	uint64_t value = counts_value(c, k), count = value >> COUNTS_MARK_BITS;
	uint64_t more = MIN(n, c->max - count);
	int rc = set(c, k, ((count + more) << COUNTS_MARK_BITS) | (value & 15) | marks);

	if (!rc)
		*ret_over = n - more;
	return rc;
}

int counts_mark(struct counts *c, uint64_t k, unsigned marks)
{
	return set(c, k, counts_value(c, k) | marks);
}
