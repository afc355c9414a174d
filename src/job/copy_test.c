/* SPDX-License-Identifier: MIT */
/* Copies of disks in memory, whose answers come in any order, beside the bytes themselves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/test_scale.h"
#include "base/zero.h"
#include "job/copy.h"
#include "job/copy_plan.h"
#include "job/test_disk.h"

enum { SOURCES = 2, SOURCE_GRANULES = GRANULES / 2 };

struct lost {
	unsigned nmaps, nreads;
	uint64_t first, last;           /* reads: sectors */
};

struct seen {
	uint64_t done, total;
	struct lost lost;
};

struct trial {
	struct prng *prng;
	struct mem *source[SOURCES], *target;
	struct port *port[SOURCES], *target_port;
	struct port_chan *pcs[SOURCES];
	struct copy_opts o;
	struct copy_result result;
	struct seen seen;
	uint8_t before[GRANULES * GRANULE];     /* the target */
};

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
	struct seen *s = arg;

	assert_true(done >= s->done && done <= total);
	s->done = done;
	s->total = total;
}

static void on_lost(void *arg, enum copy_fault fault, uint64_t off, int error)
{
	struct seen *s = arg;

	assert_int_equal(error, -EIO);
	if (fault == COPY_MAP_FAILED) {
		s->lost.nmaps++;
		return;
	}
	s->lost.first = s->lost.nreads ? MIN(s->lost.first, off) : off;
	s->lost.last = MAX(s->lost.last, off);
	s->lost.nreads++;
}

/* Two sources that fill the target, whose content is noise. */
static struct trial *trial_new(struct prng *prng)
{
	struct trial *t = calloc(1, sizeof(*t));

	t->prng = prng;
	for (unsigned i = 0; i < SOURCES; i++) {
		t->source[i] = mem_new(prng, SOURCE_GRANULES);
		for (unsigned k = 0; k < 100; k++)      /* zeros in the middle of data */
			memset(t->source[i]->bytes + prng_below(prng, SOURCE_GRANULES * GRANULE -
								20000), 0, prng_below(prng, 20000));
		t->port[i] = port_on(t->source[i]);
		t->pcs[i] = port_here(t->port[i]);
	}
	t->target = mem_new(prng, GRANULES);
	memset(t->target->bytes, 0xee, sizeof(t->target->bytes));
	t->target_port = port_to_write_on(t->target);
	t->o = (struct copy_opts) {
		.sources = t->pcs, .nsources = SOURCES, .target = port_here(t->target_port),
		.min_sparse = SECTOR << prng_below(prng, 9), .align = SECTOR,
		.out_of_order = prng_below(prng, 2), .depth = 1 + (unsigned)prng_below(prng, 12),
		.on_progress = on_progress, .on_lost = on_lost, .arg = &t->seen,
	};
	if (prng_below(prng, 3))
		t->o.align = t->o.min_sparse;
	if (!prng_below(prng, 4))
		t->o.min_sparse = 0;
	return t;
}

static int trial_run_wait(struct trial *t)
{
	memcpy(t->before, t->target->bytes, sizeof(t->before));
	return copy_run_wait(&t->o, &t->result);
}

static void trial_free_wait(struct trial *t)
{
	for (unsigned i = 0; i < SOURCES; i++)
		mem_free_wait(t->source[i], t->port[i]);
	mem_free_wait(t->target, t->target_port);
	free(t);
}

static const uint8_t *source_bytes(const struct trial *t, uint64_t off)
{
	uint64_t half = SOURCE_GRANULES * GRANULE;

	return t->source[off / half]->bytes + off % half;
}

/* The first sector that is not what the sources hold. */
static uint64_t first_wrong(const struct trial *t)
{
	for (uint64_t off = 0; off < GRANULES * GRANULE; off += SECTOR)
		if (memcmp(t->target->bytes + off, source_bytes(t, off), SECTOR))
			return off;
	return UINT64_MAX;
}

static int everything_body(void *arg)
{
	struct trial *t = trial_new(arg);

	if (prng_below(t->prng, 2)) {
		memset(t->target->bytes, 0, sizeof(t->target->bytes));
		t->o.target_is_zero = t->o.min_sparse;
	}
	assert_int_equal(trial_run_wait(t), 0);
	assert_int_equal(t->result.fault, 0);
	assert_int_equal(first_wrong(t), UINT64_MAX);
	assert_int_equal(t->seen.done, t->seen.total);
	/* D7: what is read lies in a buffer. */
	assert_true(t->source[0]->reading_max + t->source[1]->reading_max <=
		    (size_t)t->o.depth * COPY_CHUNK_BYTES);
	trial_free_wait(t);
	return 0;
}

static void d5_d7_everything_arrives(void **state)
{
	for (uint64_t seed = 1; seed < 60; seed++)
		run(seed, everything_body);
}

/* ---- sharing ---- */

static unsigned data_granules(const struct mem *m)
{
	unsigned n = 0;

	for (unsigned i = 0; i < SOURCE_GRANULES; i++)
		n += m->state[i] == 2;
	return n;
}

static int shared_body(void *arg)
{
	struct trial *t = trial_new(arg);

	t->o.shares = true;
	t->target->share_align = SECTOR << prng_below(t->prng, 8);
	assert_int_equal(trial_run_wait(t), 0);
	assert_int_equal(first_wrong(t), UINT64_MAX);
	assert_int_equal(t->seen.done, t->seen.total);
	assert_int_equal(t->source[0]->nread + t->source[1]->nread, 0);
	assert_true(!data_granules(t->source[0]) || t->target->nshared);
	trial_free_wait(t);
	return 0;
}

static void d5_what_is_shared_is_not_read(void **state)
{
	for (uint64_t seed = 1; seed < 60 / TEST_SCALE + 2; seed++)
		run(seed, shared_body);
}

/* Sharing that fails in the middle, or is not what files can do; the file system's copying, too. */
static int refused_body(void *arg)
{
	struct trial *t = trial_new(arg);
	unsigned files = 0;

	for (unsigned i = 0; i < SOURCES; i++)
		files += data_granules(t->source[i]) > 0;
	t->o.shares = true;
	t->o.offloads = prng_below(t->prng, 2);
	t->target->share_align = prng_below(t->prng, 4) ? SECTOR << prng_below(t->prng, 8) : 0;
	t->target->share_res = prng_below(t->prng, 2) ? -EOPNOTSUPP : -ENOSPC;
	t->target->copy_res = prng_below(t->prng, 2) ? -EIO : 0;
	assert_int_equal(trial_run_wait(t), 0);
	assert_int_equal(first_wrong(t), UINT64_MAX);
	assert_int_equal(t->seen.done, t->seen.total);
	assert_int_equal(t->target->nprobes, files);
	assert_int_equal(t->target->nshared, t->target->share_align ? files : 0);
	if (!t->o.offloads)
		assert_int_equal(t->target->ncopied, 0);
	else if (t->target->copy_res)
		assert_true(t->target->ncopied <= t->o.depth);
	else
		assert_int_equal(t->source[0]->nread + t->source[1]->nread, 0);
	trial_free_wait(t);
	return 0;
}

static void d5_d9_what_cannot_be_shared_is_copied(void **state)
{
	for (uint64_t seed = 1; seed < 60 / TEST_SCALE + 2; seed++)
		run(seed, refused_body);
}

/* What lies where sharing is not for, or ends in the middle of a block of the file. */
static int unaligned_body(void *arg)
{
	struct trial *t = trial_new(arg);
	unsigned last = SOURCE_GRANULES - 1;

	t->o.shares = true;
	t->target->share_align = prng_below(t->prng, 2) ? 2 * GRANULE : 4096;
	for (unsigned i = 0; i < SOURCES; i++) {
		t->source[i]->state[last] = 2;
		atomic_store(&t->source[i]->node.size, SOURCE_GRANULES * GRANULE - SECTOR * i);
	}
	assert_int_equal(trial_run_wait(t), 0);
	memcpy(t->target->bytes + GRANULES * GRANULE - SECTOR,
	       t->source[1]->bytes + SOURCE_GRANULES * GRANULE - SECTOR, SECTOR);
	assert_int_equal(first_wrong(t), UINT64_MAX);
	assert_true(t->source[1]->nread >= 4096 - SECTOR);
	trial_free_wait(t);
	return 0;
}

static void d5_what_is_not_aligned_is_read(void **state)
{
	for (uint64_t seed = 1; seed < 60 / TEST_SCALE + 2; seed++)
		run(seed, unaligned_body);
}

/* More files than are remembered. */
static int refusers_body(void *arg)
{
	enum { FILES = COPY_SHARERS_MAX + 4, FILE_GRANULES = GRANULES / FILES };
	struct mem *files[FILES], *target = mem_new(arg, GRANULES);
	struct port_chan *pcs[FILES];
	struct port *ports[FILES], *port = port_to_write_on(target);
	struct copy_opts o = { .sources = pcs, .nsources = FILES, .target = port_here(port),
			       .min_sparse = SECTOR, .align = SECTOR, .depth = 4, .shares = true };
	struct copy_result result;

	for (unsigned i = 0; i < FILES; i++) {
		files[i] = mem_new(arg, FILE_GRANULES);
		memset(files[i]->state, 2, FILE_GRANULES);
		memset(files[i]->bytes, (int)i + 1, FILE_GRANULES * GRANULE);
		ports[i] = port_on(files[i]);
		pcs[i] = port_here(ports[i]);
	}
	target->share_align = 4096;
	target->share_res = -EXDEV;
	assert_int_equal(copy_run_wait(&o, &result), 0);
	assert_int_equal(target->nshared, COPY_SHARERS_MAX);
	for (unsigned i = 0; i < FILES; i++) {
		assert_memory_equal(target->bytes + i * FILE_GRANULES * GRANULE, files[i]->bytes,
				    FILE_GRANULES * GRANULE);
		mem_free_wait(files[i], ports[i]);
	}
	mem_free_wait(target, port);
	return 0;
}

static void d9_many_files_that_cannot_be_shared(void **state)
{
	run(1, refusers_body);
}

static bool granule_is_read(const struct mem *m, unsigned granule)
{
	return m->state[granule] == 2;
}

static int failed_read_body(void *arg)
{
	struct trial *t = trial_new(arg);
	unsigned granule = (unsigned)prng_below(t->prng, SOURCE_GRANULES);
	uint64_t off = (SOURCE_GRANULES + (uint64_t)granule) * GRANULE;
	int rc;

	t->source[1]->fails_at = (int)granule;
	rc = trial_run_wait(t);
	if (granule_is_read(t->source[1], granule)) {
		assert_int_equal(rc, -EIO);
		assert_int_equal(t->result.fault, COPY_READ_FAILED);
		assert_int_equal(t->result.off, off);
		assert_true(t->result.chunk_off <= off &&
			    off - t->result.chunk_off < COPY_CHUNK_BYTES);
	} else {
		assert_int_equal(rc, 0);
		assert_int_equal(first_wrong(t), UINT64_MAX);
	}
	trial_free_wait(t);
	return 0;
}

static void d5_a_failed_read_is_told_with_its_place(void **state)
{
	for (uint64_t seed = 1; seed < 40; seed++)
		run(seed, failed_read_body);
}

static int failed_write_body(void *arg)
{
	struct trial *t = trial_new(arg);
	unsigned granule = (unsigned)prng_below(t->prng, GRANULES);
	uint64_t off = (uint64_t)granule * GRANULE;

	t->target->fails_at = (int)granule;
	assert_int_equal(trial_run_wait(t), -EIO);
	assert_int_equal(t->result.fault, COPY_WRITE_FAILED);
	assert_true(t->result.chunk_off <= off);
	trial_free_wait(t);
	return 0;
}

static void d5_a_failed_write_is_no_success(void **state)
{
	for (uint64_t seed = 1; seed < 40; seed++)
		run(seed, failed_write_body);
}

static int failed_map_body(void *arg)
{
	struct trial *t = trial_new(arg);

	t->source[1]->map_fails_at = SOURCE_GRANULES - 1;
	assert_int_equal(trial_run_wait(t), -EIO);
	assert_int_equal(t->result.fault, COPY_MAP_FAILED);
	assert_int_equal(t->result.off / GRANULE, SOURCE_GRANULES - 1);
	assert_int_equal(t->target->nwrites, 0);
	assert_memory_equal(t->target->bytes, t->before, sizeof(t->before));
	trial_free_wait(t);
	return 0;
}

static void d6_nothing_is_written_before_all_is_mapped(void **state)
{
	for (uint64_t seed = 1; seed < 20; seed++)
		run(seed, failed_map_body);
}

static int salvage_body(void *arg)
{
	struct trial *t = trial_new(arg);
	unsigned bad = (unsigned)prng_below(t->prng, SOURCE_GRANULES);

	t->o.salvage = true;
	t->source[1]->fails_at = t->source[1]->map_fails_at = (int)bad;
	assert_int_equal(trial_run_wait(t), 0);
	/* What cannot be mapped is read, and what cannot be read is zero. */
	memset(t->source[1]->bytes + (uint64_t)bad * GRANULE, 0, GRANULE);
	assert_int_equal(first_wrong(t), UINT64_MAX);
	assert_int_equal(t->seen.lost.nmaps, GRANULE / SECTOR);
	assert_int_equal(t->seen.lost.nreads, GRANULE / SECTOR);
	assert_int_equal(t->seen.lost.first, (SOURCE_GRANULES + (uint64_t)bad) * GRANULE);
	assert_int_equal(t->seen.lost.last, t->seen.lost.first + GRANULE - SECTOR);
	trial_free_wait(t);
	return 0;
}

static void d5_salvage_goes_on_and_tells(void **state)
{
	for (uint64_t seed = 1; seed < 20; seed++)
		run(seed, salvage_body);
}

static int stopped_body(void *arg)
{
	struct trial *t = trial_new(arg);
	atomic_bool is_stopped = true;

	t->o.is_stopped = &is_stopped;
	assert_int_equal(trial_run_wait(t), -ECANCELED);
	assert_int_equal(t->result.fault, 0);
	assert_int_equal(t->target->nwrites, 0);
	trial_free_wait(t);
	return 0;
}

static void a_copy_can_be_stopped(void **state)
{
	run(1, stopped_body);
}

struct stopper {
	struct task task;
	atomic_bool is_stopped;
};

static void stop_later(struct task *t)
{
	fiber_sleep_wait(NS_PER_SEC);
	atomic_store(&container_of(t, struct stopper, task)->is_stopped, true);
}

/* At a byte a second the next piece may be sent in days. */
static int slow_stopped_body(void *arg)
{
	struct trial *t = trial_new(arg);
	struct stopper s = { .task.fn = stop_later };
	uint64_t start = loop_now(loop_current());

	t->o.rate = 1;
	t->o.is_stopped = &s.is_stopped;
	fiber_start(loop_current(), &s.task);
	assert_int_equal(trial_run_wait(t), -ECANCELED);
	assert_true(loop_now(loop_current()) - start >= NS_PER_SEC);
	assert_true(loop_now(loop_current()) - start < 2 * NS_PER_SEC);
	trial_free_wait(t);
	return 0;
}

static void a_slow_copy_is_stopped_at_once(void **state)
{
	for (uint64_t seed = 1; seed < 9; seed++)
		run(seed, slow_stopped_body);
}

struct laps {
	struct trial *t;
	unsigned n, fails_at;           /* fails_at: 0: none */
};

static int on_lap_wait(void *arg)
{
	struct laps *laps = arg;
	const struct trial *t = laps->t;

	fiber_yield_wait();
	assert_true(first_wrong(t) >= ++laps->n * t->o.lap);
	assert_int_equal(t->source[0]->reading + t->source[1]->reading, 0);
	return laps->n == laps->fails_at ? -ENOSPC : 0;
}

static int laps_body(void *arg)
{
	struct trial *t = trial_new(arg);
	struct laps laps = { .t = t };

	t->o.lap = (1 + prng_below(t->prng, 8)) * 256 * KiB;
	t->o.arg = &laps;
	t->o.on_progress = NULL;
	t->o.on_lap_wait = on_lap_wait;
	assert_int_equal(trial_run_wait(t), 0);
	assert_true(laps.n > 0 && laps.n < GRANULES * GRANULE / t->o.lap + 1);
	laps = (struct laps) { .t = t, .fails_at = 1 };
	memset(t->target->bytes, 0xee, sizeof(t->target->bytes));
	t->target->order = 0;
	assert_int_equal(trial_run_wait(t), -ENOSPC);
	assert_int_equal(t->result.fault, COPY_WRITE_FAILED);
	assert_int_equal(laps.n, 1);
	trial_free_wait(t);
	return 0;
}

static void d10_a_lap_begins_when_all_before_is_there(void **state)
{
	for (uint64_t seed = 1; seed < 30; seed++)
		run(seed, laps_body);
}

struct room {
	struct trial *t;
	unsigned n;
	bool is_none;
};

static int on_no_room_wait(void *arg)
{
	struct room *room = arg;
	struct trial *t = room->t;

	fiber_yield_wait();
	room->n++;
	assert_int_equal(t->target->nwriting, 0);
	if (!room->is_none)
		t->target->fails_at = -1;
	return 0;
}

static int room_body(void *arg)
{
	struct trial *t = trial_new(arg);
	struct room room = { .t = t };

	t->o.target_is_zero = false;
	t->o.arg = &room;
	t->o.on_progress = NULL;
	t->o.on_no_room_wait = on_no_room_wait;
	t->target->fails_with = -ENOSPC;
	t->target->fails_at = GRANULES / 2;
	assert_int_equal(trial_run_wait(t), 0);
	assert_true(first_wrong(t) == UINT64_MAX);
	assert_int_equal(room.n, 1);
	/* Nothing helps. */
	room = (struct room) { .t = t, .is_none = true };
	t->target->fails_at = GRANULES / 2;
	t->target->order = 0;
	assert_int_equal(trial_run_wait(t), -ENOSPC);
	assert_int_equal(t->result.fault, COPY_WRITE_FAILED);
	assert_int_equal(room.n, 1);
	trial_free_wait(t);
	return 0;
}

static void d11_what_found_no_room_is_written_once_more(void **state)
{
	for (uint64_t seed = 1; seed < 60; seed++)
		run(seed, room_body);
}

static int plan_body(void *arg)
{
	struct trial *t = trial_new(arg);
	struct copy_chunk first, chunk;
	struct copy_plan once, again;
	uint64_t end = 0, fault_off;

	t->o.cluster = prng_below(t->prng, 2) ? 0 : 48 * KiB;
	assert_int_equal(plan_init(&once, &t->o), 0);
	assert_int_equal(plan_init(&again, &t->o), 0);
	while (again.off < again.total)
		assert_int_equal(plan_next_wait(&again, &chunk, &fault_off), 0);
	plan_restart(&again);
	do {
		assert_int_equal(plan_next_wait(&once, &first, &fault_off), 0);
		assert_int_equal(plan_next_wait(&again, &chunk, &fault_off), 0);
		assert_int_equal(first.off, end);
		assert_int_equal(chunk.off, end);
		assert_int_equal(chunk.len, first.len);
		assert_int_equal(chunk.status, first.status);
		assert_true(chunk.status != COPY_DATA || chunk.len <= COPY_CHUNK_BYTES);
		if (!t->o.cluster && chunk.len)
			assert_int_equal(chunk.off / (SOURCE_GRANULES * GRANULE),
					 (chunk.off + chunk.len - 1) / (SOURCE_GRANULES * GRANULE));
		end += chunk.len;
	} while (chunk.len);
	assert_int_equal(end, GRANULES * GRANULE);
	plan_fini(&once);
	plan_fini(&again);
	trial_free_wait(t);
	return 0;
}

static void d8_chunks_are_gapless_and_the_same_again(void **state)
{
	for (uint64_t seed = 1; seed < 30; seed++)
		run(seed, plan_body);
}

/* Data before zeros that count, or zeros, by looking at each byte. */
static void judge_run(const uint8_t *buf, uint64_t len, uint64_t off, uint64_t min, uint64_t align)
{
	bool is_zero;
	uint64_t n = copy_run(buf, len, off, min, align, &is_zero), rest = 0;

	assert_true(n > 0 && n <= len && (n == len || (off + n) % align == 0));
	if (is_zero) {
		assert_true(bytes_are_zero(buf, n));
		return;
	}
	/* What follows are zeros enough, or nothing but zeros, or nothing. */
	while (n + rest < len && !buf[n + rest])
		rest++;
	assert_true(n + rest == len || rest >= min);
	/* And the run ends with a block that is not zero. */
	assert_false(bytes_are_zero(buf + n - MIN(n, align), MIN(n, align)));
}

static void runs_are_cut_where_zeros_begin(void **state)
{
	static uint8_t buf[64 * SECTOR];
	struct prng prng = { 5 };

	for (unsigned i = 0; i < 20000; i++) {
		uint64_t align = SECTOR << prng_below(&prng, 4);
		uint64_t min = align * (1 + prng_below(&prng, 3));
		uint64_t len = SECTOR * (1 + prng_below(&prng, 64)), off;

		for (unsigned s = 0; s < 64; s++)
			memset(buf + s * SECTOR, prng_below(&prng, 4) ? 0 : 1, SECTOR);
		off = SECTOR * prng_below(&prng, 64);
		judge_run(buf, len, off, min, align);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(d5_d7_everything_arrives),
		cmocka_unit_test(d5_what_is_shared_is_not_read),
		cmocka_unit_test(d5_d9_what_cannot_be_shared_is_copied),
		cmocka_unit_test(d5_what_is_not_aligned_is_read),
		cmocka_unit_test(d9_many_files_that_cannot_be_shared),
		cmocka_unit_test(d5_a_failed_read_is_told_with_its_place),
		cmocka_unit_test(d5_a_failed_write_is_no_success),
		cmocka_unit_test(d6_nothing_is_written_before_all_is_mapped),
		cmocka_unit_test(d5_salvage_goes_on_and_tells),
		cmocka_unit_test(a_copy_can_be_stopped),
		cmocka_unit_test(a_slow_copy_is_stopped_at_once),
		cmocka_unit_test(d10_a_lap_begins_when_all_before_is_there),
		cmocka_unit_test(d11_what_found_no_room_is_written_once_more),
		cmocka_unit_test(d8_chunks_are_gapless_and_the_same_again),
		cmocka_unit_test(runs_are_cut_where_zeros_begin),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
