/* SPDX-License-Identifier: MIT */
/* What writes cost, what becomes of the clusters that they replace, and when it is durable: one
 * request at a time, looked at closely. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "fmt/qcow2/qcow2.h"
#include "fmt/qcow2/test_disk.h"

/* ---- what it costs ---- */

static void with_disk(const struct test_cell *cell, int (*body)(void *arg))
{
	test_disk_with(cell, 7, body);
}

/* Again where @rule is broken: body() sees the difference. */
static void with_and_without(const struct test_cell *cell, enum writer_break rule,
			     int (*body)(void *arg))
{
	struct test_cell broken = *cell;

	broken.broken = rule;
	with_disk(cell, body);
	with_disk(&broken, body);
}

static int simple_wait(struct test_disk *d, enum req_kind kind, unsigned flags, uint64_t off,
		       uint64_t len)
{
	uint8_t *buf = malloc(len);
	struct iovec iov = { buf, len };
	struct test_ask a = { .req = { .kind = (uint8_t)kind, .flags = (uint8_t)flags, .off = off,
				  .len = len, .iov = &iov, .iovcnt = 1 } };
	int rc;

	memset(buf, (int)(off / 512 + 1), len);
	rc = test_ask_wait(d, &a);
	if (kind == REQ_WRITE || kind == REQ_ZERO)
		test_model_write(d, off, kind == REQ_WRITE ? buf : NULL, len, rc);
	else if (kind == REQ_DISCARD)
		test_model_discard(d, off, len, rc);
	else if (kind == REQ_READ && !rc)
		test_model_check(d, buf, off, len);
	free(buf);
	return rc;
}

static struct l2_pair pair_of(struct test_disk *d, uint64_t off)
{
	struct l2_at at;
	struct l2_pair pair;

	assert_int_equal(l2_get_wait(d->w, off, false, &at), 0);
	pair = l2_pair(d->w, &at, off);
	l2_put(d->w, &at);
	return pair;
}

static uint64_t entry_of(struct test_disk *d, uint64_t off)
{
	return pair_of(d, off).entry;
}

static int stream_body(void *arg)
{
	struct test_disk *d = arg;
	struct pendings *ps = &d->w->pendings;
	uint64_t writes = d->file->ops[REQ_WRITE];

	/* Sixteen clusters with a backing file: not a byte of it is copied. */
	for (uint64_t off = 0; off < 1 << 20; off += 4096)
		assert_int_equal(simple_wait(d, REQ_WRITE, 0, off, 4096), 0);
	assert_int_equal(ps->fills.bytes, 0);
	assert_int_equal(ps->n, 0);
	assert_true(ps->njoined == 240);
	assert_true(d->file->ops[REQ_WRITE] - writes <= 256 + 16);
	/* In the middle of one: one write for all of it. */
	writes = d->file->ops[REQ_WRITE];
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, (1 << 20) + 8192, 4096), 0);
	assert_int_equal(d->file->ops[REQ_WRITE] - writes, 1);
	assert_int_equal(ps->fills.bytes, 60 << 10);
	/* In place: nothing but the data. */
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 12345, 77777), 0);
	assert_int_equal(d->file->ops[REQ_WRITE] - writes, 2);
	return 0;
}

static void w6_a_stream_copies_nothing(void **state)
{
	static const struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = BACK_RAW,
				       .size = 2 << 20 };

	with_disk(&c, stream_body);
}

static int fresh_body(void *arg)
{
	struct test_disk *d = arg;

	for (uint64_t i = 0; i < 32; i++)
		assert_int_equal(simple_wait(d, REQ_WRITE, 0, i * 65536 + 4096 * (i % 16), 4096),
				 0);
	assert_int_equal(d->w->pendings.nopened, 0);
	assert_int_equal(d->w->pendings.fills.bytes, 0);
	assert_int_equal(test_disk_flush(d), 0);
	assert_true(d->w->commit.stats.skipped + 1 >= d->w->commit.stats.commits);
	return 0;
}

static void w6_fresh_clusters_are_mapped_at_once(void **state)
{
	static const struct test_cell c = { .version = 3, .cluster_bits = 16, .size = 3 << 20 };

	with_disk(&c, fresh_body);
}

static int pending_body(void *arg)
{
	struct test_disk *d = arg;
	struct pendings *ps = &d->w->pendings;
	struct test_ask map = { .req = { .kind = REQ_MAP, .off = 65536, .len = 65536 } };

	/* At the cluster's start: it waits for more. */
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 65536, 512), 0);
	assert_int_equal(ps->n, 1);
	assert_int_equal(entry_of(d, 65536), 0);
	/* W8: whoever looks closes it. */
	assert_int_equal(simple_wait(d, REQ_READ, 0, 65000, 4096), 0);
	assert_int_equal(ps->n, 0);
	assert_true(entry_of(d, 65536) & QCOW2_COPIED);
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 0, 512), 0);
	map.req.off = 0;
	assert_int_equal(test_ask_wait(d, &map), 0);
	assert_int_equal(ps->n, 0);
	assert_true(map.req.map.flags & MAP_DATA);
	/* So does a test_disk_flush, and a write that does not touch what is covered. */
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 3 << 16, 512), 0);
	assert_int_equal(test_disk_flush(d), 0);
	assert_int_equal(ps->n, 0);
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 4 << 16, 512), 0);
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, (4 << 16) + 4096, 512), 0);
	assert_int_equal(ps->n, 0);
	/* Marks are there again when the slice was forgotten and is loaded again. */
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 5 << 16, 512), 0);
	cache_clear(d->cache);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 6 << 16, 4096), 0);
	assert_int_equal(ps->n, 1);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 5 << 16, 4096), 0);
	assert_int_equal(ps->n, 0);
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 6 << 16, 512), 0);
	cache_clear(d->cache);
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 7 << 16, 512), 0);
	assert_int_equal(ps->n, 2);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 6 << 16, 4096), 0);
	assert_int_equal(ps->n, 1);
	/* So do too many. */
	for (uint64_t i = 0; i < 100; i++)
		assert_int_equal(simple_wait(d, REQ_WRITE, 0, (8 + i) << 16, 512), 0);
	assert_true(ps->n <= PENDING_OPEN_MAX + 2);
	return 0;
}

static void w8_who_looks_closes(void **state)
{
	static const struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = BACK_RAW,
				       .size = 8 << 20 };

	with_disk(&c, pending_body);
}

/* The slice is in the cache when the cluster is opened. */
static int unseen_body(void *arg)
{
	struct test_disk *d = arg;

	assert_int_equal(simple_wait(d, REQ_READ, 0, 0, 4096), 0);
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 65536, 512), 0);
	assert_int_equal(d->w->pendings.n, 1);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 65536, 4096), 0);
	assert_int_equal(d->nwrong, d->cell.broken ? 512 : 0);
	return 0;
}

static void w8_who_is_not_told_sees_old_content(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = BACK_RAW,
			       .size = 2 << 20 };

	with_and_without(&c, BREAK_W8_UNSEEN, unseen_body);
}

/* The second write to a pending cluster fails: what it was to write is what it was, or is to be. */
static int failed_body(void *arg)
{
	struct test_disk *d = arg;

	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 2 << 16, 4096), 0);
	assert_int_equal(d->w->pendings.n, 1);
	d->file->fail_kinds = 1 << REQ_WRITE;
	atomic_store(&d->file->fail_after, 0);
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, (2 << 16) + 4096, 4096), -EIO);
	assert_int_equal(test_disk_flush(d), 0);
	assert_int_equal(d->w->pendings.n, 0);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 2 << 16, 65536), 0);
	assert_true(!d->nwrong == !d->cell.broken);
	return 0;
}

static void x3_mapping_what_a_failed_write_covers_is_caught(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = BACK_RAW,
			       .size = 1 << 20 };

	with_and_without(&c, BREAK_X3_MAPPED, failed_body);
}

/* ---- zeros and discards ---- */

static int zero_body(void *arg)
{
	struct test_disk *d = arg;
	uint64_t host, cluster = 65536;

	for (uint64_t i = 0; i < 6; i++)
		assert_int_equal(simple_wait(d, REQ_WRITE, 0, i * cluster, cluster), 0);
	host = entry_of(d, 0) & QCOW2_OFFSET_MASK;
	/* Kept, and used again when it is written. */
	assert_int_equal(simple_wait(d, REQ_ZERO, 0, 0, cluster), 0);
	assert_true(entry_of(d, 0) == (host | QCOW2_COPIED | QCOW2_ZERO));
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 4096, 4096), 0);
	assert_int_equal(test_disk_flush(d), 0);
	assert_true(entry_of(d, 0) == (host | QCOW2_COPIED));
	/* Unmapped, by a zero that allows it and by a discard. */
	assert_int_equal(simple_wait(d, REQ_ZERO, REQ_MAY_UNMAP, cluster, cluster), 0);
	assert_true(entry_of(d, cluster) == QCOW2_ZERO);
	assert_int_equal(simple_wait(d, REQ_DISCARD, 0, 2 * cluster, cluster), 0);
	assert_true(entry_of(d, 2 * cluster) == QCOW2_ZERO);
	/* Parts of clusters: zeros in place, discards not at all. */
	assert_int_equal(simple_wait(d, REQ_ZERO, REQ_MAY_UNMAP, 3 * cluster + 7, 5000), 0);
	assert_int_equal(simple_wait(d, REQ_DISCARD, 0, 4 * cluster, 5000), 0);
	assert_true(entry_of(d, 3 * cluster) & QCOW2_COPIED);
	/* A part of what is not there needs the backing file's content around it. */
	assert_int_equal(simple_wait(d, REQ_ZERO, REQ_FAST_ONLY, 9 * cluster + 7, 5000), -ENOTSUP);
	d->doubt[0] = KNOWN;
	memset(d->doubt + 9 * cluster, KNOWN, cluster);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 9 * cluster, cluster), 0);
	assert_int_equal(simple_wait(d, REQ_ZERO, 0, 9 * cluster + 7, 5000), 0);
	/* Nor is a part of it done: the cluster before is there. */
	assert_int_equal(simple_wait(d, REQ_ZERO, REQ_FAST_ONLY, 6 * cluster - 512, 1024),
			 -ENOTSUP);
	memset(d->doubt + 5 * cluster, KNOWN, 2 * cluster);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 5 * cluster, 2 * cluster), 0);
	return 0;
}

static void y4_zeros_and_discards(void **state)
{
	static const struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = BACK_RAW,
				       .size = 1 << 20 };

	with_disk(&c, zero_body);
}

/* Version 2 has no zero flag. */
static int zero_v2_body(void *arg)
{
	struct test_disk *d = arg;
	uint64_t cluster = 65536, host;

	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 0, 4 * cluster), 0);
	host = entry_of(d, 0);
	/* What is there is written over where something would show through, else unmapped; what is
	 * nowhere, and has nothing below, stays so. */
	assert_int_equal(simple_wait(d, REQ_ZERO, 0, 0, cluster), 0);
	assert_true(entry_of(d, 0) == (d->cell.backing ? host : 0));
	assert_int_equal(simple_wait(d, REQ_ZERO, 0, 4 * cluster, d->cell.size - 4 * cluster), 0);
	assert_true(d->cell.backing ? entry_of(d, 5 * cluster) & QCOW2_COPIED :
				      !entry_of(d, 5 * cluster));
	assert_true(!entry_of(d, 15 * cluster));        /* behind the backing file's end */
	/* Unmapped where nothing would show through. */
	assert_int_equal(simple_wait(d, REQ_ZERO, REQ_MAY_UNMAP, cluster + 512, 2 * cluster), 0);
	assert_true(!entry_of(d, 2 * cluster) == !d->cell.backing);
	assert_true(entry_of(d, cluster) & QCOW2_COPIED && entry_of(d, 3 * cluster) & QCOW2_COPIED);
	assert_int_equal(simple_wait(d, REQ_DISCARD, 0, 3 * cluster, cluster), 0);
	assert_true(!entry_of(d, 3 * cluster) == !d->cell.backing);
	return 0;
}

static void y4_zeros_without_a_flag(void **state)
{
	struct test_cell c = { .version = 2, .cluster_bits = 16, .size = 1 << 20 };

	with_disk(&c, zero_v2_body);
	c.backing = BACK_RAW;
	with_disk(&c, zero_v2_body);
}

static int vast_body(void *arg)
{
	struct test_disk *d = arg;
	uint64_t ios = d->file->ops[REQ_WRITE] + d->file->ops[REQ_READ];
	struct test_ask a = { .req = { .kind = REQ_ZERO, .len = d->cell.size } };

	assert_int_equal(test_ask_wait(d, &a), 0);
	a.req = (struct req){ .kind = REQ_DISCARD, .off = 512, .len = d->cell.size - 512 };
	assert_int_equal(test_ask_wait(d, &a), 0);
	/* The L1 table was read, and nothing else done. */
	assert_true(d->file->ops[REQ_WRITE] + d->file->ops[REQ_READ] - ios <= 1024);
	assert_int_equal(d->w->alloc.ntaken, 0);
	assert_int_equal(d->w->meta.nchanges, 0);
	return 0;
}

static void y5_what_is_nowhere_needs_no_table(void **state)
{
	for (unsigned version = 2; version <= 3; version++) {
		struct test_cell c = { .version = version, .cluster_bits = 16, .size = TiB };

		with_disk(&c, vast_body);
	}
}

/* ---- subclusters ---- */

static int overlay_body(void *arg)
{
	struct test_disk *d = arg;
	struct pendings *ps = &d->w->pendings;
	uint64_t unit = 2048, cluster = 65536, writes = d->file->ops[REQ_WRITE], host;
	uint64_t reads = d->raw->ops[REQ_READ];

	/* Whole subclusters: nothing of the backing file is read or copied. */
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 4 * unit, 2 * unit), 0);
	assert_int_equal(ps->n, 0);
	assert_true(pair_of(d, 0).bitmap == 3 << 4);
	host = entry_of(d, 0) & QCOW2_OFFSET_MASK;
	/* A part of one: of that one alone, in one write next to the others. */
	writes = d->file->ops[REQ_WRITE];
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 20 * unit + 100, 1000), 0);
	assert_int_equal(d->file->ops[REQ_WRITE] - writes, 1);
	assert_int_equal(ps->fills.bytes, unit - 1000);
	assert_true(pair_of(d, 0).bitmap == (3 << 4 | 1 << 20));
	assert_true((entry_of(d, 0) & QCOW2_OFFSET_MASK) == host);
	assert_int_equal(d->raw->ops[REQ_READ] - reads, 1);
	/* In place: nothing changes but the data. */
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 5 * unit + 7, 99), 0);
	assert_int_equal(d->file->ops[REQ_WRITE] - writes, 2);
	/* From what is there into what is not: the rest of the second one is filled. */
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 5 * unit + 7, 2 * unit), 0);
	assert_int_equal(test_disk_flush(d), 0);
	assert_int_equal(ps->fills.bytes, unit - 1000 + unit - 7);
	assert_true(pair_of(d, 0).bitmap == (15 << 4 | 1 << 20));
	/* Zeros: bits, and data for less than a subcluster. */
	assert_int_equal(simple_wait(d, REQ_ZERO, REQ_MAY_UNMAP, 5 * unit - 10, unit + 10), 0);
	assert_true(pair_of(d, 0).bitmap == (13 << 4 | 1 << 20 | 1ULL << (32 + 5)));
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 5 * unit + 9, 10), 0);
	assert_int_equal(test_disk_flush(d), 0);
	assert_true(pair_of(d, 0).bitmap == (15 << 4 | 1 << 20));
	/* The last of the data goes, and so does the place. */
	assert_int_equal(simple_wait(d, REQ_ZERO, REQ_MAY_UNMAP, 4 * unit, 17 * unit), 0);
	assert_true(entry_of(d, 0) == 0);
	assert_true(pair_of(d, 0).bitmap == 0x1ffff0ULL << 32);
	/* A discard takes whole clusters. */
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, cluster, cluster), 0);
	assert_int_equal(simple_wait(d, REQ_DISCARD, 0, cluster, cluster - unit), 0);
	assert_true(pair_of(d, cluster).bitmap == 0xffffffff);
	assert_int_equal(simple_wait(d, REQ_DISCARD, 0, cluster, cluster), 0);
	assert_true(entry_of(d, cluster) == 0);
	assert_true(pair_of(d, cluster).bitmap == 0xffffffffULL << 32);
	return 0;
}

static void u12_w6_writes_take_the_subclusters_that_they_touch(void **state)
{
	static const struct test_cell c = { .version = 3, .cluster_bits = 16, .is_extended = true,
				       .backing = BACK_RAW, .size = 1 << 20 };

	with_disk(&c, overlay_body);
}

/* A part of a cluster that was nowhere. */
static int around_body(void *arg)
{
	struct test_disk *d = arg;

	assert_int_equal(simple_wait(d, REQ_WRITE, 0, (2 << 16) + 4 * 2048, 2 * 2048), 0);
	assert_int_equal(test_disk_flush(d), 0);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 2 << 16, 65536), 0);
	assert_true(!d->nwrong == !d->cell.broken);
	return 0;
}

static void u12_more_subclusters_than_it_touches_are_caught(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .is_extended = true,
			       .backing = BACK_RAW, .size = 1 << 20 };

	with_and_without(&c, BREAK_U12_ALL, around_body);
}

struct looker {
	const struct qcow2 *q;
	_Atomic bool is_over;
	_Atomic unsigned long data, zero, bad;
};

static void *look(void *arg)
{
	struct looker *k = arg;

	while (!atomic_load(&k->is_over)) {
		struct ext e = map_run(k->q, 100, 200);

		k->data += e.kind == EXT_DATA;
		k->zero += e.kind == EXT_ZERO;
		k->bad += e.kind == EXT_CORRUPT || e.kind == EXT_BACKING;
	}
	return NULL;
}

/* The first subcluster is data, then zeros without a place, and so on; another thread looks. */
static int flip_body(void *arg)
{
	static const struct l2_pair pairs[] = { { 9 << 16 | QCOW2_COPIED, 1 },
						{ 0, 1ULL << 32 } };
	struct test_disk *d = arg;
	struct looker k = { .q = d->w->q };
	pthread_t reader;
	struct l2_at at;

	assert_int_equal(l2_get_wait(d->w, 0, true, &at), 0);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 0, 512), 0);       /* it is cached */
	l2_set(d->w, &at, 0, pairs[1], false);
	assert_int_equal(pthread_create(&reader, NULL, look, &k), 0);
	for (unsigned n = 0; n < 20000000; n++) {
		if (n > 20000 && k.data > 1000 && k.zero > 1000 && (k.bad || !d->cell.broken))
			break;
		l2_set(d->w, &at, 0, pairs[n % 2], false);
	}
	atomic_store(&k.is_over, true);
	pthread_join(reader, NULL);
	l2_set(d->w, &at, 0, (struct l2_pair){ 0, 0 }, false);
	l2_put(d->w, &at);
	assert_true(k.data && k.zero);
	assert_true(!k.bad == !d->cell.broken);
	return 0;
}

static void u11_other_loops_see_whole_pairs(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .is_extended = true,
			       .size = 1 << 20 };

	with_and_without(&c, BREAK_U11_APART, flip_body);
}

static int fresh_units_body(void *arg)
{
	struct test_disk *d = arg;
	const struct commit_stats *s = &d->w->commit.stats;
	uint64_t syncs;

	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 0, 2048), 0);
	assert_int_equal(test_disk_flush(d), 0);
	assert_int_equal(test_disk_flush(d), 0);
	/* Subclusters of a cluster that was fresh: one sync each, as new clusters. */
	syncs = s->syncs;
	for (uint64_t i = 1; i < 20; i++) {
		assert_int_equal(simple_wait(d, REQ_WRITE, 0, i * 2048, 1000), 0);
		assert_int_equal(test_disk_flush(d), 0);
		assert_int_equal(s->syncs - syncs, i);
	}
	assert_int_equal(d->w->pendings.nopened, 0);
	assert_int_equal(d->w->pendings.fills.bytes, 0);
	/* But not where something was once. */
	assert_int_equal(simple_wait(d, REQ_ZERO, 0, 2048, 4096), 0);
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 2148, 1000), 0);
	assert_int_equal(d->w->pendings.nopened, 1);
	assert_int_equal(test_disk_flush(d), 0);
	assert_int_equal(d->w->pendings.fills.bytes, 1048);
	return 0;
}

static void u13_subclusters_of_fresh_clusters_are_mapped_at_once(void **state)
{
	static const struct test_cell c = { .version = 3, .cluster_bits = 16, .is_extended = true,
				       .size = 1 << 20 };

	with_disk(&c, fresh_units_body);
}

/* The disk ends within a subcluster, and that within its cluster. */
static int last_unit_body(void *arg)
{
	struct test_disk *d = arg;
	uint64_t size = d->cell.size;

	assert_int_equal(simple_wait(d, REQ_WRITE, 0, size - 1024, 1024), 0);
	assert_int_equal(simple_wait(d, REQ_ZERO, 0, size - 512, 512), 0);
	assert_true(pair_of(d, align_down(size, 65536)).bitmap == 1ULL << 3);
	assert_int_equal(simple_wait(d, REQ_READ, 0, size - 1024, 1024), 0);
	return 0;
}

static void y4_nothing_is_zeroed_behind_the_end(void **state)
{
	static const struct test_cell c = { .version = 3, .cluster_bits = 16, .is_extended = true,
				       .size = (1 << 20) + 3 * 2048 + 1024 };

	with_disk(&c, last_unit_body);
}

/* ---- durability ---- */

/* What a power cut would leave at worst: the file as it was when the last sync began, and what was
 * written durably by itself. */
struct durable {
	struct test_disk *d;
	uint8_t *bytes;
	unsigned in_place;
};

/* Of the file, which only grows meanwhile. */
static uint64_t size_now(const struct durable *s)
{
	return atomic_load(&s->d->file->node.size);
}

static void watch_sync(void *arg, const struct req *req)
{
	struct durable *s = arg;

	if (req->kind == REQ_FLUSH) {
		memcpy(s->bytes, s->d->file->bytes, size_now(s));
	} else if (req->kind == REQ_WRITE && req->flags & REQ_FUA) {
		req_copy_from(req, 0, s->bytes + req->off, req->len);
		s->in_place++;
	}
}

/* Are the @len bytes at guest @off, all of them @value, in the durable image? */
static bool is_durable(struct durable *s, uint64_t off, uint64_t len, uint8_t value)
{
	struct test_mem *m = test_mem_new(s->d->loops[0], s->d->file->room);
	struct qcow2_cache *c = qcow2_cache_new(0, s->d->loops[0]);
	struct qcow2_opts o = { .cache = c };
	uint8_t *buf = calloc(1, len);
	struct node *n;
	bool is_there;

	memcpy(m->bytes, s->bytes, size_now(s));
	atomic_store(&m->node.size, size_now(s));
	assert_int_equal(qcow2_open_wait(&m->node, &o, &n, NULL), 0);
	assert_int_equal(chan_read_wait(n->home_chan, off, buf, len), 0);
	is_there = buf[0] == value && !memcmp(buf, buf + 1, len - 1);
	free(buf);
	node_put_wait(n);
	qcow2_cache_free(c);
	return is_there;
}

static int durable_body(void *arg)
{
	struct test_disk *d = arg;
	struct durable s = { d, calloc(1, d->file->room), 0 };
	unsigned lost = 0;

	memcpy(s.bytes, d->file->bytes, size_now(&s));
	d->file->watch = watch_sync;
	d->file->watch_arg = &s;
	for (unsigned i = 0; i < 12; i++) {
		uint64_t off = i / 3 * 65536 + 512;

		/* The first maps its cluster and is not durable; the second is, and so are those
		 * that only write in place. */
		assert_int_equal(simple_wait(d, REQ_WRITE, i % 3 ? REQ_FUA : 0, off, 1024), 0);
		if (i % 3 && !is_durable(&s, off, 1024, d->model[off]))
			lost++;
	}
	d->file->watch = NULL;
	free(s.bytes);
	assert_true(d->cell.broken || s.in_place >= 4);
	assert_true(d->cell.broken ? lost : !lost);
	return 0;
}

static void x4_fua_is_durable_and_so_is_what_maps_it(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .size = 1 << 20 };

	with_and_without(&c, BREAK_X4_VOLATILE, durable_body);
}

/* Pending clusters are zeroed in these ways: nothing is filled for it. */
static int zeroed_body(void *arg)
{
	static const struct { enum req_kind kind; unsigned flags; } how[] = {
		{ REQ_ZERO, 0 }, { REQ_ZERO, REQ_MAY_UNMAP }, { REQ_DISCARD, 0 },
		{ REQ_ZERO, REQ_FUA },
	};
	struct test_disk *d = arg;
	struct pendings *ps = &d->w->pendings;
	uint64_t taken = d->w->alloc.ntaken, reads = d->raw ? d->raw->ops[REQ_READ] : 0;

	for (uint64_t i = 0; i < ARRAY_SIZE(how); i++) {
		bool keeps = how[i].kind == REQ_ZERO && !(how[i].flags & REQ_MAY_UNMAP);
		uint64_t off = i * 3 << 16;

		/* Two of them, and more than they cover. */
		assert_int_equal(simple_wait(d, REQ_WRITE, 0, off + 65536, 512), 0);
		assert_int_equal(simple_wait(d, REQ_WRITE, 0, off + 2 * 65536, 512), 0);
		assert_int_equal(ps->n, 2);
		assert_int_equal(simple_wait(d, how[i].kind, how[i].flags, off, 3 << 16), 0);
		assert_int_equal(ps->n, 0);
		assert_int_equal(ps->nopen, 0);
		assert_int_equal(map_entry(d->w->q, entry_of(d, off + 65536), off + 65536).kind,
				 d->cell.backing || keeps ? EXT_ZERO : EXT_BACKING);
		assert_true(!(entry_of(d, off + 65536) & QCOW2_OFFSET_MASK) == !keeps);
		assert_int_equal(simple_wait(d, REQ_READ, 0, off, 3 << 16), 0);
	}
	assert_int_equal(ps->fills.bytes, 0);
	if (d->raw)
		assert_int_equal(d->raw->ops[REQ_READ], reads);
	assert_true(d->w->alloc.ntaken - taken == 2 * ARRAY_SIZE(how) + 1);     /* and a table */
	/* One of which a part is zeroed is closed, or joined. */
	assert_int_equal(simple_wait(d, REQ_WRITE, 0, 14 << 16, 4096), 0);
	assert_int_equal(simple_wait(d, REQ_ZERO, 0, (14 << 16) + 4096, 65536 - 4096), 0);
	assert_int_equal(simple_wait(d, REQ_READ, 0, 14 << 16, 65536), 0);
	return 0;
}

static void y4_w6_what_is_zeroed_is_not_filled(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .size = 1 << 20,
			       .backing = BACK_RAW };

	with_disk(&c, zeroed_body);
	c.backing = BACK_QCOW2;
	with_disk(&c, zeroed_body);
}

/* ---- in place ---- */

static int cluster_body(void *arg)
{
	return simple_wait(arg, REQ_WRITE, REQ_FUA, 0, 65536);
}

static int in_place_body(void *arg)
{
	struct test_disk *d = arg;
	int rc = simple_wait(d, REQ_WRITE, 0, 8192, 4096);

	if (!rc)
		rc = simple_wait(d, REQ_WRITE, 0, 4096, 4096);
	return rc ? rc : simple_wait(d, REQ_FLUSH, 0, 0, 0);
}

static void with_disk_open(struct test_disk *d, int (*body)(void *arg))
{
	loop_call(d->loops[0], test_disk_open, d);
	loop_call(d->loops[0], test_disk_open_port, d);
	assert_int_equal(loop_call(d->loops[0], body, d), 0);
	loop_call(d->loops[0], test_disk_close_port, d);
	loop_call(d->loops[0], test_disk_close, d);
}

/* No mark, no refcount, no entry: from the open to the close. */
static void writes_in_place_write_their_data_alone(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .size = 1 << 20 };
	struct test_disk *d = test_disk_new(&c, LOOP_SIM, 1, 7);
	uint64_t writes;

	with_disk_open(d, cluster_body);
	writes = d->file->ops[REQ_WRITE];
	with_disk_open(d, in_place_body);
	assert_int_equal(d->file->ops[REQ_WRITE] - writes, 2);
	loop_call(d->loops[0], test_disk_verify, d);
	test_disk_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(w6_a_stream_copies_nothing),
		cmocka_unit_test(w6_fresh_clusters_are_mapped_at_once),
		cmocka_unit_test(w8_who_looks_closes),
		cmocka_unit_test(w8_who_is_not_told_sees_old_content),
		cmocka_unit_test(x3_mapping_what_a_failed_write_covers_is_caught),
		cmocka_unit_test(y4_zeros_and_discards),
		cmocka_unit_test(y4_zeros_without_a_flag),
		cmocka_unit_test(y4_w6_what_is_zeroed_is_not_filled),
		cmocka_unit_test(y5_what_is_nowhere_needs_no_table),
		cmocka_unit_test(writes_in_place_write_their_data_alone),
		cmocka_unit_test(u12_w6_writes_take_the_subclusters_that_they_touch),
		cmocka_unit_test(u12_more_subclusters_than_it_touches_are_caught),
		cmocka_unit_test(u11_other_loops_see_whole_pairs),
		cmocka_unit_test(u13_subclusters_of_fresh_clusters_are_mapped_at_once),
		cmocka_unit_test(y4_nothing_is_zeroed_behind_the_end),
		cmocka_unit_test(x4_fua_is_durable_and_so_is_what_maps_it),
	};

	return cmocka_run_group_tests_name("qcow2_pending", tests, NULL, NULL);
}
