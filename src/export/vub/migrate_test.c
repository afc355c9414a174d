/* SPDX-License-Identifier: MIT */
/* A machine moves from one front end to another: two are connected, one runs, and what is written
 * to the memory of the first is in its log. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "drv/vub/vfe_msg.h"
#include "export/vub/test_host.h"

static const struct vfe_want wants[] = {
	{ 0 },
	{ .packed = true },
	{ .no_event_idx = true, .no_indirect = true },
	{ .packed = true, .no_event_idx = true, .no_inflight = true },
};

/* ---- V23 ---- */

enum { PAGE = VHOST_USER_LOG_PAGE };

struct dirty_log {
	int fd;
	uint64_t bytes;
	uint8_t *bits;
};

static void tell(struct guest *g, struct vhost_user_msg m)
{
	assert_int_equal(vfe_msg_tell(g->link.sock, &m, NULL, 0, true), 0);
}

/* As QEMU does: the log, then the feature, then the rings' own flags. */
static void start_log(struct dirty_log *log, struct guest *g)
{
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_PROTOCOL_FEATURES, sizeof(m.u64));

	log->fd = memfd_create("log", MFD_CLOEXEC);
	log->bytes = (VFE_MEM_GUEST + GUEST_MEMORY) / PAGE / 8;
	assert_true(log->fd >= 0 && !ftruncate(log->fd, (off_t)log->bytes));
	log->bits = mmap(NULL, log->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, log->fd, 0);
	assert_ptr_not_equal(log->bits, MAP_FAILED);
	m.u64 = g->link.protocol | 1ULL << VHOST_USER_PROTOCOL_F_LOG_SHMFD;
	tell(g, m);
	m = vfe_msg(VHOST_USER_SET_LOG_BASE, sizeof(m.log));
	m.log.size = log->bytes;
	assert_int_equal(vfe_msg_send(g->link.sock, &m, &log->fd, 1), 0);
	assert_int_equal(vfe_msg_recv(g->link.sock, &m, NULL), 0);
	assert_int_equal(m.head.request, VHOST_USER_SET_LOG_BASE);
	m = vfe_msg(VHOST_USER_SET_FEATURES, sizeof(m.u64));
	m.u64 = g->link.features | 1ULL << VHOST_USER_F_LOG_ALL;
	tell(g, m);
	for (unsigned i = 0; i < g->link.nqueues; i++) {
		const void *parts[3];

		vfe_ring_parts(&g->queues[i].ring, parts);
		m = vfe_msg(VHOST_USER_SET_VRING_ADDR, sizeof(m.addr));
		m.addr = (struct vhost_user_vring_addr){
			.index = i, .flags = VHOST_USER_VRING_F_LOG,
			.descriptor = (uintptr_t)parts[0],
			.available = (uintptr_t)parts[1],
			.used = (uintptr_t)parts[2],
			.log = guest_addr(g, (uint64_t)((const char *)parts[2] - g->mem.map)),
		};
		tell(g, m);
	}
}

static void end_log(struct dirty_log *log)
{
	munmap(log->bits, log->bytes);
	close(log->fd);
}

static bool is_marked(const struct dirty_log *log, uint64_t addr)
{
	uint8_t byte = __atomic_load_n(&log->bits[addr / PAGE / 8], __ATOMIC_ACQUIRE);

	return byte >> addr / PAGE % 8 & 1;
}

/* Pages that are no longer as in @before are in the log. How many those are. */
static unsigned changed_pages(const struct guest *g, const struct dirty_log *log,
			      const char *before)
{
	unsigned n = 0;

	for (uint64_t at = 0; at < GUEST_MEMORY; at += PAGE)
		if (memcmp(before + at, g->mem.map + at, PAGE)) {
			assert_true(is_marked(log, guest_addr(g, at)));
			n++;
		}
	return n;
}

/* Asks once, stops the queue, and sees what that has changed. @before is room for the memory. */
static void ask_and_compare(struct guest *g, const struct dirty_log *log, char *before, unsigned i)
{
	struct guest_ask a = { .queue = i % 2, .token = (uint16_t)(i % RING_SIZE),
			       .type = i % 5 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_GET_ID,
			       .sector = i, .at = GUEST_DATA + i * 1000,
			       .is_scattered = i % 3 };
	uint32_t base;
	uint8_t status;

	a.len = i % 5 ? 512 * (1 + i % 40) : VIRTIO_BLK_ID_BYTES;
	guest_put(g, &a);
	memcpy(before, g->mem.map, GUEST_MEMORY);
	guest_kick(g, a.queue);
	assert_int_equal(guest_take(g, a.queue, &status), a.token);
	assert_int_equal(status, VIRTIO_BLK_S_OK);
	assert_int_equal(vfe_link_stop_queue(&g->link, a.queue, &base), 0);
	assert_true(changed_pages(g, log, before) >= 3);        /* data, status, the ring */
}

/* V23: a page that has changed when a queue has been stopped is in the log, whatever was asked. */
static void v23_written_pages_are_logged(void **state)
{
	char *before = malloc(GUEST_MEMORY);
	struct dirty_log log;
	struct vub_stats st;
	struct host h;
	struct guest g;

	assert_non_null(before);
	host_start(&h, NULL);
	pthread_mutex_lock(&h.disk.lock);
	memset(h.disk.data, 0x33, HOST_DISK);
	pthread_mutex_unlock(&h.disk.lock);
	for (unsigned i = 0; i < 8 * ARRAY_SIZE(wants); i++) {
		guest_start(&g, &h, &wants[i % ARRAY_SIZE(wants)]);
		start_log(&log, &g);
		ask_and_compare(&g, &log, before, i);
		guest_stop(&g);
		end_log(&log);
	}
	vub_get_stats(h.vub, &st);
	assert_true(st.logged >= 3 * 8 * ARRAY_SIZE(wants));
	assert_int_equal(st.broken, 0);
	host_stop(&h);
	free(before);
}

/* Data, status, and nothing else where the ring is not to be logged; pages count once. */
static void v23_pages_are_counted_once(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 8192 };
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_FEATURES, sizeof(m.u64));
	struct dirty_log log;
	struct vub_stats st;
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	start_log(&log, &g);
	assert_int_equal(vfe_link_stop_queue(&g.link, 0, &(uint32_t){ 0 }), 0);
	assert_int_equal(vfe_link_set_queue(&g.link, 0, &g.queues[0], NULL), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_true(is_marked(&log, VFE_MEM_GUEST + GUEST_DATA));
	assert_true(is_marked(&log, VFE_MEM_GUEST + GUEST_DATA + PAGE));
	assert_false(is_marked(&log, VFE_MEM_GUEST + GUEST_DATA + 2 * PAGE));
	assert_true(is_marked(&log, VFE_MEM_GUEST + GUEST_PAGES));      /* the status */
	vub_get_stats(h.vub, &st);
	assert_int_equal(st.logged, 3);
	m.u64 = g.link.features;                /* the migration has ended */
	tell(&g, m);
	memset(log.bits, 0, log.bytes);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_false(is_marked(&log, VFE_MEM_GUEST + GUEST_DATA));
	end_log(&log);
	guest_stop(&g);
	host_stop(&h);
}

/* ---- V24 ---- */

static void await_answer(struct guest *g, const struct guest_ask *a)
{
	uint8_t status;

	assert_int_equal(guest_take(g, a->queue, &status), a->token);
	assert_int_equal(status, VIRTIO_BLK_S_OK);
}

static void put_and_see_nothing(struct guest *g, const struct guest_ask *a)
{
	guest_put(g, a);
	guest_kick(g, a->queue);
	usleep(20000);
	assert_false(guest_has_answer(g, a->queue));
}

static void enable_all(struct guest *g, bool is_enabled)
{
	for (unsigned i = 0; i < HOST_LOOPS; i++) {
		struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_VRING_ENABLE, sizeof(m.state));

		m.state = (struct vhost_user_vring_state){ i, is_enabled };
		assert_int_equal(vfe_msg_tell(g->link.sock, &m, NULL, 0, true), 0);
	}
}

/* V24: two front ends have set everything up; the second one's queues run when all of the first's
 * are stopped or disabled, and the other way round, also where one leaves without a word. */
static void v24_one_of_two_front_ends_runs(void **state)
{
	struct guest_ask a = { .queue = 1, .token = 2, .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA,
			       .len = 512 };
	struct vub_stats st;
	struct guest g[2];
	struct host h;
	uint32_t base;

	host_start(&h, NULL);
	for (unsigned i = 0; i < 2; i++)
		guest_start(&g[i], &h, &wants[i]);
	vub_get_stats(h.vub, &st);
	assert_int_equal(st.sessions, 2);
	assert_int_equal(guest_do(&g[0], &a), VIRTIO_BLK_S_OK);
	put_and_see_nothing(&g[1], &a);
	assert_int_equal(vfe_link_stop_queue(&g[0].link, 0, &base), 0);
	usleep(20000);
	assert_false(guest_has_answer(&g[1], 1));
	assert_int_equal(guest_do(&g[0], &a), VIRTIO_BLK_S_OK);
	assert_int_equal(vfe_link_stop_queue(&g[0].link, 1, &base), 0);
	await_answer(&g[1], &a);
	/* Back again: it waits, until the other has gone. */
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(vfe_link_set_queue(&g[0].link, i, &g[0].queues[i], NULL), 0);
	put_and_see_nothing(&g[0], &a);
	assert_int_equal(guest_do(&g[1], &a), VIRTIO_BLK_S_OK);
	enable_all(&g[1], false);
	await_answer(&g[0], &a);
	enable_all(&g[1], true);
	put_and_see_nothing(&g[1], &a);
	enable_all(&g[0], false);
	await_answer(&g[1], &a);
	enable_all(&g[0], true);
	put_and_see_nothing(&g[0], &a);
	guest_stop(&g[1]);
	await_answer(&g[0], &a);
	assert_int_equal(host_broken(&h), 0);
	guest_stop(&g[0]);
	host_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v23_written_pages_are_logged),
		cmocka_unit_test(v23_pages_are_counted_once),
		cmocka_unit_test(v24_one_of_two_front_ends_runs),
	};

	return cmocka_run_group_tests_name("vub_migrate", tests, NULL, NULL);
}
