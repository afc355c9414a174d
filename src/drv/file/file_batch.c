/* SPDX-License-Identifier: MIT */
/* drv/file/file_batch.c - small writes through the page cache, many at a time.
 *
 * Most file systems (ext4 is one) may block in such a write and take none that must not. So
 * io_uring gives each to a thread, there and back for a copy of some KiB; and one after the other,
 * since a file takes one at a time. A worker that does all that a turn brought costs a fraction of
 * that.
 *
 * So the chan gathers them until the end of the turn. Few go to the loop, as everything else does;
 * more are one job, and what comes while it runs gathers for the next. At most one job of a chan is
 * under way. A request's `io` is in one of three places: gathered, batched (the worker's, until the
 * job ends) or the loop's.
 *
 * Where it can be, the loop does them itself instead (file_now.c), once the turn has taken all that
 * had completed. */
#include <errno.h>
#include <sys/uio.h>

#include "drv/file/file_impl.h"

enum {
	BATCH_MIN = 2,                  /* one is no cheaper */
	BATCH_MAX = 64,
	BATCH_IO_MAX = 64 << 10,        /* bytes: larger ones are worth a way of their own */
	BATCH_BYTES = 512 << 10,        /* about this: the first is answered with the last */
};

int file_batch_write(const struct io *io)
{
	ssize_t rc;

	do
		rc = pwritev(io->fd, io->iov, (int)io->iovcnt, (off_t)io->off);
	while (rc < 0 && errno == EINTR);
	return rc < 0 ? -errno : (int)rc;
}

/* On a worker. */
static void write_all(struct work *work)
{
	struct file_batch *b = container_of(work, struct file_batch, work);

	list_for_each(n, &b->batched) {
		struct io *io = list_entry(n, struct io, link);

		io->res = file_batch_write(io);
	}
}

static struct file_chan *chan_of(struct file_batch *b)
{
	return container_of(b, struct file_chan, batch);
}

/* Counts @n batches more that are under way, in all chans of the file. */
static void count(struct file_batch *b, int n)
{
	atomic_fetch_add_explicit(&file_node(&chan_of(b)->chan)->batches, (unsigned)n,
				  memory_order_relaxed);
}

static void start_soon(struct file_batch *b)
{
	if (b->is_due)
		return;
	b->is_due = true;
	loop_at_turn_end(b->loop, &b->task);
}

/* Some have gathered. A job that runs calls again when it ends. */
static void go_on(struct file_batch *b)
{
	if (b->is_running)
		return;
	if (file_node(&chan_of(b)->chan)->vmstat_fd < 0) {
		start_soon(b);
	} else if (!b->now_is_due) {
		b->now_is_due = true;
		loop_defer(b->loop, &b->now_task);
	}
}

static void batch_done(struct work *work)
{
	struct file_batch *b = container_of(work, struct file_batch, work);
	struct list_node *n;

	b->is_running = false;
	count(b, -1);
	if (b->ngathered)
		go_on(b);
	while ((n = list_pop(&b->batched))) {
		struct io *io = list_entry(n, struct io, link);

		io->done(io, io->res);
	}
}

static void start(struct task *t)
{
	struct file_batch *b = container_of(t, struct file_batch, task);
	bool is_batch = b->ngathered >= BATCH_MIN;
	uint64_t bytes = 0;
	unsigned n = 0;

	assert(!b->is_running);
	b->is_due = false;
	for (; b->ngathered && n < BATCH_MAX && bytes < BATCH_BYTES; n++) {
		struct io *io = list_entry(list_pop(&b->gathered), struct io, link);

		b->ngathered--;
		bytes += io->len;
		if (is_batch)
			list_add_tail(&b->batched, &io->link);
		else
			loop_submit(b->loop, io);
	}
	if (!is_batch)
		return;
	b->is_running = true;
	count(b, 1);
	loop_work(b->loop, &b->work);
}

/* After the completions of the turn. */
static void start_now(struct task *t)
{
	struct file_batch *b = container_of(t, struct file_batch, now_task);
	struct file_chan *fc = chan_of(b);
	struct list_node done, *n;

	b->now_is_due = false;
	/* Between this and go_on() a turn may have ended, and a job begun. */
	if (!b->ngathered || b->is_due || b->is_running)
		return;
	list_init(&done);
	if (fc->nwrites == b->ngathered)
		b->ngathered -= file_now_write(&fc->now, file_node(&fc->chan), &b->gathered,
					       loop_now(b->loop), &done);
	if (b->ngathered)
		start_soon(b);
	while ((n = list_pop(&done))) {
		struct io *io = list_entry(n, struct io, link);

		io->done(io, io->res);
	}
}

void file_batch_init(struct file_batch *b, struct loop *l)
{
	b->loop = l;
	b->work.fn = write_all;
	b->work.done = batch_done;
	b->task.fn = start;
	b->now_task.fn = start_now;
	list_init(&b->gathered);
	list_init(&b->batched);
}

bool file_batch_take(struct file_batch *b, struct io *io, uint64_t len)
{
	if (len > BATCH_IO_MAX)
		return false;
	io->len = len;
	list_add_tail(&b->gathered, &io->link);
	b->ngathered++;
	go_on(b);
	return true;
}
