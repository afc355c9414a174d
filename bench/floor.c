/* SPDX-License-Identifier: MIT */
/* bench/floor.c - what a read costs where there is nothing but the kernel: a ring set up as byre's
 * is, one registered file, reads in order over the file, @depth under way.
 *
 *	floor [--direct] [--write] [--random] [--depth N] [--count N] [--size BYTES] [--wait N] FILE
 *
 * --write overwrites the file instead; --random goes to random multiples of the size.
 *
 * Each system call submits what was answered since the last one and waits for --wait completions
 * (1 by default; all that are under way if fewer). Prints a JSON line. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/prng.h"

enum { BUFFER_ALIGN = 4096 };

struct floor_opts {
	const char *path;
	uint64_t depth, count, size, wait;
	bool is_direct, is_write, is_random;
};

static double seconds_of(struct timeval tv)
{
	return (double)tv.tv_sec + (double)tv.tv_usec / 1e6;
}

static double cpu_seconds(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return seconds_of(ru.ru_utime) + seconds_of(ru.ru_stime);
}

static double now_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void die(const char *what, int code)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(code));
	exit(1);
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (!n || *end)
		die(text, EINVAL);
	return n;
}

static struct floor_opts parse(int argc, char **argv)
{
	struct floor_opts o = { .depth = 32, .count = 1000000, .size = 4096, .wait = 1 };

	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";

		if (argv[i][0] != '-') {
			o.path = argv[i];
			continue;
		}
		if (!strcmp(argv[i], "--direct") || !strcmp(argv[i], "--write") ||
		    !strcmp(argv[i], "--random")) {
			o.is_direct |= argv[i][2] == 'd';
			o.is_write |= argv[i][2] == 'w';
			o.is_random |= argv[i][2] == 'r';
			continue;
		}
		if (!strcmp(argv[i], "--depth"))
			o.depth = number(value);
		else if (!strcmp(argv[i], "--count"))
			o.count = number(value);
		else if (!strcmp(argv[i], "--size"))
			o.size = number(value);
		else if (!strcmp(argv[i], "--wait"))
			o.wait = number(value);
		else
			die(argv[i], EINVAL);
		i++;
	}
	if (!o.path)
		die("no file given", EINVAL);
	return o;
}

static void ring_open(struct io_uring *ring, int fd, unsigned depth)
{
	struct io_uring_params p = {
		.flags = IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER |
			 IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
	};
	int rc = io_uring_queue_init_params(depth, ring, &p);

	if (!rc)
		rc = io_uring_register_files(ring, &fd, 1);
	if (rc)
		die("io_uring", -rc);
}

static uint64_t next_off(const struct floor_opts *o, struct prng *p, uint64_t off, uint64_t file)
{
	if (o->is_random)
		return prng_below(p, file / o->size) * o->size;
	return off + 2 * o->size > file ? 0 : off + o->size;
}

static void prepare(const struct floor_opts *o, struct io_uring_sqe *sqe, char *buf, uint64_t off)
{
	if (o->is_write)
		io_uring_prep_write(sqe, 0, buf, (unsigned)o->size, off);
	else
		io_uring_prep_read(sqe, 0, buf, (unsigned)o->size, off);
	sqe->flags |= IOSQE_FIXED_FILE;
}

/* Reads all of it; returns the system calls made. */
static uint64_t run(const struct floor_opts *o, struct io_uring *ring, char *bufs, uint64_t file)
{
	uint64_t submitted = 0, done = 0, off = 0, enters = 0;
	uint64_t *slots = calloc(o->depth, sizeof(*slots));     /* those that are idle */
	struct prng prng = { 1 };
	unsigned nslots = 0;

	if (!slots)
		die("slots", ENOMEM);
	for (; nslots < o->depth; nslots++)
		slots[nslots] = nslots;
	while (done < o->count) {
		struct io_uring_cqe *cqe;
		unsigned head, n = 0;

		for (; nslots && submitted < o->count; submitted++) {
			struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
			uint64_t slot = slots[--nslots];

			prepare(o, sqe, bufs + slot * o->size, off);
			sqe->user_data = slot;
			off = next_off(o, &prng, off, file);
		}
		io_uring_submit_and_wait(ring, (unsigned)MIN(o->wait, submitted - done));
		enters++;
		io_uring_for_each_cqe(ring, head, cqe) {
			if (cqe->res != (int)o->size)
				die("read or write", cqe->res < 0 ? -cqe->res : EIO);
			slots[nslots++] = cqe->user_data;
			n++;
		}
		io_uring_cq_advance(ring, n);
		done += n;
	}
	free(slots);
	return enters;
}

int main(int argc, char **argv)
{
	struct floor_opts o = parse(argc, argv);
	int fd = open(o.path, (o.is_write ? O_RDWR : O_RDONLY) | (o.is_direct ? O_DIRECT : 0));
	char *bufs = aligned_alloc(BUFFER_ALIGN, align_up(o.depth * o.size, BUFFER_ALIGN));
	double wall, cpu;
	struct io_uring ring;
	uint64_t enters;
	off_t file;

	if (fd < 0 || !bufs)
		die(o.path, errno);
	file = lseek(fd, 0, SEEK_END);
	if (file < (off_t)o.size)
		die("the file is too small", EINVAL);
	ring_open(&ring, fd, (unsigned)o.depth);
	memset(bufs, 1, o.depth * o.size);
	cpu = cpu_seconds();
	wall = now_seconds();
	enters = run(&o, &ring, bufs, (uint64_t)file);
	wall = now_seconds() - wall;
	cpu = cpu_seconds() - cpu;
	printf("{\"ops\": %llu, \"seconds\": %.4f, \"cpu\": %.4f, \"ops_per_cpu\": %.0f, "
	       "\"enters\": %llu}\n", (unsigned long long)o.count, wall, cpu,
	       (double)o.count / cpu, (unsigned long long)enters);
	io_uring_queue_exit(&ring);
	free(bufs);
	close(fd);
	return 0;
}
