/* SPDX-License-Identifier: MIT */
/* Whole images, built here byte by byte in memory, read through the node at random and compared
 * with a model of the disk: chains of layers with different cluster sizes, extended L2 entries,
 * compressed clusters, raw backing files, shorter backing files; on each backend, on one loop and
 * on two. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <libdeflate.h>
#include <pthread.h>

#include "base/err.h"
#include "base/log.h"
#include "base/prng.h"
#include "base/test_scale.h"
#include "fmt/qcow2/image.h"
#include "fmt/qcow2/qcow2.h"
#include "loop/loop_thread.h"
#include "loop/work.h"

/* ---- a node over memory, with answers in a seeded order ---- */

struct mem {
	struct node node;
	uint8_t *bytes;
	uint64_t len;
	_Atomic int fail_after;         /* reads until -EIO; < 0: never */
	bool is_watched;                /* by one loop alone: */
	uint64_t low, high;             /* what was read since they were set */
};

struct mem_chan {
	struct chan ch;
	struct prng prng;
};

static void mem_answer(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct mem *m = container_of(req->ch->node, struct mem, node);
	struct mem_chan *mc = container_of(req->ch, struct mem_chan, ch);
	uint64_t in;

	if (prng_below(&mc->prng, 3)) {                 /* later */
		loop_defer(req->ch->loop, t);
		return;
	}
	if (m->is_watched && req->kind == REQ_READ) {
		m->low = MIN(m->low, req->off);
		m->high = MAX(m->high, req->off + req->len);
	}
	if (m->fail_after >= 0 && m->fail_after-- == 0) {
		m->fail_after = 0;
		req_complete(req, -EIO);
		return;
	}
	if (req->kind == REQ_MAP) {
		req->map = (struct map_run){ .len = req->len, .host_off = req->off,
			.flags = MAP_DATA | MAP_PRESENT | MAP_HOST, .file = &m->node };
		req_complete(req, 0);
		return;
	}
	in = req->off < m->len ? MIN(req->len, m->len - req->off) : 0;
	req_copy_to(req, 0, m->bytes + req->off, in);
	req_zero_part(req, in, req->len - in);
	req_complete(req, 0);
}

static void mem_submit(struct chan *ch, struct req *req)
{
	req->ch = ch;
	req->task.fn = mem_answer;
	loop_defer(ch->loop, &req->task);
}

static void mem_free(struct node *n)
{
	struct mem *m = container_of(n, struct mem, node);

	free(m->bytes);
	free(m);
}

static const struct node_ops mem_ops = {
	.name = "mem", .chan_size = sizeof(struct mem_chan), .submit = mem_submit, .free = mem_free,
};

static struct mem *mem_new(struct loop *home, uint64_t len)
{
	struct mem *m = calloc(1, sizeof(*m));

	assert_int_equal(node_init(&m->node, &mem_ops, "mem.img", home), 0);
	m->bytes = calloc(1, len);
	m->len = len;
	m->node.size = len;
	m->fail_after = -1;
	return m;
}

/* ---- building an image, and the model of what it shows ---- */

enum { DISK = 1 << 20 };

struct image {
	struct mem *mem;
	unsigned cluster_bits;
	bool is_extended;
	uint64_t next_free;             /* host offset of the next cluster */
	uint64_t disk;                  /* bytes */
	struct prng *prng;
};

static void l2_set(struct image *im, uint64_t cluster, uint64_t entry, uint64_t bitmap)
{
	uint64_t entry_bytes = im->is_extended ? 16 : 8;
	uint64_t per_table = (1ULL << im->cluster_bits) / entry_bytes;
	uint64_t l1_off = 2ULL << im->cluster_bits;
	uint8_t *l1 = im->mem->bytes + l1_off + cluster / per_table * 8;
	uint64_t table = be64_load(l1) & QCOW2_OFFSET_MASK;
	uint8_t *at;

	if (!table) {
		table = im->next_free;
		im->next_free += 1ULL << im->cluster_bits;
		be64_store(l1, table | QCOW2_COPIED);
	}
	at = im->mem->bytes + table + cluster % per_table * entry_bytes;
	be64_store(at, entry);
	if (im->is_extended)
		be64_store(at + 8, bitmap);
}

static void fill(struct prng *p, uint8_t *buf, uint64_t len)
{
	uint8_t tag = (uint8_t)(1 + prng_below(p, 255));

	for (uint64_t i = 0; i < len; i++)
		buf[i] = (uint8_t)(tag + i / 64);
}

/* Compressed clusters are packed at byte granularity; each call here takes clusters of its own but
 * starts at an odd offset in them. */
static void put_compressed(struct image *im, uint64_t cluster, const uint8_t *data)
{
	uint64_t size = 1ULL << im->cluster_bits;
	uint64_t off = im->next_free + prng_below(im->prng, size - 1);
	unsigned off_bits = 62 - (im->cluster_bits - 8);
	static struct libdeflate_compressor *c;         /* the one for all: making one is slow */
	size_t n;

	if (!c)
		c = libdeflate_alloc_compressor(3);
	n = libdeflate_deflate_compress(c, data, size, im->mem->bytes + off, 2 * size);
	assert_true(n > 0);
	im->next_free = align_up(off + n, size);
	l2_set(im, cluster, QCOW2_COMPRESSED | off |
	       ((off % 512 + n + 511) / 512 - 1) << off_bits, 0);
}

static void put_data(struct image *im, uint64_t cluster, uint8_t *model)
{
	uint64_t size = 1ULL << im->cluster_bits, host = im->next_free;
	uint64_t sub = size / 32;
	uint32_t alloc = 0xffffffff, zero = 0;

	if (prng_below(im->prng, 4) == 0)
		host += size;                           /* a gap: not contiguous */
	im->next_free = host + size;
	fill(im->prng, im->mem->bytes + host, size);
	if (im->is_extended) {
		alloc = (uint32_t)(prng_next(im->prng) | prng_next(im->prng));
		zero = (uint32_t)prng_next(im->prng) & ~alloc;
	}
	l2_set(im, cluster, host | QCOW2_COPIED, alloc | (uint64_t)zero << 32);
	for (unsigned i = 0; im->is_extended && i < 32; i++) {
		if (alloc >> i & 1)
			memcpy(model + i * sub, im->mem->bytes + host + i * sub, sub);
		else if (zero >> i & 1)
			memset(model + i * sub, 0, sub);
	}
	if (!im->is_extended)
		memcpy(model, im->mem->bytes + host, size);
}

static void put_cluster(struct image *im, uint64_t cluster, uint8_t *model)
{
	uint64_t size = 1ULL << im->cluster_bits;

	switch (prng_below(im->prng, 6)) {
	case 0:
	case 1:
		return;                                 /* from below */
	case 2:
		memset(model, 0, size);
		if (im->is_extended)
			l2_set(im, cluster, 0, 0xffffffffULL << 32);
		else
			l2_set(im, cluster, QCOW2_ZERO, 0);
		return;
	case 3:
		fill(im->prng, model, size);
		put_compressed(im, cluster, model);
		return;
	default:
		put_data(im, cluster, model);
	}
}

/* A layer of @disk bytes over what @model shows below it; updates @model. */
static struct mem *layer_new(struct loop *home, struct prng *p, unsigned cluster_bits,
			     bool is_extended, uint64_t disk, uint8_t *model)
{
	uint64_t size = 1ULL << cluster_bits;
	struct mem *m = mem_new(home, 8 * (uint64_t)DISK + 64 * size);
	struct image im = { m, cluster_bits, is_extended, 0, disk, p };
	struct qcow2_header_disk *d = (void *)m->bytes;
	uint64_t tables = div_round_up(disk, size * (size / (is_extended ? 16 : 8)));
	uint8_t *cluster = malloc(size);

	d->magic = be32_make(QCOW2_MAGIC);
	d->version = be32_make(3);
	d->cluster_bits = be32_make(cluster_bits);
	d->size = be64_make(disk);
	d->l1_size = be32_make((uint32_t)tables);
	d->l1_table_offset = be64_make(2 * size);
	d->refcount_table_offset = be64_make(size);
	d->refcount_table_clusters = be32_make(1);
	d->refcount_order = be32_make(4);
	d->header_length = be32_make(104);
	d->incompatible_features = be64_make(is_extended ? QCOW2_INCOMPAT_EXTENDED_L2 : 0);
	im.next_free = (3 + tables * 8 / size) * size;
	for (uint64_t off = 0; off < disk; off += size) {
		uint64_t part = MIN(size, disk - off);

		memset(cluster, 0, size);
		memcpy(cluster, model + off, part);
		put_cluster(&im, off / size, cluster);
		memcpy(model + off, cluster, part);
	}
	assert_true(im.next_free <= m->len);
	free(cluster);
	return m;
}

/* ---- the disk under test ---- */

struct disk {
	struct loop *loops[2];
	struct loop_thread threads[2];  /* with two loops; one alone is turned by loop_call() */
	unsigned nloops;
	struct workers *workers;
	struct qcow2_cache *cache;
	struct node *top;
	struct mem *files[4];
	unsigned nfiles;
	uint8_t *model;
	uint64_t size;
	uint64_t seed;
};

struct layer {
	unsigned cluster_bits;          /* 0: a raw file */
	bool is_extended;
	uint64_t size;
};

static const struct layer chains[][3] = {
	{ { 16, false, DISK } },
	{ { 9, false, DISK } },
	{ { 16, true, DISK } },
	{ { 16, false, DISK }, { 0, false, DISK / 2 + 512 } },
	{ { 12, false, DISK }, { 16, true, DISK / 2 }, { 0, false, DISK } },
	{ { 14, true, DISK - 512 }, { 9, false, DISK }, { 16, false, DISK } },
};

struct open_args {
	struct disk *d;
	const struct layer *layers;
};

static int open_disk(void *arg)
{
	struct open_args *a = arg;
	struct disk *d = a->d;
	struct prng p = { d->seed };
	struct node *below = NULL;

	d->model = calloc(1, DISK);
	d->cache = qcow2_cache_new(0, d->loops[0]);
	/* The slots' size is the smallest cluster's: a cache belongs to one chain. */
	cache_setup(d->cache, CACHE_SLICE_BYTES_MIN);
	for (int i = 2; i >= 0; i--) {
		const struct layer *la = &a->layers[i];
		struct qcow2_opts opts = { .cache = d->cache };
		struct err err = { 0 };
		struct mem *m;
		struct node *n;

		if (!la->size)
			continue;
		if (la->size < d->size)                 /* a shorter layer hides what is above it */
			memset(d->model + la->size, 0, DISK - la->size);
		if (!la->cluster_bits) {
			m = mem_new(d->loops[0], la->size);
			fill(&p, m->bytes, la->size);
			memcpy(d->model, m->bytes, la->size);
			n = &m->node;
		} else {
			m = layer_new(d->loops[0], &p, la->cluster_bits, la->is_extended, la->size,
				      d->model);
			if (qcow2_open_wait(&m->node, &opts, &n, &err))
				fail_msg("%s", err.text);
			if (below)
				assert_int_equal(node_attach_wait(n, CHILD_BACKING, below, NULL),
						 0);
		}
		memset(d->model + la->size, 0, DISK - la->size);
		d->files[d->nfiles++] = m;
		below = n;
		d->size = la->size;
	}
	d->top = below;
	return 0;
}

static int close_disk(void *arg)
{
	struct disk *d = arg;

	node_put_wait(d->top);
	qcow2_cache_free(d->cache);
	free(d->model);
	return 0;
}

/* ---- reading ---- */

enum { READERS = 16 };

struct reader {
	struct task task;
	struct disk *d;
	struct chan *ch;
	struct prng prng;
	unsigned rounds;
	unsigned *running;
	struct fiber *waiter;
	unsigned errors;
};

static void check(const struct disk *d, const uint8_t *got, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		if (got[i] != d->model[off + i])
			fail_msg("seed %llu: byte %llu is %02x, should be %02x",
				 (unsigned long long)d->seed, (unsigned long long)(off + i), got[i],
				 d->model[off + i]);
}

/* Random reads, in random iovecs, some of them large, now and then a whole cluster. */
static void read_some(struct task *t)
{
	struct reader *r = container_of(t, struct reader, task);
	uint8_t *buf = malloc(DISK);

	for (unsigned i = 0; i < r->rounds; i++) {
		uint64_t off = prng_below(&r->prng, r->d->size), len;
		struct iovec iov[3];
		struct req req = { .kind = REQ_READ, .iov = iov, .iovcnt = 3 };

		len = prng_below(&r->prng, 4) ? 1 + prng_below(&r->prng, 5000)
					      : 1 + prng_below(&r->prng, 300000);
		if (prng_below(&r->prng, 4) == 0) {
			off = align_down(off, 65536);
			len = 65536;
		}
		len = MIN(len, r->d->size - off);
		memset(buf, 0xee, len + 8);
		iov[0] = (struct iovec){ buf, prng_below(&r->prng, len + 1) };
		iov[1] = (struct iovec){ buf + iov[0].iov_len,
					 prng_below(&r->prng, len - iov[0].iov_len + 1) };
		iov[2] = (struct iovec){ buf + iov[0].iov_len + iov[1].iov_len, DISK };
		req.off = off;
		req.len = len;
		if (chan_submit_wait(r->ch, &req))
			r->errors++;
		else
			check(r->d, buf, off, len);
		assert_int_equal(buf[len], 0xee);       /* nothing behind the data is touched */
	}
	free(buf);
	if (!--*r->running)
		fiber_wake(r->waiter);
}

struct run_args {
	struct disk *d;
	unsigned rounds;
	uint64_t seed;
	unsigned errors;
};

static int run_readers(void *arg)
{
	struct run_args *a = arg;
	struct reader r[READERS];
	unsigned running = READERS;
	struct chan *ch;

	assert_int_equal(chan_get_wait(a->d->top, &ch, NULL), 0);
	for (unsigned i = 0; i < READERS; i++) {
		r[i] = (struct reader){ .task.fn = read_some, .d = a->d, .ch = ch,
			.prng = { a->seed + i }, .rounds = a->rounds, .running = &running,
			.waiter = fiber_self() };
		fiber_start(loop_current(), &r[i].task);
	}
	while (running)
		fiber_park();
	for (unsigned i = 0; i < READERS; i++)
		a->errors += r[i].errors;
	chan_put_wait(ch);
	return 0;
}

static int map_all(void *arg)
{
	struct disk *d = arg;
	struct chan *ch;

	assert_int_equal(chan_get_wait(d->top, &ch, NULL), 0);
	for (uint64_t off = 0; off < d->size;) {
		struct req req = { .kind = REQ_MAP, .off = off, .len = d->size - off };

		assert_int_equal(chan_submit_wait(ch, &req), 0);
		assert_true(req.map.len >= 1 && req.map.len <= d->size - off);
		if (req.map.flags & MAP_ZERO)
			for (uint64_t i = 0; i < req.map.len; i++)
				assert_int_equal(d->model[off + i], 0);
		if (req.map.flags & MAP_HOST && !(req.map.flags & MAP_ZERO)) {
			const struct mem *m = NULL;

			for (unsigned i = 0; i < d->nfiles; i++)
				if (&d->files[i]->node == req.map.file)
					m = d->files[i];
			assert_non_null(m);
			check(d, m->bytes + req.map.host_off, off, req.map.len);
		}
		off += req.map.len;
	}
	chan_put_wait(ch);
	return 0;
}

static struct disk *disk_new(enum loop_backend backend, unsigned nloops, uint64_t seed,
			     const struct layer *layers)
{
	struct disk *d = calloc(1, sizeof(*d));
	struct open_args a = { d, layers };

	d->seed = seed;
	d->nloops = nloops;
	if (backend != LOOP_SIM)
		assert_int_equal(workers_new(2, &d->workers, NULL), 0);
	for (unsigned i = 0; i < nloops; i++) {
		struct loop_opts o = { .backend = backend, .workers = d->workers,
				       .sim_seed = seed };

		assert_int_equal(loop_new(&o, &d->loops[i], NULL), 0);
		if (nloops > 1)
			assert_int_equal(loop_thread_start(&d->threads[i], d->loops[i], "t", NULL),
					 0);
	}
	assert_int_equal(loop_call(d->loops[0], open_disk, &a), 0);
	return d;
}

static void disk_free(struct disk *d)
{
	assert_int_equal(loop_call(d->loops[0], close_disk, d), 0);
	for (unsigned i = 0; i < d->nloops; i++) {
		if (d->nloops > 1)
			loop_thread_stop(&d->threads[i]);
		else
			loop_free(d->loops[i]);
	}
	workers_free(d->workers);
	free(d);
}

static void reads_on(enum loop_backend backend)
{
	for (unsigned i = 0; i < ARRAY_SIZE(chains); i++) {
		struct disk *d = disk_new(backend, 1, 100 + i, chains[i]);
		struct run_args a = { d, 40 / TEST_SCALE, 7, 0 };

		loop_call(d->loops[0], run_readers, &a);
		assert_int_equal(a.errors, 0);
		loop_call(d->loops[0], map_all, d);
		disk_free(d);
	}
}

static void v1_v2_v3_reads_agree_with_the_model_sim(void **state)
{
	reads_on(LOOP_SIM);
}

static void v1_v2_v3_reads_agree_with_the_model(void **state)
{
	reads_on(LOOP_AUTO);
}

struct two {
	struct loop *loop;
	struct run_args args;
};

static void *run_on_loop(void *arg)
{
	struct two *t = arg;

	loop_call(t->loop, run_readers, &t->args);
	return NULL;
}

/* The cache is small, so that slices are evicted and read again all the time. */
static void two_loops_read_one_disk(void **state)
{
	for (unsigned i = 0; i < ARRAY_SIZE(chains); i++) {
		struct disk *d = disk_new(LOOP_AUTO, 2, 200 + i, chains[i]);
		pthread_t callers[2];
		struct two t[2];

		for (unsigned j = 0; j < 2; j++) {
			t[j] = (struct two){ d->loops[j], { d, 32 / TEST_SCALE, 50 * j, 0 } };
			pthread_create(&callers[j], NULL, run_on_loop, &t[j]);
		}
		for (unsigned j = 0; j < 2; j++)
			pthread_join(callers[j], NULL);
		assert_int_equal(t[0].args.errors + t[1].args.errors, 0);
		disk_free(d);
	}
}

static unsigned damage_lines;

static void count_damage(enum log_level level, const char *line)
{
	if (strstr(line, "is damaged"))
		damage_lines++;
}

/* The first compressed cluster of the disk in @m: its guest offset, and where its bytes lie. */
static uint64_t compressed_at(const struct disk *d, uint64_t *ret_host, uint64_t *ret_len)
{
	const uint8_t *bytes = d->files[0]->bytes;
	unsigned bits = qcow2_of(d->top)->cluster_bits, off_bits = 62 - (bits - 8);
	uint64_t table = be64_load(bytes + (2ULL << bits)) & QCOW2_OFFSET_MASK;

	for (uint64_t i = 0; i < d->size >> bits; i++) {
		uint64_t entry = be64_load(bytes + table + 8 * i);

		if (!(entry & QCOW2_COMPRESSED))
			continue;
		*ret_host = entry & ((1ULL << off_bits) - 1);
		*ret_len = (((entry & ~QCOW2_COMPRESSED) >> off_bits) + 1) * 512 - *ret_host % 512;
		return i << bits;
	}
	fail_msg("seed %llu has no compressed cluster", (unsigned long long)d->seed);
	return 0;
}

/* Z1: what is read lies in the entry's bytes, widened. Z2: after a failure it is read again. */
static int inflate_body(void *arg)
{
	struct disk *d = arg;
	struct mem *m = d->files[0];
	uint8_t buf[4096], saved[8192];
	uint64_t host = 0, len = 0, guest = compressed_at(d, &host, &len);
	struct chan *ch;

	assert_int_equal(chan_get_wait(d->top, &ch, NULL), 0);
	assert_int_equal(chan_read_wait(ch, 0, buf, 512), 0);   /* the slice is cached now */
	memcpy(saved, m->bytes + host, MIN(len, (uint64_t)sizeof(saved)));
	memset(m->bytes + host, 0xff, MIN(len, (uint64_t)sizeof(saved)));
	m->is_watched = true;
	m->low = UINT64_MAX;
	m->high = 0;
	assert_int_equal(chan_read_wait(ch, guest + 4096, buf, sizeof(buf)), -EIO);
	assert_int_equal(chan_read_wait(ch, guest + 8192, buf, sizeof(buf)), -EIO);
	memcpy(m->bytes + host, saved, MIN(len, (uint64_t)sizeof(saved)));
	assert_int_equal(chan_read_wait(ch, guest + 4096, buf, sizeof(buf)), 0);
	check(d, buf, guest + 4096, sizeof(buf));
	assert_true(m->low >= align_down(host, 4096) && m->high <= align_up(host + len, 4096));
	/* Once inflated, its other parts need no read at all. */
	m->low = UINT64_MAX;
	assert_int_equal(chan_read_wait(ch, guest, buf, sizeof(buf)), 0);
	check(d, buf, guest, sizeof(buf));
	assert_true(m->low == UINT64_MAX);
	chan_put_wait(ch);
	return 0;
}

/* A snapshot of the image in @m, the same L1 table, with a size that only the snapshot claims. */
static void add_snapshot(struct mem *m, uint64_t size)
{
	struct qcow2_header_disk *d = (void *)m->bytes;
	uint64_t at = align_down(m->len - 4096, 1ULL << be32_get(d->cluster_bits));
	struct qcow2_snapshot_disk *s = (void *)(m->bytes + at);

	d->nb_snapshots = be32_make(1);
	d->snapshots_offset = be64_make(at);
	s->l1_table_offset = d->l1_table_offset;
	s->l1_size = d->l1_size;
	s->id_size = be16_make(1);
	s->name_size = be16_make(3);
	s->extra_size = be32_make(16);
	be64_store(m->bytes + at + sizeof(*s) + 8, size);
	memcpy(m->bytes + at + sizeof(*s) + 16, "7now", 4);
}

struct snapshot_args {
	struct loop *loop;
	uint64_t size;
	const char *name;
	int rc;                         /* of the open */
};

static int snapshot_body(void *arg)
{
	struct snapshot_args *a = arg;
	struct qcow2_cache *c = qcow2_cache_new(0, a->loop);
	struct qcow2_opts opts = { .cache = c, .snapshot = a->name };
	uint8_t *model = calloc(1, DISK), buf[512];
	struct prng p = { 1 };
	struct mem *m = layer_new(a->loop, &p, 9, false, DISK, model);
	struct node *n;

	add_snapshot(m, a->size);
	a->rc = qcow2_open_wait(&m->node, &opts, &n, NULL);
	if (!a->rc) {
		assert_int_equal(chan_read_wait(n->home_chan, 4096, buf, 512), 0);
		assert_memory_equal(buf, model + 4096, 512);
		/* Behind what the L1 table maps there is nothing, not what lies elsewhere. */
		assert_int_equal(chan_read_wait(n->home_chan, a->size - 512, buf, 512), 0);
		for (unsigned i = 0; i < sizeof(buf); i++)
			assert_int_equal(buf[i], 0);
	}
	node_put_wait(a->rc ? &m->node : n);
	qcow2_cache_free(c);
	free(model);
	return 0;
}

static void q6_a_snapshots_size_is_not_believed(void **state)
{
	struct loop_opts o = { .backend = LOOP_SIM };
	struct snapshot_args a;

	assert_int_equal(loop_new(&o, &a.loop, NULL), 0);
	for (unsigned bit = 21; bit < 64; bit++) {
		a.size = 1ULL << bit;
		a.name = bit % 2 ? "now" : "7";
		loop_call(a.loop, snapshot_body, &a);
		assert_int_equal(a.rc, bit < 50 ? 0 : -EFBIG);
	}
	a.name = "then";
	loop_call(a.loop, snapshot_body, &a);
	assert_int_equal(a.rc, -ENOENT);
	loop_free(a.loop);
}

static void z1_z2_compressed_clusters(void **state)
{
	struct disk *d = disk_new(LOOP_SIM, 1, 100, chains[0]);

	log_set_sink(count_damage);
	loop_call(d->loops[0], inflate_body, d);
	disk_free(d);
	log_set_sink(NULL);
}

/* One read error after the other, anywhere: an error or the right data, and afterwards all is
 * well. */
static void q9_a_read_error_is_reported_and_passes(void **state)
{
	for (int n = 0; n < 60; n += TEST_SCALE_FAULTS) {
		struct disk *d = disk_new(LOOP_SIM, 1, 300, chains[4]);
		struct run_args a = { d, 2, 9, 0 };
		unsigned before;

		for (unsigned i = 0; i < d->nfiles; i++)
			d->files[i]->fail_after = n;
		loop_call(d->loops[0], run_readers, &a);
		before = a.errors;
		for (unsigned i = 0; i < d->nfiles; i++)
			d->files[i]->fail_after = -1;
		loop_call(d->loops[0], run_readers, &a);
		assert_int_equal(a.errors, before);
		disk_free(d);
	}
}

static int read_everything(void *arg)
{
	struct disk *d = arg;
	uint8_t *buf = malloc(8192);
	struct chan *ch;

	assert_int_equal(chan_get_wait(d->top, &ch, NULL), 0);
	for (uint64_t off = 0; off < d->size; off += 8192) {
		int rc = chan_read_wait(ch, off, buf, MIN((uint64_t)8192, d->size - off));

		assert_true(rc == 0 || rc == -EUCLEAN || rc == -EIO);
	}
	chan_put_wait(ch);
	free(buf);
	return 0;
}

/* Random bytes over the tables: reads end, with data or an error, and never crash; it is logged
 * once. */
static void q6_damaged_tables_are_errors(void **state)
{
	unsigned damaged = 0;

	log_set_sink(count_damage);
	for (uint64_t seed = 0; seed < 150; seed += TEST_SCALE_FAULTS) {
		struct disk *d = disk_new(LOOP_SIM, 1, seed, chains[seed % 3]);
		uint8_t *bytes = d->files[0]->bytes;
		unsigned bits = qcow2_of(d->top)->cluster_bits;
		uint64_t l1 = 2ULL << bits, l2 = be64_load(bytes + l1) & QCOW2_OFFSET_MASK;
		struct prng p = { seed };

		for (unsigned i = 0; i < 8; i++)
			bytes[l2 + prng_below(&p, 256)] = (uint8_t)prng_next(&p);
		if (seed % 4 == 0)
			bytes[l1 + prng_below(&p, 8)] = (uint8_t)prng_next(&p);
		damage_lines = 0;
		loop_call(d->loops[0], read_everything, d);
		assert_true(damage_lines <= 1);
		damaged += damage_lines;
		disk_free(d);
	}
	assert_true(damaged > 0);
	log_set_sink(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v1_v2_v3_reads_agree_with_the_model_sim),
		cmocka_unit_test(v1_v2_v3_reads_agree_with_the_model),
		cmocka_unit_test(two_loops_read_one_disk),
		cmocka_unit_test(q6_a_snapshots_size_is_not_believed),
		cmocka_unit_test(z1_z2_compressed_clusters),
		cmocka_unit_test(q9_a_read_error_is_reported_and_passes),
		cmocka_unit_test(q6_damaged_tables_are_errors),
	};

	return cmocka_run_group_tests_name("qcow2_read", tests, NULL, NULL);
}
