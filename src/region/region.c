/* SPDX-License-Identifier: MIT */
/* region/region.c - where a region's memory comes from and goes to: init, pools, pages.
 * region_impl.h has the design. */
#include "region/region_impl.h"

_Static_assert(sizeof(struct pool) % BYRE_REGION_GRANULE == TLSF_USED_BYTES, "objects are aligned");
_Static_assert((int)BYRE_REGION_HEADER == TLSF_USED_BYTES, "the overhead that is told");
_Static_assert(BYRE_REGION_GRANULE == 1 << TLSF_GRANULE_LOG2, "one granule");

enum { PAGE_DEFAULT = 4096, TABLE_GRANULE_MIN = 64 };

/* ---- sums ---- */

static uintptr_t sum_words(const uintptr_t *w, size_t n, uintptr_t sum)
{
	for (size_t i = 0; i < n; i++)          /* each step is one to one: no bit gets lost */
		sum = ((sum ^ w[i]) + 1) * (uintptr_t)0x9e3779b97f4a7c15ULL;
	return sum;
}

uintptr_t region_sum(const struct byre_region *r)
{
	const uintptr_t core[] = { r->tlsf.lo, r->tlsf.hi, r->tlsf.granules, r->tlsf.size_max,
				   r->tlsf.list_end };
	size_t len = offsetof(struct byre_region, tlsf) - sizeof(r->sum);

	return sum_words(core, ARRAY_SIZE(core),
			 sum_words(&r->sum + 1, len / sizeof(uintptr_t), 1));
}

uintptr_t region_hooks_sum(const struct byre_region *r)
{
	return sum_words((const uintptr_t *)&r->hooks, sizeof(r->hooks) / sizeof(uintptr_t), 2);
}

uintptr_t region_pool_sum(const struct pool *pool)
{
	return sum_words(&pool->sum + 1, sizeof(*pool) / sizeof(uintptr_t) - 1,
			 (uintptr_t)pool);
}

static void seal(struct byre_region *r)
{
	r->plain_end = r->flags ? 0 : r->request_max + 1;
	r->plain_granules = r->flags ? 0 : r->tlsf.granules;
	r->sum = region_sum(r);
}

static void seal_pool(struct pool *pool)
{
	if (pool)
		pool->sum = region_pool_sum(pool);
}

/* ---- pools ---- */

void *region_pool_mem(struct pool *pool)
{
	return (char *)pool - (pool->flags >> POOL_LEAD_SHIFT);
}

struct pool *region_pool_add(struct byre_region *r, void *mem, size_t len, uint32_t flags)
{
	size_t lead = -(uintptr_t)mem & (BYRE_REGION_GRANULE - 1);
	size_t least = POOL_OVERHEAD + tlsf_distance(TLSF_INLINE, TLSF_INLINE.least), granules;
	struct pool *pool = (struct pool *)(void *)((char *)mem + lead);

	if (len < lead + least || (uintptr_t)mem + len < (uintptr_t)mem)
		return NULL;
	granules = (len - lead - POOL_OVERHEAD) >> TLSF_GRANULE_LOG2;
	if (granules > r->tlsf.size_max >> TLSF_FLAGS)
		return NULL;
	pool->next = r->pools;
	pool->prev = NULL;
	pool->len = len;
	pool->granules = (uint32_t)granules;
	pool->flags = flags | (uint32_t)lead << POOL_LEAD_SHIFT;
	seal_pool(pool);
	if (pool->next)
		pool->next->prev = pool;
	seal_pool(pool->next);
	r->pools = pool;
	r->npools++;
	r->total += granules;
	r->held += len;
	if (r->flags & BYRE_REGION_POISON)
		region_fill(POOL_TAG(pool), granules << TLSF_GRANULE_LOG2, REGION_POISON_FREE);
	tlsf_add(&r->tlsf, TLSF_INLINE, POOL_TAG(pool), (uint32_t)granules);
	seal(r);
	return pool;
}

static void forget_pool(struct byre_region *r, struct pool *pool)
{
	if (pool->prev)
		pool->prev->next = pool->next;
	else
		r->pools = pool->next;
	if (pool->next)
		pool->next->prev = pool->prev;
	seal_pool(pool->prev);
	seal_pool(pool->next);
	r->npools--;
	r->total -= pool->granules;
	r->held -= pool->len;
	if (!r->npools)
		r->tlsf.granules = 0;
	seal(r);
}

bool region_pool_remove(struct byre_region *r, struct pool *pool)
{
	if (region_pool_sum(pool) != pool->sum)
		return tlsf_damaged(&r->tlsf, POOL_TAG(pool));
	if (tlsf_granules(POOL_TAG(pool)) != pool->granules ||
	    !tlsf_remove(&r->tlsf, TLSF_INLINE, POOL_TAG(pool)))
		return false;
	forget_pool(r, pool);
	return true;
}

/* ---- init ---- */

struct plan {
	size_t page;
	unsigned granule_log2;
	uint32_t granules_max;          /* of a block */
	size_t table_off;               /* of the records; 0: no table */
	size_t records;
};

static const struct byre_region_config defaults;

/* How many granules the largest block can have. */
static size_t plan_granules_max(const struct byre_region_config *c, size_t len,
				unsigned granule_log2)
{
	size_t bytes = c->pool_max ? c->pool_max : len;

	if (!c->pool_max && c->hooks.get_pages)
		return MIN((size_t)TLSF_GRANULES_MAX, SIZE_MAX >> granule_log2);
	return MAX(MIN(bytes >> granule_log2, (size_t)TLSF_GRANULES_MAX), (size_t)1);
}

static bool make_plan(const struct byre_region_config *c, size_t len, struct plan *ret)
{
	size_t granule = c->granule ? c->granule : BYRE_REGION_GRANULE;
	bool table = granule != BYRE_REGION_GRANULE;
	size_t heads;

	ret->page = c->page ? c->page : PAGE_DEFAULT;
	if (!is_pow2(granule) || (table && granule < TABLE_GRANULE_MIN) || !is_pow2(ret->page) ||
	    ret->page < TABLE_GRANULE_MIN || c->flags & ~(unsigned)BYRE_REGION_POISON ||
	    (table && (c->hooks.get_pages || len >> log2_floor(granule) > TLSF_GRANULES_MAX)))
		return false;
	ret->granule_log2 = log2_floor(granule);
	ret->granules_max = (uint32_t)plan_granules_max(c, len, ret->granule_log2);
	heads = offsetof(struct byre_region, tlsf) + tlsf_bytes(ret->granules_max);
	ret->table_off = 0;
	ret->records = (size_t)align_up(heads, BYRE_REGION_GRANULE);
	if (table) {
		ret->table_off = ret->records;
		ret->records += ((len >> ret->granule_log2) + 1) << TLSF_TABLE.stride_log2;
	}
	return true;
}

size_t byre_region_records(const struct byre_region_config *config, size_t len)
{
	struct plan plan;

	return make_plan(config ? config : &defaults, len, &plan) ? plan.records : 0;
}

/* One pool, of all whole granules in the memory. False if there is none. */
static bool add_table(struct byre_region *r, char *mem, size_t len, size_t table_off)
{
	size_t granule = (size_t)1 << r->granule_log2, lead = -(uintptr_t)mem & (granule - 1);
	size_t granules = len < lead ? 0 : (len - lead) >> r->granule_log2;

	if (!granules || granules > r->tlsf.size_max >> TLSF_FLAGS)
		return false;
	r->base = mem + lead;
	r->table = (struct tlsf_tag *)(void *)((char *)r + table_off);
	r->npools = 1;
	r->total = granules;
	r->held += len;
	tlsf_add(&r->tlsf, TLSF_TABLE, r->table, (uint32_t)granules);
	if (r->flags & BYRE_REGION_POISON)
		region_fill(r->base, granules << r->granule_log2, REGION_POISON_FREE);
	return true;
}

static void fill_in(struct byre_region *r, const struct byre_region_config *c,
		    const struct plan *plan)
{
	r->hooks = c->hooks;
	r->hooks_sum = region_hooks_sum(r);
	r->page = plan->page;
	r->grow = c->grow;
	r->base = NULL;
	r->table = NULL;
	r->pools = NULL;
	r->npools = 0;
	r->total = 0;
	r->held = plan->records;
	r->records_len = plan->records;
	r->granule = (size_t)1 << plan->granule_log2;
	r->granule_log2 = plan->granule_log2;
	r->flags = c->flags;
	if (c->hooks.lock || c->hooks.unlock || c->hooks.get_pages || c->hooks.put_pages)
		r->flags |= REGION_HOOKED;
	if (plan->table_off)
		r->flags |= REGION_TABLE;
	tlsf_init(&r->tlsf, plan->granules_max);
	r->request_max = region_usable(r, plan->table_off, r->tlsf.size_max);
	seal(r);
}

struct byre_region *byre_region_init(void *mem, size_t len,
				     const struct byre_region_config *config)
{
	const struct byre_region_config *c = config ? config : &defaults;
	char *records = c->records ? c->records : mem, *start = mem;
	size_t room = c->records ? c->records_len : len, lead = -(uintptr_t)records & 15;
	struct byre_region *r;
	struct plan plan;

	if (!make_plan(c, len, &plan) || !records || room < lead || room - lead < plan.records ||
	    (c->records && lead) || (uintptr_t)mem + len < (uintptr_t)mem)
		return NULL;
	r = (struct byre_region *)(void *)(records + lead);
	fill_in(r, c, &plan);
	if (!c->records) {
		start += lead + plan.records;
		len -= lead + plan.records;
	}
	if (plan.table_off) {
		if (!add_table(r, start, len, plan.table_off))
			return NULL;
		seal(r);
		return r;
	}
	if (len >> TLSF_GRANULE_LOG2 > plan.granules_max)
		return NULL;
	if (len)
		region_pool_add(r, start, len, 0);
	return r;
}

void byre_region_fini(struct byre_region *r)
{
	struct pool *next;

	for (struct pool *pool = r->pools; pool; pool = next) {
		void *mem = region_pool_mem(pool);
		size_t len = pool->len;
		bool ours = pool->flags & POOL_FROM_HOOK && r->hooks.put_pages;

		next = pool->next;
		if (ours)
			r->hooks.put_pages(r->hooks.cookie, mem, len);
	}
}

/* ---- memory ---- */

static bool touches(struct byre_region *r, const void *mem, size_t len)
{
	for (struct pool *pool = r->pools; pool; pool = pool->next) {
		uintptr_t has = (uintptr_t)region_pool_mem(pool);

		if (ranges_overlap((uintptr_t)mem, len, has, pool->len))
			return true;
	}
	return false;
}

bool byre_region_add(struct byre_region *r, void *mem, size_t len, bool give_back)
{
	bool ok;

	if (r->table || !mem)
		return false;
	region_lock(r);
	ok = !touches(r, mem, len) && region_pool_add(r, mem, len, give_back ? POOL_GIVE_BACK : 0);
	region_unlock(r);
	return ok;
}

bool byre_region_remove(struct byre_region *r, void *mem)
{
	struct pool *pool;
	bool ok;

	if (r->table)
		return false;
	region_lock(r);
	pool = r->pools;
	while (pool && region_pool_mem(pool) != mem)
		pool = pool->next;
	ok = pool && region_pool_remove(r, pool);
	region_report_damage(r);
	region_unlock(r);
	return ok;
}

size_t byre_region_pool_overhead(const struct byre_region *r)
{
	return r->table ? 0 : POOL_OVERHEAD;
}

/* ---- dropping pages ---- */

/* Drops what can be dropped of the free block @t. */
static size_t drop(struct byre_region *r, struct tlsf_tag *t)
{
	size_t len, drops;
	char *body = region_body(r, r->table, t, &len);
	uintptr_t from = (uintptr_t)align_up((uintptr_t)body, r->page);
	uintptr_t to = (uintptr_t)align_down((uintptr_t)body + len, r->page);

	drops = to > from && from >= (uintptr_t)body ? to - from : 0;
	if (drops)
		r->hooks.drop_pages(r->hooks.cookie, (void *)from, drops);
	t->size |= TLSF_CLEAN;
	tlsf_next(shape(r->table), t)->prev = t->size;
	return drops;
}

/* Drops what one list has, until @dropped is @max. */
static size_t drop_list(struct byre_region *r, size_t list, size_t dropped, size_t max)
{
	struct tlsf_tag *t = *tlsf_head(&r->tlsf, list);
	struct tlsf_shape s = shape(r->table);
	uintptr_t prev = list;

	for (; t && dropped < max; prev = (uintptr_t)t, t = t->next_free) {
		if (!tlsf_within(&r->tlsf, s, t) || t->prev_free != prev || t->size & TLSF_USED ||
		    !tlsf_joined(&r->tlsf, s, t)) {
			tlsf_damaged(&r->tlsf, t);
			region_report_damage(r);
			break;
		}
		if (!(t->size & TLSF_CLEAN))
			dropped += drop(r, t);
	}
	return dropped;
}

size_t byre_region_trim(struct byre_region *r, size_t max)
{
	size_t most = r->tlsf.size_max >> TLSF_FLAGS, dropped = 0;
	size_t granules = MAX(MIN(r->page >> r->granule_log2, most), (size_t)1);
	size_t least = tlsf_list(tlsf_word((uint32_t)granules));

	if (!r->hooks.drop_pages || r->flags & BYRE_REGION_POISON)
		return 0;
	region_lock(r);
	for (size_t list = r->tlsf.list_end; list-- > least && dropped < max;)
		dropped = drop_list(r, list, dropped, max);
	region_unlock(r);
	return dropped;
}
