/* SPDX-License-Identifier: MIT */
/* export/vub/dirty.c - the log of pages written, for the front end's live migration (V23). */
#include <errno.h>

#include "export/vub/vub_impl.h"

int vub_log_init(struct vub_log *log, int fd, const struct vhost_user_log *where)
{
	struct vub_mapping mapping = { 0 };
	void *at;
	int rc = vub_mapping_init(&mapping, fd, where->offset, where->size, &at);

	if (rc)
		return rc;
	vub_log_fini(log);
	*log = (struct vub_log){ .mapping = mapping, .bits = at, .size = where->size };
	return 0;
}

void vub_log_fini(struct vub_log *log)
{
	vub_mapping_fini(&log->mapping);
	*log = (struct vub_log){ 0 };
}

void vub_log_mark(struct vub_queue *q, uint64_t addr, uint64_t len)
{
	uint64_t page = addr / VHOST_USER_LOG_PAGE, last = (addr + len - 1) / VHOST_USER_LOG_PAGE;
	const struct vub_log *log = &q->v->log;
	unsigned n = 0;

	if (!log->bits || !len || addr + len < addr)
		return;
	/* The front end takes bits away before it reads pages: what was written is seen then. */
	for (; page <= last && page / 8 < log->size; page++) {
		uint8_t bit = (uint8_t)(1u << page % 8);

		n += !(__atomic_fetch_or(&log->bits[page / 8], bit, __ATOMIC_RELEASE) & bit);
	}
	vub_count(&q->counters.logged, n);
}

static void mark_host(struct vub_queue *q, const void *host, uint64_t len)
{
	uint64_t guest;

	if (vub_memory_where(&q->v->memory, host, &guest))
		vub_log_mark(q, guest, len);
}

void vub_log_request(struct vub_queue *q, const struct vub_req *vr)
{
	if (vr->type == VIRTIO_BLK_T_IN || vr->type == VIRTIO_BLK_T_GET_ID)
		for (unsigned i = 0; i < vr->niov; i++)
			mark_host(q, vr->iov[i].iov_base, vr->iov[i].iov_len);
	mark_host(q, vr->status_at, 1);
}
