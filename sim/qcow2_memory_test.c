/* SPDX-License-Identifier: MIT */
/* Images of every kind are opened, written, flushed and closed while memory is short: the first
 * allocation fails, then the second, and so on until none is left that could; alone, or with all
 * that follow it. Whatever fails says so. What was flushed is there, the rest is old or new, and
 * the image has no error afterwards. (What leaks memory is for ASan to say.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/log.h"
#include "fmt/qcow2/check.h"
#include "fmt/qcow2/format.h"
#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/test_mem.h"
#include "fmt/qcow2/writer.h"
#include "loop/fiber.h"
#include "sim/bitmaps.h"
#include "sim/disk.h"

enum { ROOM = 64 << 20, GRAIN = 128, CLUSTERS = 16, WINDOW_MAX = CLUSTERS << 16,
       GRAINS_MAX = WINDOW_MAX / GRAIN, ALLOCATIONS_MAX = 3000 };

/* ---- memory that ends ---- */

static bool is_armed, fails_on, has_failed;
static int allocations_left;

static bool may_allocate(void)
{
	if (!is_armed || (has_failed && !fails_on))
		return true;
	if (allocations_left > 0) {
		allocations_left--;
		return true;
	}
	has_failed = true;
	return false;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
char *__wrap_strdup(const char *s);

void *__wrap_malloc(size_t size)
{
	return may_allocate() ? __real_malloc(size) : NULL;
}

void *__wrap_calloc(size_t n, size_t size)
{
	return may_allocate() ? __real_calloc(n, size) : NULL;
}

void *__wrap_realloc(void *p, size_t size)
{
	return may_allocate() ? __real_realloc(p, size) : NULL;
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
	return may_allocate() ? __real_aligned_alloc(align, size) : NULL;
}

char *__wrap_strdup(const char *s)
{
	return may_allocate() ? __real_strdup(s) : NULL;
}

/* ---- kinds of images ---- */

enum below { NOTHING, RAW, QCOW2 };

static const struct kind {
	const char *name;
	struct sim_image_opts im;
	enum below below;
	bool writethrough;
	bool is_packed, asks;           /* all that is new is compressed; or what asks for it */
} kinds[] = {
	{ .name = "empty",
	  .im = { .cluster_bits = 12 } },
	{ .name = "small clusters",
	  .im = { .cluster_bits = 9, .own_every = 2, .stale = 5 } },
	{ .name = "version 2",
	  .im = { .version = 2, .cluster_bits = 16, .own_every = 2 } },
	{ .name = "writethrough", .writethrough = true,
	  .im = { .cluster_bits = 12, .own_every = 2 } },
	{ .name = "refcount blocks that are full",
	  .im = { .cluster_bits = 9, .refcount_order = 6, .full_blocks = 64, .spare = 3 } },
	{ .name = "snapshot",
	  .im = { .cluster_bits = 12, .own_every = 1, .is_shared = true } },
	{ .name = "compressed",
	  .im = { .cluster_bits = 12, .own_every = 1, .packed_every = 1 } },
	{ .name = "compressed, snapshot",
	  .im = { .cluster_bits = 9, .own_every = 1, .packed_every = 2, .is_shared = true } },
	{ .name = "extended",
	  .im = { .cluster_bits = 14, .is_extended = true, .own_every = 2,
		  .has_stale_within = true } },
	{ .name = "extended, snapshot",
	  .im = { .cluster_bits = 14, .is_extended = true, .own_every = 1, .is_shared = true,
		  .has_stale_within = true } },
	{ .name = "data file",
	  .im = { .cluster_bits = 12, .own_every = 2, .has_data_file = true } },
	{ .name = "raw data file",
	  .im = { .cluster_bits = 12, .own_every = 1, .has_data_file = true,
		  .is_raw_data = true } },
	{ .name = "lazy",
	  .im = { .cluster_bits = 12, .own_every = 2, .is_lazy = true } },
	{ .name = "lazy, snapshot",
	  .im = { .cluster_bits = 9, .own_every = 1, .is_lazy = true, .is_shared = true } },
	{ .name = "bitmaps",
	  .im = { .cluster_bits = 9, .own_every = 2, .bitmap_bits = 9 } },
	{ .name = "bitmaps, lazy, snapshot",
	  .im = { .cluster_bits = 12, .own_every = 1, .bitmap_bits = 10, .bitmap_fill = 2,
		  .is_shared = true, .is_lazy = true } },
	{ .name = "raw backing", .below = RAW,
	  .im = { .cluster_bits = 12, .own_every = 3 } },
	{ .name = "qcow2 backing", .below = QCOW2,
	  .im = { .cluster_bits = 12, .own_every = 3 } },
	{ .name = "extended, qcow2 backing", .below = QCOW2,
	  .im = { .cluster_bits = 14, .is_extended = true } },
	{ .name = "written compressed", .is_packed = true,
	  .im = { .cluster_bits = 12 } },
	{ .name = "small clusters, written compressed", .is_packed = true, .asks = true,
	  .im = { .cluster_bits = 9, .own_every = 2, .packed_every = 2, .is_shared = true } },
	{ .name = "extended, asked to compress", .asks = true,
	  .im = { .cluster_bits = 14, .is_extended = true, .own_every = 2,
		  .has_stale_within = true } },
	{ .name = "qcow2 backing, asked to compress", .asks = true, .below = QCOW2,
	  .im = { .cluster_bits = 12, .own_every = 3, .refcount_order = 2 } },
	{ .name = "writethrough, written compressed", .is_packed = true, .writethrough = true,
	  .im = { .cluster_bits = 12, .own_every = 2, .is_lazy = true } },
};

/* ---- what is done: offsets and lengths in quarters of clusters; a batch at a time ---- */

static const struct op {
	unsigned batch;
	enum req_kind kind;
	unsigned off, len;
	unsigned flags;
} script[] = {
	{ 0, REQ_WRITE, 1, 1, 0 }, { 0, REQ_WRITE, 6, 4, 0 }, { 0, REQ_READ, 40, 8, 0 },
	{ 1, REQ_FLUSH, 0, 0, 0 },
	{ 2, REQ_ZERO, 12, 4, 0 }, { 2, REQ_ZERO, 17, 9, REQ_MAY_UNMAP },
	{ 2, REQ_DISCARD, 28, 12, 0 }, { 2, REQ_WRITE, 44, 9, 0 }, { 2, REQ_READ, 54, 10, 0 },
	{ 3, REQ_FLUSH, 0, 0, 0 },
	{ 4, REQ_WRITE, 28, 2, 0 }, { 4, REQ_WRITE, 30, 5, REQ_FUA }, { 4, REQ_WRITE, 0, 20, 0 },
	{ 5, REQ_READ, 0, 64, 0 }, { 5, REQ_MAP, 0, 64, 0 },
	{ 6, REQ_DISCARD, 0, 8, 0 }, { 6, REQ_WRITE, 57, 2, 0 }, { 6, REQ_ZERO, 46, 1, 0 },
	{ 7, REQ_FLUSH, 0, 0, 0 },
	{ 8, REQ_WRITE, 5, 1, 0 }, { 8, REQ_WRITE, 60, 4, 0 },
};

/* A bit for each operation, and one for what was there before them all. */
_Static_assert(ARRAY_SIZE(script) < 31, "uint32_t allowed[]");

struct disk {
	const struct kind *kind;
	struct loop *loop;
	int nth;
	/* What all begin with. */
	struct sim_pages pages, below_pages;
	struct sim_image im, below_im;
	uint64_t window;
	uint8_t initial[WINDOW_MAX];
	/* Of this one. */
	struct test_mem *file, *data, *below;
	struct qcow2_cache *cache;
	struct node *top;
	uint32_t allowed[GRAINS_MAX];   /* bits of versions that may be there */
	uint8_t acked[GRAINS_MAX];      /* the newest version that was acknowledged */
	int results[ARRAY_SIZE(script)];
	uint8_t bytes[2][WINDOW_MAX];   /* what is written; what is read */
};

static void failed(const struct disk *d, const char *what, uint64_t at)
{
	is_armed = false;
	fail_msg("%s, allocation %d%s: %s (%#llx)", d->kind->name, d->nth,
		 fails_on ? " and all after it" : "", what, (unsigned long long)at);
}

/* ---- files ---- */

static struct test_mem *file_from(struct loop *l, const struct sim_pages *p, uint64_t base,
				  uint64_t size, uint64_t room)
{
	struct test_mem *m = test_mem_new(l, room);

	sim_pages_read(p, base, m->bytes, size);
	atomic_store(&m->node.size, size);
	m->node.holes_read_zero = true;
	return m;
}

static void make_files(struct disk *d)
{
	const struct kind *k = d->kind;
	uint64_t guest = d->im.guest_size;

	d->file = file_from(d->loop, &d->pages, 0, d->im.file_size, ROOM);
	if (k->im.has_data_file)
		d->data = file_from(d->loop, &d->pages, SIM_SECOND, guest, guest);
	if (k->below)
		d->below = file_from(d->loop, &d->below_pages, 0, k->below == QCOW2 ?
				     d->below_im.file_size : d->window, ROOM);
}

static void drop_files(struct disk *d)
{
	node_put_wait(&d->file->node);
	if (d->data)
		node_put_wait(&d->data->node);
	if (d->below)
		node_put_wait(&d->below->node);
	d->file = d->data = d->below = NULL;
}

static void make_prototype(struct disk *d)
{
	struct sim_image_opts o = d->kind->im;
	struct sim_image_opts below = { .version = 3, .cluster_bits = 12, .own_every = 2,
					.refcount_order = 4, .is_backing = true };
	struct model m;

	o.version = o.version ? o.version : 3;
	o.refcount_order = o.refcount_order ? o.refcount_order : 4;
	o.window = d->window = (uint64_t)CLUSTERS << o.cluster_bits;
	o.backing_name = d->kind->below ? "base" : NULL;
	o.backing_format = d->kind->below == QCOW2 ? "qcow2" : "raw";
	sim_pages_init(&d->pages, NULL, 0);
	sim_image_make(&o, &d->pages, &m, &d->im);
	model_fini(&m);
	sim_pages_init(&d->below_pages, NULL, 0);
	below.window = d->window;
	if (d->kind->below == QCOW2) {
		sim_image_make(&below, &d->below_pages, &m, &d->below_im);
		model_fini(&m);
	} else {
		stamp_fill(STAMP_BACKING, 0, d->bytes[0], d->window);
		sim_pages_write(&d->below_pages, 0, d->bytes[0], d->window);
	}
}

/* ---- opening and closing ---- */

static int attach_wait(struct disk *d, enum node_child which, struct node *child)
{
	int rc = node_attach_wait(d->top, which, child, NULL);

	if (rc)
		node_put_wait(child);
	return rc;
}

static int attach_below_wait(struct disk *d)
{
	struct qcow2_opts o = { .cache = d->cache };
	struct node *n = node_get(&d->below->node), *image;
	int rc;

	if (d->kind->below == RAW)
		return attach_wait(d, CHILD_BACKING, n);
	rc = qcow2_open_wait(n, &o, &image, NULL);
	if (rc) {
		node_put_wait(n);
		return rc;
	}
	return attach_wait(d, CHILD_BACKING, image);
}

static int close_wait(struct disk *d)
{
	int rc = node_settle_wait(d->top, NULL);

	node_put_wait(d->top);
	qcow2_cache_free(d->cache);
	d->top = NULL;
	d->cache = NULL;
	return rc;
}

static int open_wait(struct disk *d, struct qcow2_opts o)
{
	struct node *file = node_get(&d->file->node);
	int rc = -ENOMEM;

	o.cache = d->cache = qcow2_cache_new(0, d->loop);
	if (d->cache)
		rc = qcow2_open_wait(file, &o, &d->top, NULL);
	if (rc) {
		node_put_wait(file);
		qcow2_cache_free(d->cache);
		d->cache = NULL;
		return rc;
	}
	if (d->data)
		rc = attach_wait(d, CHILD_DATA, node_get(&d->data->node));
	if (!rc && d->below)
		rc = attach_below_wait(d);
	if (rc)
		close_wait(d);
	return rc;
}

/* ---- the model: which versions each grain may hold ---- */

static uint64_t start_of(const struct disk *d, const struct op *op)
{
	return (uint64_t)op->off << (d->kind->im.cluster_bits - 2);
}

static uint64_t length_of(const struct disk *d, const struct op *op)
{
	return (uint64_t)op->len << (d->kind->im.cluster_bits - 2);
}

static bool is_change(const struct op *op)
{
	return op->kind == REQ_WRITE || op->kind == REQ_ZERO || op->kind == REQ_DISCARD;
}

/* What version @v (0: what was there first; else operation @v - 1) is in a grain. */
static void fill_version(const struct disk *d, unsigned v, uint64_t grain, uint8_t *ret)
{
	if (!v)
		memcpy(ret, d->initial + grain * GRAIN, GRAIN);
	else
		memset(ret, script[v - 1].kind == REQ_WRITE ? (int)(v * 8 + grain % 8 + 1) : 0,
		       GRAIN);
}

static void change_begins(struct disk *d, unsigned i)
{
	uint64_t first = start_of(d, &script[i]) / GRAIN;

	for (uint64_t g = first; g < first + length_of(d, &script[i]) / GRAIN; g++)
		d->allowed[g] |= 2U << i;
}

/* A discard may do nothing. */
static void change_done(struct disk *d, unsigned i)
{
	uint64_t first = start_of(d, &script[i]) / GRAIN;

	if (script[i].kind == REQ_DISCARD)
		return;
	for (uint64_t g = first; g < first + length_of(d, &script[i]) / GRAIN; g++)
		d->acked[g] = (uint8_t)(i + 1);
}

static void changes_flushed(struct disk *d)
{
	for (uint64_t g = 0; g < d->window / GRAIN; g++)
		d->allowed[g] &= ~0U << d->acked[g];
}

/* Is @got right for [@off, @off + its length)? @is_now: no version that was overwritten. */
static void content_check(const struct disk *d, const uint8_t *got, uint64_t off, uint64_t len,
			bool is_now)
{
	uint8_t want[GRAIN];

	for (uint64_t g = off / GRAIN; g < (off + len) / GRAIN; g++, got += GRAIN) {
		uint32_t left = d->allowed[g] & (is_now ? ~0U << d->acked[g] : ~0U);

		for (; left; left &= left - 1) {
			fill_version(d, (unsigned)__builtin_ctz(left), g, want);
			if (!memcmp(got, want, GRAIN))
				break;
		}
		if (!left)
			failed(d, "wrong data", d->im.window_off + g * GRAIN);
	}
}

/* ---- the work ---- */

struct hand {
	struct task task;
	struct disk *d;
	unsigned i;
	unsigned *running;
	struct fiber *waiter;
};

static int do_op_wait(struct disk *d, unsigned i)
{
	const struct op *op = &script[i];
	uint64_t off = start_of(d, op), len = length_of(d, op);
	uint8_t *buf = d->bytes[op->kind == REQ_READ] + off;
	struct iovec iov = { buf, len };
	struct req req = { .kind = (uint8_t)op->kind, .flags = (uint8_t)op->flags,
			   .off = op->kind == REQ_FLUSH ? 0 : d->im.window_off + off, .len = len };
	int rc;

	if (op->kind == REQ_WRITE && d->kind->asks)
		req.flags |= REQ_COMPRESSED;
	if (op->kind == REQ_WRITE || op->kind == REQ_READ) {
		req.iov = &iov;
		req.iovcnt = 1;
	}
	if (op->kind == REQ_WRITE)
		for (uint64_t g = off / GRAIN; g < (off + len) / GRAIN; g++)
			fill_version(d, i + 1, g, d->bytes[0] + g * GRAIN);
	if (is_change(op))
		change_begins(d, i);
	rc = chan_submit_wait(d->top->home_chan, &req);
	if (!rc && is_change(op))
		change_done(d, i);
	if (!rc && op->kind == REQ_FLUSH)
		changes_flushed(d);
	if (!rc && op->kind == REQ_READ)
		content_check(d, buf, off, len, true);
	return rc;
}

static void hand_task(struct task *t)
{
	struct hand *h = container_of(t, struct hand, task);

	h->d->results[h->i] = do_op_wait(h->d, h->i);
	if (!--*h->running)
		fiber_wake(h->waiter);
}

/* The operations of a batch, all at once; none touches what another one does. */
static unsigned batch_wait(struct disk *d, unsigned i)
{
	struct hand hands[8];
	unsigned n = 0, running = 0;

	for (; i + n < ARRAY_SIZE(script) && script[i + n].batch == script[i].batch; n++) {
		hands[n] = (struct hand){ .task.fn = hand_task, .d = d, .i = i + n,
					  .running = &running, .waiter = fiber_self() };
		running++;
		fiber_start(d->loop, &hands[n].task);
	}
	while (running)
		fiber_park();
	return i + n;
}

/* ---- what is left ---- */

static bool is_dirty(const struct disk *d)
{
	const struct qcow2_header_disk *h = (const void *)d->file->bytes;

	return d->kind->im.version != 2 &&
	       be64_get(h->incompatible_features) & QCOW2_INCOMPAT_DIRTY;
}

static void judge_check_wait(struct disk *d, bool may_leak)
{
	struct qcow2_check_say say = { 0 };
	struct qcow2_check res;

	if (open_wait(d, (struct qcow2_opts){ 0 }))
		failed(d, "it cannot be opened", 0);
	if (qcow2_check_wait(d->top, &say, &res, NULL))
		failed(d, "it cannot be checked", 0);
	if (res.corruptions || res.check_errors)
		failed(d, "corrupt", res.corruptions);
	if (res.leaks && !may_leak && !qcow2_of(d->top)->header.is_in_use)
		failed(d, "leaks", res.leaks);
	close_wait(d);
}

/* As a disk, and as its snapshot. */
static void judge_content_wait(struct disk *d)
{
	struct qcow2_opts o = { .snapshot = "1" };

	if (open_wait(d, (struct qcow2_opts){ 0 }) ||
	    chan_read_wait(d->top->home_chan, d->im.window_off, d->bytes[1], d->window))
		failed(d, "it cannot be read", 0);
	content_check(d, d->bytes[1], 0, d->window, false);
	if (d->kind->im.is_raw_data &&
	    memcmp(d->data->bytes + d->im.window_off, d->bytes[1], d->window))
		failed(d, "a raw data file that is not the disk", 0);
	close_wait(d);
	if (!d->kind->im.is_shared)
		return;
	if (open_wait(d, o) ||
	    chan_read_wait(d->top->home_chan, d->im.window_off, d->bytes[1], d->window))
		failed(d, "the snapshot cannot be read", 0);
	if (memcmp(d->bytes[1], d->initial, d->window))
		failed(d, "the snapshot has changed", 0);
	close_wait(d);
}

/* A bitmap that is not marked has what was done. */
static void judge_bitmap(const struct disk *d)
{
	enum sim_bitmap bitmap = SIM_BITMAP_FINE;
	struct sim_pages p;

	if (!d->kind->im.bitmap_bits)
		return;
	sim_pages_init(&p, NULL, 0);
	sim_pages_write(&p, 0, d->file->bytes, atomic_load(&d->file->node.size));
	if (sim_bitmap_head(&d->im, &p, bitmap).flags & 1)
		goto out;
	for (unsigned i = 0; i < ARRAY_SIZE(script); i++) {
		uint64_t off = start_of(d, &script[i]);
		uint64_t end = off + length_of(d, &script[i]);

		if (d->results[i] || (script[i].kind != REQ_WRITE && script[i].kind != REQ_ZERO))
			continue;
		for (; off < end; off += GRAIN)
			if (!sim_bitmap_bit(&d->im, &p, bitmap, d->im.window_off + off))
				failed(d, "a bitmap without a bit", off);
	}
out:
	sim_pages_fini(&p);
}

static void judge_wait(struct disk *d, bool is_clean)
{
	uint8_t buf[GRAIN];

	judge_bitmap(d);
	if (!is_dirty(d))
		judge_check_wait(d, !is_clean);
	judge_content_wait(d);
	/* Written on with all memory that it wants, it is as good as new. */
	if (open_wait(d, (struct qcow2_opts){ .writable = true }))
		failed(d, "it cannot be written on", 0);
	if (chan_read_wait(d->top->home_chan, d->im.window_off, buf, GRAIN) ||
	    chan_write_wait(d->top->home_chan, d->im.window_off, buf, GRAIN))
		failed(d, "it cannot be written on", 0);
	while (qcow2_of(d->top)->writer->reclaim.is_running)
		fiber_sleep_wait(NS_PER_SEC);
	if (close_wait(d))
		failed(d, "it cannot be closed", 0);
	judge_check_wait(d, false);
	judge_content_wait(d);
}

/* ---- one after the other ---- */

/* True: nothing failed, for memory sufficed. */
static bool run_wait(struct disk *d)
{
	int rc;

	make_files(d);
	memset(d->acked, 0, sizeof(d->acked));
	for (unsigned g = 0; g < GRAINS_MAX; g++)
		d->allowed[g] = 1;
	for (unsigned i = 0; i < ARRAY_SIZE(script); i++)
		d->results[i] = -ECANCELED;
	allocations_left = d->nth;
	has_failed = false;
	is_armed = true;
	rc = open_wait(d, (struct qcow2_opts){ .writable = true, .discard = true,
					       .compress = d->kind->is_packed,
					       .writethrough = d->kind->writethrough });
	if (!rc) {
		for (unsigned i = 0; i < ARRAY_SIZE(script);)
			i = batch_wait(d, i);
		rc = close_wait(d);
		if (!rc)
			changes_flushed(d);
	} else if (!has_failed) {
		failed(d, "it does not open", 0);
	}
	is_armed = false;
	for (unsigned i = 0; i < ARRAY_SIZE(script); i++)
		if (d->results[i] && !has_failed)
			failed(d, "without cause an operation fails", i);
	judge_wait(d, !rc);
	drop_files(d);
	return !has_failed;
}

static unsigned tried;

static int kind_body(void *arg)
{
	struct disk *d = arg;

	make_prototype(d);
	make_files(d);
	if (open_wait(d, (struct qcow2_opts){ 0 }) ||
	    chan_read_wait(d->top->home_chan, d->im.window_off, d->initial, d->window))
		failed(d, "it cannot be read", 0);
	close_wait(d);
	drop_files(d);
	for (d->nth = 0; !run_wait(d); d->nth++) {
		tried++;
		assert_in_range(d->nth, 0, ALLOCATIONS_MAX);
	}
	sim_pages_fini(&d->pages);
	sim_pages_fini(&d->below_pages);
	return 0;
}

static void run_kinds(void)
{
	static struct disk d;

	tried = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct loop_opts o = { .backend = LOOP_SIM, .sim_seed = i + 1 };

		d = (struct disk){ .kind = &kinds[i] };
		assert_int_equal(loop_new(&o, &d.loop, NULL), 0);
		loop_call(d.loop, kind_body, &d);
		loop_free(d.loop);
	}
	print_message("%u allocations failed, one by one\n", tried);
}

static void q9_any_allocation_may_fail(void **state)
{
	fails_on = false;
	run_kinds();
}

static void q9_memory_may_end_anywhere(void **state)
{
	fails_on = true;
	run_kinds();
}

static void silent(enum log_level level, const char *line)
{
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(q9_any_allocation_may_fail),
		cmocka_unit_test(q9_memory_may_end_anywhere),
	};

	log_set_sink(silent);
	return cmocka_run_group_tests_name("qcow2_memory", tests, NULL, NULL);
}
