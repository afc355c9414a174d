/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/meta.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "base/prng.h"
#include "blk/blk.h"
#include "fmt/qcow2/commit.h"
#include "fmt/qcow2/writer.h"

enum { WRITES_MAX = 8, RUN_BYTES_MAX = 1 << 20 };

static bool is_broken(struct meta *m, enum writer_break rule)
{
	return container_of(m, struct writer, meta)->broken & rule;
}

void meta_init(struct meta *m, struct chan *file, struct commit *commit, unsigned page_bytes)
{
	m->file = file;
	m->commit = commit;
	m->page_bytes = page_bytes;
	m->clean_max = META_CLEAN_MAX;
	for (unsigned i = 0; i < META_BUCKETS; i++)
		list_init(&m->buckets[i]);
	list_init(&m->clean);
	list_init(&m->dirty);
	list_init(&m->reads);
}

static struct list_node *bucket_of(struct meta *m, uint64_t off)
{
	return &m->buckets[mix64(off) % META_BUCKETS];
}

static struct meta_page *find(struct meta *m, uint64_t off)
{
	list_for_each(n, bucket_of(m, off)) {
		struct meta_page *p = list_entry(n, struct meta_page, bucket);

		if (p->off == off)
			return p;
	}
	return NULL;
}

static void page_free(struct meta_page *p)
{
	free(p->bytes);
	free(p);
}

static struct meta_page *page_new(struct meta *m, enum meta_kind kind, uint64_t off)
{
	struct meta_page *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->bytes = aligned_alloc(m->page_bytes, m->page_bytes);
	if (!p->bytes) {
		free(p);
		return NULL;
	}
	p->off = off;
	p->kind = kind;
	list_init(&p->link);
	list_add_head(bucket_of(m, off), &p->bucket);
	return p;
}

/* I2: did every read under way begin when the file had @p's bytes already? */
static bool may_forget(const struct meta *m, const struct meta_page *p)
{
	const struct meta_read *oldest;

	if (list_is_empty(&m->reads))
		return true;
	oldest = list_entry(m->reads.next, struct meta_read, link);
	return oldest->seq > p->clean_since;
}

static void clean_del(struct meta *m, struct meta_page *p)
{
	list_del(&p->link);
	m->nclean--;
}

static void clean_add(struct meta *m, struct meta_page *p)
{
	list_add_tail(&m->clean, &p->link);
	m->nclean++;
}

/* Forgets the oldest clean pages where there are too many. */
static void trim(struct meta *m)
{
	list_for_each(n, &m->clean) {
		struct meta_page *p = list_entry(n, struct meta_page, link);

		if (m->nclean <= m->clean_max)
			return;
		if (p->pins || !may_forget(m, p))
			continue;
		clean_del(m, p);
		list_del(&p->bucket);
		page_free(p);
	}
}

static void mark_dirty(struct meta *m, struct meta_page *p)
{
	if (p->is_dirty)
		return;
	if (!p->is_cut && !p->is_loading)
		clean_del(m, p);
	p->is_dirty = true;
	list_add_tail(&m->dirty, &p->link);
	m->ndirty++;
}

void meta_fini(struct meta *m)
{
	if (!m->page_bytes)
		return;
	for (unsigned i = 0; i < META_BUCKETS; i++) {
		struct list_node *n;

		while ((n = list_pop(&m->buckets[i]))) {
			struct meta_page *p = list_entry(n, struct meta_page, bucket);

			assert(!p->pins && !p->is_cut);
			page_free(p);
		}
	}
}

static void read_begin(struct meta *m, struct meta_read *r)
{
	r->seq = ++m->seq;
	list_add_tail(&m->reads, &r->link);
}

/* The page is pinned by the caller while it loads. */
static int load_wait(struct meta *m, struct meta_page *p)
{
	int rc;

	p->is_loading = true;
	p->pins++;
	rc = chan_read_wait(m->file, p->off, p->bytes, m->page_bytes);
	p->is_loading = false;
	p->pins--;
	fiber_queue_wake(&m->waiting);
	if (rc) {
		list_del(&p->bucket);
		page_free(p);
		return rc;
	}
	clean_add(m, p);
	return 0;
}

int meta_get_wait(struct meta *m, enum meta_kind kind, uint64_t off, struct meta_page **ret)
{
	struct meta_page *p;

	off = align_down(off, m->page_bytes);
	for (;;) {
		p = find(m, off);
		if (!p) {
			int rc;

			p = page_new(m, kind, off);
			if (!p)
				return -ENOMEM;
			rc = load_wait(m, p);
			if (rc)
				return rc;
			break;
		}
		if (!p->is_loading)
			break;
		fiber_queue_wait(&m->waiting);
	}
	if (p->kind != kind)
		return -EUCLEAN;
	p->pins++;
	*ret = p;
	return 0;
}

struct meta_page *meta_try_get(struct meta *m, uint64_t off)
{
	struct meta_page *p = find(m, align_down(off, m->page_bytes));

	if (!p || p->is_loading)
		return NULL;
	p->pins++;
	return p;
}

int meta_new(struct meta *m, enum meta_kind kind, uint64_t off, const void *bytes, bool is_dirty,
	     struct meta_page **ret)
{
	struct meta_page *p = find(m, off);

	assert(is_aligned(off, m->page_bytes));
	if (p && (p->pins || p->is_loading))
		return -EUCLEAN;
	if (p) {                        /* of a table that was here once */
		p->kind = kind;
	} else {
		p = page_new(m, kind, off);
		if (!p)
			return -ENOMEM;
		clean_add(m, p);
	}
	if (bytes)
		memcpy(p->bytes, bytes, m->page_bytes);
	else
		memset(p->bytes, 0, m->page_bytes);
	p->pins++;
	p->is_new = is_dirty && kind == META_L2;
	p->clean_since = ++m->seq;      /* who reads the file now may have read what was there */
	if (is_dirty)
		mark_dirty(m, p);
	*ret = p;
	return 0;
}

void meta_put(struct meta *m, struct meta_page *p)
{
	assert(p->pins);
	if (--p->pins || p->is_dirty || p->is_cut)
		return;
	/* The least recently used one goes first. */
	clean_del(m, p);
	clean_add(m, p);
	trim(m);
}

int meta_forget(struct meta *m, uint64_t off, uint64_t len)
{
	for (uint64_t at = off; at < off + len; at += m->page_bytes) {
		const struct meta_page *p = find(m, at);

		if (p && p->pins)
			return -EUCLEAN;
	}
	for (uint64_t at = off; at < off + len; at += m->page_bytes) {
		struct meta_page *p = find(m, at);

		if (!p)
			continue;
		list_del(&p->bucket);
		if (p->is_dirty) {
			list_del(&p->link);
			m->ndirty--;
			p->is_dirty = false;
		} else if (!p->is_cut) {
			clean_del(m, p);
		}
		if (p->is_cut)
			p->is_forgotten = true;
		else
			page_free(p);
	}
	return 0;
}

uint64_t meta_value(const struct meta *m, const struct meta_page *p, uint64_t off, unsigned width)
{
	const uint8_t *at = p->bytes + (off - p->off);

	assert(off >= p->off && off + width <= p->off + m->page_bytes);
	switch (width) {
	case 1:
		return *at;
	case 2:
		return be16_load(at);
	case 4:
		return be32_load(at);
	default:
		assert(width == 8);
		return be64_load(at);
	}
}

void meta_change(struct meta *m, struct meta_page *p, const struct meta_record *rec)
{
	uint8_t *at = p->bytes + (rec->off - p->off);

	assert(p->pins && p->kind == rec->kind);
	assert(is_aligned(rec->off, rec->width));
	assert(meta_value(m, p, rec->off, MIN(rec->width, 8U)) == rec->old);    /* I1 */
	assert(rec->width < 16 || meta_value(m, p, rec->off + 8, 8) == rec->old_second);
	switch (rec->width) {
	case 1:
		*at = (uint8_t)rec->new;
		break;
	case 2:
		be16_store(at, (uint16_t)rec->new);
		break;
	case 4:
		be32_store(at, (uint32_t)rec->new);
		break;
	case 16:
		be64_store(at + 8, rec->new_second);
		be64_store(at, rec->new);
		break;
	default:
		be64_store(at, rec->new);
	}
	m->nchanges++;
	mark_dirty(m, p);
	commit_note(m->commit);
	if (m->ndirty > META_DIRTY_MAX)
		commit_kick(m->commit);
}

int meta_read_wait(struct meta *m, uint64_t off, void *buf, uint64_t len)
{
	struct meta_read r;
	int rc;

	assert(is_aligned(off, m->page_bytes) && is_aligned(len, m->page_bytes));
	read_begin(m, &r);
	rc = chan_read_wait(m->file, off, buf, len);
	list_del(&r.link);
	if (rc)
		return rc;
	for (uint64_t at = 0; at < len; at += m->page_bytes) {
		const struct meta_page *p = find(m, off + at);

		if (p && !p->is_loading && !is_broken(m, BREAK_I2_STALE))
			memcpy((uint8_t *)buf + at, p->bytes, m->page_bytes);
	}
	return 0;
}

/* ---- the cut ---- */

struct meta_cut {
	struct meta *m;
	unsigned n;
	struct meta_page **pages;       /* by their offset in the file */
	uint8_t *bytes;                 /* n pages as they were */
};

static enum meta_phase phase_of(const struct meta_page *p)
{
	if (p->kind == META_L1)
		return META_PHASE_B_L1;
	if (p->kind == META_L2)
		return p->is_new ? META_PHASE_A_L2 : META_PHASE_B_L2;
	return META_PHASE_A_REFS;
}

static int by_offset(const void *a, const void *b)
{
	const struct meta_page *const *x = a, *const *y = b;

	return (*x)->off < (*y)->off ? -1 : (*x)->off > (*y)->off;
}

static void cut_free(struct meta_cut *c)
{
	free(c->pages);
	free(c->bytes);
	free(c);
}

static struct meta_cut *cut_new(struct meta *m, unsigned n)
{
	struct meta_cut *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->m = m;
	c->pages = calloc(n, sizeof(struct meta_page *));
	c->bytes = aligned_alloc(META_BYTES_MAX, align_up((size_t)n * m->page_bytes,
							 META_BYTES_MAX));
	if (c->pages && c->bytes)
		return c;
	cut_free(c);
	return NULL;
}

unsigned meta_ndirty(const struct meta *m, enum meta_phase phase)
{
	unsigned n = 0;

	list_for_each(it, &m->dirty)
		n += phase_of(list_entry(it, struct meta_page, link)) == phase;
	return n;
}

/* I3: its pages as they are now. */
static void cut_copy(struct meta_cut *c)
{
	size_t page = c->m->page_bytes;

	for (unsigned i = 0; i < c->n; i++)
		memcpy(c->bytes + i * page, c->pages[i]->bytes, page);
}

int meta_cut(struct meta *m, enum meta_phase phase, struct meta_cut **ret)
{
	struct meta_cut *c;
	unsigned n = meta_ndirty(m, phase);

	*ret = NULL;
	if (!n)
		return 0;
	c = cut_new(m, n);
	if (!c)
		return -ENOMEM;
	list_for_each(it, &m->dirty) {
		struct meta_page *p = list_entry(it, struct meta_page, link);

		if (phase_of(p) != phase)
			continue;
		assert(!p->is_cut);
		list_del(&p->link);
		m->ndirty--;
		p->is_dirty = false;
		p->is_cut = true;
		c->pages[c->n++] = p;
	}
	qsort(c->pages, n, sizeof(c->pages[0]), by_offset);
	cut_copy(c);
	*ret = c;
	return 0;
}

/* One write of neighbouring pages. */
struct cut_write {
	struct req req;
	struct iovec iov;
	struct cut_writes *all;
	bool is_busy;
};

struct cut_writes {
	struct fiber *fiber;
	unsigned busy;
	int res;                        /* the first error */
	struct cut_write write[WRITES_MAX];
};

static void cut_write_done(struct req *req, int res)
{
	struct cut_write *cw = container_of(req, struct cut_write, req);

	if (res && !cw->all->res)
		cw->all->res = res;
	cw->is_busy = false;
	cw->all->busy--;
	fiber_wake(cw->all->fiber);
}

static struct cut_write *cut_write_get_wait(struct cut_writes *all)
{
	while (all->busy == WRITES_MAX)
		fiber_park();
	for (unsigned i = 0;; i++)
		if (!all->write[i].is_busy)
			return &all->write[i];
}

/* How many pages from @i on lie one behind the other in the file. */
static unsigned run_length(const struct meta_cut *c, unsigned i)
{
	unsigned page = c->m->page_bytes, n = 1;

	while (i + n < c->n && n < RUN_BYTES_MAX / page &&
	       c->pages[i + n]->off == c->pages[i]->off + (uint64_t)n * page)
		n++;
	return n;
}

int meta_cut_write_wait(struct meta_cut *c, uint64_t *ret_bytes, uint64_t *ret_writes)
{
	struct cut_writes all = { .fiber = fiber_self() };
	unsigned page, n;

	if (!c)
		return 0;
	page = c->m->page_bytes;
	if (is_broken(c->m, BREAK_I3_LATE))
		cut_copy(c);
	for (unsigned i = 0; i < c->n && !all.res; i += n) {
		struct cut_write *cw = cut_write_get_wait(&all);

		n = run_length(c, i);
		cw->iov = (struct iovec){ c->bytes + (size_t)i * page, (size_t)n * page };
		cw->req = (struct req){ .kind = REQ_WRITE, .done = cut_write_done,
					.off = c->pages[i]->off, .len = (uint64_t)n * page,
					.iov = &cw->iov, .iovcnt = 1 };
		cw->all = &all;
		cw->is_busy = true;
		all.busy++;
		*ret_bytes += (uint64_t)n * page;
		++*ret_writes;
		chan_submit(c->m->file, &cw->req);
	}
	while (all.busy)
		fiber_park();
	return all.res;
}

void meta_cut_end(struct meta_cut *c, int res)
{
	struct meta *m;

	if (!c)
		return;
	m = c->m;
	for (unsigned i = 0; i < c->n; i++) {
		struct meta_page *p = c->pages[i];

		if (p->is_forgotten) {
			page_free(p);
			continue;
		}
		if (res)
			mark_dirty(m, p);       /* I4 */
		else
			p->is_new = false;
		p->is_cut = false;
		if (p->is_dirty)
			continue;
		p->clean_since = ++m->seq;
		clean_add(m, p);
	}
	cut_free(c);
	trim(m);
}
