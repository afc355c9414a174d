/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/image.h"

/* A wish for a slice, on the stack of the fiber that waits for it. While a load is under way it
 * is in the list of that load's wishes; it goes over to the home loop and back by `task`. */
struct wish {
	struct task task;
	struct qcow2 *q;
	uint64_t off, len;
	struct loop *loop;              /* where the fiber runs */
	struct fiber *fiber;
	int res;
	struct ext ext;                 /* the answer, if res is 0 */
	bool is_done;
	struct list_node link;
};

/* One load; the home loop's. */
struct load {
	struct task task;
	struct qcow2 *q;
	uint64_t key;                   /* 0: unused */
	struct list_node wishes;
	uint8_t *buf;                   /* CACHE_SLICE_BYTES_MAX, aligned */
};

struct loads {
	struct load load[LOADS_MAX];
	struct list_node waiting;       /* wishes that found no free load */
	uint8_t *bufs;
};

struct loads *loads_new(void)
{
	struct loads *ls = calloc(1, sizeof(*ls));

	if (!ls)
		return NULL;
	ls->bufs = aligned_alloc(CACHE_SLICE_BYTES_MAX, (size_t)LOADS_MAX * CACHE_SLICE_BYTES_MAX);
	if (!ls->bufs) {
		free(ls);
		return NULL;
	}
	list_init(&ls->waiting);
	for (unsigned i = 0; i < LOADS_MAX; i++) {
		list_init(&ls->load[i].wishes);
		ls->load[i].buf = ls->bufs + (size_t)i * CACHE_SLICE_BYTES_MAX;
	}
	return ls;
}

void loads_free(struct loads *ls)
{
	free(ls->bufs);
	free(ls);
}

/* The L1 entry @index, read in pages that stay while there is room for them. */
static int l1_entry_wait(struct qcow2 *q, uint64_t index, uint64_t *ret)
{
	uint64_t number = index / (L1_PAGE_BYTES / 8);
	struct l1_page *page = &q->l1[number % L1_PAGES];
	uint8_t *bytes;
	int rc;

	if (page->number_plus_1 != number + 1) {
		/* Two loads may want the slot at a time: each fills memory of its own. */
		bytes = aligned_alloc(L1_PAGE_BYTES, L1_PAGE_BYTES);
		if (!bytes)
			return -ENOMEM;
		rc = chan_read_wait(q->node.home_chan->child[CHILD_FILE],
				    q->l1_off + number * L1_PAGE_BYTES, bytes, L1_PAGE_BYTES);
		if (rc) {
			free(bytes);
			return rc;
		}
		free(page->bytes);
		page->bytes = bytes;
		page->number_plus_1 = number + 1;
	}
	*ret = be64_load(page->bytes + index % (L1_PAGE_BYTES / 8) * 8);
	return 0;
}

static bool is_zero(const uint8_t *buf, size_t len)
{
	return !buf[0] && !memcmp(buf, buf + 1, len - 1);
}

/* Specification, "Extended L2 Entries": an unallocated entry has an empty bitmap too, so a slice of
 * zero bytes maps nothing in either format. With an external data file that holds as well: a
 * cluster at offset 0 has COPIED set. */
static int load_slice_wait(struct qcow2 *q, uint64_t slice, uint8_t *buf)
{
	uint64_t off = slice << q->slice_shift;
	uint64_t per_table = qcow2_l2_coverage(&q->header), index = off / per_table;
	uint64_t entry = 0, table;
	int rc;

	if (index < q->l1_entries) {
		rc = l1_entry_wait(q, index, &entry);
		if (rc)
			return rc;
	}
	table = entry & QCOW2_OFFSET_MASK;
	if (!table) {
		cache_insert(q->cache, cache_key(q->layer, slice), NULL);
		return 0;
	}
	if (!is_aligned(table, qcow2_cluster_size(&q->header)))
		return qcow2_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#llx)",
				     (unsigned long long)table, (unsigned long long)index);
	rc = chan_read_wait(q->node.home_chan->child[CHILD_FILE],
			    table + (off % per_table >> q->slice_shift) * q->slice_bytes, buf,
			    q->slice_bytes);
	if (rc)
		return rc;
	/* A slice may be smaller than the cache's slots; the rest of the slot is never looked at.
	 * */
	memset(buf + q->slice_bytes, 0, CACHE_SLICE_BYTES_MAX - q->slice_bytes);
	cache_insert(q->cache, cache_key(q->layer, slice),
		     is_zero(buf, q->slice_bytes) ? NULL : buf);
	return 0;
}

static void wish_back(struct task *t)
{
	struct wish *w = container_of(t, struct wish, task);

	w->is_done = true;
	fiber_wake(w->fiber);
}

/* On the home loop, which has not given way since the slice was found or put in the cache. */
static void wish_answer(struct wish *w, int res)
{
	w->res = res;
	if (!res)
		w->ext = map_run(w->q, w->off, w->len);
	assert(res || w->ext.kind != EXT_MISS);
	w->task.fn = wish_back;
	if (loop_is_current(w->loop))
		loop_defer(w->loop, &w->task);
	else
		loop_post(w->loop, &w->task);
}

static void wish_start(struct task *t);

static void load_fiber(struct task *t)
{
	struct load *ld = container_of(t, struct load, task);
	struct qcow2 *q = ld->q;
	struct qcow2_cache *c = q->cache;
	uint64_t slice = ld->key & ((1ULL << CACHE_LAYER_SHIFT) - 1);
	int res = load_slice_wait(q, slice, ld->buf);
	struct list_node *n;

	while ((n = list_pop(&ld->wishes)))
		wish_answer(list_entry(n, struct wish, link), res);
	ld->key = 0;
	/* Those that waited for a free load: until one takes this. */
	while (!ld->key && (n = list_pop(&c->loads->waiting)))
		wish_start(&list_entry(n, struct wish, link)->task);
}

/* On the home loop: joins, starts, or queues. */
static void wish_start(struct task *t)
{
	struct wish *w = container_of(t, struct wish, task);
	struct qcow2_cache *c = w->q->cache;
	uint64_t key = cache_key(w->q->layer, w->off >> w->q->slice_shift);
	struct load *vacant = NULL;
	bool is_empty;

	if (cache_find(c, key, &is_empty) >= 0) {       /* loaded while the wish was on its way */
		wish_answer(w, 0);
		return;
	}
	for (unsigned i = 0; i < LOADS_MAX; i++) {
		struct load *ld = &c->loads->load[i];

		if (ld->key == key) {
			list_add_tail(&ld->wishes, &w->link);
			return;
		}
		if (!ld->key && !vacant)
			vacant = ld;
	}
	if (!vacant) {
		list_add_tail(&c->loads->waiting, &w->link);
		return;
	}
	vacant->key = key;
	vacant->q = w->q;
	list_add_tail(&vacant->wishes, &w->link);
	vacant->task.fn = load_fiber;
	fiber_start(c->home, &vacant->task);
}

int load_wait(struct qcow2 *q, uint64_t off, uint64_t len, struct ext *ret)
{
	struct wish w = {
		.task.fn = wish_start,
		.q = q,
		.off = off,
		.len = len,
		.loop = loop_current(),
		.fiber = fiber_self(),
	};

	if (loop_is_current(q->cache->home))
		wish_start(&w.task);
	else
		loop_post(q->cache->home, &w.task);
	while (!w.is_done)
		fiber_park();
	if (!w.res)
		*ret = w.ext;
	return w.res;
}
