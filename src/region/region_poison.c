/* SPDX-License-Identifier: MIT */
/* region/region_poison.c - what is done about misuse: reports, and poison mode.
 *
 * In poison mode all of a free block but its tag has one pattern. Where blocks merge, the tags that
 * end up inside are written over; where one is split, its tag moves on and the part that is taken
 * is compared. So a write to freed memory is found when that memory is allocated again, or by
 * byre_region_check(); only what the tag itself took cannot tell (a write there damages links,
 * which shows as such). */
#include "region/region_impl.h"

/* ---- reports ---- */

static void report(struct byre_region *r, enum byre_region_fault_kind kind, const char *what,
		   const void *where)
{
	struct byre_region_fault fault = { kind, what, where };

	if (r->hooks.report)
		r->hooks.report(r->hooks.cookie, &fault);
}

void *region_report_damage(struct byre_region *r)
{
	const struct tlsf_tag *where = r->tlsf.damage;

	r->tlsf.damage = NULL;
	if (where)
		report(r, BYRE_REGION_DAMAGED, "a block's record is damaged", where);
	return NULL;
}

/* Is there a tag from @first on, in a pool of @granules, of a free block that has @t in it? */
static bool in_free_block(struct byre_region *r, struct tlsf_tag *first, size_t granules,
			  const struct tlsf_tag *t)
{
	struct tlsf_shape s = shape(r->table);
	uint32_t left = tlsf_word((uint32_t)granules);

	while (left && first <= t) {
		uint32_t size = tlsf_size(first);

		if (size < s.least || size > left)
			return false;
		if (t < tlsf_after(s, first, size))
			return !(first->size & TLSF_USED);
		left -= size;
		first = tlsf_after(s, first, size);
	}
	return false;
}

void *region_report_pointer(struct byre_region *r, const void *p)
{
	struct tlsf_tag *t = region_tag(r, r->table, p);
	bool is_free;

	if (!p)
		return NULL;
	is_free = r->table && in_free_block(r, r->table, r->total, t);
	for (struct pool *pool = r->pools; pool && !is_free; pool = pool->next)
		is_free = in_free_block(r, POOL_TAG(pool), pool->granules, t);
	if (is_free)
		report(r, BYRE_REGION_DOUBLE_FREE, "this memory is free already", p);
	else
		report(r, BYRE_REGION_BAD_POINTER,
		       "this is no block, or what lies before it was overwritten", p);
	return NULL;
}

/* ---- bytes ---- */

void region_fill(void *p, size_t len, unsigned char byte)
{
	unsigned char *b = p;

	for (size_t i = 0; i < len; i++)
		b[i] = byte;
}

const void *region_find_other(const void *p, size_t len, unsigned char byte)
{
	const unsigned char *b = p;

	for (size_t i = 0; i < len; i++) {
		if (b[i] != byte)
			return &b[i];
	}
	return NULL;
}

void region_copy(void *dst, const void *src, size_t len)
{
	uintptr_t *to = dst;
	const uintptr_t *from = src;
	size_t words = len / sizeof(*to);

	for (size_t i = 0; i < words; i++)      /* both are aligned to the granule */
		to[i] = from[i];
	for (size_t i = words * sizeof(*to); i < len; i++)
		((char *)dst)[i] = ((const char *)src)[i];
}

/* ---- poison ---- */

void region_poison_take(struct byre_region *r, bool table, struct tlsf_tag *t, size_t keep)
{
	size_t len = region_usable(r, table, tlsf_size(t));
	size_t tag = sizeof(*t) - TLSF_USED_BYTES;
	/* A block that grew has the tag of what it took in where its old end was. */
	size_t known = table ? keep : keep + (keep ? sizeof(*t) : tag);
	char *p = region_object(r, table, t);
	const void *other;

	if (known < len) {
		other = region_find_other(p + known, len - known, REGION_POISON_FREE);
		if (other)
			report(r, BYRE_REGION_WRITTEN, "freed memory was written to", other);
	}
	region_fill(p + keep, len - keep, REGION_POISON_NEW);
}

void region_poison_free(struct byre_region *r, bool table, const struct tlsf_tag *free,
			const struct tlsf_tag *t, uint32_t size)
{
	size_t body_len, tag = table ? 0 : sizeof(*t);
	char *body = region_body(r, table, free, &body_len), *end = body + body_len;
	char *from = region_object(r, table, t) - (table ? 0 : TLSF_USED_BYTES);
	/* If what follows was free, its tag is inside now. */
	char *to = from + ((size_t)(size >> TLSF_FLAGS) << r->granule_log2) + tag;

	from = from < body ? body : from;
	to = to > end ? end : to;
	if (from < to)
		region_fill(from, (size_t)(to - from), REGION_POISON_FREE);
}
