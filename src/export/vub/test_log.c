/* SPDX-License-Identifier: MIT */
#include "export/vub/test_log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "drv/vub/vfe_msg.h"

#define LOGS (1ULL << VHOST_USER_PROTOCOL_F_LOG_SHMFD)

const struct vfe_want log_wants[LOG_WANTS] = {
	{ .protocol = LOGS },
	{ .protocol = LOGS, .packed = true },
	{ .protocol = LOGS, .no_event_idx = true, .no_indirect = true },
	{ .protocol = LOGS, .packed = true, .no_event_idx = true, .no_inflight = true },
};

void log_start(struct dirty_log *log)
{
	log->fd = memfd_create("log", MFD_CLOEXEC);
	log->bytes = (VFE_MEM_GUEST + GUEST_MEMORY) / LOG_PAGE / 8;
	assert_true(log->fd >= 0 && !ftruncate(log->fd, (off_t)log->bytes));
	log->bits = mmap(NULL, log->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, log->fd, 0);
	assert_ptr_not_equal(log->bits, MAP_FAILED);
}

/* Where it was, nothing comes: liburing maps rings without ThreadSanitizer's knowledge, which would
 * take them for what was there before. */
void log_end(struct dirty_log *log)
{
	assert_ptr_equal(mmap(log->bits, log->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
			      MAP_NORESERVE | MAP_FIXED, -1, 0), log->bits);
	close(log->fd);
}

void log_tell_base(const struct dirty_log *log, struct guest *g)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_LOG_BASE, sizeof(m.log));

	m.log.size = log->bytes;
	assert_int_equal(vfe_msg_send(g->link.sock, &m, &log->fd, 1), 0);
	assert_int_equal(vfe_msg_recv(g->link.sock, &m, NULL), 0);
	assert_int_equal(m.head.request, VHOST_USER_SET_LOG_BASE);
}

void log_tell_features(struct guest *g, bool is_on)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_FEATURES, sizeof(m.u64));

	m.u64 = g->link.features | (uint64_t)is_on << VHOST_USER_F_LOG_ALL;
	assert_int_equal(vfe_msg_tell(g->link.sock, &m, NULL, 0, true), 0);
}

void log_tell_ring(struct guest *g, unsigned i, bool is_on)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_VRING_ADDR, sizeof(m.addr));
	const void *parts[3];

	vfe_ring_parts(&g->queues[i].ring, parts);
	m.addr = (struct vhost_user_vring_addr){
		.index = i,
		.flags = is_on ? VHOST_USER_VRING_F_LOG : 0,
		.descriptor = (uintptr_t)parts[0],
		.available = (uintptr_t)parts[1],
		.used = (uintptr_t)parts[2],
		.log = vfe_mem_guest(&g->mem, parts[2]),
	};
	assert_int_equal(vfe_msg_tell(g->link.sock, &m, NULL, 0, true), 0);
}

void log_tell(const struct dirty_log *log, struct guest *g)
{
	log_tell_base(log, g);
	log_tell_features(g, true);
	for (unsigned i = 0; i < g->link.nqueues; i++)
		log_tell_ring(g, i, true);
}

bool log_has(const struct dirty_log *log, uint64_t addr)
{
	uint8_t byte = __atomic_load_n(&log->bits[addr / LOG_PAGE / 8], __ATOMIC_ACQUIRE);

	return byte >> addr / LOG_PAGE % 8 & 1;
}
