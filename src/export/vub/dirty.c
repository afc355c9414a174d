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

void vub_log_mark(struct vub_log *log, uint64_t addr, uint64_t len)
{
	uint64_t page = addr / VHOST_USER_LOG_PAGE, last = (addr + len - 1) / VHOST_USER_LOG_PAGE;

	if (!log->bits || !len || addr + len < addr)
		return;
	for (; page <= last && page / 8 < log->size; page++)
		__atomic_fetch_or(&log->bits[page / 8], (uint8_t)(1u << page % 8),
				  __ATOMIC_RELAXED);
}

static void mark_host(struct vub_log *log, const struct vub_memory *mem, const void *host,
		      uint64_t len)
{
	uint64_t guest;

	if (vub_memory_where(mem, host, &guest))
		vub_log_mark(log, guest, len);
}

void vub_log_request(struct vub_log *log, const struct vub_memory *mem, const struct vub_req *vr)
{
	if (vr->type == VIRTIO_BLK_T_IN || vr->type == VIRTIO_BLK_T_GET_ID)
		for (unsigned i = 0; i < vr->niov; i++)
			mark_host(log, mem, vr->iov[i].iov_base, vr->iov[i].iov_len);
	mark_host(log, mem, vr->status_at, 1);
}
