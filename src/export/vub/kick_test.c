/* SPDX-License-Identifier: MIT */
/* No kick and no call is lost, though each side sends one only where the ring asks for it. A front
 * end that is never answered fails the test after PATIENCE_S.
 *
 * With a number as its argument the program goes that many rounds on each kind of ring. */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/prng.h"
#include "export/vub/test_host.h"
#include "export/vub/vub_impl.h"

enum { PATIENCE_S = 120, SPIN_BITS = 8 };

static unsigned rounds = 1500;

/* A guest of one thread, which has put some requests into its ring. */
struct talk {
	struct guest *g;
	struct prng prng;
	unsigned queue;
	bool is_busy[RING_SIZE];
	unsigned busy;
};

static uint64_t now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec;
}

static struct vfe_queue *queue_of(const struct talk *t)
{
	return &t->g->queues[t->queue];
}

/* @n requests at once, and a kick if there must be one. */
static void put(struct talk *t, unsigned n)
{
	struct guest_ask a = { .queue = t->queue, .type = VIRTIO_BLK_T_GET_ID, .at = GUEST_DATA,
			       .len = 20, .is_indirect = true };

	for (; n && t->busy < RING_SIZE; n--) {
		for (a.token = 0; t->is_busy[a.token];)
			a.token++;
		guest_put(t->g, &a);
		t->is_busy[a.token] = true;
		t->busy++;
	}
	if (vfe_ring_publish(&queue_of(t)->ring))
		vfe_signal(queue_of(t)->kick);
}

/* Takes one answer, if there is one. */
static bool take(struct talk *t)
{
	uint16_t token;
	uint32_t len;
	int rc = vfe_ring_take(&queue_of(t)->ring, &token, &len);

	assert_in_range(rc, 0, 1);
	if (!rc)
		return false;
	assert_true(t->is_busy[token]);
	t->is_busy[token] = false;
	t->busy--;
	return true;
}

/* Looks for an answer, and asks for no call. */
static void look(struct talk *t)
{
	uint64_t until = now_s() + PATIENCE_S;

	vfe_ring_disarm(&queue_of(t)->ring);
	for (unsigned n = 1; !take(t); n++)
		if (n % 1024 == 0) {
			assert_true(now_s() <= until);
			sched_yield();          /* the device may have no other processor */
		}
}

/* Sleeps until the call for an answer comes. */
static void await(struct talk *t)
{
	struct pollfd p = { .fd = queue_of(t)->call, .events = POLLIN };
	eventfd_t count;

	while (!take(t)) {
		if (vfe_ring_arm(&queue_of(t)->ring))
			continue;
		assert_int_equal(poll(&p, 1, PATIENCE_S * 1000), 1);
		eventfd_read(p.fd, &count);
	}
}

/* The queue is stopped with whatever is in it, and goes on. Nobody kicks it for that. */
static void restart(struct talk *t)
{
	struct err err = { 0 };

	assert_int_equal(vfe_link_stop_queue(&t->g->link, t->queue, &(uint32_t){ 0 }), 0);
	while (take(t))
		;
	assert_int_equal(vfe_link_set_queue(&t->g->link, t->queue, queue_of(t), &err), 0);
}

/* From nothing to some microseconds. */
static void spin(struct talk *t)
{
	uint64_t most = 64ULL << prng_below(&t->prng, SPIN_BITS);

	for (uint64_t n = prng_below(&t->prng, most); n > 0; n--)
		__asm__ volatile("" ::: "memory");
}

/* A train of requests so close together that the device has often answered the last one, and is
 * about to sleep, when the next one comes; then answers to all of them, or to some. */
static void talk(struct talk *t)
{
	unsigned left = prng_below(&t->prng, 3) ? 0 : (unsigned)prng_below(&t->prng, RING_SIZE / 2);
	bool is_watching = prng_below(&t->prng, 2);

	while (t->busy < RING_SIZE && prng_below(&t->prng, 20)) {
		put(t, prng_below(&t->prng, 8) ? 1 : (unsigned)prng_below(&t->prng, RING_SIZE));
		while (prng_below(&t->prng, 4) && take(t))
			;
		spin(t);
	}
	if (!prng_below(&t->prng, 100))
		restart(t);
	while (t->busy > left) {
		if (is_watching)
			look(t);
		else
			await(t);
		spin(t);
	}
}

static void v20_v33_no_kick_and_no_call_is_lost(void **state)
{
	static const struct vfe_want wants[] = {
		{ 0 }, { .packed = true },
		{ .no_event_idx = true }, { .packed = true, .no_event_idx = true },
	};
	struct host h;

	host_start(&h, NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(wants); i++) {
		struct guest g;
		struct talk t = { .g = &g, .prng = { i }, .queue = i % 2 };

		guest_start(&g, &h, &wants[i]);
		for (unsigned n = 0; n < rounds; n++)
			talk(&t);
		while (t.busy)
			await(&t);
		guest_stop(&g);
	}
	assert_int_equal(host_broken(&h), 0);
	host_stop(&h);
}

/* ---- a kick while the queue is halted ---- */

static void *stop_thread(void *arg)
{
	struct guest *g = arg;
	uint32_t base = 0;

	assert_int_equal(vfe_link_stop_queue(&g->link, 0, &base), 0);
	return (void *)(uintptr_t)(base & 0xffff);
}

/* Who has the ring after us sees the kicks that we have not. */
static void v20_a_kick_of_what_is_not_taken_stays(void **state)
{
	struct guest_ask a = { .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 512 };
	struct host h;
	struct guest g;
	pthread_t stopper;
	void *taken;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	atomic_store(&h.disk.is_holding, true);
	guest_put(&g, &a);
	guest_kick(&g, 0);
	while (!atomic_load(&h.disk.held))
		usleep(1000);
	assert_int_equal(pthread_create(&stopper, NULL, stop_thread, &g), 0);
	usleep(100000);                         /* it waits for the first by now */
	a.token = 1;
	guest_put(&g, &a);
	guest_kick(&g, 0);
	usleep(10000);
	host_release(&h);
	pthread_join(stopper, &taken);
	assert_in_range((uintptr_t)taken, 1, 2);
	if ((uintptr_t)taken == 1) {
		struct pollfd p = { .fd = g.queues[0].kick, .events = POLLIN };

		assert_int_equal(poll(&p, 1, 0), 1);
	}
	guest_stop(&g);
	host_stop(&h);
}

/* ---- one eventfd for the kicks of both queues ---- */

static void share_kicks(struct guest *g)
{
	struct err err = { 0 };

	close(g->queues[1].kick);
	g->queues[1].kick = dup(g->queues[0].kick);
	assert_true(g->queues[1].kick >= 0);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(vfe_link_stop_queue(&g->link, i, &(uint32_t){ 0 }), 0);
		assert_int_equal(vfe_link_set_queue(&g->link, i, &g->queues[i], &err), 0);
	}
}

/* What is in it when a queue is stopped may be another one's, which is elsewhere by then. */
static void v20_a_shared_kick_stays(void **state)
{
	struct guest_ask a = { .queue = 1, .type = VIRTIO_BLK_T_IN, .at = GUEST_DATA, .len = 512 };
	struct pollfd p = { .events = POLLIN };
	struct host h;
	struct guest g;
	eventfd_t count;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	share_kicks(&g);
	assert_int_equal(guest_do(&g, &a), VIRTIO_BLK_S_OK);
	assert_int_equal(vfe_link_stop_queue(&g.link, 1, &(uint32_t){ 0 }), 0);
	p.fd = g.queues[1].kick;
	eventfd_read(p.fd, &count);
	guest_put(&g, &a);
	guest_kick(&g, 1);
	assert_int_equal(vfe_link_stop_queue(&g.link, 0, &(uint32_t){ 0 }), 0);
	assert_int_equal(poll(&p, 1, 0), 1);
	guest_stop(&g);
	host_stop(&h);
}

struct stopper {
	struct guest *g;
	atomic_bool is_over;
};

static void *stop_and_go_thread(void *arg)
{
	struct stopper *s = arg;
	struct err err = { 0 };

	while (!atomic_load(&s->is_over)) {
		assert_int_equal(vfe_link_stop_queue(&s->g->link, 0, &(uint32_t){ 0 }), 0);
		assert_int_equal(vfe_link_set_queue(&s->g->link, 0, &s->g->queues[0], &err), 0);
	}
	return NULL;
}

/* Stops of the one queue are no harm to the other, which sleeps each time. */
static void v20_v33_no_shared_kick_is_lost(void **state)
{
	struct host h;
	struct guest g;
	struct talk t = { .g = &g, .queue = 1 };
	struct stopper s = { .g = &g };
	pthread_t thread;

	host_start(&h, NULL);
	guest_start(&g, &h, NULL);
	share_kicks(&g);
	assert_int_equal(pthread_create(&thread, NULL, stop_and_go_thread, &s), 0);
	for (unsigned n = 0; n < rounds; n++) {
		put(&t, 1);
		await(&t);
		spin(&t);
	}
	atomic_store(&s.is_over, true);
	pthread_join(thread, NULL);
	guest_stop(&g);
	host_stop(&h);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(v20_v33_no_kick_and_no_call_is_lost),
		cmocka_unit_test(v20_a_kick_of_what_is_not_taken_stays),
		cmocka_unit_test(v20_a_shared_kick_stays),
		cmocka_unit_test(v20_v33_no_shared_kick_is_lost),
	};

	if (argc > 1)
		rounds = (unsigned)strtoul(argv[1], NULL, 10);
	return cmocka_run_group_tests_name("vub kicks", tests, NULL, NULL);
}
