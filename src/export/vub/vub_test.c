/* SPDX-License-Identifier: MIT */
/* What a guest asks for is done, on rings of both kinds, and a front end may come and go. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
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
	{ .no_inflight = true },
};

static char *data_of(struct guest *g, uint64_t at)
{
	return g->mem.map + at;
}

/* One of each kind of request, in descriptors of each kind. */
static void talk(struct guest *g, struct host *h, unsigned queue, bool is_indirect)
{
	struct guest_ask a = { .queue = queue, .token = 3, .type = VIRTIO_BLK_T_OUT, .sector = 8,
			       .at = GUEST_DATA + 512 + queue * 65536, .len = 4096,
			       .is_indirect = is_indirect,
			       .is_scattered = true };
	struct virtio_blk_discard_write_zeroes ranges[2] = {
		{ .sector = 8, .num_sectors = 1, .flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP },
		{ .sector = 10, .num_sectors = 2 },
	};
	unsigned zeros = atomic_load(&h->disk.zeros), flushes = atomic_load(&h->disk.flushes);

	memset(data_of(g, a.at), 0x40 + (int)queue, 4096);
	assert_int_equal(guest_do(g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(host_byte(h, 8 * 512 + 4095), 0x40 + queue);
	a.type = VIRTIO_BLK_T_WRITE_ZEROES;
	a.len = sizeof(ranges);
	memcpy(data_of(g, a.at), ranges, sizeof(ranges));
	assert_int_equal(guest_do(g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(atomic_load(&h->disk.zeros), zeros + 2);
	a.type = VIRTIO_BLK_T_IN;
	a.len = 4096;
	assert_int_equal(guest_do(g, &a), VIRTIO_BLK_S_OK);
	for (unsigned i = 0; i < 4096; i++) {
		bool is_zero = i < 512 || (i >= 1024 && i < 2048);

		assert_int_equal(data_of(g, a.at)[i], is_zero ? 0 : 0x40 + (int)queue);
	}
	a.len = 0;
	a.type = VIRTIO_BLK_T_FLUSH;
	assert_int_equal(guest_do(g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(atomic_load(&h->disk.flushes), flushes + 1);
	a.len = 20;
	a.type = VIRTIO_BLK_T_GET_ID;
	assert_int_equal(guest_do(g, &a), VIRTIO_BLK_S_OK);
	assert_memory_equal(data_of(g, a.at), "a disk with a long name", 20);
}

static void requests_of_all_kinds(void **state)
{
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(wants); i++) {
		guest_start(&g, &h, &wants[i]);
		for (unsigned q = 0; q < 2; q++) {
			talk(&g, &h, q, false);
			for (unsigned n = 0; n < 20; n++)       /* around the ring */
				talk(&g, &h, q, !wants[i].no_indirect);
		}
		guest_stop(&g);
	}
	assert_int_equal(host_broken(&h), 0);
	host_stop(&h);
}

static void errors_are_answered(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_OUT, .at = GUEST_DATA, .len = 512 };
	struct virtio_blk_discard_write_zeroes range = { .sector = 0, .num_sectors = 8 };
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	a.sector = HOST_DISK / 512;
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_IOERR);
	a.sector = UINT64_MAX / 256;
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_IOERR);
	a.sector = 0;
	a.len = 511;
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_IOERR);
	a.len = 0;
	a.type = VIRTIO_BLK_T_SCSI_CMD;
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_UNSUPP);
	a.type = VIRTIO_BLK_T_DISCARD;
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_IOERR);
	a.len = sizeof(range);
	range.flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
	memcpy(data_of(&g, a.at), &range, sizeof(range));
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_UNSUPP);
	range = (struct virtio_blk_discard_write_zeroes){ .sector = UINT64_MAX, .num_sectors = 2 };
	memcpy(data_of(&g, a.at), &range, sizeof(range));
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_IOERR);
	range = (struct virtio_blk_discard_write_zeroes){ .sector = 8, .num_sectors = 8 };
	memcpy(data_of(&g, a.at), &range, sizeof(range));
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(atomic_load(&h.disk.discards), 1);
	a.len = 512 * 40;
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_UNSUPP);
	atomic_store(&h.disk.fail_errno, ENOSPC);
	a.type = VIRTIO_BLK_T_IN;
	a.len = 512;
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_IOERR);
	atomic_store(&h.disk.fail_errno, 0);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	guest_stop(&g);
	host_stop(&h);
}

static void read_only_disks_refuse_writes(void **state)
{
	struct vub_opts vo = { .queues = 1, .read_only = true };
	struct guest_ask a = { .type = VIRTIO_BLK_T_OUT, .at = GUEST_DATA, .len = 512 };
	struct host h;
	struct guest g;

	host_start(&h, &vo);
	guest_start(&g, &h, NULL);
	assert_true(vfe_link_has(&g.link, VIRTIO_BLK_F_RO));
	assert_false(vfe_link_has(&g.link, VIRTIO_BLK_F_DISCARD));
	assert_int_equal(g.link.nqueues, 1);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_IOERR);
	a.type = VIRTIO_BLK_T_IN;
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(atomic_load(&h.disk.writes), 0);
	guest_stop(&g);
	host_stop(&h);
}

/* A guest without a write cache has its writes durable when they are done. */
static void writes_without_a_cache_are_durable(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_OUT, .at = GUEST_DATA, .len = 512 };
	struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_FEATURES, 8);
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(atomic_load(&h.disk.fuas), 0);
	m.u64 = g.link.features & ~(1ULL << VIRTIO_BLK_F_FLUSH);
	assert_int_equal(vfe_msg_tell(g.link.sock, &m, NULL, 0, true), 0);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(atomic_load(&h.disk.fuas), 1);
	m.u64 = g.link.features | 1ULL << VIRTIO_BLK_F_CONFIG_WCE;
	m.head = vfe_msg(VHOST_USER_SET_FEATURES, 8).head;
	assert_int_equal(vfe_msg_tell(g.link.sock, &m, NULL, 0, true), 0);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(atomic_load(&h.disk.fuas), 1);
	m = vfe_msg(VHOST_USER_SET_CONFIG, VHOST_USER_CONFIG_HEAD + 1);
	m.config.offset = offsetof(struct virtio_blk_config, wce);
	m.config.size = 1;
	assert_int_equal(vfe_msg_tell(g.link.sock, &m, NULL, 0, true), 0);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(atomic_load(&h.disk.fuas), 2);
	m.head.flags = VHOST_USER_VERSION;
	m.head.request = VHOST_USER_SET_CONFIG;
	m.head.size = VHOST_USER_CONFIG_HEAD + 1;
	m.config.offset = 0;                    /* the capacity is not the guest's to write */
	m.config.size = 1;
	assert_int_equal(vfe_msg_tell(g.link.sock, &m, NULL, 0, true), -EIO);
	guest_stop(&g);
	host_stop(&h);
}

static void await_held(struct host *h, unsigned n)
{
	for (unsigned i = 0; i < 100000 && atomic_load(&h->disk.held) < n; i++)
		usleep(1000);
	assert_int_equal(atomic_load(&h->disk.held), n);
}

/* V20: a queue that was stopped has answered everything, and says where it was. */
static void v20_a_stop_waits_for_requests(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 512 };
	struct host h;
	struct guest g;

	for (unsigned i = 0; i < ARRAY_SIZE(wants); i++) {
		uint8_t status;
		uint32_t base;
		pthread_t t;

		host_start(&h, NULL);
		guest_start(&g, &h, &wants[i]);
		atomic_store(&h.disk.is_holding, true);
		for (a.token = 0; a.token < 4; a.token++)
			guest_put(&g, &a);
		guest_kick(&g, 0);
		await_held(&h, 4);
		host_release_later(&h, &t);
		assert_int_equal(vfe_link_stop_queue(&g.link, 0, &base), 0);
		assert_int_equal(atomic_load(&h.disk.held), 0);
		for (unsigned n = 0; n < 4; n++) {
			guest_take(&g, 0, &status);
			assert_int_equal(status, VIRTIO_BLK_S_OK);
		}
		assert_int_equal(base, vfe_ring_base(&g.queues[0].ring));
		pthread_join(t, NULL);
		/* Stopped: kicks do nothing. Then it goes on where it was. */
		a.token = 0;
		guest_put(&g, &a);
		guest_kick(&g, 0);
		usleep(20000);
		assert_false(guest_has_answer(&g, 0));
		assert_int_equal(vfe_link_set_queue(&g.link, 0, &g.queues[0], NULL), 0);
		guest_take(&g, 0, &status);
		assert_int_equal(status, VIRTIO_BLK_S_OK);
		guest_stop(&g);
		host_stop(&h);
	}
}

/* V15: memory goes when nothing that names it is in flight; slots come and go meanwhile. */
static void v15_removal_of_memory_waits(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_OUT, .at = GUEST_DATA, .len = 512 };
	struct vhost_user_msg m = vfe_msg(VHOST_USER_ADD_MEM_REG, sizeof(m.reg));
	struct vfe_mem more;
	struct host h;
	struct guest g;
	uint8_t status;
	pthread_t t;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	assert_int_equal(vfe_mem_init(&more, 1 << 20), 0);
	memset(more.map, 0x77, 4096);
	m.reg.region = (struct vhost_user_region){ .guest_addr = 1ULL << 40, .size = 1 << 20,
						   .user_addr = (uintptr_t)more.map };
	/* The feature is asked for: the link of the tests does not know it. */
	struct vhost_user_msg f = vfe_msg(VHOST_USER_SET_PROTOCOL_FEATURES, 8);
	f.u64 = g.link.protocol | 1ULL << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS;
	assert_int_equal(vfe_msg_tell(g.link.sock, &f, NULL, 0, true), 0);
	struct vhost_user_msg add = m;
	assert_int_equal(vfe_msg_tell(g.link.sock, &add, &more.fd, 1, true), 0);
	add = m;
	assert_int_equal(vfe_msg_tell(g.link.sock, &add, &more.fd, 1, true), -EIO);

	atomic_store(&h.disk.is_holding, true);
	a.at = (1ULL << 40) - VFE_MEM_GUEST;
	guest_put(&g, &a);
	guest_kick(&g, 0);
	await_held(&h, 1);
	host_release_later(&h, &t);
	m.head.request = VHOST_USER_REM_MEM_REG;
	struct vhost_user_msg rem = m;
	assert_int_equal(vfe_msg_tell(g.link.sock, &rem, NULL, 0, true), 0);
	assert_int_equal(host_byte(&h, 0), 0x77);
	assert_int_equal(atomic_load(&h.disk.writes), 1);
	guest_take(&g, 0, &status);
	assert_int_equal(status, VIRTIO_BLK_S_OK);
	pthread_join(t, NULL);
	rem = m;
	assert_int_equal(vfe_msg_tell(g.link.sock, &rem, NULL, 0, true), -EIO);
	/* It is gone, and nothing else. */
	a.at = GUEST_DATA;
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	a.at = (1ULL << 40) - VFE_MEM_GUEST;
	guest_put(&g, &a);
	guest_kick(&g, 0);
	host_await_broken(&h, 1);
	vfe_mem_fini(&more);
	guest_stop(&g);
	host_stop(&h);
}

/* V22: what was used just before a restart is seen: a queue that starts notifies. */
static void v22_a_start_notifies(void **state)
{
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	for (unsigned i = 0; i < 2; i++) {
		struct pollfd p = { .fd = g.queues[i].call, .events = POLLIN };

		assert_int_equal(poll(&p, 1, HOST_PATIENCE_MS), 1);
	}
	guest_stop(&g);
	host_stop(&h);
}

/* V21: with requests in flight the front end leaves, comes back to another device, and has each
 * request answered once. */
static void v21_requests_outlive_a_session(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_OUT, .at = GUEST_DATA, .len = 512 };
	struct host h;
	struct guest g;

	for (unsigned i = 0; i < 2; i++) {
		bool seen[RING_SIZE] = { 0 };
		uint8_t status;

		host_start(&h, NULL);
		guest_start(&g, &h, &wants[i]);
		assert_true(g.link.inflight_fd >= 0);
		for (a.token = 0; a.token < 5; a.token++)
			assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
		atomic_store(&h.disk.is_holding, true);
		for (a.token = 0; a.token < 3; a.token++)
			guest_put(&g, &a);
		guest_kick(&g, 0);
		await_held(&h, 3);
		vfe_link_disconnect(&g.link);
		host_release(&h);
		host_restart(&h);
		assert_int_equal(vfe_link_reopen(&g.link, h.path, &g.want, NULL), 0);
		a.token = 3;
		guest_put(&g, &a);
		vfe_ring_publish(&g.queues[0].ring);
		guest_set_up(&g);
		for (unsigned n = 0; n < 4; n++) {
			uint16_t token = guest_take(&g, 0, &status);

			assert_true(token < 4 && !seen[token]);
			assert_int_equal(status, VIRTIO_BLK_S_OK);
			seen[token] = true;
		}
		usleep(20000);
		assert_false(guest_has_answer(&g, 0));
		assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
		guest_stop(&g);
		host_stop(&h);
	}
}

/* A turn takes a part of a ring only; the others follow by themselves, whether the first are over
 * by then or not. */
static void one_kick_is_enough_for_a_full_ring(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 512,
			       .is_indirect = true };
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	for (unsigned i = 0; i < 4; i++) {
		bool is_held = i / 2, seen[RING_SIZE] = { 0 };
		uint8_t status;

		guest_start(&g, &h, &wants[i % 2]);
		atomic_store(&h.disk.is_holding, is_held);
		for (a.token = 0; a.token < RING_SIZE; a.token++)
			guest_put(&g, &a);
		guest_kick(&g, 0);
		if (is_held) {
			await_held(&h, RING_SIZE);
			host_release(&h);
		}
		for (unsigned n = 0; n < RING_SIZE; n++) {
			uint16_t token = guest_take(&g, 0, &status);

			assert_true(token < RING_SIZE && !seen[token]);
			assert_int_equal(status, VIRTIO_BLK_S_OK);
			seen[token] = true;
		}
		guest_stop(&g);
	}
	host_stop(&h);
}

/* A request of a loop that looks at its rings for a while is found without a kick. */
static void polling_finds_requests(void **state)
{
	/* Longer than any machine keeps a loop from running: nothing kicks once it has ended. */
	struct vub_opts vo = { .queues = 1, .poll_ns = 60 * NS_PER_SEC };
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 512 };
	struct host h;
	struct guest g;
	uint8_t status;

	host_start(&h, &vo);
	for (unsigned i = 0; i < 2; i++) {
		guest_start(&g, &h, &wants[i]);
		assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
		for (unsigned n = 0; n < 50; n++) {
			guest_put(&g, &a);
			vfe_ring_publish(&g.queues[0].ring);
			guest_take(&g, 0, &status);
			assert_int_equal(status, VIRTIO_BLK_S_OK);
		}
		guest_stop(&g);
	}
	host_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests_of_all_kinds),
		cmocka_unit_test(errors_are_answered),
		cmocka_unit_test(read_only_disks_refuse_writes),
		cmocka_unit_test(writes_without_a_cache_are_durable),
		cmocka_unit_test(v15_removal_of_memory_waits),
		cmocka_unit_test(v20_a_stop_waits_for_requests),
		cmocka_unit_test(v21_requests_outlive_a_session),
		cmocka_unit_test(v22_a_start_notifies),
		cmocka_unit_test(one_kick_is_enough_for_a_full_ring),
		cmocka_unit_test(polling_finds_requests),
	};

	return cmocka_run_group_tests_name("vub", tests, NULL, NULL);
}
