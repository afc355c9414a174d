/* SPDX-License-Identifier: MIT */
/* drv/file/file_sync.c - flushes.
 *
 * A chan has at most one fdatasync under way. What comes meanwhile joins the one after it, which
 * starts when it ends: a flush is answered by a sync that began after it came, and many share one.
 * Beside it the file's length is looked at (file_end.c), which takes no longer.
 *
 * Q9: after a failed fdatasync Linux takes the dirty pages for clean and forgets them, and the next
 * one succeeds. So the first failure latches the node, of all loops: flushes fail until it is
 * opened again, by whoever knows what was lost. One at a time also means that of two syncs of one
 * open file none can take the kernel's single report of a failure from the other. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "drv/file/file_impl.h"

void file_sync_failed(struct file_node *fn, int res)
{
	if (atomic_exchange(&fn->sync_failed, true))
		return;
	log_error("'%s': writing to stable storage failed (%s): what was written since the last "
		  "flush may be lost, so flushes fail until it is opened again",
		  fn->node.name, strerror(-res));
}

static void sync_start(struct file_chan *fc);

/* One of the two is done. */
static void sync_end(struct file_chan *fc)
{
	struct req *req = fc->sync_now;
	int res = fc->sync_res;

	if (--fc->sync_missing)
		return;
	fc->is_syncing = false;
	fc->sync_now = NULL;
	if (atomic_load(&file_node(&fc->chan)->sync_failed))
		res = -EIO;
	if (fc->sync_next)
		sync_start(fc);
	while (req) {
		struct req *next = req->next;

		req_complete(req, res);
		req = next;
	}
}

static void sync_done(struct io *io, int res)
{
	struct file_chan *fc = container_of(io, struct file_chan, sync_io);

	if (res < 0)
		file_sync_failed(file_node(&fc->chan), res);
	sync_end(fc);
}

static void sync_looked(struct work *work)
{
	struct file_chan *fc = container_of(work, struct file_chan, sync_look.work);

	fc->sync_res = file_look_judge(&fc->sync_look);
	sync_end(fc);
}

static void sync_start(struct file_chan *fc)
{
	fc->sync_now = fc->sync_next;
	fc->sync_next = NULL;
	fc->sync_next_tail = &fc->sync_next;
	fc->is_syncing = true;
	fc->sync_res = 0;
	fc->sync_missing = 1;
	if (!file_node(&fc->chan)->is_block_device) {
		fc->sync_missing++;
		file_look_start(fc, &fc->sync_look, sync_looked);
	}
	file_io_init(fc, &fc->sync_io, IO_SYNC, sync_done);
	loop_submit(fc->chan.loop, &fc->sync_io);
}

void file_sync_join(struct file_chan *fc, struct req *req)
{
	if (atomic_load(&file_node(&fc->chan)->sync_failed)) {
		req_finish(&fc->chan, req, -EIO);
		return;
	}
	req->next = NULL;
	*fc->sync_next_tail = req;
	fc->sync_next_tail = &req->next;
	if (!fc->is_syncing)
		sync_start(fc);
}
