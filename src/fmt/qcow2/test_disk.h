/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/test_disk.h - a disk that tests write at random, and a model of what it shows.
 *
 * The image lies in memory over a raw file, over a qcow2 image with a raw file, or over nothing.
 * Many workers read, write, zero and discard at a time, on one loop or two; none touches bytes that
 * another one works on, so that the model always knows. Where a request fails, a byte may be what
 * it was or what it was to be. */
#ifndef FMT_QCOW2_TEST_DISK_H
#define FMT_QCOW2_TEST_DISK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/test_scale.h"
#include "blk/port.h"
#include "fmt/qcow2/test_mem.h"
#include "fmt/qcow2/writer.h"
#include "loop/loop_thread.h"

enum test_backing { BACK_NONE, BACK_RAW, BACK_QCOW2 };

/* What is tested, and with it how. */
struct test_cell {
	unsigned version;
	unsigned cluster_bits;
	unsigned refcount_bits;         /* 0: QEMU's default */
	bool is_extended;               /* extended L2 entries */
	enum test_backing backing;
	uint64_t size;
	bool writethrough;
	bool discard;
	unsigned copies_every;          /* one of so many writes is a COPY; 0: none */
	unsigned packs_every;           /* one of so many writes asks for compression; 0: none */
	bool packs_all;                 /* all that is new is compressed */
	bool packs_zstd, packs_small_window;
	int packs_level;
	uint64_t broken;                /* enum writer_break */
};

enum { TEST_WORKERS = 12, TEST_ACTIVE_MAX = 2 * TEST_WORKERS };

struct test_range {
	uint64_t off, len;              /* len 0: unused */
};

/* What a byte may be. */
enum { KNOWN, OLD_OR_NEW, ANYTHING };

struct test_disk {
	struct test_cell cell;
	uint64_t seed;
	struct loop *loops[2];
	struct loop_thread threads[2];  /* with two loops; one alone is turned by loop_call() */
	unsigned nloops;
	struct workers *workers;
	struct test_mem *file, *raw, *lower;    /* a reference each: they survive the nodes */
	struct qcow2_cache *cache;
	struct node *top;
	struct port *port;
	struct writer *w;
	bool may_fail;
	bool has_room_to_read;          /* W8: -ENOSPC is no answer to a read or a map */
	unsigned nwrong;                /* where a rule is broken: bytes that are not the model's */
	/* Shared by the loops' threads. */
	pthread_mutex_t lock;
	struct test_range active[TEST_ACTIVE_MAX];
	/* Whoever has the range of a byte may touch what is noted of it. */
	uint64_t modelled;              /* bytes: all or none */
	uint8_t *model, *other, *doubt; /* what it is, what it may be as well, whether */
};

struct test_disk *test_disk_new(const struct test_cell *cell, enum loop_backend backend,
				unsigned nloops, uint64_t seed);
void test_disk_free(struct test_disk *d);

/* For loop_call(); @arg is the disk. On the first loop: */
int test_disk_open(void *arg);
int test_disk_close(void *arg);
/* Opens what is left read-only: it is what the model says, and the check finds nothing. */
int test_disk_verify(void *arg);
/* On each loop: */
int test_disk_open_port(void *arg);
int test_disk_close_port(void *arg);
int test_disk_flush(void *arg);

/* A disk of one simulated loop, for @body alone, which runs there with it open. */
void test_disk_with(const struct test_cell *cell, uint64_t seed, int (*body)(void *disk));

/* What test_disk_work(), for loop_call(), gets: how much the workers of a loop do. */
struct test_work {
	struct test_disk *d;
	unsigned rounds;
	uint64_t seed;
};

int test_disk_work(void *arg);

/* A request, for one fiber that waits for it. */
struct test_ask {
	struct req req;
	struct fiber *fiber;
	bool is_done;
	int res;
};

int test_ask_wait(struct test_disk *d, struct test_ask *a);

/* Fails the test where @got is not what [@off, @off + @len) may be; counts it if the cell breaks a
 * rule. */
void test_model_check(struct test_disk *d, const uint8_t *got, uint64_t off, uint64_t len);
/* [@off, @off + @len) was to become @bytes (NULL: zeros); @res says whether it did. */
void test_model_write(struct test_disk *d, uint64_t off, const uint8_t *bytes, uint64_t len,
		      int res);
void test_model_discard(struct test_disk *d, uint64_t off, uint64_t len, int res);

/* ---- whole runs, each with a disk of its own ---- */

/* Twice so many rounds, and the model and the check agree. */
void test_disk_random(const struct test_cell *cell, uint64_t seed, unsigned rounds);
/* What a fault of the file, or of what is below it, leaves: errors for those who asked meanwhile,
 * each byte old or new, and afterwards an image in which nothing is wrong. The @nth request of
 * @kinds (bits of enum req_kind; 0: all) fails. */
void test_disk_faults(const struct test_cell *cell, uint64_t seed, int nth, unsigned kinds);
/* On two loops at a time. */
void test_disk_two_loops(const struct test_cell *cell, uint64_t seed);

#endif
