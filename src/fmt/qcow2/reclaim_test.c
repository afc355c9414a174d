/* SPDX-License-Identifier: MIT */
/* The walk after a crash: leaks go, what is used meanwhile stays, damage is left alone; COPIED
 * flags come back behind their refcounts, whatever fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "base/log.h"
#include "fmt/qcow2/test_image.h"

enum { BITS = 9, CLUSTER = 1 << BITS, ROOM = 4 << 20, LEAK = 20, LEAKS = 30,
       MARK_OFF = QCOW2_HEADER_V3_BYTES };

/* ---- memory that ends: the nth allocation fails, and @fails_on all that follow ---- */

static bool fails_on;
static int allocations_left = -1;       /* < 0: it does not end */

static bool may_allocate(void)
{
	if (allocations_left < 0)
		return true;
	if (allocations_left > 0) {
		allocations_left--;
		return true;
	}
	allocations_left = fails_on ? 0 : -1;
	return false;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

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

/* ---- what is said ---- */

static unsigned nwarned;                /* that an image is damaged */

static void drop(enum log_level level, const char *line)
{
	nwarned += strstr(line, "is damaged") != NULL;
}

/* ---- images ---- */

static uint8_t *refcount(struct test_image *im, uint64_t cluster)
{
	return im->mem->bytes + TEST_IMAGE_REFBLOCK * CLUSTER + 2 * cluster;
}

static bool is_marked(struct test_image *im)
{
	return be32_load(im->mem->bytes + MARK_OFF) == QCOW2_EXT_IN_USE;
}

/* An image that a crash has left: with the mark, and clusters that nothing names. */
static void make(struct test_image *im, struct loop *l)
{
	test_image_make(im, l, BITS, 4, ROOM);
	be32_store(im->mem->bytes + MARK_OFF, QCOW2_EXT_IN_USE);
	for (unsigned i = 0; i < LEAKS; i++)
		be16_store(refcount(im, LEAK + i), (uint16_t)(1 + i % 3));
	atomic_store(&im->mem->node.size, (uint64_t)(LEAK + LEAKS) * CLUSTER);
}

static unsigned leaks(struct test_image *im)
{
	unsigned n = 0;

	for (unsigned i = 0; i < LEAKS; i++)
		n += be16_load(refcount(im, LEAK + i)) != 0;
	return n;
}

/* @takes: clusters are taken, and freed, while the walk is on. */
static void use_wait(struct test_image *im, bool takes)
{
	assert_int_equal(test_image_open_wait(im), 0);
	if (takes) {
		struct alloc_run run = test_take_wait(im, 8);

		/* The leaks are not handed out: they have refcounts. */
		assert_true(run.first + run.n <= LEAK || run.first >= LEAK + LEAKS);
		fiber_yield_wait();
		alloc_free(&im->w->alloc, run.first, run.n);
	}
}

static int leaks_body(void *arg)
{
	for (int takes = 0; takes < 2; takes++) {
		struct test_image im;

		make(&im, arg);
		use_wait(&im, takes);
		assert_int_equal(test_image_close_wait(&im), 0);
		assert_int_equal(leaks(&im), 0);
		assert_false(is_marked(&im));
		for (unsigned i = 0; i < TEST_IMAGE_USED; i++)
			assert_int_equal(be16_load(refcount(&im, i)), 1);
		test_image_free_wait(&im);
	}
	return 0;
}

/* A cluster that looks leaked, and is taken and named while the walk is on, keeps its refcount. */
static int touched_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	assert_int_equal(test_image_open_wait(&im), 0);
	reclaim_touch(&im.w->reclaim, LEAK + 3, 1);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(leaks(&im), 1);
	assert_int_equal(be16_load(refcount(&im, LEAK + 3)), 1);
	test_image_free_wait(&im);
	return 0;
}

/* The same without R4: the cluster is in use, and free. */
static int no_touch_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	im.broken = BREAK_R4_TOUCHED;
	assert_int_equal(test_image_open_wait(&im), 0);
	reclaim_touch(&im.w->reclaim, LEAK + 3, 1);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(leaks(&im), 0);
	test_image_free_wait(&im);
	return 0;
}

/* Of several references one may have leaked, and another been freed since: in the end it is looked
 * at again. */
static int shared_body(void *arg)
{
	struct test_image im;

	make(&im, arg);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(be16_load(refcount(&im, LEAK + 4)), 2);
	alloc_free(&im.w->alloc, LEAK + 4, 1);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(leaks(&im), 0);
	assert_false(is_marked(&im));
	test_image_free_wait(&im);
	return 0;
}

/* How many leaks are left where a table has no refcount. */
static unsigned damaged_leaks_wait(struct loop *l, uint64_t broken)
{
	struct test_image im;
	unsigned n;

	make(&im, l);
	im.broken = broken;
	be64_store(im.mem->bytes + TEST_IMAGE_L1 * CLUSTER, (LEAK - 1) * CLUSTER | QCOW2_COPIED);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	n = leaks(&im);
	test_image_free_wait(&im);
	return n;
}

static int damage_body(void *arg)
{
	assert_int_equal(damaged_leaks_wait(arg, 0), LEAKS);
	assert_int_equal(damaged_leaks_wait(arg, BREAK_R5_DAMAGED), 0);
	return 0;
}

/* The walk fails. */
static void fail_walk_wait(struct test_image *im, struct loop *l, uint64_t broken)
{
	make(im, l);
	im->broken = broken;
	assert_int_equal(test_image_open_wait(im), 0);
	im->mem->fail_kinds = 1U << REQ_READ;
	im->mem->fail_after = 1;
	while (im->w->reclaim.is_running)       /* asleep, or the clock would creep */
		fiber_queue_wait(&im->w->reclaim.waiting);
	im->mem->fail_after = -1;
	test_image_close_wait(im);
}

static int anyway_body(void *arg)
{
	struct test_image im;

	fail_walk_wait(&im, arg, BREAK_R6_ANYWAY);
	assert_false(is_marked(&im));
	assert_int_equal(leaks(&im), LEAKS);
	test_image_free_wait(&im);
	return 0;
}

static int error_body(void *arg)
{
	struct test_image im;

	fail_walk_wait(&im, arg, 0);
	assert_true(is_marked(&im));
	/* The next open finds it, and makes it good. */
	use_wait(&im, false);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(leaks(&im), 0);
	assert_false(is_marked(&im));
	test_image_free_wait(&im);
	return 0;
}

/* A refcount of the reserve cannot be read when it is given back, and the close that comes behind
 * the one that failed has nothing to give back any more. */
static int not_given_back_body(void *arg)
{
	struct test_image im;
	struct alloc_run run;

	test_image_make(&im, arg, BITS, 4, ROOM);
	assert_int_equal(test_image_open_wait(&im), 0);
	run = test_take_wait(&im, 1);
	alloc_untake(&im.w->alloc, run.first, 1, run.is_fresh);
	im.w->meta.clean_max = 0;
	assert_int_equal(commit_wait(&im.w->commit), 0);
	im.mem->fail_kinds = 1U << REQ_READ;
	im.mem->fail_after = 0;
	assert_int_equal(test_image_close_wait(&im), -EIO);
	assert_true(im.mem->fail_after < 0);
	assert_int_equal(be16_load(refcount(&im, run.first)), 1);
	assert_true(is_marked(&im));
	use_wait(&im, false);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(be16_load(refcount(&im, run.first)), 0);
	assert_false(is_marked(&im));
	test_image_free_wait(&im);
	return 0;
}

/* Nothing is free, and the file cannot grow: who writes waits for the walk, which hurries. */
static int room_body(void *arg)
{
	uint8_t data[CLUSTER] = { 1 };
	struct test_image im;

	make(&im, arg);
	im.mem->room = (LEAK + LEAKS) * CLUSTER;
	for (unsigned k = TEST_IMAGE_USED; k < LEAK; k++)
		be16_store(refcount(&im, k), 1);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_true(im.w->reclaim.is_running);
	assert_int_equal(chan_write_wait(im.node->home_chan, 0, data, CLUSTER), 0);
	assert_false(im.w->reclaim.is_running);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_false(is_marked(&im));
	im.mem->room = ROOM;
	test_image_free_wait(&im);
	return 0;
}

/* ---- what a snapshot that was begun by another program leaves (R7) ---- */

enum { TABLE = 10, DATA, PACKED, OWN, BARE, ZEROS, HALF_END,
       L1_OFF = TEST_IMAGE_L1 * CLUSTER, L2_OFF = TABLE * CLUSTER };

/* In the order of enum: refcounts, and the table's entries. */
static const struct half {
	unsigned refcount;
	uint64_t flags;
} halves[] = {
	[TABLE - TABLE] = { 2, 0 },
	[DATA - TABLE] = { 2, 0 },
	[PACKED - TABLE] = { 2, QCOW2_COMPRESSED },
	[OWN - TABLE] = { 1, QCOW2_COPIED },
	[BARE - TABLE] = { 1, 0 },      /* by a walk that lost power before it set the flag */
	[ZEROS - TABLE] = { 3, QCOW2_ZERO },
};

static void make_half(struct test_image *im, struct loop *l)
{
	make(im, l);
	for (unsigned k = TABLE; k < HALF_END; k++)
		be16_store(refcount(im, k), (uint16_t)halves[k - TABLE].refcount);
	be64_store(im->mem->bytes + L1_OFF, TABLE * CLUSTER);
	for (unsigned k = DATA; k < HALF_END; k++)
		be64_store(im->mem->bytes + L2_OFF + 8 * (k - DATA),
			   k * CLUSTER | halves[k - TABLE].flags);
}

static bool has_flag(const struct test_image *im, uint64_t off)
{
	return be64_load(im->mem->bytes + off) & QCOW2_COPIED;
}

/* On disk, at any time: a flag only where the refcount is 1. */
static bool is_safe(struct test_image *im)
{
	bool is_ok = !has_flag(im, L1_OFF) || be16_load(refcount(im, TABLE)) == 1;

	for (unsigned k = DATA; k < HALF_END && is_ok; k++)
		is_ok = !has_flag(im, L2_OFF + 8 * (k - DATA)) ||
			be16_load(refcount(im, k)) == 1;
	return is_ok;
}

static void watch(void *arg, const struct req *req)
{
	if (req->kind == REQ_WRITE && !is_safe(arg))
		fail_msg("a flag came before its refcount");
}

static void expect_whole(struct test_image *im)
{
	for (unsigned k = TABLE; k < HALF_END; k++)
		assert_int_equal(be16_load(refcount(im, k)), 1);
	assert_true(has_flag(im, L1_OFF));
	for (unsigned k = DATA; k < HALF_END; k++) {
		uint64_t entry = be64_load(im->mem->bytes + L2_OFF + 8 * (k - DATA));
		uint64_t flag = k == PACKED ? 0 : QCOW2_COPIED;

		assert_int_equal(entry, (halves[k - TABLE].flags | flag | k * CLUSTER));
	}
	assert_int_equal(leaks(im), 0);
	assert_false(is_marked(im));
}

static void walk_end_wait(struct test_image *im)
{
	while (im->w->reclaim.is_running)
		fiber_queue_wait(&im->w->reclaim.waiting);
}

static int flags_body(void *arg)
{
	struct test_image im;

	make_half(&im, arg);
	im.mem->watch = watch;
	im.mem->watch_arg = &im;
	assert_int_equal(test_image_open_wait(&im), 0);
	walk_end_wait(&im);
	assert_int_equal(commit_wait(&im.w->commit), 0);
	/* While it is in use: what has a flag to come keeps what it has. */
	for (unsigned k = TABLE; k < HALF_END; k++)
		assert_int_equal(be16_load(refcount(&im, k)),
				 k == PACKED ? 1 : halves[k - TABLE].refcount);
	assert_false(has_flag(&im, L1_OFF) || has_flag(&im, L2_OFF));
	assert_true(is_marked(&im));
	assert_int_equal(leaks(&im), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	expect_whole(&im);
	test_image_free_wait(&im);
	return 0;
}

/* The guest writes meanwhile: its table is copied, its cluster replaced. */
static int flags_used_body(void *arg)
{
	uint8_t data[CLUSTER] = { 1 };
	struct test_image im;
	uint64_t table, entry;

	make_half(&im, arg);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(chan_write_wait(im.node->home_chan, 0, data, CLUSTER), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	table = be64_load(im.mem->bytes + L1_OFF);
	assert_true(table & QCOW2_COPIED);
	table &= QCOW2_OFFSET_MASK;
	assert_int_equal(be16_load(refcount(&im, TABLE)), table != L2_OFF ? 0 : 1);
	for (unsigned k = DATA; k < HALF_END; k++) {
		entry = be64_load(im.mem->bytes + table + 8 * (k - DATA));
		assert_int_equal(be16_load(refcount(&im, (entry & QCOW2_OFFSET_MASK) / CLUSTER)),
				 1);
		assert_int_equal(!(entry & QCOW2_COPIED), k == PACKED);
	}
	assert_int_equal(be16_load(refcount(&im, DATA)), 0);
	assert_int_equal(leaks(&im), 0);
	assert_false(is_marked(&im));
	test_image_free_wait(&im);
	return 0;
}

/* Any request of the last walk fails: what is left is safe, and the next open makes it good. */
static int flags_failing_body(void *arg)
{
	bool has_failed = true;

	for (int nth = 0; has_failed; nth++) {
		struct test_image im;

		assert_in_range(nth, 0, 200);
		make_half(&im, arg);
		assert_int_equal(test_image_open_wait(&im), 0);
		walk_end_wait(&im);
		im.mem->fails_on = nth & 1;
		im.mem->fail_after = nth / 2;
		test_image_close_wait(&im);
		has_failed = im.mem->fail_after <= 0;
		im.mem->fail_after = -1;
		assert_true(is_safe(&im));
		use_wait(&im, false);
		assert_int_equal(test_image_close_wait(&im), 0);
		expect_whole(&im);
		test_image_free_wait(&im);
	}
	return 0;
}

/* The same where memory ends. True: it did. */
static bool without_memory_wait(struct loop *l, int nth, bool in_last)
{
	struct test_image im;
	bool has_ended;

	make_half(&im, l);
	assert_int_equal(test_image_open_wait(&im), 0);
	if (in_last)
		walk_end_wait(&im);
	allocations_left = nth;
	walk_end_wait(&im);
	test_image_close_wait(&im);
	has_ended = allocations_left <= 0;
	allocations_left = -1;
	assert_true(is_safe(&im));
	use_wait(&im, false);
	assert_int_equal(test_image_close_wait(&im), 0);
	expect_whole(&im);
	test_image_free_wait(&im);
	return has_ended;
}

static int memory_body(void *arg)
{
	for (unsigned variant = 0; variant < 4; variant++) {
		int nth = 0;

		fails_on = variant & 1;
		while (without_memory_wait(arg, nth, variant & 2))
			nth++;
		assert_in_range(nth, 10, 1000);
	}
	return 0;
}

static int flags_damage_body(void *arg)
{
	struct test_image im;

	make_half(&im, arg);
	/* Two L1 entries: it and what it names have two names, but for what the second... */
	be64_store(im.mem->bytes + L1_OFF + 8, L2_OFF);
	assert_int_equal(test_image_open_wait(&im), 0);
	test_image_close_wait(&im);
	/* ...has no refcount for: damage. */
	assert_false(has_flag(&im, L1_OFF) || has_flag(&im, L2_OFF));
	assert_true(is_marked(&im));
	test_image_free_wait(&im);
	return 0;
}

/* ---- a table without its flag that nobody shares: the first write has it copied (R8) ---- */

struct bare {
	struct test_image im;
	bool is_seen;                   /* the walk has read its name */
	struct fiber *waiter;           /* for that: asleep, or the clock would creep */
};

static void make_bare(struct bare *b, struct loop *l)
{
	struct test_image *im = &b->im;

	make(im, l);
	for (unsigned k = TABLE; k < HALF_END; k++)
		be16_store(refcount(im, k), 1);
	be64_store(im->mem->bytes + L1_OFF, TABLE * CLUSTER);
	for (unsigned k = DATA; k < HALF_END; k++)
		be64_store(im->mem->bytes + L2_OFF + 8 * (k - DATA), k * CLUSTER | QCOW2_COPIED);
	b->is_seen = false;
	b->waiter = fiber_self();
}

static void see(struct bare *b, bool is_seen)
{
	b->is_seen |= is_seen;
	if (is_seen)
		fiber_wake(b->waiter);
}

static void watch_name(void *arg, const struct req *req)
{
	struct bare *b = arg;

	/* The walk reads no more than the table has. */
	see(b, req->kind == REQ_READ && req->off == L1_OFF && req->len < CLUSTER);
}

/* What the walk finds where its table was, if it reads that late, is @byte. Returns how many
 * clusters in use are taken for free then. */
static unsigned bare_table_wait(struct loop *l, uint8_t byte, uint64_t broken)
{
	uint8_t data[CLUSTER] = { 1 };
	struct bare b;
	struct test_image *im = &b.im;
	unsigned lost = 0;

	make_bare(&b, l);
	im->broken = broken;
	im->mem->watch = watch_name;
	im->mem->watch_arg = &b;
	assert_int_equal(test_image_open_wait(im), 0);
	b.is_seen = false;              /* the open has, too */
	while (!b.is_seen)
		fiber_park();
	assert_int_equal(chan_write_wait(im->node->home_chan, (HALF_END - DATA) * CLUSTER, data,
					 CLUSTER), 0);
	assert_int_equal(commit_wait(&im->w->commit), 0);
	alloc_settle_wait(&im->w->alloc);
	assert_int_equal(test_count_wait(im, TABLE), 0);
	assert_true(im->w->reclaim.is_running);
	memset(im->mem->bytes + L2_OFF, byte, CLUSTER);
	assert_int_equal(test_image_close_wait(im), 0);
	for (unsigned k = DATA; k < HALF_END; k++)
		lost += !be16_load(refcount(im, k));
	if (!broken) {
		assert_int_equal(be16_load(refcount(im, TABLE)), 0);
		assert_int_equal(leaks(im), 0);
		assert_false(is_marked(im));
	}
	test_image_free_wait(im);
	return lost;
}

/* Zeros would be a table that names nothing; ones would be damage. */
static int bare_body(void *arg)
{
	assert_int_equal(bare_table_wait(arg, 0, 0), 0);
	nwarned = 0;
	assert_int_equal(bare_table_wait(arg, 0xff, 0), 0);
	assert_int_equal(bare_table_wait(arg, 0, BREAK_R8_GOES_ON), HALF_END - DATA);
	assert_int_equal(nwarned, 0);
	bare_table_wait(arg, 0xff, BREAK_R8_GOES_ON);
	assert_int_equal(nwarned, 1);
	return 0;
}

/* The walk has read the table with the name; the other one it has not. */
static void watch_table(void *arg, const struct req *req)
{
	struct bare *b = arg;

	see(b, req->kind == REQ_READ && req->off == L2_OFF);
}

/* Of a cluster's two references one has leaked, and the other is freed when the walk has seen its
 * name and not yet its refcount: these agree. Returns the refcount in the end. */
static unsigned freed_between_wait(struct loop *l, uint64_t broken)
{
	uint8_t data[CLUSTER] = { 1 };
	struct bare b;
	struct test_image *im = &b.im;
	unsigned count;

	make_bare(&b, l);
	im->broken = broken;
	be64_store(im->mem->bytes + L1_OFF, TABLE * CLUSTER | QCOW2_COPIED);
	be64_store(im->mem->bytes + L2_OFF, DATA * CLUSTER);
	be16_store(refcount(im, DATA), 2);
	/* One more table, without an entry. */
	be64_store(im->mem->bytes + L1_OFF + 8, ZEROS * CLUSTER | QCOW2_COPIED);
	be64_store(im->mem->bytes + L2_OFF + 8 * (ZEROS - DATA), 0);
	im->mem->watch = watch_table;
	im->mem->watch_arg = &b;
	assert_int_equal(test_image_open_wait(im), 0);
	while (!b.is_seen)
		fiber_park();
	assert_int_equal(chan_write_wait(im->node->home_chan, 0, data, CLUSTER), 0);
	assert_int_equal(commit_wait(&im->w->commit), 0);
	alloc_settle_wait(&im->w->alloc);
	assert_int_equal(commit_wait(&im->w->commit), 0);
	assert_int_equal(be16_load(refcount(im, DATA)), 1);
	assert_true(im->w->reclaim.is_running);
	assert_int_equal(test_image_close_wait(im), 0);
	count = be16_load(refcount(im, DATA));
	assert_false(is_marked(im));
	assert_int_equal(leaks(im), 0);
	test_image_free_wait(im);
	return count;
}

static int between_body(void *arg)
{
	assert_int_equal(freed_between_wait(arg, 0), 0);
	assert_int_equal(freed_between_wait(arg, BREAK_R6_SHARED), 1);
	return 0;
}

/* ---- what the walk does while others are at work, and in strange images ---- */

/* A second block of refcounts: the walk reads it when it has freed what the first one counts. */
enum { BLOCK = 16, BLOCK_CLUSTERS = CLUSTER / 2, FAR = BLOCK_CLUSTERS + 5 };

static void watch_growth(void *arg, const struct req *req)
{
	struct test_image *im = arg;

	if (req->kind != REQ_READ || req->off != BLOCK * CLUSTER || !im->w || !im->w->meta.ndirty)
		return;
	reclaim_void(&im->w->reclaim);
	im->mem->watch = NULL;
}

/* A table grows when a part is freed in memory: the next walk, which sees on disk what it was, does
 * not free it once more. */
static int void_body(void *arg)
{
	struct test_image im;

	make_half(&im, arg);
	be16_store(refcount(&im, BLOCK), 1);
	be64_store(im.mem->bytes + TEST_IMAGE_REFTABLE * CLUSTER + 8, BLOCK * CLUSTER);
	be16_store(im.mem->bytes + BLOCK * CLUSTER + 2 * (FAR % BLOCK_CLUSTERS), 1);
	im.mem->watch = watch_growth;
	im.mem->watch_arg = &im;
	assert_int_equal(test_image_open_wait(&im), 0);
	walk_end_wait(&im);
	assert_null(im.mem->watch);
	assert_int_equal(test_count_wait(&im, PACKED), 1);
	assert_int_equal(test_image_close_wait(&im), 0);
	expect_whole(&im);
	assert_int_equal(be16_load(im.mem->bytes + BLOCK * CLUSTER + 2 * (FAR % BLOCK_CLUSTERS)),
			 0);
	test_image_free_wait(&im);
	return 0;
}

/* However high it is: nobody counts that far. */
static int huge_body(void *arg)
{
	struct test_image im;
	uint8_t *counts;

	test_image_make(&im, arg, BITS, 6, ROOM);
	counts = im.mem->bytes + TEST_IMAGE_REFBLOCK * CLUSTER;
	be32_store(im.mem->bytes + MARK_OFF, QCOW2_EXT_IN_USE);
	be64_store(counts + 8 * LEAK, UINT64_MAX);
	be64_store(counts + 8 * TEST_IMAGE_L1, 1ULL << 62);
	assert_int_equal(test_image_open_wait(&im), 0);
	assert_int_equal(test_image_close_wait(&im), 0);
	assert_int_equal(be64_load(counts + 8 * LEAK), 0);
	assert_int_equal(be64_load(counts + 8 * TEST_IMAGE_L1), 1);
	assert_false(is_marked(&im));
	test_image_free_wait(&im);
	return 0;
}

static void r4_a_walk_that_was_void_frees_nothing_twice(void **state)
{
	test_image_run(void_body);
}

static void refcounts_of_any_height_are_lowered(void **state)
{
	test_image_run(huge_body);
}

static void r7_refcounts_of_1_come_with_their_flags(void **state)
{
	test_image_run(flags_body);
}

static void r7_what_is_replaced_meanwhile_has_its_flags(void **state)
{
	test_image_run(flags_used_body);
}

static void r7_errors_in_the_last_walk_are_made_good_later(void **state)
{
	test_image_run(flags_failing_body);
}

static void r6_r7_without_memory_it_is_made_good_later(void **state)
{
	test_image_run(memory_body);
}

static void r5_r7_damage_gets_no_flags(void **state)
{
	test_image_run(flags_damage_body);
}

static void r8_a_table_that_became_free_is_not_read_as_one(void **state)
{
	test_image_run(bare_body);
}

static void r6_a_reference_that_leaked_is_found_though_another_is_freed(void **state)
{
	test_image_run(between_body);
}

static void r6_what_could_not_be_given_back_is_found(void **state)
{
	test_image_run(not_given_back_body);
}

static void what_leaked_is_freed(void **state)
{
	test_image_run(leaks_body);
}

static void r4_what_was_touched_is_left(void **state)
{
	test_image_run(touched_body);
	test_image_run(no_touch_body);
}

static void what_leaked_is_room_for_what_is_written(void **state)
{
	test_image_run(room_body);
}

static void what_leaked_of_a_shared_cluster_is_freed(void **state)
{
	test_image_run(shared_body);
}

static void r5_damage_is_left(void **state)
{
	test_image_run(damage_body);
}

static void r6_the_mark_stays_until_the_walk_was_good(void **state)
{
	test_image_run(error_body);
	test_image_run(anyway_body);
}


int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_leaked_is_freed),
		cmocka_unit_test(r6_what_could_not_be_given_back_is_found),
		cmocka_unit_test(what_leaked_is_room_for_what_is_written),
		cmocka_unit_test(r4_what_was_touched_is_left),
		cmocka_unit_test(what_leaked_of_a_shared_cluster_is_freed),
		cmocka_unit_test(r5_damage_is_left),
		cmocka_unit_test(r6_the_mark_stays_until_the_walk_was_good),
		cmocka_unit_test(r4_a_walk_that_was_void_frees_nothing_twice),
		cmocka_unit_test(refcounts_of_any_height_are_lowered),
		cmocka_unit_test(r7_refcounts_of_1_come_with_their_flags),
		cmocka_unit_test(r7_what_is_replaced_meanwhile_has_its_flags),
		cmocka_unit_test(r7_errors_in_the_last_walk_are_made_good_later),
		cmocka_unit_test(r6_r7_without_memory_it_is_made_good_later),
		cmocka_unit_test(r5_r7_damage_gets_no_flags),
		cmocka_unit_test(r6_a_reference_that_leaked_is_found_though_another_is_freed),
		cmocka_unit_test(r8_a_table_that_became_free_is_not_read_as_one),
	};

	log_set_sink(drop);
	return cmocka_run_group_tests_name("reclaim", tests, NULL, NULL);
}
