/* SPDX-License-Identifier: MIT */
/* drv/file/file_offload.c - from file to file without a way through this program: the file system
 * copies, or lets both share what they hold, where it knows how. */
#include <errno.h>
#include <unistd.h>

#include "drv/file/file_impl.h"

struct offload {
	int from_fd, to_fd;
	off_t from, to;
	uint64_t len;
	int res;
};

static void offload(void *arg)
{
	struct offload *o = arg;

	while (o->len) {
		ssize_t n = copy_file_range(o->from_fd, &o->from, o->to_fd, &o->to,
					    MIN(o->len, (uint64_t)FILE_IO_MAX), 0);

		if (n > 0) {
			o->len -= (uint64_t)n;
		} else if (!n) {
			o->res = -EIO;          /* the source has been cut */
			return;
		} else if (errno != EINTR) {
			o->res = -errno;
			return;
		}
	}
}

int file_offload_wait(const struct node *from, uint64_t from_off, struct node *to, uint64_t to_off,
		      uint64_t len)
{
	struct offload o = { .from = (off_t)from_off, .to = (off_t)to_off, .len = len };
	const struct file_node *source;
	struct file_node *target;

	if (from->ops != &file_ops || to->ops != &file_ops)
		return -ENOTSUP;
	source = file_node(from->home_chan);
	target = file_node(to->home_chan);
	if (source->is_sim || target->is_sim || source->is_block_device || target->is_block_device)
		return -ENOTSUP;
	if (to->read_only)
		return -EROFS;
	o.from_fd = source->fd;
	o.to_fd = target->fd;
	loop_work_wait(loop_current(), offload, &o);
	if (!o.res)
		file_grown(target, to_off + len);
	return o.res;
}
