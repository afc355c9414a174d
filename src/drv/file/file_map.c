/* SPDX-License-Identifier: MIT */
/* drv/file/file_map.c - where a file has data and where holes: SEEK_DATA and SEEK_HOLE, on a
 * worker, because a fragmented file can keep them busy for long. What cannot tell is all data, and
 * so is a file that somebody has cut (file_end.c): reads of what is lost report it. */
#include <errno.h>
#include <unistd.h>

#include "drv/file/file_impl.h"

struct seek {
	struct file_chan *fc;
	uint64_t off, len;
	uint64_t size;                  /* above off; data ends there, a hole may go on */
	struct file_look look;          /* no data up to the end: is that where it was? */
	uint64_t run;                   /* bytes from off on that are alike */
	bool is_hole;
	int res;
};

static void seek(void *arg)
{
	struct seek *s = arg;
	off_t off = (off_t)s->off;
	off_t data = lseek(s->fc->fd, off, SEEK_DATA);

	s->run = s->len;
	if (data < 0 && errno == ENXIO) {
		s->is_hole = true;              /* up to the end of the file, and after it */
		file_look(&s->look);
		return;
	}
	if (data < 0) {
		s->res = -errno;
		return;
	}
	if (data > off) {
		s->is_hole = true;
		s->run = MIN(s->len, (uint64_t)(data - off));
		return;
	}
	off_t hole = lseek(s->fc->fd, off, SEEK_HOLE);

	s->run = MIN(s->len, s->size - s->off);
	if (hole < 0)
		s->res = -errno;
	else if (hole > off)                    /* else truncated in between: all data */
		s->run = MIN(s->run, (uint64_t)(hole - off));
}

/* @req has @len bytes of this kind from its start on. */
static void answer(struct req *req, uint64_t len, bool is_hole)
{
	req->map = (struct map_run){
		.len = len,
		.host_off = req->off,
		.file = req->ch->node,
		.flags = MAP_HOST | MAP_PRESENT | (is_hole ? MAP_ZERO : MAP_DATA),
	};
}

static void map_task(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct file_chan *fc = file_chan(req->ch);
	struct file_node *fn = file_node(&fc->chan);
	struct seek s = { .fc = fc, .off = req->off, .len = req->len,
			  .size = req->priv[0],
			  .look = { .fn = fn, .fd = fc->fd } };

	loop_work_wait(fc->chan.loop, seek, &s);
	if (s.res == -EINVAL || file_is_unsupported(s.res))
		atomic_store_explicit(&fn->no_seek, true, memory_order_relaxed);
	if (!s.res && s.is_hole)
		s.res = file_look_judge(&s.look);
	if (s.res < 0)                          /* an error is for the read to report */
		answer(req, MIN(s.len, s.size - s.off), false);
	else
		answer(req, s.run, s.is_hole);
	req_finish(&fc->chan, req, 0);
	fiber_gate_leave(fc->chan.loop, &fc->gate);
}

void file_map_start(struct file_chan *fc, struct req *req)
{
	const struct file_node *fn = file_node(&fc->chan);
	uint64_t size = file_size(fn);

	if (req->off >= size) {
		answer(req, req->len, true);
		req_finish(&fc->chan, req, 0);
		return;
	}
	if (fn->is_block_device || fn->is_sim || file_is_cut(fn) ||
	    atomic_load_explicit(&fn->no_seek, memory_order_relaxed)) {
		answer(req, MIN(req->len, size - req->off), false);
		req_finish(&fc->chan, req, 0);
	} else {
		req->priv[0] = size;
		req->task.fn = map_task;
		fiber_gate_start(fc->chan.loop, &fc->gate, &req->task);
	}
}
