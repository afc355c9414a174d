/* SPDX-License-Identifier: MIT */
/* A machine moves from one front end to another: two are connected, one runs, and what is written
 * to the memory of the first is in its log. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "drv/vub/vfe_msg.h"
#include "export/vub/test_log.h"

/* ---- V23 ---- */

/* Pages that are no longer as in @before are in the log. How many those are. */
static unsigned changed_pages(const struct guest *g, const struct dirty_log *log,
			      const char *before)
{
	unsigned n = 0;

	for (uint64_t at = 0; at < GUEST_MEMORY; at += LOG_PAGE)
		if (memcmp(before + at, g->mem.map + at, LOG_PAGE)) {
			assert_true(log_has(log, guest_addr(g, at)));
			n++;
		}
	return n;
}

static void enable_all(struct guest *g, bool is_enabled)
{
	for (unsigned i = 0; i < HOST_LOOPS; i++) {
		struct vhost_user_msg m = vfe_msg(VHOST_USER_SET_VRING_ENABLE, sizeof(m.state));

		m.state = (struct vhost_user_vring_state){ i, is_enabled };
		assert_int_equal(vfe_msg_tell(g->link.sock, &m, NULL, 0, true), 0);
	}
}

/* Asks once, stops the queues, and sees what that has changed. @before is room for the memory. */
static void ask_and_compare(struct guest *g, const struct dirty_log *log, char *before, unsigned i)
{
	struct guest_ask a = { .queue = i % 2, .token = (uint16_t)(i % RING_SIZE),
			       .type = i % 5 ? VIRTIO_BLK_T_IN : VIRTIO_BLK_T_GET_ID,
			       .sector = i, .at = GUEST_DATA + i * 1000,
			       .is_scattered = i % 3 };
	uint32_t base;
	uint8_t status;
	unsigned n;

	a.len = i % 5 ? 512 * (1 + i % 40) : VIRTIO_BLK_ID_BYTES;
	enable_all(g, false);           /* or it is answered while we copy */
	guest_put(g, &a);
	guest_kick(g, a.queue);
	memcpy(before, g->mem.map, GUEST_MEMORY);
	enable_all(g, true);
	assert_int_equal(guest_take(g, a.queue, &status), a.token);
	assert_int_equal(status, VIRTIO_BLK_S_OK);
	/* All of them: another one may just be asking for kicks. */
	for (unsigned q = 0; q < g->link.nqueues; q++)
		assert_int_equal(vfe_link_stop_queue(&g->link, q, &base), 0);
	n = changed_pages(g, log, before);
	/* Data, status, the ring. A packed ring shows what is put there at once, and the device may
	 * have taken it before we looked. */
	assert_true(n >= 3 || g->want.packed);
}

static uint64_t logged(const struct host *h)
{
	struct vub_stats st;

	vub_get_stats(h->vub, &st);
	return st.logged;
}

/* V23: a page that has changed when a queue has been stopped is in the log, whatever was asked. */
static void v23_written_pages_are_logged(void **state)
{
	char *before = malloc(GUEST_MEMORY);
	struct dirty_log log;
	struct host h;
	struct guest g;

	assert_non_null(before);
	host_start(&h, NULL);
	pthread_mutex_lock(&h.disk.lock);
	memset(h.disk.data, 0x33, HOST_DISK);
	pthread_mutex_unlock(&h.disk.lock);
	for (unsigned i = 0; i < 8 * LOG_WANTS; i++) {
		guest_start(&g, &h, &log_wants[i % LOG_WANTS]);
		log_start(&log);
		log_tell(&log, &g);
		ask_and_compare(&g, &log, before, i);
		guest_stop(&g);
		log_end(&log);
	}
	assert_true(logged(&h) >= 3 * 8 * LOG_WANTS);
	assert_int_equal(host_broken(&h), 0);
	host_stop(&h);
	free(before);
}

/* Data, status, and nothing else where the ring is not to be logged; pages count once. */
static void v23_pages_are_counted_once(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 8192 };
	struct dirty_log log;
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, &log_wants[0]);
	log_start(&log);
	log_tell_base(&log, &g);
	log_tell_features(&g, true);
	assert_int_equal(logged(&h), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_true(log_has(&log, VFE_MEM_GUEST + GUEST_DATA));
	assert_true(log_has(&log, VFE_MEM_GUEST + GUEST_DATA + LOG_PAGE));
	assert_false(log_has(&log, VFE_MEM_GUEST + GUEST_DATA + 2 * LOG_PAGE));
	assert_true(log_has(&log, VFE_MEM_GUEST + GUEST_PAGES));        /* the status */
	assert_int_equal(logged(&h), 3);
	log_tell_features(&g, false);           /* the migration has ended */
	memset(log.bits, 0, log.bytes);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_false(log_has(&log, VFE_MEM_GUEST + GUEST_DATA));
	log_end(&log);
	guest_stop(&g);
	host_stop(&h);
}

/* Bits are set a byte at a time: of a run of pages, all, and none beside it. */
static void v23_no_page_beside_is_logged(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN };
	struct dirty_log log;
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, &log_wants[1]);
	log_start(&log);
	log_tell(&log, &g);
	for (unsigned from = 0; from < 10; from++)
		for (unsigned n = 1; n < 20; n++) {
			a.at = GUEST_DATA + (from + 1) * LOG_PAGE - 512;
			a.len = 512 + (n - 1) * LOG_PAGE;
			memset(log.bits, 0, log.bytes);
			assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
			for (unsigned i = 0; i < 40; i++)
				assert_int_equal(log_has(&log, guest_addr(&g, GUEST_DATA +
									      i * LOG_PAGE)),
						 i >= from && i < from + n);
		}
	log_end(&log);
	guest_stop(&g);
	host_stop(&h);
}

/* Has the device of ring @r, of which one request was taken, gone to sleep? */
static bool is_armed(const struct vfe_ring *r)
{
	if (r->is_packed)
		return __atomic_load_n(&r->packed.device->flags, __ATOMIC_RELAXED) !=
		       VRING_PACKED_EVENT_FLAG_DISABLE;
	if (r->has_event_idx)
		return __atomic_load_n(&vring_avail_event(&r->split), __ATOMIC_RELAXED) == 1;
	return !(__atomic_load_n(&r->split.used->flags, __ATOMIC_RELAXED) &
		 VRING_USED_F_NO_NOTIFY);
}

/* False: the queue has gone to sleep before we could look. */
static bool see_sleep_logged(struct host *h, const struct vfe_want *want)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_FLUSH };
	struct dirty_log log;
	const void *parts[3];
	struct guest g;
	uint32_t base;
	bool is_early;

	guest_start(&g, h, want);
	log_start(&log);
	log_tell(&log, &g);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	usleep(20000);                          /* what it has answered is in the log */
	memset(log.bits, 0, log.bytes);
	is_early = is_armed(&g.queues[0].ring);
	while (!is_armed(&g.queues[0].ring))
		usleep(1000);
	assert_int_equal(vfe_link_stop_queue(&g.link, 0, &base), 0);
	vfe_ring_parts(&g.queues[0].ring, parts);
	assert_true(is_early || log_has(&log, vfe_mem_guest(&g.mem, parts[2])));
	log_end(&log);
	guest_stop(&g);
	return !is_early;
}

/* What a queue that polls writes when it goes to sleep, after all that it has answered. */
static void v23_what_asks_for_kicks_is_logged(void **state)
{
	struct vub_opts opts = { .queues = 2, .poll_ns = 150 * NS_PER_MS };
	struct host h;

	host_start(&h, &opts);
	for (unsigned i = 0; i < LOG_WANTS; i++)
		for (unsigned tries = 0; !see_sleep_logged(&h, &log_wants[i]); tries++)
			assert_true(tries < 100);
	host_stop(&h);
}

/* Where a device was killed between what it wrote and the log, the next one makes up for it. */
static void v23_a_ring_that_begins_is_logged(void **state)
{
	struct dirty_log log;
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	for (unsigned i = 0; i < LOG_WANTS; i++) {
		const void *parts[3];
		uint64_t at;

		guest_start(&g, &h, &log_wants[i]);
		log_start(&log);
		log_tell_base(&log, &g);
		log_tell_features(&g, true);
		for (unsigned k = 0; k < g.link.nqueues; k++) {
			guest_lay_out(&g, k);
			vfe_ring_parts(&g.queues[k].ring, parts);
			at = vfe_mem_guest(&g.mem, parts[log_wants[i].packed ? 0 : 2]);
			assert_false(log_has(&log, at));
			log_tell_ring(&g, k, true);
			assert_true(log_has(&log, at));
			assert_true(log_has(&log, guest_addr(&g, k * GUEST_RING + GUEST_EVENT)));
		}
		log_end(&log);
		guest_stop(&g);
	}
	host_stop(&h);
}

/* A front end that has queues run, and only then says where the log is, finds all of its memory
 * there: nobody knows any more what was written. */
static void v23_a_late_log_has_everything(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 8192 };
	struct dirty_log log;
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, &log_wants[0]);
	log_start(&log);
	log_tell_features(&g, true);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	for (unsigned i = 0; i < 2; i++) {
		log_tell_base(&log, &g);
		for (uint64_t at = 0; at < GUEST_MEMORY; at += LOG_PAGE)
			assert_int_equal(log_has(&log, guest_addr(&g, at)), !i);
		memset(log.bits, 0, log.bytes);
	}
	log_end(&log);
	guest_stop(&g);
	host_stop(&h);
}

/* What the front end has not seen in one log, it finds in the next. */
static void v23_a_log_goes_over_to_the_next(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 8192 };
	struct dirty_log log[2];
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, &log_wants[0]);
	for (unsigned i = 0; i < 2; i++)
		log_start(&log[i]);
	log_tell(&log[0], &g);
	memset(log[0].bits, 0, log[0].bytes);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	log_tell_base(&log[1], &g);
	for (uint64_t i = 0; i < log[0].bytes; i++)
		assert_int_equal(log[0].bits[i] & ~log[1].bits[i], 0);
	assert_true(log_has(&log[1], guest_addr(&g, GUEST_DATA)));
	assert_false(log_has(&log[1], guest_addr(&g, GUEST_DATA + 8192)));
	for (unsigned i = 0; i < 2; i++)
		log_end(&log[i]);
	guest_stop(&g);
	host_stop(&h);
}

/* What a queue reads while it breaks is in memory all the same. */
static void v23_a_broken_queue_logs(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 8192 };
	struct dirty_log log;
	pthread_t thread;
	uint32_t base;
	struct host h;
	struct guest g;

	host_start(&h, NULL);
	guest_start(&g, &h, &log_wants[0]);
	log_start(&log);
	log_tell(&log, &g);
	atomic_store(&h.disk.is_holding, true);
	guest_put(&g, &a);
	guest_kick(&g, 0);
	while (!atomic_load(&h.disk.held))
		usleep(1000);
	g.queues[0].ring.split.avail->idx = 1000;
	vfe_signal(g.queues[0].kick);
	host_await_broken(&h, 1);
	assert_false(log_has(&log, guest_addr(&g, GUEST_DATA)));
	host_release_later(&h, &thread);
	assert_int_equal(vfe_link_stop_queue(&g.link, 0, &base), 0);
	assert_true(log_has(&log, guest_addr(&g, GUEST_DATA)));
	assert_true(log_has(&log, guest_addr(&g, GUEST_PAGES)));
	pthread_join(thread, NULL);
	log_end(&log);
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
		guest_start(&g[i], &h, &log_wants[i]);
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
		cmocka_unit_test(v23_no_page_beside_is_logged),
		cmocka_unit_test(v23_what_asks_for_kicks_is_logged),
		cmocka_unit_test(v23_a_ring_that_begins_is_logged),
		cmocka_unit_test(v23_a_late_log_has_everything),
		cmocka_unit_test(v23_a_log_goes_over_to_the_next),
		cmocka_unit_test(v23_a_broken_queue_logs),
		cmocka_unit_test(v24_one_of_two_front_ends_runs),
	};

	return cmocka_run_group_tests_name("vub_migrate", tests, NULL, NULL);
}
