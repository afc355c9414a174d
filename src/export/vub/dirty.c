/* SPDX-License-Identifier: MIT */
/* export/vub/dirty.c - the log of pages written, for the front end's live migration (V23).
 *
 * A front end may give us another log at any time. What it has not taken out of the one before goes
 * over: those that know of no disabled queues start them first and then say where the log is, and
 * look at the former one no more. */
#include <errno.h>

#include "export/vub/vub_impl.h"

/* Of memory at a time, of which there may be much: others want the loop as well. */
enum { FOLLOW_STEP = 1 << 30 };

int vub_log_init(struct vub_log *log, int fd, const struct vhost_user_log *where)
{
	struct vub_mapping mapping = { 0 };
	void *at;
	int rc = vub_mapping_init(&mapping, fd, where->offset, where->size, &at);

	if (rc)
		return rc;
	*log = (struct vub_log){ .mapping = mapping, .bits = at, .size = where->size };
	return 0;
}

void vub_log_fini(struct vub_log *log)
{
	vub_mapping_fini(&log->mapping);
	*log = (struct vub_log){ 0 };
}

/* Sets the bits of [@addr, @addr + @len). How many of them were not set. */
static unsigned set(const struct vub_log *log, uint64_t addr, uint64_t len)
{
	uint64_t first = addr / VHOST_USER_LOG_PAGE, last = (addr + len - 1) / VHOST_USER_LOG_PAGE;
	unsigned n = 0;

	if (!log->bits || !len || addr + len < addr)
		return 0;
	for (uint64_t at = first / 8; at <= last / 8 && at < log->size; at++) {
		unsigned bits = 0xff, before;

		if (at == first / 8)
			bits &= 0xffu << first % 8;
		if (at == last / 8)
			bits &= 0xffu >> (7 - last % 8);
		/* The front end takes bits away before it reads pages: it sees what was written. */
		before = __atomic_fetch_or(&log->bits[at], (uint8_t)bits, __ATOMIC_RELEASE);
		n += (unsigned)__builtin_popcount(bits & ~before);
	}
	return n;
}

void vub_log_mark(struct vub_queue *q, uint64_t addr, uint64_t len)
{
	vub_count(&q->counters.logged, set(&q->v->log, addr, len));
}

/* Sets the bits of [@addr, @addr + @len) that @from has. */
static void copy(const struct vub_log *log, const struct vub_log *from, uint64_t addr, uint64_t len)
{
	uint64_t first = addr / VHOST_USER_LOG_PAGE / 8;
	uint64_t last = (addr + len - 1) / VHOST_USER_LOG_PAGE / 8;

	for (uint64_t at = first; at <= last && at < MIN(log->size, from->size); at++) {
		uint8_t bits = __atomic_load_n(&from->bits[at], __ATOMIC_RELAXED);

		if (bits)
			__atomic_fetch_or(&log->bits[at], bits, __ATOMIC_RELEASE);
	}
}

void vub_log_follow_wait(struct vub *v, const struct vub_log *before, bool is_late)
{
	for (unsigned i = 0; i < v->memory.n; i++) {
		const struct vub_slot *s = &v->memory.slots[i];

		for (uint64_t off = 0; off < s->size; off += FOLLOW_STEP) {
			uint64_t len = MIN(s->size - off, (uint64_t)FOLLOW_STEP);

			if (is_late)
				set(&v->log, s->guest + off, len);
			else if (before->bits)
				copy(&v->log, before, s->guest + off, len);
			vub_turn_wait(v);
		}
	}
}

static void mark_host(struct vub_queue *q, const void *host, uint64_t len)
{
	uint64_t guest;

	if (vub_memory_where(&q->v->memory, host, &guest))
		vub_log_mark(q, guest, len);
}

void vub_log_ring(struct vub_queue *q, uint64_t off, uint64_t len)
{
	if (q->is_logging && q->addr.flags & VHOST_USER_VRING_F_LOG)
		vub_log_mark(q, q->addr.log + off, len);
}

void vub_log_request(struct vub_queue *q, const struct vub_req *vr)
{
	if (vr->type == VIRTIO_BLK_T_IN || vr->type == VIRTIO_BLK_T_GET_ID)
		for (unsigned i = 0; i < vr->niov; i++)
			mark_host(q, vr->iov[i].iov_base, vr->iov[i].iov_len);
	mark_host(q, vr->status_at, 1);
}
