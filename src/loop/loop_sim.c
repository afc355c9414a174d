/* SPDX-License-Identifier: MIT */
/* loop/loop_sim.c - a loop whose clock, files and luck come from a seed.
 *
 * What is submitted becomes pending. A *step* picks one pending operation or job by chance and
 * lets it take effect and complete; steps lie random times apart on the simulated clock. So
 * operations complete, and take effect, in any order, as a disk with a deep queue would have it;
 * the same seed and the same submissions give the same run.
 *
 * A turn that has nothing else to do sleeps: its clock jumps to the next step or timer, whichever
 * comes first. With neither it returns at once: nothing would ever happen, except by a post from
 * another thread, for which it merely gives way.
 *
 * A file is an anonymous mapping, grown by doubling: holes cost nothing. Nothing here is durable or
 * lost: IO_SYNC does nothing, and who simulates crashes keeps a log of his own by the fault hook,
 * which sees each operation at the moment it takes effect. */
#include "loop/sim.h"

#include <assert.h>
#include <errno.h>
#include <linux/falloc.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/prng.h"
#include "loop/loop_impl.h"

enum {
	SIM_FILES_MAX = 256,
	SIM_PAGE = 4096,
	SIM_SECTOR = 512,
	STEP_NS_MAX = 20000,            /* between two steps */
	TURN_NS_MAX = 500,              /* what a turn costs that does not sleep */
};

#define SIM_FILE_SIZE_MAX (1ULL << 42)

struct sim_file {
	uint8_t *data;                  /* NULL: a free slot */
	uint64_t size;
	uint64_t room;                  /* bytes mapped */
};

struct sim {
	struct prng prng;
	uint64_t now_ns;
	uint64_t step_ns;               /* when the next step happens, while something is pending */
	struct list_node ios;           /* pending */
	struct list_node cancelled;     /* answered by the next reap */
	struct task_queue works;        /* pending jobs, by their task */
	unsigned n_ios, n_works;
	unsigned short_chance;
	int (*fault)(void *arg, const struct io *io);
	void *fault_arg;
	struct sim_file files[SIM_FILES_MAX];
};

static struct sim *sim_of(struct loop *l)
{
	assert(l->ops == &loop_sim_ops);
	return l->backend;
}

/* ---- files ---- */

static struct sim_file *file_at(struct sim *s, int fd)
{
	unsigned i = (unsigned)fd - SIM_FD_BASE;

	return i < SIM_FILES_MAX && s->files[i].data ? &s->files[i] : NULL;
}

/* Makes @f at least @size bytes large; what is new reads as zeros. */
static int file_grow(struct sim_file *f, uint64_t size)
{
	uint64_t room = f->room;
	void *data;

	if (size > SIM_FILE_SIZE_MAX)
		return -EFBIG;
	while (room < size)
		room *= 2;
	if (room > f->room) {
		data = mremap(f->data, f->room, room, MREMAP_MAYMOVE);
		if (data == MAP_FAILED)
			return -ENOSPC;
		f->data = data;
		f->room = room;
	}
	f->size = MAX(f->size, size);
	return 0;
}

/* Whole pages go back to the system, so that holes stay cheap. */
static void file_zero(struct sim_file *f, uint64_t off, uint64_t len)
{
	uint64_t end = MIN(f->size, off + len);
	uint64_t first = align_up(off, SIM_PAGE), last = align_down(end, SIM_PAGE);

	if (off >= end)
		return;
	if (first >= last) {
		memset(f->data + off, 0, end - off);
		return;
	}
	memset(f->data + off, 0, first - off);
	memset(f->data + last, 0, end - last);
	if (madvise(f->data + first, last - first, MADV_DONTNEED) < 0)
		memset(f->data + first, 0, last - first);
}

int sim_file_new(struct loop *l, uint64_t size)
{
	struct sim *s = sim_of(l);
	struct sim_file *f;
	int i = 0, rc;

	while (i < SIM_FILES_MAX && s->files[i].data)
		i++;
	if (i == SIM_FILES_MAX)
		return -ENOMEM;
	f = &s->files[i];
	f->room = SIM_PAGE;
	f->size = 0;
	f->data = mmap(NULL, f->room, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (f->data == MAP_FAILED) {
		f->data = NULL;
		return -ENOMEM;
	}
	rc = file_grow(f, size);
	if (rc < 0) {
		sim_file_free(l, SIM_FD_BASE + i);
		return -ENOMEM;
	}
	return SIM_FD_BASE + i;
}

void sim_file_free(struct loop *l, int fd)
{
	struct sim_file *f = file_at(sim_of(l), fd);

	assert(f);
	munmap(f->data, f->room);
	f->data = NULL;
}

uint64_t sim_file_size(struct loop *l, int fd)
{
	const struct sim_file *f = file_at(sim_of(l), fd);

	assert(f);
	return f->size;
}

void sim_file_pread(struct loop *l, int fd, void *buf, uint64_t len, uint64_t off)
{
	const struct sim_file *f = file_at(sim_of(l), fd);
	uint64_t n;

	assert(f);
	n = off < f->size ? MIN(len, f->size - off) : 0;
	memcpy(buf, f->data + off, n);
	memset((uint8_t *)buf + n, 0, len - n);
}

void sim_file_pwrite(struct loop *l, int fd, const void *buf, uint64_t len, uint64_t off)
{
	struct sim_file *f = file_at(sim_of(l), fd);
	int rc;

	assert(f);
	rc = file_grow(f, off + len);
	assert(rc == 0);
	memcpy(f->data + off, buf, len);
}

void sim_set_fault(struct loop *l, int (*fault)(void *arg, const struct io *io), void *arg)
{
	struct sim *s = sim_of(l);

	s->fault = fault;
	s->fault_arg = arg;
}

void sim_set_short(struct loop *l, unsigned chance)
{
	sim_of(l)->short_chance = chance;
}

/* ---- operations ---- */

/* Copies the first @len bytes of @io's iovecs from (READ) or to (WRITE) @at. */
static void iov_copy(const struct io *io, uint8_t *at, uint64_t len)
{
	for (uint32_t i = 0; i < io->iovcnt && len; i++) {
		uint64_t n = MIN((uint64_t)io->iov[i].iov_len, len);

		if (n == 0)
			continue;
		if (io->op == IO_READ)
			memcpy(io->iov[i].iov_base, at, n);
		else
			memcpy(at, io->iov[i].iov_base, n);
		at += n;
		len -= n;
	}
}

/* How much of @len bytes this operation does: now and then it stops at a sector, but never before
 * the first. */
static uint64_t luck_len(struct sim *s, const struct io *io, uint64_t len)
{
	uint64_t first = SIM_SECTOR - io->off % SIM_SECTOR;     /* to the first boundary */

	if (len <= first || prng_below(&s->prng, 256) >= s->short_chance)
		return len;
	return first + align_down(prng_below(&s->prng, len - first), SIM_SECTOR);
}

static int do_rw(struct sim *s, struct sim_file *f, const struct io *io)
{
	uint64_t len = 0;
	int rc;

	for (uint32_t i = 0; i < io->iovcnt; i++)
		len += io->iov[i].iov_len;
	if (len > INT32_MAX || !range_within(io->off, len, INT64_MAX))
		return -EINVAL;
	if (io->op == IO_READ)
		len = io->off < f->size ? MIN(len, f->size - io->off) : 0;
	len = luck_len(s, io, len);
	if (io->op == IO_WRITE && len) {
		rc = file_grow(f, io->off + len);
		if (rc < 0)
			return rc;
	}
	if (len)
		iov_copy(io, f->data + io->off, len);
	return (int)len;
}

static int do_allocate(struct sim_file *f, const struct io *io)
{
	bool keeps_size = io->mode & FALLOC_FL_KEEP_SIZE;
	int what = io->mode & ~FALLOC_FL_KEEP_SIZE, rc;

	if (io->len == 0 || !range_within(io->off, io->len, INT64_MAX))
		return -EINVAL;
	if (what != 0 && what != FALLOC_FL_PUNCH_HOLE && what != FALLOC_FL_ZERO_RANGE)
		return -EOPNOTSUPP;
	if (what == FALLOC_FL_PUNCH_HOLE && !keeps_size)
		return -EOPNOTSUPP;
	if (!keeps_size) {
		rc = file_grow(f, io->off + io->len);
		if (rc < 0)
			return rc;
	}
	if (what)
		file_zero(f, io->off, io->len);
	return 0;
}

static int do_io(struct sim *s, const struct io *io)
{
	struct sim_file *f = file_at(s, io->fd);
	int rc;

	if (io->op > IO_ALLOCATE)
		return -EOPNOTSUPP;
	if (!f)
		return -EBADF;
	rc = s->fault ? s->fault(s->fault_arg, io) : 0;
	if (rc < 0)
		return rc;
	switch (io->op) {
	case IO_ALLOCATE:
		return do_allocate(f, io);
	case IO_SYNC:
		return 0;
	default:
		return do_rw(s, f, io);
	}
}

/* ---- the backend ---- */

static int sim_init(struct loop *l, const struct loop_opts *opts, struct err *err)
{
	struct sim *s = calloc(1, sizeof(*s));

	if (!s)
		return err_set_errno(err, ENOMEM, "cannot make a simulated loop");
	s->prng.state = opts->sim_seed;
	s->now_ns = NS_PER_SEC;
	list_init(&s->ios);
	list_init(&s->cancelled);
	s->works.tail = &s->works.head;
	l->backend = s;
	return 0;
}

static void sim_fini(struct loop *l)
{
	struct sim *s = l->backend;

	for (int i = 0; i < SIM_FILES_MAX; i++)
		if (s->files[i].data)
			sim_file_free(l, SIM_FD_BASE + i);
	free(s);
}

static void sim_adopt(struct loop *l)
{
}

/* Often 0: then several complete in one turn. */
static uint64_t step_gap(struct sim *s)
{
	return prng_below(&s->prng, 3) ? 1 + prng_below(&s->prng, STEP_NS_MAX) : 0;
}

/* Called before something becomes pending where nothing is. */
static void step_plan(struct sim *s)
{
	s->step_ns = s->now_ns + step_gap(s);
}

static bool has_pending(const struct sim *s)
{
	return s->n_ios + s->n_works > 0;
}

static void sim_submit(struct loop *l, struct io *io)
{
	struct sim *s = l->backend;

	if (!has_pending(s))
		step_plan(s);
	io->backend_state = true;
	list_add_tail(&s->ios, &io->link);
	s->n_ios++;
}

static void sim_cancel(struct loop *l, struct io *io)
{
	struct sim *s = l->backend;

	if (!io->backend_state)
		return;
	io->backend_state = false;
	list_del(&io->link);
	list_add_tail(&s->cancelled, &io->link);
	s->n_ios--;
}

static void sim_work(struct loop *l, struct work *w)
{
	struct sim *s = l->backend;

	if (!has_pending(s))
		step_plan(s);
	task_queue_push(&s->works, &w->task);
	s->n_works++;
}

static void step_io(struct loop *l, struct sim *s, uint64_t n)
{
	struct list_node *at = s->ios.next;
	struct io *io;

	while (n--)
		at = at->next;
	list_del(at);
	s->n_ios--;
	io = list_entry(at, struct io, link);
	io->backend_state = false;
	loop_io_end(l, io, do_io(s, io));
}

static void step_work(struct loop *l, struct sim *s, uint64_t n)
{
	struct task **link = &s->works.head, *t;
	struct work *w;

	while (n--)
		link = &(*link)->next;
	t = *link;
	*link = t->next;
	if (!*link)
		s->works.tail = link;
	s->n_works--;
	w = container_of(t, struct work, task);
	w->fn(w);
	loop_defer(l, t);
}

static void step(struct loop *l, struct sim *s)
{
	uint64_t n = prng_below(&s->prng, s->n_ios + s->n_works);

	if (n < s->n_ios)
		step_io(l, s, n);
	else
		step_work(l, s, n - s->n_ios);
}

/* Lets time pass: jumps where the turn may sleep. */
static void time_pass(struct sim *s, uint64_t until_ns)
{
	uint64_t next = has_pending(s) ? MIN(until_ns, s->step_ns) : until_ns;

	if (until_ns == 0 || !list_is_empty(&s->cancelled))
		s->now_ns += 1 + prng_below(&s->prng, TURN_NS_MAX);
	else if (next == UINT64_MAX)
		sched_yield();
	else
		s->now_ns = MAX(s->now_ns, next);
}

static void sim_reap(struct loop *l, uint64_t until_ns)
{
	struct sim *s = l->backend;
	struct list_node *n;

	time_pass(s, until_ns);
	loop_awake(l);
	while ((n = list_pop(&s->cancelled)))
		loop_io_end(l, list_entry(n, struct io, link), -ECANCELED);
	while (has_pending(s) && s->step_ns <= s->now_ns) {
		s->step_ns += step_gap(s);
		step(l, s);
	}
}

static void sim_wake(struct loop *l)
{
}

static uint64_t sim_clock(struct loop *l)
{
	struct sim *s = l->backend;

	return s->now_ns;
}

const struct loop_ops loop_sim_ops = {
	.name = "sim",
	.init = sim_init,
	.fini = sim_fini,
	.adopt = sim_adopt,
	.submit = sim_submit,
	.cancel = sim_cancel,
	.reap = sim_reap,
	.wake = sim_wake,
	.clock = sim_clock,
	.work = sim_work,
};
