/* SPDX-License-Identifier: MIT */
/* bench/malloc/shared.c - patterns of several threads: blocks are freed by another one than
 * allocated them, or threads come and go. */
#include <stdbool.h>
#include <string.h>

#include "pattern.h"

/* ---- producers and consumers ---- */

enum { PRODUCERS_MAX = 4, CONSUMERS_MAX = 3, BATCH = 128 };

static struct lane lanes[PRODUCERS_MAX][CONSUMERS_MAX];
static struct taker takers[CONSUMERS_MAX];

/* What is freed by another thread is to be freed on another processor: left to the kernel, threads
 * that pass things on run now on one and then on two, and that makes more of a difference than any
 * malloc. So who puts has even numbers, and who takes odd ones. */
struct producer {
	unsigned number;
	struct lane *lanes;             /* to each consumer */
	unsigned consumers;
	uint64_t batches;
	size_t size;                    /* 0: mixed */
};

static void *produce(void *arg)
{
	const struct producer *role = arg;
	struct prng prng = { role->number + 1 };

	thread_place(2 * role->number);
	for (uint64_t i = 0; i < role->batches; i++) {
		struct lane *l = &role->lanes[i % role->consumers];
		void **items = lane_room(l);

		for (unsigned k = 0; k < BATCH; k++)
			items[k] = get(role->size ? role->size : mixed_size(prng_next(&prng)));
		lane_put(l);
	}
	return NULL;
}

static uint64_t sums[CONSUMERS_MAX];

static void *consume(void *arg)
{
	struct taker *t = arg;
	struct lane *l;
	uint64_t sum = 0;

	thread_place(2 * (unsigned)(t - takers) + 1);
	while ((l = lane_next(t))) {
		void **items = lane_batch(l);

		for (unsigned k = 0; k < BATCH; k++) {
			sum += *(uint64_t *)items[k];
			free(items[k]);
		}
		lane_taken(l);
	}
	sums[t - takers] = sum;
	return NULL;
}

/* What is alive should be in caches, as what is passed on usually is. */
static void pass_on(uint64_t batches, size_t size, unsigned producers, unsigned consumers)
{
	pthread_t makers[PRODUCERS_MAX], enders[CONSUMERS_MAX];
	unsigned slots = LANE_SLOTS / producers;
	struct producer roles[PRODUCERS_MAX];

	for (unsigned i = 0; i < producers; i++)
		for (unsigned k = 0; k < consumers; k++)
			lane_init(&lanes[i][k], slots, BATCH, &takers[k]);
	for (unsigned i = 0; i < consumers; i++)
		enders[i] = thread_start(consume, &takers[i]);
	for (unsigned i = 0; i < producers; i++) {
		roles[i] = (struct producer){ i, lanes[i], consumers, batches / producers, size };
		makers[i] = thread_start(produce, &roles[i]);
	}
	for (unsigned i = 0; i < producers; i++)
		thread_join(makers[i]);
	for (unsigned i = 0; i < consumers; i++)
		lanes_close(&takers[i]);
	for (unsigned i = 0; i < consumers; i++)
		thread_join(enders[i]);
}

static void producer_64(uint64_t rounds)
{
	pass_on(rounds, 64, 1, 1);
}

static void producer_512(uint64_t rounds)
{
	pass_on(rounds, 512, 1, 1);
}

static void n_to_m(uint64_t rounds)
{
	pass_on(rounds, 0, 4, 3);
}

/* ---- a server: each thread inherits the blocks of one that ended ---- */

enum { SERVER_THREADS = 4, SERVER_BLOCKS = 1000, SERVER_STEPS = 40000 };

struct session {
	void *blocks[SERVER_BLOCKS];
	struct prng prng;
};

static void *serve(void *arg)
{
	struct session *s = arg;

	for (unsigned i = 0; i < SERVER_STEPS; i++) {
		uint64_t r = prng_next(&s->prng);
		void **p = &s->blocks[(r >> 32) * SERVER_BLOCKS >> 32];

		free(*p);
		*p = get(8 + r % 993);
	}
	return NULL;
}

static void server(uint64_t rounds)
{
	static struct session sessions[SERVER_THREADS];
	pthread_t threads[SERVER_THREADS];

	for (unsigned i = 0; i < SERVER_THREADS; i++)
		sessions[i].prng.state = i + 1;
	for (uint64_t round = 0; round < rounds; round++) {
		for (unsigned i = 0; i < SERVER_THREADS; i++)
			threads[i] = thread_start(serve, &sessions[i]);
		for (unsigned i = 0; i < SERVER_THREADS; i++)
			thread_join(threads[i]);
	}
	for (unsigned i = 0; i < SERVER_THREADS; i++) {
		for (unsigned k = 0; k < SERVER_BLOCKS; k++)
			free(sessions[i].blocks[k]);
	}
}

/* ---- the I/O path: requests built by one thread, completed and freed by another ---- */

enum { IO_DEPTH = 128, IO_BATCH = 16, IO_PIECES = 8 };

/* What a request brings along in a storage client: completion, extents, contexts, buffer list. */
static const uint16_t piece_sizes[IO_PIECES] = { 96, 48, 32, 56, 80, 64, 64, 24 };

struct io {
	void *pieces[IO_PIECES];
	char *buffer;
	size_t len;
	char rest[120];
};

static size_t io_len(uint64_t random)
{
	unsigned percent = (unsigned)(random >> 32) % 100;

	if (percent < 50)
		return 4 * KiB;
	if (percent < 70)
		return 16 * KiB;
	if (percent < 90)
		return 64 * KiB;
	return (random & 1 ? 128 : 256) * KiB;
}

static struct io *io_submit(bool buffers, uint64_t random)
{
	struct io *io = get(sizeof(*io));
	void *buffer;

	io->buffer = NULL;
	for (unsigned i = 0; i < IO_PIECES; i++)
		io->pieces[i] = get(piece_sizes[i]);
	if (buffers) {
		io->len = io_len(random);
		if (posix_memalign(&buffer, PAGE, io->len))
			die("patterns: posix_memalign");
		io->buffer = buffer;
		touch_pages(buffer, io->len);
	}
	return io;
}

static void io_complete(struct io *io)
{
	void *context = get(48);        /* of the completing thread's own */

	if (io->buffer)
		touch_pages(io->buffer, io->len);
	free(io->buffer);
	for (unsigned i = 0; i < IO_PIECES; i++)
		free(io->pieces[i]);
	free(io);
	free(context);
}

static void *complete(void *arg)
{
	struct taker *t = arg;
	struct lane *l;

	thread_place(1);
	while ((l = lane_next(t))) {
		void **items = lane_batch(l);

		for (unsigned i = 0; i < IO_BATCH; i++)         /* not in the order of submission */
			io_complete(items[i * 7 % IO_BATCH]);
		lane_taken(l);
	}
	return NULL;
}

static void io_path(uint64_t rounds, bool buffers)
{
	struct lane *l = &lanes[0][0];
	struct prng prng = { 1 };
	pthread_t completer;

	lane_init(l, IO_DEPTH, IO_BATCH, &takers[0]);
	completer = thread_start(complete, &takers[0]);
	thread_place(0);
	for (uint64_t i = 0; i < rounds; i++) {
		void **items = lane_room(l);

		for (unsigned k = 0; k < IO_BATCH; k++)
			items[k] = io_submit(buffers, prng_next(&prng));
		lane_put(l);
	}
	lanes_close(&takers[0]);
	thread_join(completer);
}

static void io_buffers(uint64_t rounds)
{
	io_path(rounds, true);
}

static void io_objects(uint64_t rounds)
{
	io_path(rounds, false);
}

/* ---- many short threads ---- */

enum { SHORT_THREADS = 4, SHORT_BLOCKS = 200, SHORT_LEFT = 50 };

struct short_job {
	void *left[SHORT_LEFT];         /* for the thread that joins to free */
	uint64_t seed;
};

static void *live_shortly(void *arg)
{
	struct short_job *job = arg;
	struct prng prng = { job->seed };
	void *blocks[SHORT_BLOCKS];

	for (unsigned i = 0; i < SHORT_BLOCKS; i++)
		blocks[i] = get(mixed_size(prng_next(&prng)) / 4 + 8);
	for (unsigned i = SHORT_LEFT; i < SHORT_BLOCKS; i++)
		free(blocks[i]);
	memcpy(job->left, blocks, sizeof(job->left));
	return NULL;
}

static void short_threads(uint64_t rounds)
{
	static struct short_job jobs[SHORT_THREADS];
	pthread_t threads[SHORT_THREADS];

	for (uint64_t round = 0; round < rounds; round++) {
		for (unsigned i = 0; i < SHORT_THREADS; i++) {
			jobs[i].seed = round * SHORT_THREADS + i;
			threads[i] = thread_start(live_shortly, &jobs[i]);
		}
		for (unsigned i = 0; i < SHORT_THREADS; i++) {
			thread_join(threads[i]);
			for (unsigned k = 0; k < SHORT_LEFT; k++)
				free(jobs[i].left[k]);
		}
	}
}

const struct pattern patterns_shared[] = {
	{ "server", "threads", server, 100, "4 threads replace, then 4 others go on" },
	{ "threads", "threads", short_threads, 2000, "threads of 200 blocks; 50 outlive them" },
	{ "producer-64", "cross", producer_64, 96000, "one thread allocates 64 bytes, one frees" },
	{ "producer-512", "cross", producer_512, 64000, "the same with 512 bytes" },
	{ "n-to-m", "cross", n_to_m, 24000, "4 threads allocate 16 bytes to 4 KiB, 3 free" },
	{ "io-path", "io", io_buffers, 20000, "requests and 4-256 KiB aligned buffers, 128 deep" },
	{ "io-objects", "io", io_objects, 80000, "the same requests without buffers" },
	{ .name = NULL },
};
