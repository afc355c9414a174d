/* SPDX-License-Identifier: MIT */
/* Tests of who gets how much memory: N4 and N5 of nbd_impl.h. */
#include "export/nbd/test_peer.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"

static enum loop_backend backend;
static struct peer peer;

static int setup(void **state)
{
	peer_start(&peer, backend, 1, NULL);
	return 0;
}

static int teardown(void **state)
{
	peer_end(&peer);
	return 0;
}

/* ---- N4, N5: memory ---- */

static void n4_a_peer_that_does_not_read_is_bounded(void **state)
{
	enum { N = 2000, LEN = 65536, LIMIT = 4 << 20 };
	const struct nbd_server_opts opts = { .connection_memory = LIMIT, .max_requests = 300 };
	struct nbd_request *wire = malloc(N * sizeof(*wire));
	uint8_t *data = malloc(LEN);
	struct peer p;

	peer_start(&p, backend, 1, &opts);
	int fd = client_open(&p, "disk", 0);

	for (unsigned i = 0; i < N; i++)
		wire[i] = client_request(NBD_CMD_READ, 0, i, (i % 16) * LEN, i % 2 ? LEN : 512);
	client_send(fd, wire, N * sizeof(*wire));
	for (unsigned i = 0; i < 20; i++) {
		assert_true(peer_memory_used(&p) <= LIMIT);
		pause_ms(5);
	}
	for (unsigned i = 0; i < N; i++) {      /* and then all of it comes */
		struct nbd_simple_reply reply;

		client_receive(fd, &reply, sizeof(reply));
		uint64_t cookie = be64_get(reply.cookie);

		client_receive(fd, data, cookie % 2 ? LEN : 512);
		client_check_pattern(data, (cookie % 16) * LEN, cookie % 2 ? LEN : 512);
	}
	client_disconnect(fd);
	peer_end(&p);
	free(wire);
	free(data);
}

static void n4_requests_in_flight_are_limited(void **state)
{
	const struct nbd_server_opts opts = { .max_requests = 10 };
	struct nbd_simple_reply replies[30];
	struct peer p;

	peer_start(&p, backend, 1, &opts);
	int fd = client_open(&p, "disk", 0);

	atomic_store(&p.disk.is_holding, true);
	for (unsigned i = 0; i < 30; i++)
		client_ask(fd, NBD_CMD_TRIM, 0, i, 0, 4096);
	mem_disk_await_held(&p.disk, 10);
	pause_ms(20);
	mem_disk_await_held(&p.disk, 10);
	mem_disk_release(&p, &p.disk);
	client_receive(fd, replies, sizeof(replies));
	client_disconnect(fd);
	peer_end(&p);
}

struct reader {
	struct peer *peer;
	uint32_t len;
};

static void *read_much(void *arg)
{
	enum { ROUNDS = 40 };
	struct reader *r = arg;
	uint8_t *data = malloc(r->len);
	int fd = client_open(r->peer, "disk", 0);

	for (unsigned k = 0; k < ROUNDS; k++)
		client_ask(fd, NBD_CMD_READ, 0, k, 0, r->len);
	for (unsigned k = 0; k < ROUNDS; k++) {
		client_expect_simple(fd, k, NBD_OK);
		client_receive(fd, data, r->len);
	}
	client_disconnect(fd);
	free(data);
	return NULL;
}

static void n5_who_waits_for_memory_is_served_in_turn(void **state)
{
	enum { CLIENTS = 6, LEN = 1 << 20 };
	const struct nbd_server_opts opts = {
		.loop_memory = 2 * LEN, .connection_memory = 2 * LEN,
	};
	struct reader readers[CLIENTS];
	pthread_t threads[CLIENTS];
	struct peer p;

	peer_start(&p, backend, 1, &opts);
	for (unsigned i = 0; i < CLIENTS; i++) {
		readers[i] = (struct reader){ &p, i % 2 ? LEN : 8192 };
		assert_int_equal(pthread_create(&threads[i], NULL, read_much, &readers[i]), 0);
	}
	for (unsigned i = 0; i < CLIENTS; i++)
		pthread_join(threads[i], NULL);
	peer_end(&p);
}

static void n5_memory_that_drivers_hold_is_waited_for(void **state)
{
	int one = client_open(&peer, "disk", 0), two = client_open(&peer, "disk", 0);
	uint8_t data[4096];

	peer_take_memory(&peer);
	for (unsigned i = 0; i < 10; i++) {
		client_ask(one, NBD_CMD_READ, 0, i, 0, 4096);
		client_ask(two, NBD_CMD_READ, 0, i, 4096, 4096);
	}
	pause_ms(20);
	assert_int_equal(recv(one, data, 1, MSG_DONTWAIT), -1);
	peer_give_memory(&peer);
	for (unsigned i = 0; i < 10; i++) {
		client_expect_simple(one, i, NBD_OK);
		client_receive(one, data, 4096);
		client_check_pattern(data, 0, 4096);
		client_expect_simple(two, i, NBD_OK);
		client_receive(two, data, 4096);
		client_check_pattern(data, 4096, 4096);
	}
	client_disconnect(one);
	client_disconnect(two);
}

/* Some ask for all the memory there is and read a little now and then, so that they are not cut:
 * who asks for little is answered all the same. */
static void n5_slow_readers_do_not_starve_small_requests(void **state)
{
	enum { SLOW = 5, LEN = 1 << 20 };
	const struct nbd_server_opts opts = {
		.loop_memory = 4 * LEN, .connection_memory = 2 * LEN, .connection_share = 64 << 10,
	};
	uint8_t data[4096];
	int slow[SLOW], good;
	struct peer p;

	peer_start(&p, backend, 1, &opts);
	for (unsigned i = 0; i < SLOW; i++) {
		slow[i] = client_open(&p, "disk", 0);
		for (unsigned j = 0; j < 8; j++)
			client_ask(slow[i], NBD_CMD_READ, 0, j, 0, LEN);
	}
	while (peer_memory_used(&p) < 3 * LEN)
		pause_ms(1);
	good = client_open(&p, "disk", 0);
	for (unsigned i = 0; i < 50; i++) {
		recv(slow[i % SLOW], data, 100, MSG_DONTWAIT);
		client_ask(good, NBD_CMD_READ, 0, i, i * 4096, 4096);
		client_expect_simple(good, i, NBD_OK);
		client_receive(good, data, 4096);
		client_check_pattern(data, i * 4096, 4096);
	}
	client_disconnect(good);
	for (unsigned i = 0; i < SLOW; i++)
		close(slow[i]);
	peer_end(&p);
}

static void n5_a_stalled_peer_is_cut_when_others_wait(void **state)
{
	enum { LEN = 1 << 20 };
	const struct nbd_server_opts opts = {
		.loop_memory = 3 * LEN + 4096, .connection_memory = 2 * LEN, .connection_share = 1,
		.stall_ns = 200 * NS_PER_MS,
	};
	struct nbd_server_stats stats;
	uint8_t *data = calloc(1, LEN);
	struct peer p;

	peer_start(&p, backend, 1, &opts);
	int deaf = client_open(&p, "disk", 0), mute = client_open(&p, "disk", 0);
	int idle = client_open(&p, "disk", 0), good = client_open(&p, "disk", 0);

	client_ask(deaf, NBD_CMD_READ, 0, 1, 0, LEN);   /* asks and does not read */
	client_ask(deaf, NBD_CMD_READ, 0, 2, 0, LEN);
	client_ask(mute, NBD_CMD_WRITE, 0, 1, 0, LEN);  /* announces and does not send */
	client_send(mute, data, 100);
	while (peer_memory_used(&p) < 3 * LEN)
		pause_ms(1);
	client_ask(good, NBD_CMD_READ, 0, 3, 0, LEN);
	client_expect_simple(good, 3, NBD_OK);
	client_receive(good, data, LEN);
	client_check_pattern(data, 0, LEN);
	client_expect_end(mute);
	nbd_server_get_stats(p.server, &stats);
	assert_int_equal(stats.cut, 2);
	client_disconnect(good);
	client_disconnect(idle);
	close(deaf);
	close(mute);
	peer_end(&p);
	free(data);
}

static atomic_uint lines;

static void count_line(enum log_level level, const char *line)
{
	atomic_fetch_add(&lines, 1);
}

static unsigned now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (unsigned)ts.tv_sec;
}

/* Who brings a line of the log about by each connection fills no disk with them. */
static void n5_the_log_of_cuts_is_limited(void **state)
{
	enum { LEN = 64 << 10, MUTE = LOG_LIMIT_BURST + 30 };
	const struct nbd_server_opts opts = {
		.loop_memory = MUTE * LEN + 4096, .connection_share = 1,
		.stall_ns = 200 * NS_PER_MS,
	};
	struct nbd_server_stats stats;
	uint8_t *data = malloc(LEN);
	unsigned begin = now_s(), later;
	int mute[MUTE], good;
	struct peer p;

	log_set_sink(count_line);
	peer_start(&p, backend, 1, &opts);
	for (unsigned i = 0; i < MUTE; i++) {
		mute[i] = client_open(&p, "disk", 0);
		client_ask(mute[i], NBD_CMD_WRITE, 0, 1, 0, LEN);
	}
	good = client_open(&p, "disk", 0);
	while (peer_memory_used(&p) < MUTE * LEN)
		pause_ms(1);
	client_ask(good, NBD_CMD_READ, 0, 3, 0, LEN);
	client_expect_simple(good, 3, NBD_OK);
	client_receive(good, data, LEN);
	for (unsigned i = 0; i < MUTE; i++) {
		client_expect_end(mute[i]);
		close(mute[i]);
	}
	nbd_server_get_stats(p.server, &stats);
	assert_int_equal(stats.cut, MUTE);
	later = (now_s() - begin) / LOG_LIMIT_EVERY_S + 1;
	assert_in_range(atomic_load(&lines), 1, LOG_LIMIT_BURST + 2 * later);
	client_disconnect(good);
	peer_end(&p);
	log_set_sink(NULL);
	free(data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(n4_a_peer_that_does_not_read_is_bounded),
		cmocka_unit_test(n4_requests_in_flight_are_limited),
		cmocka_unit_test(n5_who_waits_for_memory_is_served_in_turn),
		cmocka_unit_test_setup_teardown(n5_memory_that_drivers_hold_is_waited_for, setup,
						teardown),
		cmocka_unit_test(n5_slow_readers_do_not_starve_small_requests),
		cmocka_unit_test(n5_a_stalled_peer_is_cut_when_others_wait),
		cmocka_unit_test(n5_the_log_of_cuts_is_limited),
	};
	const char *name = getenv("BYRE_LOOP");

	backend = name && !strcmp(name, "posix") ? LOOP_POSIX : LOOP_AUTO;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
