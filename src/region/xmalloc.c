/* SPDX-License-Identifier: MIT */
/* region/xmalloc.c - a heap of a region for small objects and runs of whole pages for others.
 *
 * A *run* is what a request gets that is larger than what fits into one page of the region's, or
 * aligned to a page: whole pages, with no header. Its record tells xfree() what it is; records are
 * found by the address of the run, in a tree.
 *
 * The tree: each node holds a record, and the path to it follows the bits of its key from the top.
 * A key is the page's number multiplied by an odd constant, which is one to one: so no two runs
 * have the same path, none is deeper than a word has bits, and usually a path is about as long as
 * that of a balanced tree. There is no balancing, and nothing that takes longer at times.
 *
 * Where a run does not fill its last page, the rest of the page becomes a pool of the region, to be
 * given back when it is empty; and the run's record is the first block of that pool. So the pool
 * lives as long as the run does; when that ends and its record is freed, the region itself finds
 * out whether anything is left there: if not, the last page goes with the others, else it follows
 * later. Other records are objects like any other.
 *
 * Pages come and go outside of the lock, of which the region knows nothing: it gets pools from here
 * (past byre_region_add(), which looks at all it has), and what it gives up waits in @left.
 *
 * Invariants:
 *	R21  a run's pages are as many as its size fills, and no two runs share one;
 *	R22  the rest of a last page is the region's, if an object of REST_OBJECT bytes fits into
 *	    it;
 *	R23  a page that nobody uses any more is given back by the call that frees its last
 *	    object. */
#include <byre/xmalloc.h>

#include "region/region_impl.h"

enum {
	PAGE_DEFAULT = 4096,
	PAGE_MIN = 1024,
	KEY_BITS = 8 * sizeof(uintptr_t),
	REST_OBJECT = 64,               /* a rest is worth it if it takes an object of this size */
};

/* Odd, and with its bits well mixed: that of Fibonacci hashing. */
#define KEY_FACTOR ((uintptr_t)0x9e3779b97f4a7c15ULL)

/* A run's record. It may lie behind what somebody writes past the end of a run. */
struct run {
	struct run *child[2];
	uintptr_t start;
	size_t usable;                  /* bytes; what the run has of its pages */
	uintptr_t sum;                  /* run_sum() */
};

/* Pages to be given back once the lock is released. */
struct pages {
	uintptr_t start;
	size_t len;
};

struct byre_xheap {
	struct byre_region *region;
	struct byre_xheap_hooks hooks;
	size_t page, grow;
	size_t small_max;               /* the largest request that is never more than a page */
	size_t rest_min;                /* R22 */
	size_t own;                     /* bytes of the pages that hold this */
	size_t held, in_runs;           /* bytes of all pages; of those of runs */
	struct run *root;
	unsigned left_count;
	struct pages left[2];
};

static size_t round_up(size_t n, size_t unit)
{
	return (n + unit - 1) & ~(unit - 1);
}

/* Whole words. */
static void zero(void *p, size_t len)
{
	size_t *word = p;

	for (size_t n = (len + sizeof(*word) - 1) / sizeof(*word); n; n--)
		*word++ = 0;
}

/* ---- lock and pages ---- */

static void heap_lock(struct byre_xheap *h)
{
	if (h->hooks.lock)
		h->hooks.lock(h->hooks.cookie);
}

static void put_pages(struct byre_xheap *h, struct pages p)
{
	if (p.len)
		h->hooks.put_pages(h->hooks.cookie, (void *)p.start, p.len);
}

/* Releases the lock and gives back what came free under it. */
static void heap_unlock(struct byre_xheap *h)
{
	struct pages left[2] = { h->left[0], h->left[1] };
	unsigned n = h->left_count;

	h->left_count = 0;
	for (unsigned i = 0; i < n; i++)
		h->held -= left[i].len;
	if (h->hooks.unlock)
		h->hooks.unlock(h->hooks.cookie);
	for (unsigned i = 0; i < n; i++)
		put_pages(h, left[i]);
}

/* Under the lock. The calls here leave two pieces at most: a run's pages and a pool. */
static void leave(struct byre_xheap *h, uintptr_t start, size_t len)
{
	h->left[h->left_count++] = (struct pages){ start, len };
}

/* The region gives up a pool: whole pages, or the rest of a run's last page. */
static void pool_emptied(void *cookie, void *mem, size_t len)
{
	struct byre_xheap *h = cookie;
	uintptr_t start = (uintptr_t)mem & ~(uintptr_t)(h->page - 1);

	leave(h, start, (uintptr_t)mem + len - start);
}

/* Without the lock: @len bytes of whole pages, aligned to @align. */
static uintptr_t get_pages(struct byre_xheap *h, size_t len, size_t align)
{
	size_t more = align > h->page ? align - h->page : 0;
	uintptr_t start = (uintptr_t)h->hooks.get_pages(h->hooks.cookie, len + more), at;

	if (!start || !more)
		return start;
	at = (start + align - 1) & ~(uintptr_t)(align - 1);
	put_pages(h, (struct pages){ start, at - start });
	put_pages(h, (struct pages){ at + len, start + more - at });
	return at;
}

/* ---- the tree of runs ---- */

/* Where the run that starts at @start hangs, or would. */
static struct run **tree_find(struct byre_xheap *h, uintptr_t start)
{
	uintptr_t key = start / h->page * KEY_FACTOR;
	struct run **link = &h->root;

	while (*link && (*link)->start != start) {
		link = &(*link)->child[key >> (KEY_BITS - 1)];
		key <<= 1;
	}
	return link;
}

static void tree_add(struct byre_xheap *h, struct run *r)
{
	struct run **link = tree_find(h, r->start);

	r->child[0] = r->child[1] = NULL;
	*link = r;
}

/* Takes what hangs at @link away; a leaf below it, if there is one, takes its place. */
static void tree_del(struct run **link)
{
	struct run *r = *link, **leaf = link, *heir;

	while ((*leaf)->child[0] || (*leaf)->child[1])
		leaf = &(*leaf)->child[!(*leaf)->child[0]];
	heir = *leaf;
	*leaf = NULL;
	if (heir == r)
		return;
	heir->child[0] = r->child[0];
	heir->child[1] = r->child[1];
	*link = heir;
}

/* The run at @p, or NULL. Only what is aligned to a page can be one. */
static struct run **run_at(struct byre_xheap *h, const void *p)
{
	struct run **link;

	if ((uintptr_t)p & (h->page - 1))
		return NULL;
	link = tree_find(h, (uintptr_t)p);
	return *link ? link : NULL;
}

/* ---- small objects ---- */

static void *small_alloc(struct byre_xheap *h, size_t size, size_t align)
{
	struct pool *pool;
	uintptr_t pages;
	void *p;

	heap_lock(h);
	p = byre_region_alloc(h->region, size, align);
	heap_unlock(h);
	if (p)
		return p;
	pages = get_pages(h, h->grow, 0);
	if (!pages)
		return NULL;
	heap_lock(h);
	h->held += h->grow;
	pool = region_pool_add(h->region, (void *)pages, h->grow, POOL_GIVE_BACK);
	if (pool)
		p = byre_region_alloc(h->region, size, align);
	if (!p && (!pool || region_pool_remove(h->region, pool)))
		leave(h, pages, h->grow);
	heap_unlock(h);
	return p;
}

/* ---- runs ---- */

/* Is a request one for pages of its own? An aligned one may have to leave a gap before it. */
static bool wants_run(const struct byre_xheap *h, size_t size, size_t align)
{
	size_t gap = align > BYRE_REGION_GRANULE ? align + 2 * BYRE_REGION_GRANULE : 0;

	return size > h->small_max || gap > h->small_max - size;
}

static uintptr_t run_sum(const struct run *r)
{
	return ((r->start * KEY_FACTOR) ^ r->usable ^ (uintptr_t)r) * KEY_FACTOR;
}

static size_t run_bytes(const struct byre_xheap *h, const struct run *r)
{
	return round_up(r->usable, h->page);
}

/* Gives the rest of a last page to the region. Returns the pool's first block, for the record. */
static struct run *rest_add(struct byre_xheap *h, uintptr_t rest, size_t len)
{
	struct pool *pool = NULL;
	struct run *r;
	size_t all;

	if (len >= h->rest_min)
		pool = region_pool_add(h->region, (void *)rest, len, POOL_GIVE_BACK);
	if (!pool)
		return NULL;
	/* It is one block, the last that became free: a request of its size gets it. */
	all = ((size_t)pool->granules << TLSF_GRANULE_LOG2) - byre_region_overhead(h->region);
	r = byre_region_alloc(h->region, all, 0);
	if (r && (uintptr_t)r - rest < len) {
		byre_region_resize_in_place(h->region, r, sizeof(*r));
		return r;
	}
	byre_region_free(h->region, r);
	region_pool_remove(h->region, pool);
	return NULL;
}

static void *run_alloc(struct byre_xheap *h, size_t size, size_t align)
{
	size_t usable = round_up(size, BYRE_REGION_GRANULE), len = round_up(usable, h->page);
	uintptr_t start = get_pages(h, len, align);
	struct run *r;

	if (!start)
		return NULL;
	heap_lock(h);
	r = rest_add(h, start + usable, len - usable);
	heap_unlock(h);
	if (!r) {
		usable = len;
		r = small_alloc(h, sizeof(*r), 0);
	}
	if (!r) {
		put_pages(h, (struct pages){ start, len });
		return NULL;
	}
	heap_lock(h);
	h->held += len;
	h->in_runs += len;
	r->start = start;
	r->usable = usable;
	r->sum = run_sum(r);
	tree_add(h, r);
	heap_unlock(h);
	return (void *)start;
}

static void report(void *cookie, const struct byre_region_fault *fault)
{
	struct byre_xheap *h = cookie;

	if (h->hooks.report)
		h->hooks.report(h->hooks.cookie, fault);
}

static const char record_damaged[] = "the record of a run of pages is wrong";

/* Under the lock. */
static void run_free(struct byre_xheap *h, struct run **link)
{
	struct run *r = *link;
	uintptr_t start = r->start;
	size_t len = run_bytes(h, r);
	bool is_inside = (uintptr_t)r - start < len;

	if (r->sum != run_sum(r)) {
		report(h, &(struct byre_region_fault){ BYRE_REGION_DAMAGED, record_damaged, r });
		return;
	}
	tree_del(link);
	h->in_runs -= len;
	byre_region_free(h->region, r);
	if (is_inside && h->left_count)
		h->left_count = 0;      /* the last page is free as well: all go together */
	else if (is_inside)
		len -= h->page;
	if (len)
		leave(h, start, len);
}

/* ---- objects ---- */

void *_xmalloc(size_t size, size_t align)
{
	struct byre_xheap *h = byre_xheap_current();

	if (size > SIZE_MAX / 4 || align > SIZE_MAX / 4 || (align & (align - 1)))
		return NULL;
	size += !size;
	return wants_run(h, size, align) ? run_alloc(h, size, align) : small_alloc(h, size, align);
}

void *_xzalloc(size_t size, size_t align)
{
	void *p = _xmalloc(size, align);

	if (p)
		zero(p, size);
	return p;
}

void xfree(void *p)
{
	struct byre_xheap *h = byre_xheap_current();
	struct run **link;

	if (!p)
		return;
	heap_lock(h);
	link = run_at(h, p);
	if (link)
		run_free(h, link);
	else
		byre_region_free(h->region, p);
	heap_unlock(h);
}

/* Can @p stay where it is? Says in @have how many bytes it has had so far. */
static bool resize_in_place(struct byre_xheap *h, void *p, size_t size, size_t align, size_t *have)
{
	bool is_aligned = !align || !((uintptr_t)p & (align - 1)), run = wants_run(h, size, align);
	struct run **link = run_at(h, p);

	if (link) {
		*have = (*link)->usable;
		return run && is_aligned && size <= *have &&
		       round_up(size, h->page) == run_bytes(h, *link);
	}
	*have = byre_region_usable(h->region, p);
	return !run && is_aligned && byre_region_resize_in_place(h->region, p, size);
}

void *_xrealloc(void *p, size_t size, size_t align)
{
	struct byre_xheap *h = byre_xheap_current();
	size_t have = 0;
	bool stays;
	void *moved;

	if (!p)
		return _xmalloc(size, align);
	if (size > SIZE_MAX / 4 || align > SIZE_MAX / 4 || (align & (align - 1)))
		return NULL;
	heap_lock(h);
	stays = resize_in_place(h, p, size + !size, align, &have);
	heap_unlock(h);
	if (stays || !have)
		return stays ? p : NULL;
	moved = _xmalloc(size, align);
	if (!moved)
		return NULL;
	region_copy(moved, p, size < have ? size : have);
	xfree(p);
	return moved;
}

/* @n elements of @size bytes, or more than there can be. */
static size_t array_size(size_t size, size_t n)
{
	size_t bytes;

	return __builtin_mul_overflow(size, n, &bytes) ? SIZE_MAX : bytes;
}

void *_xmalloc_array(size_t size, size_t align, size_t n)
{
	return _xmalloc(array_size(size, n), align);
}

void *_xzalloc_array(size_t size, size_t align, size_t n)
{
	return _xzalloc(array_size(size, n), align);
}

void *_xrealloc_array(void *p, size_t size, size_t align, size_t n)
{
	return _xrealloc(p, array_size(size, n), align);
}

void *_xmemdup(const void *from, size_t size, size_t align)
{
	void *p = _xmalloc(size, align);

	if (p)
		region_copy(p, from, size);
	return p;
}

/* ---- the heap ---- */

struct byre_xheap *byre_xheap_open(const struct byre_xheap_config *config)
{
	size_t page = config->page ? config->page : PAGE_DEFAULT;
	size_t grow = config->grow ? config->grow : page;
	size_t head = round_up(sizeof(struct byre_xheap), BYRE_REGION_GRANULE);
	struct byre_region_config region;
	size_t pool, own;
	struct byre_xheap *h;

	/* Initializers and assignments of large structs may become calls of a C library. */
	zero(&region, sizeof(region));
	region.page = page;
	region.pool_max = grow;
	region.flags = config->flags;
	region.hooks.put_pages = pool_emptied;
	region.hooks.report = report;
	if ((page & (page - 1)) || page < PAGE_MIN || grow & (page - 1) ||
	    !byre_region_records(&region, 0))
		return NULL;
	own = round_up(head + byre_region_records(&region, 0), page);
	h = config->hooks.get_pages(config->hooks.cookie, own);
	if (!h)
		return NULL;
	zero(h, head);
	region.hooks.cookie = h;
	region_copy(&h->hooks, &config->hooks, sizeof(h->hooks));
	h->page = page;
	h->grow = grow;
	h->own = h->held = own;
	h->region = byre_region_init((char *)h + head, own - head, &region);
	if (!h->region) {
		config->hooks.put_pages(config->hooks.cookie, h, own);
		return NULL;
	}
	pool = byre_region_pool_overhead(h->region);
	h->small_max = ((page - pool) & ~(size_t)(BYRE_REGION_GRANULE - 1)) -
		       byre_region_overhead(h->region);
	h->rest_min = pool + 2 * byre_region_overhead(h->region) + sizeof(struct run) + REST_OBJECT;
	return h;
}

bool byre_xheap_close(struct byre_xheap *h)
{
	struct byre_region_stats stats;

	byre_region_stats(h->region, &stats);
	if (stats.blocks)               /* runs have records among them */
		return false;
	byre_region_fini(h->region);
	h->hooks.put_pages(h->hooks.cookie, h, h->own);
	return true;
}

void byre_xheap_stats(struct byre_xheap *h, struct byre_xheap_stats *ret)
{
	heap_lock(h);
	ret->pages = h->held;
	ret->runs = h->in_runs;
	byre_region_stats(h->region, &ret->small);
	heap_unlock(h);
}

struct check {
	struct byre_xheap *heap;
	size_t runs;
	const struct run *bad;
};

/* @r hangs where the first @depth bits of @path lead. */
static void check_run(struct check *c, const struct run *r, uintptr_t path, unsigned depth)
{
	struct byre_xheap *h = c->heap;
	uintptr_t key = r->start / h->page * KEY_FACTOR;

	if (r->sum != run_sum(r) || (depth && (key ^ path) >> (KEY_BITS - depth))) {
		c->bad = r;
		return;
	}
	c->runs += run_bytes(h, r);
	for (unsigned i = 0; i < 2 && !c->bad; i++) {
		if (r->child[i] && depth == KEY_BITS)
			c->bad = r;
		else if (r->child[i])
			check_run(c, r->child[i],
				  path | (uintptr_t)i << (KEY_BITS - 1 - depth), depth + 1);
	}
}

bool byre_xheap_check(struct byre_xheap *h, struct byre_region_fault *ret)
{
	struct byre_region_fault fault = { .kind = BYRE_REGION_DAMAGED };
	struct check c = { .heap = h };
	bool is_good;

	heap_lock(h);
	is_good = byre_region_check(h->region, &fault);
	if (is_good && h->root)
		check_run(&c, h->root, 0, 0);
	if (c.bad || (is_good && c.runs != h->in_runs)) {
		fault.what = c.bad ? record_damaged :
			     "the count of the runs' pages is wrong";
		fault.where = c.bad ? (const void *)c.bad : h;
		is_good = false;
	}
	heap_unlock(h);
	if (!is_good && ret)
		*ret = fault;
	return is_good;
}
