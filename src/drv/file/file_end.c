/* SPDX-License-Identifier: MIT */
/* drv/file/file_end.c - a file that somebody else makes shorter while it is open.
 *
 * Behind its end a file reads as zeros, and rightly so: disks end within a sector or a cluster, and
 * grow as they are written. But what was in the file cannot have become zeros. So where the file is
 * shorter than its node's size, something is lost and nobody may be told that it is zeros.
 *
 * A node's size is what the file has *at least*: its length when it was opened, and where those of
 * our own writes end that are done. It is lowered before we cut the file ourselves, and raised when
 * we have made it longer. A read that ends short below it *looks*, with one fstat(2) on a worker,
 * and so does each flush, beside its fdatasync. Nothing else costs more than a comparison.
 *
 * What is found out latches the node for all loops, as a failed sync does (Q9): what is lost cannot
 * be had back, and whoever wrote it must hear of it. Reads behind the new end, writes and flushes
 * fail until the file is opened again; reads of whole blocks before it go on.
 *
 * A length is all that there is to see. Where the file is cut and one of our own writes makes it as
 * long again before anything looks, what lies between reads as zeros. Block devices do not shrink.
 *
 * Invariants:
 *	F11  a read below the node's size gets what the file has or an error, never zeros for what
 *	     is missing; nor does a map call that zeros;
 *	F12  a flush that finds the file shorter than the node's size fails, and so do all later
 *	     ones, and writes, of all loops;
 *	F13  a file that ends anywhere, that our writes make longer on any loop, that somebody else
 *	     makes longer, or that we cut, is not taken for one that was cut. */
#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "base/log.h"
#include "drv/file/file_impl.h"
#include "loop/sim.h"

void file_look(struct file_look *k)
{
	const struct file_node *fn = k->fn;
	struct stat st;

	/* Before the length: what is done is in it. Pairs with file_grown(). */
	k->known = atomic_load_explicit(&fn->node.size, memory_order_acquire);
	k->size = k->known;
	k->res = 0;
	if (fn->is_sim)
		k->size = sim_file_size(fn->node.home, k->fd);
	else if (fstat(k->fd, &st) < 0)
		k->res = -errno;
	else if (S_ISREG(st.st_mode))
		k->size = (uint64_t)st.st_size;
}

static void look_work(struct work *work)
{
	file_look(container_of(work, struct file_look, work));
}

void file_look_start(struct file_chan *fc, struct file_look *k, void (*done)(struct work *work))
{
	k->fn = file_node(&fc->chan);
	k->fd = fc->fd;
	k->work.fn = look_work;
	k->work.done = done;
	loop_work(fc->chan.loop, &k->work);
}

static void latch(struct file_node *fn, uint64_t known, uint64_t size)
{
	uint64_t was = atomic_load(&fn->cut_to);

	do {
		if (size >= was)
			return;
	} while (!atomic_compare_exchange_weak(&fn->cut_to, &was, size));
	atomic_store(&fn->sync_failed, true);
	if (was != FILE_NOT_CUT)
		return;
	log_error("'%s' was made shorter by somebody else, from %" PRIu64 " to %" PRIu64 " bytes: "
		  "what was behind is lost, so reads of it%s fail until it is opened again",
		  fn->node.name, known, size, fn->node.read_only ? "" : ", writes and flushes");
}

int file_look_judge(const struct file_look *k)
{
	if (k->res || k->size >= k->known)
		return k->res;
	latch(k->fn, k->known, k->size);
	return -EIO;
}

bool file_end_refuses(const struct file_node *fn, const struct req *req)
{
	uint64_t cut_to = atomic_load_explicit(&fn->cut_to, memory_order_relaxed);

	switch (req->kind) {
	case REQ_READ:
		return req->off + req->len > cut_to;
	case REQ_MAP:                   /* an error is for the read to report */
		return false;
	default:
		return true;
	}
}

/* ---- reads that end short: one look answers all that came before it ---- */

static void look_start(struct file_chan *fc);

static void look_done(struct work *work)
{
	struct file_look *k = container_of(work, struct file_look, work);
	struct file_chan *fc = container_of(k, struct file_chan, end.look);
	struct req *req = fc->end.now;
	int res = file_look_judge(k);

	fc->end.now = NULL;
	fc->end.is_looking = false;
	if (fc->end.next)
		look_start(fc);
	while (req) {
		struct req *next = req->next;

		file_read_looked(fc, req, res);
		req = next;
	}
}

static void look_start(struct file_chan *fc)
{
	struct file_end *e = &fc->end;

	e->now = e->next;
	e->next = NULL;
	e->next_tail = &e->next;
	e->is_looking = true;
	file_look_start(fc, &e->look, look_done);
}

void file_end_init(struct file_end *e)
{
	e->next_tail = &e->next;
}

void file_end_ask(struct file_chan *fc, struct req *req)
{
	req->next = NULL;
	*fc->end.next_tail = req;
	fc->end.next_tail = &req->next;
	if (!fc->end.is_looking)
		look_start(fc);
}
