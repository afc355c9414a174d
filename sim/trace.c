/* SPDX-License-Identifier: MIT */
#include "sim/trace.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"
#include "blk/port.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/writer.h"

enum { FIBERS_A_TRACE = 12, LEN_MAX = 4 << 20, TRIES = 8, TABLE_FIELD = 48 };

/* What an operation may take: as many clusters as its range touches, and a table; or as much as
 * sectors of the smallest clusters do. */
#define OP_CLUSTERS 5ULL
#define OP_BYTES (16ULL << 10)

/* One that works. */
struct hand {
	struct task task;
	struct run *run;
	struct prng prng;
	unsigned loop;
	uint64_t next;                  /* where a sequential stream goes on */
	uint64_t off, len;              /* what it is busy with; len 0: nothing */
	bool is_reading, is_race;
	uint8_t *buf;                   /* LEN_MAX */
};

struct run {
	struct trace *t;
	struct world w;
	struct qcow2_cache *cache;
	struct node *node;              /* the image; NULL: closed */
	struct port *port;
	struct hand hands[FIBERS_A_TRACE];
	unsigned nworking;
	unsigned nops;                  /* done since it was opened */
	unsigned limit;                 /* when to close */
	struct fiber *waiter;           /* for nworking to be 0 */
};

static bool is_lost(const struct trace *t)
{
	return t->why.text[0];
}

static uint32_t now(const struct run *r)
{
	return r->t->log.nevents;
}

/* ---- requests through the port ---- */

struct answer {
	struct req req;
	struct fiber *fiber;
	int res;
	bool is_done;
};

static void answered(struct req *req, int res)
{
	struct answer *a = container_of(req, struct answer, req);

	a->res = res;
	a->is_done = true;
	fiber_wake(a->fiber);
}

/* Its data is @buf, now and then in two pieces. */
static int request_wait(struct hand *h, enum req_kind kind, unsigned flags, uint64_t off,
			uint64_t len, void *buf)
{
	uint64_t cut = len > 1 && !prng_below(&h->prng, 4) ? prng_below(&h->prng, len) : 0;
	struct iovec iov[2] = { { buf, cut }, { (uint8_t *)buf + cut, len - cut } };
	struct sim_source source = { .iov = { buf, len } };
	struct answer a = { .fiber = fiber_self() };

	a.req = (struct req){ .done = answered, .kind = (uint8_t)kind, .flags = (uint8_t)flags,
			      .off = off, .len = len, .iov = cut ? iov : iov + 1,
			      .iovcnt = cut ? 2 : 1 };
	if (kind == REQ_WRITE && h->run->t->o.copies && prng_below(&h->prng, 2)) {
		a.req.kind = REQ_COPY;
		a.req.from = &source.node;
	}
	port_submit(port_here(h->run->port), &a.req);
	while (!a.is_done)
		fiber_park();
	return a.res;
}

/* ---- what to do ---- */

enum company { ALONE, RACE, TOO_CLOSE };

/* Is somebody busy in the sectors of [@off, @off + @len)? Readers do not mind each other. Parts of
 * sectors must not race: what is left could be of both. */
static enum company company(const struct hand *h, uint64_t off, uint64_t len, bool is_reading)
{
	uint64_t from = align_down(off, SIM_SECTOR), to = align_up(off + len, SIM_SECTOR);
	enum company found = ALONE;

	for (unsigned i = 0; i < h->run->t->o.nfibers; i++) {
		const struct hand *o = &h->run->hands[i];
		uint64_t start = align_down(o->off, SIM_SECTOR);

		if (o == h || !o->len || (is_reading && o->is_reading) ||
		    !ranges_overlap(from, to - from, start,
				    align_up(o->off + o->len, SIM_SECTOR) - start))
			continue;
		if (!is_aligned(off | len | o->off | o->len, SIM_SECTOR))
			return TOO_CLOSE;
		found = RACE;
	}
	return found;
}

/* A range of the window: within a few clusters more often than anywhere else. */
static void draw_range(struct hand *h, uint64_t *ret_off, uint64_t *ret_len)
{
	const struct trace *t = h->run->t;
	uint64_t window = t->o.image.window, cluster = 1ULL << t->o.image.cluster_bits;
	uint64_t clusters = div_round_up(window, cluster);
	uint64_t hot = prng_below(&h->prng, 4) ? MIN(clusters, 6u) : clusters;
	uint64_t at = (t->o.seed % clusters + prng_below(&h->prng, hot)) % clusters * cluster;
	uint64_t len, how = prng_below(&h->prng, 8);

	switch (t->o.is_racy ? how % 2 : how) {
	case 0:                         /* whole clusters */
		len = cluster * (1 + prng_below(&h->prng, 3));
		break;
	case 1:                         /* several, cut anywhere */
		at += SIM_SECTOR * prng_below(&h->prng, cluster / SIM_SECTOR);
		len = SIM_SECTOR * (1 + prng_below(&h->prng, 3 * cluster / SIM_SECTOR));
		break;
	case 2:                         /* bytes */
		at += prng_below(&h->prng, cluster);
		len = 1 + prng_below(&h->prng, 3000);
		break;
	case 3:                         /* a stream */
		at = h->next < window ? h->next : 0;
		len = MIN(cluster, 4096u);
		h->next = at + len;
		break;
	default:                        /* some sectors */
		at += SIM_SECTOR * prng_below(&h->prng, cluster / SIM_SECTOR);
		len = SIM_SECTOR * (1 + prng_below(&h->prng, 16));
		break;
	}
	at = MIN(at, window - 1);
	*ret_off = t->im.window_off + at;
	len = MIN(len, window - at);
	*ret_len = MIN(len, (uint64_t)LEN_MAX);
}

/* Takes a range that nobody else is busy with; now and then one of others, to race. */
static bool take_range(struct hand *h, bool is_reading)
{
	for (unsigned i = 0; i < TRIES; i++) {
		enum company others;
		uint64_t off, len;

		draw_range(h, &off, &len);
		others = company(h, off, len, is_reading);
		if (others == TOO_CLOSE || (others == RACE && !h->run->t->o.is_racy &&
					    prng_below(&h->prng, 8)))
			continue;
		h->is_race = others == RACE;
		h->off = off;
		h->len = len;
		h->is_reading = is_reading;
		return true;
	}
	return false;
}

/* [@off, @off + @len) was read: what does a raw data file hold there? */
static void note_raw(struct trace *t, uint64_t off, uint64_t len)
{
	uint8_t sector[SIM_SECTOR];

	for (uint64_t at = align_up(off, SIM_SECTOR); at + SIM_SECTOR <= off + len;
	     at += SIM_SECTOR) {
		sim_pages_read(&t->medium, SIM_SECOND + at, sector, sizeof(sector));
		model_note_raw(&t->model, at, sector);
	}
}

static void read_wait(struct hand *h, uint64_t off, uint64_t len)
{
	struct trace *t = h->run->t;
	uint32_t begun = model_mark(&t->model);
	int rc = request_wait(h, REQ_READ, 0, off, len, h->buf);

	if (rc && !t->o.fault.struck)
		why_say(&t->why, "reading %llu bytes at %#llx: %s", (unsigned long long)len,
		    (unsigned long long)off, strerror(-rc));
	else if (!rc && !model_check_read(&t->model, off, h->buf, len, begun))
		why_say(&t->why, "reading: %s", t->model.why);
	else if (!rc && t->o.image.is_raw_data)
		note_raw(t, off, len);
}

static void change_wait(struct hand *h, enum model_kind what)
{
	static const enum req_kind kinds[] = { REQ_WRITE, REQ_ZERO, REQ_DISCARD };
	struct trace *t = h->run->t;
	unsigned flags = prng_below(&h->prng, 8) ? 0 : REQ_FUA;
	bool is_durable = flags & REQ_FUA || (t->o.writethrough && what != MODEL_DISCARD);
	uint32_t op;
	int rc;

	if (what == MODEL_WRITE && t->o.packs == PACKS_ASKED && prng_below(&h->prng, 2))
		flags |= REQ_COMPRESSED;
	if (what != MODEL_DISCARD && t->o.is_in_order)
		flags |= REQ_IN_ORDER;
	if (what == MODEL_ZERO && prng_below(&h->prng, 2))
		flags |= REQ_MAY_UNMAP;
	op = model_begin(&t->model, what, h->off, h->len, h->is_race, now(h->run));
	if (what == MODEL_WRITE)
		stamp_fill(op, h->off, h->buf, h->len);
	rc = request_wait(h, kinds[what], flags, h->off, h->len, h->buf);
	if (rc && !t->o.fault.struck)
		why_say(&t->why, "operation %u fails: %s", op, strerror(-rc));
	model_end(&t->model, op, rc, is_durable, now(h->run));
	if (model_is_open(&t->model, op) || !prng_below(&h->prng, 3))
		read_wait(h, align_down(h->off, SIM_SECTOR), align_up(h->off + h->len, SIM_SECTOR) -
						      align_down(h->off, SIM_SECTOR));
}

/* A flush that began at @begun has ended well. @is_calm: no fault was to come then. */
static void flushed(struct run *r, uint32_t begun, bool is_calm)
{
	model_flushed(&r->t->model, begun, now(r));
	if (is_calm)
		model_restored(&r->t->model, begun, now(r));
}

static void flush_wait(struct hand *h)
{
	struct trace *t = h->run->t;
	uint32_t begun = model_mark(&t->model);
	bool is_calm = sim_fault_is_over(&t->o.fault);
	int rc = request_wait(h, REQ_FLUSH, 0, 0, 0, h->buf);

	if (rc && !t->o.fault.struck)
		why_say(&t->why, "flush: %s", strerror(-rc));
	if (!rc)
		flushed(h->run, begun, is_calm);
}

static void sleep_wait(struct hand *h)
{
	fiber_sleep_wait(prng_below(&h->prng, 2) ? 6 * NS_PER_SEC :
						   prng_below(&h->prng, NS_PER_MS));
}

/* In which part of 64 cases: writes, zeroes, discards, flushes, reads; the rest sleeps. */
static const uint8_t odds[TRACE_KINDS][5] = {
	[TRACE_FRESH] = { 36, 4, 4, 8, 10 },
	[TRACE_RAW_BACKING] = { 34, 5, 5, 8, 10 },
	[TRACE_QCOW2_BACKING] = { 34, 5, 5, 8, 10 },
	[TRACE_RECYCLED] = { 30, 4, 10, 8, 10 },
	[TRACE_GROWTH] = { 42, 2, 4, 8, 6 },
	[TRACE_DISCARD] = { 20, 6, 20, 8, 8 },
	[TRACE_ZEROES] = { 20, 22, 4, 8, 8 },
	[TRACE_SHARED] = { 34, 6, 6, 8, 8 },
	[TRACE_PACKED] = { 32, 5, 7, 8, 10 },
	[TRACE_DATA_FILE] = { 32, 8, 8, 8, 8 },
	[TRACE_BITMAPS] = { 32, 6, 6, 10, 8 },
	[TRACE_LAZY] = { 34, 5, 9, 8, 6 },
};

static void work_once_wait(struct hand *h)
{
	uint64_t n = prng_below(&h->prng, 64);
	unsigned what = 0;

	while (what < 5 && n >= odds[h->run->t->o.kind][what])
		n -= odds[h->run->t->o.kind][what++];
	if (what == 3 || (what < 5 && !take_range(h, what == 4)))
		flush_wait(h);
	else if (what < 3)
		change_wait(h, (enum model_kind)what);
	else if (what == 4)
		read_wait(h, h->off, h->len);
	else
		sleep_wait(h);
	h->len = 0;
}

static void work(struct task *task)
{
	struct hand *h = container_of(task, struct hand, task);
	struct run *r = h->run;

	while (!is_lost(r->t) && r->nops < r->limit) {
		r->nops++;
		work_once_wait(h);
	}
	if (--r->nworking == 0)
		fiber_wake(r->waiter);
}

/* ---- opening, closing ---- */

/* Host clusters of the span, and of what is packed and not mapped. */
static uint64_t packed_clusters(const struct writer *w)
{
	uint64_t first = w->pack.pos / w->cluster, end = w->pack.end / w->cluster, n = end - first;
	unsigned off_bits = 62 - (w->q->cluster_bits - 8);
	uint64_t *seen = calloc(2 * w->pendings.n + 1, sizeof(*seen)), nseen = 0;

	assert(seen);
	list_for_each(i, &w->pendings.all) {
		const struct pending *p = list_entry(i, struct pending, link);
		uint64_t entry = p->packed.entry & ~QCOW2_COMPRESSED, last, k;
		uint64_t host = entry & ((1ULL << off_bits) - 1);

		if (!p->is_packed || !p->packed.entry)
			continue;
		last = (host / 512 + (entry >> off_bits)) * 512 / w->cluster;
		for (uint64_t c = host / w->cluster; c <= last; c++) {
			for (k = 0; k < nseen && seen[k] != c; k++)
				continue;
			if (k == nseen && c - first >= end - first)
				seen[nseen++] = c;
		}
	}
	free(seen);
	return n + nseen;
}

/* Clusters with refcounts in memory that no entry in memory accounts for. */
static uint64_t held_clusters(const struct writer *w)
{
	uint64_t n = w->alloc.reserved + w->alloc.quarantine.clusters + w->ntables;

	n += packed_clusters(w) + w->pack.nstoring;
	list_for_each(i, &w->pendings.all) {
		const struct pending *p = list_entry(i, struct pending, link);

		n += !p->is_kept && !p->is_packed;
	}
	for (unsigned i = 0; i < w->refs.nold; i++)
		n += w->refs.old[i].n;
	for (uint32_t i = 0; i < w->track.n; i++) {
		const struct tracked *k = &w->track.list[i];

		for (uint32_t m = 0; k->is_new && m < k->table_entries; m++)
			n += k->is_new[m];
	}
	return n;
}

static struct trace_probe probe_writer(const struct trace *t, const struct writer *w,
				       const struct trace_probe *before, const struct sim_op *op)
{
	struct trace_probe p = {
		.session = t->sessions, .commits = w->commit.stats.commits,
		.held = held_clusters(w), .filled = w->alloc.nfilled, .freed = w->alloc.nfreed,
		.table = w->q->header.reftable_clusters, .left = before->left,
		.is_moving = before->is_moving,
	};

	p.cuts = p.commits + (w->commit.is_running && w->commit.is_cut);
	if (op->kind == SIM_WRITE && op->off == TABLE_FIELD)
		p.is_moving = true;
	if (p.session != before->session || p.table != before->table) {
		p.left = p.session == before->session ? before->left + before->table : 0;
		p.is_moving = false;
	}
	return p;
}

static void probe(void *arg)
{
	struct run *r = arg;
	struct trace *t = r->t;
	const struct sim_event *e = &t->log.events[t->log.nevents - 1];
	const struct sim_op *op = &t->log.ops[e->op];
	struct trace_probe p = { 0 };

	if (t->log.nevents > t->probes_room) {
		t->probes_room = MAX(2 * t->probes_room, 1024u);
		t->probes = realloc(t->probes, t->probes_room * sizeof(*t->probes));
		assert(t->probes);
	}
	if (t->log.nevents > 1)
		p = t->probes[t->log.nevents - 2];
	if (r->node && qcow2_of(r->node)->writer)
		p = probe_writer(t, qcow2_of(r->node)->writer, &p, op);
	t->probes[t->log.nevents - 1] = p;
	if (e->kind == SIM_SUBMIT && op->kind != SIM_SYNC && t->first_change == SIM_NEVER &&
	    op->off >= 1ULL << t->o.image.cluster_bits)
		t->first_change = t->log.nevents - 1;
}

static int open_home(void *arg)
{
	struct run *r = arg;
	struct trace *t = r->t;
	struct sim_disk_opts so = { .name = "disk", .world = &r->w, .home = r->w.loops[0],
				    .is_device = t->o.is_device, .size = t->size,
				    .pages = &t->medium, .log = &t->log, .fault = &t->o.fault,
				    .is_data = stamp_is_there, .seed = t->o.seed + now(r) };
	struct qcow2_opts qo = { .writable = true, .writethrough = t->o.writethrough,
				 .discard = t->o.gives_back,
				 .compress = t->o.packs == PACKS_ALL, .broken = t->o.broken };
	struct err err = { 0 };
	int rc = trace_open_wait(t, &so, &qo, &r->cache, &r->node, &err);

	if (!rc)
		rc = port_new(r->node, false, &r->port, &err);
	if (!rc)
		rc = port_open_wait(r->port, &err);
	if (rc && !t->o.fault.struck)
		why_say(&t->why, "opening: %s", err.text);
	return rc;
}

static int open_other(void *arg)
{
	struct run *r = arg;

	return port_open_wait(r->port, NULL);
}

static int close_other(void *arg)
{
	struct run *r = arg;

	port_close_wait(r->port);
	return 0;
}

static int close_home(void *arg)
{
	struct run *r = arg;
	struct trace *t = r->t;
	struct err err = { 0 };
	uint32_t begun = model_mark(&t->model);
	struct node *n = r->node, *file = n->child[CHILD_FILE];
	bool is_calm = sim_fault_is_over(&t->o.fault);

	port_close_wait(r->port);
	port_free(r->port);
	t->close_res = node_settle_wait(n, &err);
	if (t->close_res && !t->o.fault.struck)
		why_say(&t->why, "closing: %s", err.text);
	if (!t->close_res)
		flushed(r, begun, is_calm);
	t->size = atomic_load(&file->size);
	r->node = NULL;                 /* probe() looks no more */
	node_put_wait(n);
	qcow2_cache_free(r->cache);
	return 0;
}

static int work_all(void *arg)
{
	struct run *r = arg;

	r->waiter = fiber_self();
	r->nworking = r->t->o.nfibers;
	for (unsigned i = 0; i < r->t->o.nfibers; i++) {
		r->hands[i].task.fn = work;
		world_start(&r->w, r->hands[i].loop, &r->hands[i].task);
	}
	while (r->nworking)
		fiber_park();
	return 0;
}

/* Opens, works until @limit operations, closes. */
static int session(struct run *r, unsigned limit)
{
	int rc;

	r->t->sessions++;
	rc = world_call(&r->w, 0, open_home, r);
	if (!rc && r->w.nloops > 1)
		rc = world_call(&r->w, 1, open_other, r);
	if (rc)
		return rc;
	r->limit = limit;
	rc = world_call(&r->w, 0, work_all, r);
	if (!rc && r->w.nloops > 1)
		rc = world_call(&r->w, 1, close_other, r);
	return rc ? rc : world_call(&r->w, 0, close_home, r);
}

/* ---- a trace ---- */

static void make_backing(struct trace *t)
{
	uint64_t n = t->o.backing_size;
	struct sim_image_opts io = { .version = 3, .cluster_bits = t->o.backing_bits, .window = n,
				     .refcount_order = 4, .own_every = 2, .is_backing = true,
				     .is_extended = t->o.image.is_extended &&
						    t->o.backing_bits >= 14 };
	struct sim_image im;
	struct model m;
	uint8_t *buf;

	if (t->o.kind == TRACE_QCOW2_BACKING) {
		sim_image_make(&io, &t->backing, &m, &im);
		t->backing_file_size = im.file_size;
		for (uint64_t s = 0; s < n / SIM_SECTOR; s++)
			if (t->model.initial[s] == MODEL_ZEROS)
				t->model.initial[s] = m.initial[s];
		model_fini(&m);
		return;
	}
	buf = malloc(n);
	assert(buf);
	stamp_fill(STAMP_BACKING, 0, buf, n);
	sim_pages_write(&t->backing, 0, buf, n);
	t->backing_file_size = n;
	for (uint64_t s = 0; s < n / SIM_SECTOR; s++)
		if (t->model.initial[s] == MODEL_ZEROS)
			t->model.initial[s] = MODEL_BACKING;
	free(buf);
}

static void make_media(struct trace *t)
{
	uint64_t garbage = t->o.is_device ? mix64(t->o.seed) | 1 : 0;

	sim_pages_init(&t->start, NULL, garbage);
	sim_pages_init(&t->medium, &t->start, garbage);
	sim_pages_init(&t->backing, NULL, 0);
	sim_image_make(&t->o.image, &t->start, &t->model, &t->im);
	t->start_size = t->im.file_size;
	/* A device has room for everything; in order (X5) what is freed rests until the close. */
	if (t->o.is_device)
		t->start_size += 4 * t->o.image.window + (64ULL << t->o.image.cluster_bits) + MiB;
	if (t->o.is_device && t->o.is_in_order)
		t->start_size += t->o.nops * MAX(OP_CLUSTERS << t->o.image.cluster_bits, OP_BYTES);
	t->size = t->start_size;
	if (t->o.backing_size)
		make_backing(t);
}

bool trace_run(struct trace *t, const struct trace_opts *o)
{
	struct run *r = calloc(1, sizeof(*r));
	int rc = 0;

	assert(r && o->nfibers <= FIBERS_A_TRACE);
	*t = (struct trace){ .o = *o, .first_change = SIM_NEVER };
	r->t = t;
	make_media(t);
	sim_log_init(&t->log);
	t->log.probe = probe;
	t->log.probe_arg = r;
	world_init(&r->w, o->nloops, o->seed + 3);
	if (o->is_racy)
		r->w.order = WORLD_NEWEST;
	for (unsigned i = 0; i < o->nfibers; i++) {
		r->hands[i] = (struct hand){ .run = r, .loop = i % o->nloops,
					     .prng.state = mix64(o->seed + 1000 * (i + 1)),
					     .buf = malloc(LEN_MAX + 2 * SIM_SECTOR) };
		assert(r->hands[i].buf);
	}
	if (o->reopen_after && o->reopen_after < o->nops)
		rc = session(r, o->reopen_after);
	/* Who could not close has been told that writes may be lost. */
	if (!rc && !is_lost(t) && !t->close_res)
		rc = session(r, o->nops);
	if (rc == -EDEADLK)
		why_say(&t->why, "somebody waits for ever");
	t->is_closed = !rc && !t->close_res;
	t->log.probe = NULL;
	if (rc == -EDEADLK)
		return false;           /* fibers may still use all of it */
	for (unsigned i = 0; i < o->nfibers; i++)
		free(r->hands[i].buf);
	world_fini(&r->w);
	free(r);
	return !is_lost(t);
}

void trace_fini(struct trace *t)
{
	sim_log_fini(&t->log);
	sim_pages_fini(&t->medium);
	sim_pages_fini(&t->start);
	sim_pages_fini(&t->backing);
	model_fini(&t->model);
	free(t->probes);
}
