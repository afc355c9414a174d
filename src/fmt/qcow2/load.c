/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/zero.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/writer.h"

/* A wish for a slice, on the stack of the fiber that waits for it. While a load is under way it
 * is in the list of that load's wishes; it goes over to the home loop and back by `task`. */
struct wish {
	struct task task;
	struct qcow2 *q;
	uint64_t off, len;
	void (*look)(void *arg);        /* finds the answer, where res is 0 */
	void *arg;
	struct loop *loop;              /* where the fiber runs */
	struct fiber *fiber;
	int res;
	uint64_t empty_end;             /* load_ahead_wait()'s; 0: not known */
	uint64_t ahead_end;             /* what follows is wanted, too, up to here; or 0 */
	bool is_done;
	bool is_stuck;                  /* W8: what is pending could not be closed */
	struct list_node link;
};

/* One load; the home loop's. */
struct load {
	struct task task;
	struct qcow2 *q;
	uint64_t key;                   /* 0: unused */
	struct list_node wishes;
	uint8_t *buf;                   /* CACHE_SLICE_BYTES_MAX, aligned */
	uint64_t ahead_end;             /* as in struct wish */
	uint64_t empty_end;             /* as in struct wish */
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

/* The same where the image is written. */
static int l1_entry_written_wait(struct writer *w, uint64_t index, uint64_t *ret)
{
	uint64_t off = w->q->l1_off + index * 8;
	struct meta_page *p;
	int rc = meta_get_wait(&w->meta, META_L1, off, &p);

	if (rc)
		return rc;
	*ret = meta_value(&w->meta, p, off, 8);
	meta_put(&w->meta, p);
	return 0;
}

/* The L1 entry @index, read in pages that stay while there is room for them. Nothing gives way
 * between its being found and the return. */
static int l1_entry_wait(struct qcow2 *q, uint64_t index, uint64_t *ret)
{
	uint64_t number = index / (L1_PAGE_BYTES / 8);
	struct l1_page *page = &q->l1[number % L1_PAGES];
	uint8_t *bytes;
	int rc;

	if (q->writer)
		return l1_entry_written_wait(q->writer, index, ret);
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

/* How far behind L1 entry @index there is no table: guest bytes. An image may claim millions of
 * entries, so none is looked at beyond the guest offset @wanted. */
static int empty_end_wait(struct qcow2 *q, uint64_t index, uint64_t wanted, uint64_t *ret)
{
	uint64_t per_table = qcow2_l2_coverage(&q->header), entry;
	uint64_t end = MIN((uint64_t)q->l1_entries, div_round_up(wanted, per_table));

	while (++index < end) {
		int rc = l1_entry_wait(q, index, &entry);

		if (rc)
			return rc;
		if (entry & QCOW2_OFFSET_MASK)
			break;
	}
	*ret = index < q->l1_entries ? index * per_table : INT64_MAX;
	return 0;
}

/* How many of the @left slices of a table are to be read at once. */
static uint64_t slices_ahead(const struct qcow2 *q, uint64_t left)
{
	uint64_t slots = (uint64_t)CACHE_WAYS << q->cache->set_bits;
	uint64_t n = MIN(left, (uint64_t)LOAD_AHEAD_BYTES / q->slice_bytes);

	return MIN(n, slots / 4);       /* a cache has at least CACHE_WAYS slots */
}

/* Is @table still what L1 names for @slice? One that is shared may have been copied while it was
 * read, and its copy changed. Never waits. */
static bool is_table_of(const struct qcow2 *q, uint64_t slice, uint64_t table)
{
	uint64_t index = (slice << q->slice_shift) / qcow2_l2_coverage(&q->header);
	uint64_t off = q->l1_off + index * 8, entry;
	struct meta *m = &q->writer->meta;
	struct meta_page *p = meta_try_get(m, off);

	if (!p)
		return false;
	entry = meta_value(m, p, off, 8);
	meta_put(m, p);
	return (entry & QCOW2_OFFSET_MASK) == table;
}

/* Reads @n slices of @table, from @at of the file, into @buf and puts them in the cache; @slice,
 * the first, last of all and in any case. -EAGAIN: it is not their table any more.
 *
 * Specification, "Extended L2 Entries": an unallocated entry has an empty bitmap too, so a slice of
 * zero bytes maps nothing in either format. With an external data file that holds as well: a
 * cluster at offset 0 has COPIED set. */
static int read_slices_wait(struct qcow2 *q, uint64_t table, uint64_t at, uint64_t slice,
			    uint64_t n, uint8_t *buf)
{
	struct qcow2_cache *c = q->cache;
	uint64_t len = n * q->slice_bytes;
	int rc = q->writer ? meta_read_wait(&q->writer->meta, at, buf, len)
			   : chan_read_wait(q->node.home_chan->child[CHILD_FILE], at, buf, len);
	bool is_empty;

	if (rc)
		return rc;
	/* Nothing below gives way. */
	if (q->writer && !is_table_of(q, slice, table))
		return -EAGAIN;
	for (uint64_t i = 0; q->writer && i < n; i++)
		pendings_mark_slice(&q->writer->pendings, (slice + i) << q->slice_shift,
				    buf + i * q->slice_bytes);
	/* A slice may be smaller than the cache's slots; the rest of the slot is never looked at,
	 * but copied. */
	memset(buf + n * q->slice_bytes, 0, CACHE_SLICE_BYTES_MAX - q->slice_bytes);
	while (n--) {
		uint64_t key = cache_key(q->layer, slice + n);
		const uint8_t *bytes = buf + n * q->slice_bytes;

		if (n && cache_find(c, key, &is_empty) >= 0)
			continue;
		bytes = bytes_are_zero(bytes, q->slice_bytes) ? NULL : bytes;
		cache_insert(c, key, bytes);
	}
	return 0;
}

static int load_slice_wait(struct load *ld, uint64_t slice)
{
	struct qcow2 *q = ld->q;
	uint64_t off = slice << q->slice_shift;
	uint64_t per_table = qcow2_l2_coverage(&q->header), index = off / per_table;
	uint64_t in_table = off % per_table >> q->slice_shift, n = 1, entry = 0, table;
	uint8_t *large = NULL;
	int rc;

	rc = index < q->l1_entries ? l1_entry_wait(q, index, &entry) : 0;
	if (!rc && !(entry & QCOW2_OFFSET_MASK) && ld->ahead_end) {
		rc = empty_end_wait(q, index, ld->ahead_end, &ld->empty_end);
		if (!rc && index < q->l1_entries)       /* a table may be there by now */
			rc = l1_entry_wait(q, index, &entry);
	}
	if (rc)
		return rc;
	table = entry & QCOW2_OFFSET_MASK;
	if (!table) {
		cache_insert(q->cache, cache_key(q->layer, slice), NULL);
		return 0;
	}
	ld->empty_end = 0;
	if (!is_aligned(table, qcow2_cluster_size(&q->header)))
		return qcow2_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#llx)",
				     (unsigned long long)table, (unsigned long long)index);
	if (ld->ahead_end)
		n = slices_ahead(q, (per_table >> q->slice_shift) - in_table);
	if (n > 1)
		large = aligned_alloc(CACHE_SLICE_BYTES_MAX,
				      LOAD_AHEAD_BYTES + CACHE_SLICE_BYTES_MAX);
	if (!large)
		n = 1;
	rc = read_slices_wait(q, table, table + in_table * q->slice_bytes, slice, n,
			      large ? large : ld->buf);
	free(large);
	return rc;
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
		w->look(w->arg);
	w->task.fn = wish_back;
	if (loop_is_current(w->loop))
		loop_defer(w->loop, &w->task);
	else
		loop_post(w->loop, &w->task);
}

static void wish_start(struct task *t);

/* W8: the wish is for a pending cluster. What cannot be written can be read all the same. */
static void close_fiber(struct task *t)
{
	struct wish *w = container_of(t, struct wish, task);
	uint64_t slice_end = (w->off | ((1ULL << w->q->slice_shift) - 1)) + 1;

	w->is_stuck = pendings_close_to_read_wait(&w->q->writer->pendings, w->off,
						  MIN(w->len, slice_end - w->off));
	wish_start(t);
}

/* On the home loop; the slice has just been found or put in the cache. */
static void wish_found(struct wish *w)
{
	if (!w->q->writer || w->is_stuck || !pendings_any(&w->q->writer->pendings, w->off, 1)) {
		wish_answer(w, 0);
		return;
	}
	w->task.fn = close_fiber;
	fiber_start(w->q->cache->home, &w->task);
}

static void load_fiber(struct task *t)
{
	struct load *ld = container_of(t, struct load, task);
	struct qcow2 *q = ld->q;
	struct qcow2_cache *c = q->cache;
	uint64_t slice = ld->key & (CACHE_SLICES_MAX - 1);
	struct list_node *n;
	int res;

	do {
		res = load_slice_wait(ld, slice);
	} while (res == -EAGAIN);
	while ((n = list_pop(&ld->wishes))) {
		struct wish *w = list_entry(n, struct wish, link);

		w->empty_end = ld->empty_end;
		if (res)
			wish_answer(w, res);
		else
			wish_found(w);
	}
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
		wish_found(w);
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
	vacant->ahead_end = w->ahead_end;
	vacant->empty_end = 0;
	list_add_tail(&vacant->wishes, &w->link);
	vacant->task.fn = load_fiber;
	fiber_start(c->home, &vacant->task);
}

static int wish_wait(struct wish *w)
{
	w->task.fn = wish_start;
	w->loop = loop_current();
	w->fiber = fiber_self();
	if (loop_is_current(w->q->cache->home))
		wish_start(&w->task);
	else
		loop_post(w->q->cache->home, &w->task);
	while (!w->is_done)
		fiber_park();
	return w->res;
}

uint64_t load_pending(const struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t cluster = 1ULL << q->cluster_bits;

	assert(q->writer && pendings_any(&q->writer->pendings, off, 1));
	return MIN(len, cluster - (off & (cluster - 1)));
}

/* load_wait()'s question. */
struct look {
	const struct qcow2 *q;
	uint64_t off, len;
	struct ext ext;
};

static void look_run(void *arg)
{
	struct look *k = arg;

	k->ext = map_run(k->q, k->off, k->len);
	if (k->ext.kind == EXT_MISS)
		k->ext = (struct ext){ .kind = EXT_PENDING,
				       .len = load_pending(k->q, k->off, k->len) };
}

int load_wait(struct qcow2 *q, uint64_t off, uint64_t len, struct ext *ret)
{
	struct look k = { .q = q, .off = off, .len = len };
	struct wish w = { .q = q, .off = off, .len = len, .look = look_run, .arg = &k };
	int rc = wish_wait(&w);

	if (!rc)
		*ret = k.ext;
	return rc;
}

int load_ahead_wait(struct qcow2 *q, uint64_t off, uint64_t len, void (*look)(void *arg), void *arg,
		    uint64_t *ret_empty_end)
{
	struct wish w = { .q = q, .off = off, .len = len, .look = look, .arg = arg,
			  .ahead_end = off + len };
	int rc = wish_wait(&w);

	if (!rc)
		*ret_empty_end = w.empty_end;
	return rc;
}
