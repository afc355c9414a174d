/* SPDX-License-Identifier: MIT */
/* Reads while the file takes no writes: whatever state the clusters are in, they show what was
 * written; and all of it is there when the file takes writes again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "fmt/qcow2/test_disk.h"

enum { CLUSTER = 64 << 10, SIZE = 4 << 20, TRIES = 16 };

static void fill_up(struct test_disk *d)
{
	d->may_fail = true;
	d->file->fail_with = -ENOSPC;
	d->file->fail_kinds = 1 << REQ_WRITE | 1 << REQ_ZERO | 1 << REQ_COPY;
	d->file->fails_on = true;
	atomic_store(&d->file->fail_after, 0);
}

static void make_room(struct test_disk *d)
{
	atomic_store(&d->file->fail_after, -1);
}

/* Compresses to about two thirds. */
static int write_wait(struct test_disk *d, uint64_t off, uint64_t len)
{
	uint8_t *buf = malloc(len);
	struct iovec iov = { buf, len };
	struct test_ask a = { .req = { .kind = REQ_WRITE, .off = off, .len = len, .iov = &iov,
				       .iovcnt = 1 } };
	struct prng p = { mix64(off) };
	int rc;

	for (uint64_t i = 0; i < len; i++)
		buf[i] = prng_below(&p, 3) ? (uint8_t)prng_next(&p) : 7;
	rc = test_ask_wait(d, &a);
	test_model_write(d, off, buf, len, rc);
	free(buf);
	return rc;
}

/* [@off, @off + @len) reads as what it is, and is data or not. */
static void read_wait(struct test_disk *d, uint64_t off, uint64_t len)
{
	uint8_t *buf = malloc(len);
	struct iovec iov = { buf, len };
	struct test_ask a = { .req = { .off = off, .len = len, .iov = &iov, .iovcnt = 1 } };

	assert_int_equal(test_ask_wait(d, &a), 0);
	test_model_check(d, buf, off, len);
	free(buf);
}

static void map_wait(struct test_disk *d, uint64_t off, unsigned flags)
{
	struct test_ask a = { .req = { .kind = REQ_MAP, .off = off, .len = CLUSTER } };

	assert_int_equal(test_ask_wait(d, &a), 0);
	assert_int_equal(a.req.map.flags & (MAP_DATA | MAP_ZERO | MAP_PRESENT), flags);
}

/* In parts of clusters, whole ones, and more than one at a time. */
static void read_all_wait(struct test_disk *d)
{
	uint64_t size = d->cell.size;

	for (uint64_t off = 0; off < size; off += 20000)
		read_wait(d, off, MIN((uint64_t)4096, size - off));
	for (uint64_t off = 0; off < size; off += CLUSTER)
		read_wait(d, off, CLUSTER);
	read_wait(d, 0, size);
}

/* W9: reads do not try what failed; but commits, where time passes meanwhile. */
static void read_without_tries_wait(struct test_disk *d)
{
	uint64_t tries = d->file->ops[REQ_WRITE] + d->file->ops[REQ_ZERO];

	read_all_wait(d);
	tries = d->file->ops[REQ_WRITE] + d->file->ops[REQ_ZERO] - tries;
	if (d->nloops > 1)
		return;
	if (d->cell.broken & BREAK_W9_RETRY)
		assert_true(tries > TRIES);
	else
		assert_int_equal(tries, 0);
}

static int read_body(void *arg)
{
	read_all_wait(arg);
	return 0;
}

static void open_disk(struct test_disk *d)
{
	loop_call(d->loops[0], test_disk_open, d);
	for (unsigned i = 0; i < d->nloops; i++)
		loop_call(d->loops[i], test_disk_open_port, d);
}

/* There is room again: nothing is lost. Returns what was wrong, where a rule is broken. */
static unsigned close_disk(struct test_disk *d)
{
	unsigned nwrong;

	make_room(d);
	assert_int_equal(loop_call(d->loops[0], test_disk_flush, d), 0);
	assert_int_equal(d->w->pendings.n, 0);
	loop_call(d->loops[0], read_body, d);
	for (unsigned i = 0; i < d->nloops; i++)
		loop_call(d->loops[i], test_disk_close_port, d);
	loop_call(d->loops[0], test_disk_close, d);
	loop_call(d->loops[0], test_disk_verify, d);
	nwrong = d->nwrong;
	test_disk_free(d);
	return nwrong;
}

static unsigned count_bufs(const struct test_disk *d, enum pack_buf_state state)
{
	unsigned n = 0;

	for (unsigned i = 0; i < PACK_BUFS; i++)
		n += d->w->pack.bufs[i].state == state;
	return n;
}

/* Is there one of which a part is written, and another one is not? */
static bool has_half_written(const struct test_disk *d)
{
	list_for_each(n, &d->w->pendings.all) {
		const struct pending *p = list_entry(n, struct pending, link);
		uint64_t host = p->packed.entry & ((1ULL << 54) - 1);

		for (unsigned i = 0; i < PACK_BUFS && p->parts; i++) {
			const struct pack_buf *b = &d->w->pack.bufs[i];

			if (b->state != PACK_FREE && b->nitems && b->items[0] == p &&
			    b->host > host)
				return true;
		}
	}
	return false;
}

/* Clusters in all states that packing knows; the disk is full then. */
static int packed_body(void *arg)
{
	struct test_disk *d = arg;
	uint64_t off = 0;
	int rc;

	while (d->w->pack.nwrites < 2 || count_bufs(d, PACK_WRITING)) {
		assert_int_equal(write_wait(d, off, CLUSTER), 0);
		off += CLUSTER;
	}
	assert_true(has_half_written(d));
	/* Two that gather: nobody has asked for more. */
	assert_int_equal(write_wait(d, off + 512, 1024), 0);
	off += CLUSTER;
	assert_int_equal(write_wait(d, off, 512), 0);
	assert_int_equal(d->w->pack.ngathered, 2);
	fill_up(d);
	read_all_wait(d);
	read_without_tries_wait(d);
	map_wait(d, off, MAP_DATA | MAP_PRESENT);
	map_wait(d, 0, MAP_DATA | MAP_PRESENT);
	assert_true(d->w->pendings.n > 0);
	assert_true(count_bufs(d, PACK_FAILED) > 0);
	assert_int_equal(test_disk_flush(d), -ENOSPC);
	/* Writes fail, though perhaps not while one more try is under way; the rest is there. */
	do {
		off += CLUSTER;
		rc = write_wait(d, off, CLUSTER);
	} while (!rc);
	assert_int_equal(rc, -ENOSPC);
	read_all_wait(d);
	return 0;
}

static void w8_w9_z7_what_is_packed_is_read_from_memory(void **state)
{
	for (unsigned i = 0; i < 6; i++) {
		struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = i % 3,
				       .packs_all = true, .packs_zstd = i % 2, .size = SIZE };
		struct test_disk *d = test_disk_new(&c, LOOP_SIM, 1, 40 + i);

		open_disk(d);
		loop_call(d->loops[0], packed_body, d);
		close_disk(d);
	}
}

/* Pending clusters whose rest cannot be filled. */
static int plain_body(void *arg)
{
	struct test_disk *d = arg;
	unsigned n;

	for (uint64_t i = 0; i < 8; i++)
		assert_int_equal(write_wait(d, i * CLUSTER, 3000 + i * 512), 0);
	assert_int_equal(write_wait(d, 9 * CLUSTER - 5000, 5000), 0);
	fill_up(d);
	read_all_wait(d);
	n = d->w->pendings.n;           /* fewer where the rest is zeros, which are there */
	assert_true(n > 4);
	map_wait(d, 0, MAP_DATA | MAP_PRESENT);
	assert_int_equal(test_disk_flush(d), -ENOSPC);
	/* Writes that joined one and failed: those bytes are the old ones. */
	assert_int_equal(write_wait(d, 3000, 2000), -ENOSPC);
	assert_int_equal(write_wait(d, 9 * CLUSTER - 9000, 4000), -ENOSPC);
	read_all_wait(d);
	read_without_tries_wait(d);
	assert_int_equal(d->w->pendings.n, n);
	return 0;
}

static void w7_w8_w9_what_cannot_be_filled_is_read_from_both_places(void **state)
{
	for (unsigned i = 0; i < 6; i++) {
		struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = 1 + i % 2,
				       .is_extended = i % 3 == 2, .size = SIZE };
		struct test_disk *d = test_disk_new(&c, LOOP_SIM, 1, 50 + i);

		open_disk(d);
		loop_call(d->loops[0], plain_body, d);
		close_disk(d);
	}
}

/* What is wrong while the disk is full, and what then. */
static void wrong_if(uint64_t broken, unsigned *ret_full, unsigned *ret_then)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = BACK_RAW,
			       .size = SIZE, .broken = broken };
	struct test_disk *d = test_disk_new(&c, LOOP_SIM, 1, 50);

	open_disk(d);
	loop_call(d->loops[0], plain_body, d);
	*ret_full = d->nwrong;
	*ret_then = close_disk(d) - *ret_full;
}

static void w7_w8_leaving_a_rule_out_is_caught(void **state)
{
	unsigned full, then;

	wrong_if(BREAK_W8_AS_WRITTEN, &full, &then);
	assert_true(full && !then);
	wrong_if(BREAK_W7_NO_FILL, &full, &then);
	assert_true(!full && then);
}

static void w9_reads_that_try_again_are_caught(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = BACK_RAW,
			       .packs_all = true, .size = SIZE, .broken = BREAK_W9_RETRY };
	int (*const bodies[])(void *arg) = { packed_body, plain_body };

	for (unsigned i = 0; i < 2; i++) {
		struct test_disk *d;

		c.packs_all = !i;
		d = test_disk_new(&c, LOOP_SIM, 1, 50);
		open_disk(d);
		loop_call(d->loops[0], bodies[i], d);
		close_disk(d);
	}
}

static void w8_another_loop_reads_as_well(void **state)
{
	struct test_cell c = { .version = 3, .cluster_bits = 16, .backing = BACK_RAW,
			       .packs_all = true, .size = SIZE };
	struct test_disk *d = test_disk_new(&c, LOOP_AUTO, 2, 60);

	open_disk(d);
	loop_call(d->loops[0], packed_body, d);
	loop_call(d->loops[1], read_body, d);
	close_disk(d);
}

static void w8_whatever_is_done_reads_go_on(void **state)
{
	for (unsigned i = 0; i < 60 / TEST_SCALE_FAULTS; i++) {
		static const unsigned bits[] = { 16, 12, 14 };
		struct test_cell c = { .version = 3, .cluster_bits = bits[i % 3],
				       .backing = i / 3 % 3, .is_extended = i % 3 == 2,
				       .packs_every = 1 + i % 4, .packs_all = i % 2,
				       .packs_level = 1, .size = 400 << 10 };

		/* An even seed: -ENOSPC; one that can be divided by three: for good. */
		test_disk_faults(&c, 6 * (100 + i), (int)(i * 5 % 23),
				 1 << REQ_WRITE | 1 << REQ_ZERO | 1 << REQ_COPY);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(w8_w9_z7_what_is_packed_is_read_from_memory),
		cmocka_unit_test(w7_w8_w9_what_cannot_be_filled_is_read_from_both_places),
		cmocka_unit_test(w7_w8_leaving_a_rule_out_is_caught),
		cmocka_unit_test(w9_reads_that_try_again_are_caught),
		cmocka_unit_test(w8_another_loop_reads_as_well),
		cmocka_unit_test(w8_whatever_is_done_reads_go_on),
	};

	return cmocka_run_group_tests_name("qcow2_pending_read", tests, NULL, NULL);
}
