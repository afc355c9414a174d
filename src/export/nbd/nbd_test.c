/* SPDX-License-Identifier: MIT */
/* Tests of the transmission phase. A test's name carries the invariant of nbd_impl.h that it
 * proves. */
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

#include "base/prng.h"

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

/* ---- commands ---- */

static void reads_and_writes_with_simple_replies(void **state)
{
	uint8_t data[8192], back[8192];
	int fd = client_open(&peer, "disk", 0);

	client_ask(fd, NBD_CMD_READ, 0, 1, 4096, 8192);
	client_expect_simple(fd, 1, NBD_OK);
	client_receive(fd, data, 8192);
	client_check_pattern(data, 4096, 8192);

	memset(data, 0xa5, sizeof(data));
	client_ask(fd, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 2, 12345, 8192);
	client_send(fd, data, 8192);
	client_expect_simple(fd, 2, NBD_OK);
	assert_int_equal(atomic_load(&peer.disk.fuas), 1);
	client_ask(fd, NBD_CMD_READ, 0, 3, 12345, 8192);
	client_expect_simple(fd, 3, NBD_OK);
	client_receive(fd, back, 8192);
	assert_memory_equal(data, back, 8192);
	client_disconnect(fd);
}

static void reads_with_structured_replies(void **state)
{
	uint8_t data[8 + 4096];
	int fd = client_open(&peer, "disk", CLIENT_STRUCTURED);

	for (unsigned df = 0; df < 2; df++) {
		client_ask(fd, NBD_CMD_READ, df ? NBD_CMD_FLAG_DF : 0, 1, 512, 4096);
		assert_int_equal(client_expect_chunk(fd, 1, NBD_REPLY_TYPE_OFFSET_DATA), 8 + 4096);
		client_receive(fd, data, sizeof(data));
		assert_int_equal(be64_load(data), 512);
		client_check_pattern(data + 8, 512, 4096);
	}
	client_ask(fd, NBD_CMD_READ, 0, 2, 512, 0);
	assert_int_equal(client_expect_chunk(fd, 2, NBD_REPLY_TYPE_NONE), 0);
	client_disconnect(fd);
}

static void other_commands_reach_the_disk(void **state)
{
	uint64_t data;
	int fd = client_open(&peer, "disk", 0);

	client_ask(fd, NBD_CMD_FLUSH, 0, 1, 0, 0);
	client_expect_simple(fd, 1, NBD_OK);
	assert_int_equal(atomic_load(&peer.disk.flushes), 1);
	client_ask(fd, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 2, 0, 65536);
	client_expect_simple(fd, 2, NBD_OK);
	assert_int_equal(atomic_load(&peer.disk.discards), 1);
	client_ask(fd, NBD_CMD_CACHE, 0, 3, 0, 65536);
	client_expect_simple(fd, 3, NBD_OK);

	client_ask(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FUA, 4, 64, 65536);
	client_expect_simple(fd, 4, NBD_OK);
	assert_int_equal(atomic_load(&peer.disk.zero_req_flags), REQ_FUA);
	client_ask(fd, NBD_CMD_READ, 0, 5, 64, 8);
	client_expect_simple(fd, 5, NBD_OK);
	client_receive(fd, &data, 8);
	assert_int_equal(data, 0);
	client_ask(fd, NBD_CMD_WRITE_ZEROES, 0, 6, 64, 39 << 20);       /* longer than a payload */
	client_expect_simple(fd, 6, NBD_OK);
	assert_int_equal(atomic_load(&peer.disk.zero_req_flags), REQ_MAY_UNMAP);
	client_ask(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 7, 64, 65536);
	client_expect_simple(fd, 7, NBD_ENOTSUP);
	assert_int_equal(atomic_load(&peer.disk.zero_req_flags), REQ_MAY_UNMAP | REQ_FAST_ONLY);

	for (unsigned type = NBD_CMD_READ; type <= NBD_CMD_WRITE_ZEROES; type++) {
		if (type == NBD_CMD_DISC)
			continue;               /* empty ones are answered, too */
		client_ask(fd, type, 0, 100 + type, 0, 0);
		client_expect_simple(fd, 100 + type, NBD_OK);
	}
	client_disconnect(fd);
}

static void errors_of_the_disk_are_translated(void **state)
{
	static const struct { int code; uint32_t error; } errors[] = {
		{ EPERM, NBD_EPERM }, { EROFS, NBD_EPERM }, { EACCES, NBD_EPERM },
		{ EIO, NBD_EIO }, { ENOMEM, NBD_ENOMEM },
		{ EINVAL, NBD_EINVAL }, { ENOSPC, NBD_ENOSPC }, { EDQUOT, NBD_ENOSPC },
		{ EFBIG, NBD_ENOSPC }, { ESHUTDOWN, NBD_ESHUTDOWN }, { EUCLEAN, NBD_EIO },
		{ ENXIO, NBD_EIO }, { 4000, NBD_EIO },
	};
	uint8_t data[512] = { 0 };
	int simple = client_open(&peer, "disk", 0);
	int structured = client_open(&peer, "disk", CLIENT_STRUCTURED);

	for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
		atomic_store(&peer.disk.fail_off, 1000);
		atomic_store(&peer.disk.fail_errno, errors[i].code);
		client_ask(simple, NBD_CMD_READ, 0, i, 512, 1024);
		client_expect_simple(simple, i, errors[i].error);
		client_ask(structured, NBD_CMD_READ, 0, i, 512, 1024);
		client_expect_error(structured, i, errors[i].error);
		client_ask(simple, NBD_CMD_FLUSH, 0, i, 0, 0);
		client_expect_simple(simple, i, errors[i].error);
		client_ask(structured, NBD_CMD_WRITE, 0, i, 512, 512);
		client_send(structured, data, 512);
		client_expect_error(structured, i, errors[i].error);
	}
	atomic_store(&peer.disk.fail_errno, 0);
	client_disconnect(simple);
	client_disconnect(structured);
}

/* ---- N1: answered exactly once ---- */

static void n1_a_thousand_pipelined_requests_are_answered_once_each(void **state)
{
	enum { N = 1000 };
	struct nbd_request *wire = malloc(N * sizeof(*wire));
	bool seen[N] = { false };
	uint8_t data[512];
	int fd = client_open(&peer, "disk", 0);

	for (unsigned i = 0; i < N; i++)
		wire[i] = client_request(NBD_CMD_READ, 0, i, i * 512, 512);
	client_send(fd, wire, N * sizeof(*wire));
	for (unsigned i = 0; i < N; i++) {
		struct nbd_simple_reply reply;

		client_receive(fd, &reply, sizeof(reply));
		uint64_t cookie = be64_get(reply.cookie);

		assert_true(cookie < N && !seen[cookie]);
		seen[cookie] = true;
		client_receive(fd, data, 512);
		client_check_pattern(data, cookie * 512, 512);
	}
	client_disconnect(fd);
	free(wire);
}

/* The same bytes give the same replies however they are cut. */
static void n1_requests_arrive_in_any_fragments(void **state)
{
	enum { BYTES = 1 << 20, AREA = 128 << 10 };
	uint8_t *stream = malloc(BYTES), *shadow = calloc(1, AREA), *data = malloc(AREA);
	struct prng prng = { 42 };
	size_t len = 0;
	unsigned writes = 0;
	int fd = client_open(&peer, "disk", 0);

	for (unsigned i = 0; i < AREA; i += 8)
		memcpy(shadow + i, &(uint64_t){ pattern_at(i) }, 8);
	while (len < BYTES - AREA) {            /* this disk keeps the order of arrival */
		uint64_t off = prng_below(&prng, AREA - 1);
		uint64_t most = prng_below(&prng, 2) ? 64 : AREA;
		uint32_t n = (uint32_t)(1 + prng_below(&prng, MIN(most, AREA - off)));

		struct nbd_request wire = client_request(NBD_CMD_WRITE, 0, writes++, off, n);

		memcpy(stream + len, &wire, sizeof(wire));
		len += sizeof(wire);
		for (uint32_t i = 0; i < n; i++)
			stream[len + i] = (uint8_t)(writes + i);
		memcpy(shadow + off, stream + len, n);
		len += n;
	}
	for (size_t at = 0; at < len; ) {
		size_t n = MIN(1 + prng_below(&prng, prng_below(&prng, 2) ? 40 : 50000), len - at);

		client_send(fd, stream + at, n);
		at += n;
	}
	for (unsigned i = 0; i < writes; i++) {
		struct nbd_simple_reply reply;

		client_receive(fd, &reply, sizeof(reply));
		assert_int_equal(be32_get(reply.error), NBD_OK);
	}
	client_ask(fd, NBD_CMD_READ, 0, 9, 0, AREA);
	client_expect_simple(fd, 9, NBD_OK);
	client_receive(fd, data, AREA);
	assert_memory_equal(data, shadow, AREA);
	client_disconnect(fd);
	free(stream);
	free(shadow);
	free(data);
}

static void n1_the_largest_payload_goes_both_ways(void **state)
{
	uint32_t n = NBD_PAYLOAD_MAX;
	uint8_t *data = malloc(n), *back = calloc(1, n);
	int fd = client_open(&peer, "disk", CLIENT_STRUCTURED);

	for (uint32_t i = 0; i < n; i += 4)
		memcpy(data + i, &(uint32_t){ i * 2654435761u }, 4);
	client_ask(fd, NBD_CMD_WRITE, 0, 1, 4096, n);
	client_send(fd, data, n);
	client_expect_simple(fd, 1, NBD_OK);
	client_ask(fd, NBD_CMD_READ, 0, 2, 4096, n);
	assert_int_equal(client_expect_chunk(fd, 2, NBD_REPLY_TYPE_OFFSET_DATA), n + 8);
	client_receive(fd, back, 8);
	client_receive(fd, back, n);
	assert_memory_equal(data, back, n);
	client_disconnect(fd);
	free(data);
	free(back);
}

/* ---- N2: in step ---- */

static void n2_payload_of_refused_writes_is_taken_off_the_stream(void **state)
{
	static const struct {
		const char *name;
		uint64_t off;
		uint32_t len, error;
	} writes[] = {
		{ "second", 0, 4096, NBD_EPERM },
		{ "second", 0, 100000, NBD_EPERM },
		{ "disk", DISK_BYTES - 4095, 4096, NBD_ENOSPC },
		{ "disk", UINT64_MAX - 100, 4096, NBD_ENOSPC },
		{ "disk", 0, NBD_PAYLOAD_MAX + 1, NBD_EINVAL },
	};
	uint8_t *data = malloc(NBD_PAYLOAD_MAX + 1);

	memset(data, 0x25, NBD_PAYLOAD_MAX + 1);
	for (unsigned i = 0; i < ARRAY_SIZE(writes); i++) {
		int fd = client_open(&peer, writes[i].name, 0);

		for (unsigned again = 0; again < 2; again++) {
			client_ask(fd, NBD_CMD_WRITE, 0, 1, writes[i].off, writes[i].len);
			client_send(fd, data, writes[i].len);
			client_ask(fd, NBD_CMD_FLUSH, 0, 2, 0, 0);
			client_expect_simple(fd, 1, writes[i].error);
			client_expect_simple(fd, 2, NBD_OK);
		}
		client_disconnect(fd);
	}
	free(data);
}

/* ---- N3: what is in flight when the peer goes ---- */

static void n3_disconnect_waits_for_requests_in_flight(void **state)
{
	struct nbd_request wire[64];
	uint8_t data[4096] = { 0 };
	int fd = client_open(&peer, "disk", 0), half = client_open(&peer, "disk", 0);

	atomic_store(&peer.disk.is_holding, true);
	for (unsigned i = 0; i < 64; i++)
		wire[i] = client_request(NBD_CMD_READ, 0, i, i * 4096, 4096);
	client_send(fd, wire, sizeof(wire));
	client_ask(fd, NBD_CMD_WRITE, 0, 1, 0, 4096);
	client_send(fd, data, 4096);
	mem_disk_await_held(&peer.disk, 65);
	close(fd);
	client_ask(half, NBD_CMD_WRITE, 0, 1, 0, 1 << 20);      /* and one that never comes */
	client_send(half, data, 4096);
	close(half);
	peer_await_connections(&peer, 1);
	assert_int_equal(atomic_load(&peer.disk.held), 65);
	mem_disk_release(&peer, &peer.disk);
	peer_await_connections(&peer, 0);
	assert_int_equal(peer_memory_used(&peer), 0);
}

/* NBD_CMD_DISC, or the end of what the client sends: all that was asked is answered first. */
static void n3_soft_disconnect_answers_what_is_in_flight(void **state)
{
	uint8_t data[4096];

	for (unsigned soft = 0; soft < 2; soft++) {
		int fd = client_open(&peer, "disk", 0);

		atomic_store(&peer.disk.is_holding, true);
		client_ask(fd, NBD_CMD_READ, 0, 1, 0, 4096);
		client_ask(fd, NBD_CMD_DISC, 0, 0, 0, 0);
		if (!soft)
			shutdown(fd, SHUT_WR);
		mem_disk_await_held(&peer.disk, 1);
		mem_disk_release(&peer, &peer.disk);
		client_expect_simple(fd, 1, NBD_OK);
		client_receive(fd, data, 4096);
		client_expect_end(fd);
		close(fd);
	}
}

/* ---- N6: hostile requests ---- */

static void n6_what_is_not_allowed_is_refused(void **state)
{
	static const struct {
		unsigned type, flags;
		uint64_t off;
		uint32_t len, error;
	} bad[] = {
		{ 8, 0, 0, 0, NBD_EINVAL }, { 9, 0, 0, 4096, NBD_EINVAL },
		{ 65535, 0, 0, 1, NBD_EINVAL },
		{ NBD_CMD_READ, 0, DISK_BYTES, 1, NBD_EINVAL },
		{ NBD_CMD_READ, 0, UINT64_MAX, UINT32_MAX, NBD_EOVERFLOW },
		{ NBD_CMD_READ, 0, UINT64_MAX - 511, 512, NBD_EINVAL },
		{ NBD_CMD_READ, 0, 0, NBD_PAYLOAD_MAX + 1, NBD_EOVERFLOW },
		{ NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 512, NBD_EINVAL },
		{ NBD_CMD_READ, NBD_CMD_FLAG_REQ_ONE, 0, 512, NBD_EINVAL },
		{ NBD_CMD_READ, 1 << 15, 0, 512, NBD_EINVAL },
		{ NBD_CMD_FLUSH, 0, 512, 0, NBD_EINVAL }, { NBD_CMD_FLUSH, 0, 0, 512, NBD_EINVAL },
		{ NBD_CMD_TRIM, 0, DISK_BYTES - 1, 2, NBD_EINVAL },
		{ NBD_CMD_TRIM, NBD_CMD_FLAG_NO_HOLE, 0, 512, NBD_EINVAL },
		{ NBD_CMD_CACHE, 0, DISK_BYTES - 1, 2, NBD_EINVAL },
		{ NBD_CMD_CACHE, NBD_CMD_FLAG_DF, 0, 512, NBD_EINVAL },
		{ NBD_CMD_WRITE_ZEROES, 0, 1, UINT32_MAX, NBD_ENOSPC },
		{ NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_DF, 0, 512, NBD_EINVAL },
		{ NBD_CMD_BLOCK_STATUS, 0, 0, 512, NBD_EINVAL },        /* not negotiated */
	};
	int fd = client_open(&peer, "disk", CLIENT_STRUCTURED);
	int ro = client_open(&peer, "second", CLIENT_STRUCTURED);

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		client_ask(fd, bad[i].type, bad[i].flags, i, bad[i].off, bad[i].len);
		client_expect_error(fd, i, bad[i].error);
	}
	client_ask(ro, NBD_CMD_TRIM, 0, 1, 0, 512);
	client_expect_error(ro, 1, NBD_EPERM);
	client_ask(ro, NBD_CMD_WRITE_ZEROES, 0, 2, 0, 512);
	client_expect_error(ro, 2, NBD_EPERM);
	client_ask(ro, NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA, 3, 0, 0);
	client_expect_simple(ro, 3, NBD_OK);
	client_disconnect(ro);
	client_disconnect(fd);

	fd = client_open(&peer, "disk", 0);
	client_ask(fd, NBD_CMD_READ, NBD_CMD_FLAG_DF, 1, 0, 512);       /* was not offered */
	client_expect_simple(fd, 1, NBD_EINVAL);
	client_ask(fd, NBD_CMD_READ, 0, 2, 0, NBD_PAYLOAD_MAX + 1);
	client_expect_simple(fd, 2, NBD_EINVAL);
	client_disconnect(fd);
}

static void n6_a_bad_magic_ends_the_connection(void **state)
{
	struct nbd_request wire = client_request(NBD_CMD_READ, 0, 1, 0, 512);
	int fd = client_open(&peer, "disk", 0);

	wire.magic = be32_make(0x25609514);
	client_send(fd, &wire, sizeof(wire));
	client_expect_end(fd);
	close(fd);
	peer_await_connections(&peer, 0);
}

/* Random bytes behind a valid magic: nothing breaks, and the next client is served. */
static void n6_random_requests_harm_nobody(void **state)
{
	struct prng prng = { 7 };

	for (unsigned round = 0; round < 100; round++) {
		int fd = client_open(&peer, "disk", CLIENT_STRUCTURED | CLIENT_ALLOCATION);
		uint8_t noise[sizeof(struct nbd_request) * 8];

		for (unsigned i = 0; i < sizeof(noise); i++)
			noise[i] = (uint8_t)prng_next(&prng);
		for (unsigned i = 0; i < 8; i++) {
			struct nbd_request *wire = (void *)(noise + i * sizeof(*wire));

			wire->magic = be32_make(NBD_REQUEST_MAGIC);
			wire->type = be16_make((uint16_t)prng_below(&prng, 10));
			wire->flags = be16_make((uint16_t)prng_below(&prng, 2));
			if (prng_below(&prng, 2))
				wire->off = be64_make(prng_below(&prng, DISK_BYTES));
			if (prng_below(&prng, 2))
				wire->len = be32_make((uint32_t)prng_below(&prng, 65536));
		}
		send(fd, noise, sizeof(noise), MSG_NOSIGNAL);
		close(fd);
	}
	peer_await_connections(&peer, 0);
}

/* ---- N8: the stop ---- */

static void *stop_thread(void *arg)
{
	peer_stop(arg);
	return NULL;
}

static void n8_stop_answers_what_is_in_flight(void **state)
{
	uint8_t data[4096];
	pthread_t thread;
	struct peer p;

	peer_start(&p, backend, 1, NULL);
	int fd = client_open(&p, "disk", 0), idle = client_open(&p, "disk", 0);
	int greeted = client_connect(&p);

	atomic_store(&p.disk.is_holding, true);
	client_ask(fd, NBD_CMD_READ, 0, 1, 0, 4096);
	mem_disk_await_held(&p.disk, 1);
	assert_int_equal(pthread_create(&thread, NULL, stop_thread, &p), 0);
	client_expect_end(idle);
	close(idle);
	client_ask(fd, NBD_CMD_READ, 0, 2, 0, 4096);    /* too late: no answer */
	mem_disk_release(&p, &p.disk);
	client_expect_simple(fd, 1, NBD_OK);
	client_receive(fd, data, 4096);
	client_check_pattern(data, 0, 4096);
	client_expect_end(fd);
	close(fd);
	pthread_join(thread, NULL);
	close(greeted);
	peer_end(&p);
}

static void n8_stop_cuts_peers_that_do_not_read(void **state)
{
	const struct nbd_server_opts opts = { .stop_ns = 100 * NS_PER_MS };
	struct nbd_server_stats stats;
	struct peer p;

	peer_start(&p, backend, 1, &opts);
	int fd = client_open(&p, "disk", 0);

	client_ask(fd, NBD_CMD_READ, 0, 1, 0, 4 << 20);
	while (!peer_memory_used(&p))
		pause_ms(1);
	peer_stop(&p);
	nbd_server_get_stats(p.server, &stats);
	assert_int_equal(stats.cut, 1);
	close(fd);
	peer_end(&p);
}

/* ---- N9: block status ---- */

/* Granules 0 to 3 data, 4 and 5 a hole that reads as zeros, 6 zeros that are allocated, 7 a
 * hole of unknown content, then alternating data and holes. */
static unsigned test_granules(uint64_t granule)
{
	if (granule < 4)
		return MAP_DATA;
	if (granule < 6)
		return MAP_ZERO;
	if (granule == 6)
		return MAP_DATA | MAP_ZERO;
	if (granule == 7)
		return 0;
	return granule % 2 ? MAP_ZERO : MAP_DATA;
}

static uint32_t ask_status(int fd, unsigned flags, uint64_t off, uint32_t len,
			   struct nbd_extent *ret)
{
	be32_t context;

	client_ask(fd, NBD_CMD_BLOCK_STATUS, flags, 77, off, len);
	uint32_t n = client_expect_chunk(fd, 77, NBD_REPLY_TYPE_BLOCK_STATUS);

	assert_true(n >= 12 && n % 8 == 4);
	client_receive(fd, &context, 4);
	client_receive(fd, ret, n - 4);
	return n / 8;
}

static void check_extent(const struct nbd_extent *e, uint32_t len, uint32_t flags)
{
	assert_int_equal(be32_get(e->len), len);
	assert_int_equal(be32_get(e->flags), flags);
}

static void n9_block_status_merges_runs(void **state)
{
	struct nbd_extent e[4096];

	peer.disk.granule_flags = test_granules;
	int fd = client_open(&peer, "disk", CLIENT_STRUCTURED | CLIENT_ALLOCATION);

	assert_int_equal(ask_status(fd, 0, 1000, 9 * GRANULE, e), 6);
	check_extent(&e[0], 4 * GRANULE - 1000, 0);
	check_extent(&e[1], 2 * GRANULE, NBD_STATE_HOLE | NBD_STATE_ZERO);
	check_extent(&e[2], GRANULE, NBD_STATE_ZERO);
	check_extent(&e[3], GRANULE, NBD_STATE_HOLE);
	check_extent(&e[4], GRANULE, 0);
	check_extent(&e[5], 1000, NBD_STATE_HOLE | NBD_STATE_ZERO);
	assert_int_equal(ask_status(fd, NBD_CMD_FLAG_REQ_ONE, 5, 100, e), 1);
	check_extent(&e[0], 100, 0);
	assert_int_equal(ask_status(fd, NBD_CMD_FLAG_REQ_ONE, 0, 5 * GRANULE, e), 1);
	check_extent(&e[0], 4 * GRANULE, 0);
	/* Granule 7 is a hole of unknown content, 8 data: 4 extents up to there. What does not
	 * fit is left out. */
	assert_int_equal(ask_status(fd, 0, 0, 4008 * GRANULE, e), 4 + 4000);
	assert_int_equal(ask_status(fd, 0, 0, DISK_BYTES, e), 4096);
	client_ask(fd, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 0);
	client_expect_error(fd, 1, NBD_EINVAL);
	client_ask(fd, NBD_CMD_BLOCK_STATUS, 0, 1, 1, DISK_BYTES);
	client_expect_error(fd, 1, NBD_EINVAL);
	client_disconnect(fd);
}

static void n9_block_status_ends_before_an_error(void **state)
{
	struct nbd_extent e[16];

	peer.disk.granule_flags = test_granules;
	atomic_store(&peer.disk.fail_off, 5 * GRANULE);
	atomic_store(&peer.disk.fail_errno, EIO);
	int fd = client_open(&peer, "disk", CLIENT_STRUCTURED | CLIENT_ALLOCATION);

	assert_int_equal(ask_status(fd, 0, 0, 8 * GRANULE, e), 2);
	check_extent(&e[0], 4 * GRANULE, 0);
	check_extent(&e[1], GRANULE, NBD_STATE_HOLE | NBD_STATE_ZERO);
	client_ask(fd, NBD_CMD_BLOCK_STATUS, 0, 1, 5 * GRANULE, GRANULE);
	client_expect_error(fd, 1, NBD_EIO);
	atomic_store(&peer.disk.fail_errno, 0);
	client_disconnect(fd);
}

/* ---- several loops ---- */

static void connections_spread_over_loops(void **state)
{
	enum { CLIENTS = 8 };
	uint8_t data[65536];
	struct nbd_server_stats stats;
	struct peer p;
	int fds[CLIENTS];

	peer_start(&p, backend, 2, NULL);
	for (unsigned i = 0; i < CLIENTS; i++)
		fds[i] = client_open(&p, "disk", 0);
	memset(data, 0x11, sizeof(data));
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < CLIENTS; i++) {
			client_ask(fds[i], NBD_CMD_WRITE, 0, i, i * 65536, 65536);
			client_send(fds[i], data, 65536);
			client_ask(fds[i], NBD_CMD_FLUSH, 0, 100, 0, 0);
		}
		for (unsigned i = 0; i < CLIENTS; i++) {
			client_expect_simple(fds[i], i, NBD_OK);
			client_expect_simple(fds[i], 100, NBD_OK);
		}
	}
	for (unsigned i = 0; i < CLIENTS; i++)
		client_disconnect(fds[i]);
	nbd_server_get_stats(p.server, &stats);
	assert_int_equal(stats.requests, CLIENTS * 20 * 2);
	assert_int_equal(stats.connections_total, CLIENTS);
	peer_end(&p);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(reads_and_writes_with_simple_replies),
		TEST(reads_with_structured_replies),
		TEST(other_commands_reach_the_disk),
		TEST(errors_of_the_disk_are_translated),
		TEST(n1_a_thousand_pipelined_requests_are_answered_once_each),
		TEST(n1_requests_arrive_in_any_fragments),
		TEST(n1_the_largest_payload_goes_both_ways),
		TEST(n2_payload_of_refused_writes_is_taken_off_the_stream),
		TEST(n3_disconnect_waits_for_requests_in_flight),
		TEST(n3_soft_disconnect_answers_what_is_in_flight),
		TEST(n6_what_is_not_allowed_is_refused),
		TEST(n6_a_bad_magic_ends_the_connection),
		TEST(n6_random_requests_harm_nobody),
		cmocka_unit_test(n8_stop_answers_what_is_in_flight),
		cmocka_unit_test(n8_stop_cuts_peers_that_do_not_read),
		TEST(n9_block_status_merges_runs),
		TEST(n9_block_status_ends_before_an_error),
		cmocka_unit_test(connections_spread_over_loops),
	};
	const char *name = getenv("BYRE_LOOP");

	backend = name && !strcmp(name, "posix") ? LOOP_POSIX : LOOP_AUTO;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
