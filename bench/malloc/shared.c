/* SPDX-License-Identifier: MIT */
/* bench/malloc/shared.c - patterns of several threads: blocks are freed by another one than
 * allocated them, or threads come and go. */
#include <stdbool.h>
#include <string.h>

#include "pattern.h"

static struct queue queue;

/* ---- producers and consumers ---- */

struct role {
	uint64_t batches;
	size_t size;                    /* 0: mixed */
	uint64_t seed;
};

static void *produce(void *arg)
{
	const struct role *role = arg;
	struct prng prng = { role->seed };

	for (uint64_t i = 0; i < role->batches; i++) {
		struct batch *b = queue_take_idle(&queue);

		while (b->count < BATCH_MAX) {
			size_t size = role->size ? role->size : mixed_size(prng_next(&prng));

			b->items[b->count++] = get(size);
		}
		queue_put_full(&queue, b);
	}
	return NULL;
}

static void *consume(void *arg)
{
	uint64_t *sum = arg;
	struct batch *b;

	while ((b = queue_take_full(&queue))) {
		for (unsigned i = 0; i < b->count; i++) {
			*sum += *(uint64_t *)b->items[i];
			free(b->items[i]);
		}
		queue_put_idle(&queue, b);
	}
	return NULL;
}

enum { ROLES_MAX = 4 };

/* 4 batches a producer: what is alive should be in caches, as what is passed on usually is. */
static void pass_on(uint64_t batches, size_t size, unsigned producers, unsigned consumers)
{
	pthread_t makers[ROLES_MAX], takers[ROLES_MAX];
	struct role roles[ROLES_MAX];
	uint64_t sums[ROLES_MAX] = { 0 };

	queue_init(&queue, 4 * producers);
	for (unsigned i = 0; i < consumers; i++)
		takers[i] = thread_start(consume, &sums[i]);
	for (unsigned i = 0; i < producers; i++) {
		roles[i] = (struct role){ batches / producers, size, i + 1 };
		makers[i] = thread_start(produce, &roles[i]);
	}
	for (unsigned i = 0; i < producers; i++)
		thread_join(makers[i]);
	queue_close(&queue);
	for (unsigned i = 0; i < consumers; i++)
		thread_join(takers[i]);
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
	struct batch *b;

	while ((b = queue_take_full(&queue))) {
		for (unsigned i = 0; i < b->count; i++)         /* not in the order of submission */
			io_complete(b->items[i * 7 % b->count]);
		queue_put_idle(&queue, b);
	}
	return NULL;
}

static void io_path(uint64_t rounds, bool buffers)
{
	struct prng prng = { 1 };
	pthread_t completer;

	queue_init(&queue, IO_DEPTH / IO_BATCH);
	completer = thread_start(complete, NULL);
	for (uint64_t i = 0; i < rounds; i++) {
		struct batch *b = queue_take_idle(&queue);

		while (b->count < IO_BATCH)
			b->items[b->count++] = io_submit(buffers, prng_next(&prng));
		queue_put_full(&queue, b);
	}
	queue_close(&queue);
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
	{ "producer-64", "cross", producer_64, 12000, "one thread allocates 64 bytes, one frees" },
	{ "producer-512", "cross", producer_512, 8000, "the same with 512 bytes" },
	{ "n-to-m", "cross", n_to_m, 3000, "4 threads allocate 16 bytes to 4 KiB, 3 free" },
	{ "io-path", "io", io_buffers, 20000, "requests and 4-256 KiB aligned buffers, 128 deep" },
	{ "io-objects", "io", io_objects, 80000, "the same requests without buffers" },
	{ .name = NULL },
};
