/* SPDX-License-Identifier: MIT */
/* Tests of the negotiation: handshake.c, listen.c, and accepting in server.c. */
#include "export/nbd/test_peer.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "export/nbd/nbd_impl.h"

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

static int connect_greeted(void)
{
	int fd = client_connect(&peer);

	client_greet(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	return fd;
}

static const unsigned writable_flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH |
	NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
	NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO;
static const unsigned read_only_flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY |
	NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE;

static void check_export(const uint8_t *reply, unsigned flags)
{
	assert_int_equal(be64_load(reply), DISK_BYTES);
	assert_int_equal(be16_load(reply + 8), flags);
}

/* Reads are answered: the transmission phase has begun, and nothing is left over. */
static void check_transmission(int fd)
{
	uint64_t data;

	client_ask(fd, NBD_CMD_READ, 0, 7, 8, 8);
	client_expect_simple(fd, 7, NBD_OK);
	client_receive(fd, &data, 8);
	assert_int_equal(data, pattern_at(8));
	client_disconnect(fd);
}

static void export_name_ends_the_handshake(void **state)
{
	uint8_t reply[134];
	int fd = client_connect(&peer);

	client_greet(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	client_option(fd, NBD_OPT_EXPORT_NAME, "disk", 4);
	client_receive(fd, reply, 10);
	check_export(reply, writable_flags);
	check_transmission(fd);

	fd = client_connect(&peer);             /* old client: 124 zeros, default export */
	client_greet(fd, 0);
	client_option(fd, NBD_OPT_EXPORT_NAME, NULL, 0);
	client_receive(fd, reply, 134);
	check_export(reply, writable_flags);
	for (unsigned i = 10; i < 134; i++)
		assert_int_equal(reply[i], 0);
	check_transmission(fd);

	fd = connect_greeted();
	client_option(fd, NBD_OPT_EXPORT_NAME, "second", 6);
	client_receive(fd, reply, 10);
	check_export(reply, read_only_flags);
	check_transmission(fd);

	fd = connect_greeted();
	client_option(fd, NBD_OPT_EXPORT_NAME, "nothing", 7);
	client_expect_end(fd);
	close(fd);
}

/* INFO or GO for @name, asking for NAME, DESCRIPTION, BLOCK_SIZE and something unknown. */
static void send_info(int fd, uint32_t option, const char *name)
{
	static const uint16_t wanted[] = {
		NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION, 99,
	};
	uint8_t data[64];
	uint32_t n = (uint32_t)strlen(name);

	be32_store(data, n);
	memcpy(data + 4, name, n);
	be16_store(data + 4 + n, 4);
	for (unsigned i = 0; i < 4; i++)
		be16_store(data + 6 + n + 2 * i, wanted[i]);
	client_option(fd, option, data, n + 14);
}

static void expect_info(int fd, uint32_t option)
{
	uint8_t data[64];

	assert_int_equal(client_option_reply(fd, option, NBD_REP_INFO, data, 64), 12);
	assert_int_equal(be16_load(data), NBD_INFO_EXPORT);
	check_export(data + 2, writable_flags | NBD_FLAG_SEND_DF);
	assert_int_equal(client_option_reply(fd, option, NBD_REP_INFO, data, 64), 6);
	assert_int_equal(be16_load(data), NBD_INFO_NAME);
	assert_memory_equal(data + 2, "disk", 4);
	assert_int_equal(client_option_reply(fd, option, NBD_REP_INFO, data, 64), 13);
	assert_int_equal(be16_load(data), NBD_INFO_DESCRIPTION);
	assert_memory_equal(data + 2, "a test disk", 11);
	assert_int_equal(client_option_reply(fd, option, NBD_REP_INFO, data, 64), 14);
	assert_int_equal(be16_load(data), NBD_INFO_BLOCK_SIZE);
	assert_int_equal(be32_load(data + 2), 1);
	assert_int_equal(be32_load(data + 6), 4096);
	assert_int_equal(be32_load(data + 10), NBD_PAYLOAD_MAX);
	client_option_reply(fd, option, NBD_REP_ACK, NULL, 0);
}

static void info_and_go_tell_the_same(void **state)
{
	int fd = connect_greeted();

	client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	client_option_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NULL, 0);
	send_info(fd, NBD_OPT_INFO, "nothing");
	client_option_reply(fd, NBD_OPT_INFO, NBD_REP_ERR_UNKNOWN, NULL, 0);
	send_info(fd, NBD_OPT_INFO, "");        /* the default's real name is told */
	expect_info(fd, NBD_OPT_INFO);
	send_info(fd, NBD_OPT_GO, "disk");
	expect_info(fd, NBD_OPT_GO);
	client_ask(fd, NBD_CMD_FLUSH, 0, 1, 0, 0);
	client_expect_simple(fd, 1, NBD_OK);
	client_disconnect(fd);
}

static void list_names_all_exports(void **state)
{
	uint8_t data[64];
	int fd = connect_greeted();

	client_option(fd, NBD_OPT_LIST, NULL, 0);
	assert_int_equal(client_option_reply(fd, NBD_OPT_LIST, NBD_REP_SERVER, data, 64), 19);
	assert_int_equal(be32_load(data), 4);
	assert_memory_equal(data + 4, "diska test disk", 15);
	assert_int_equal(client_option_reply(fd, NBD_OPT_LIST, NBD_REP_SERVER, data, 64), 10);
	assert_memory_equal(data + 4, "second", 6);
	client_option_reply(fd, NBD_OPT_LIST, NBD_REP_ACK, NULL, 0);
	client_option(fd, NBD_OPT_LIST, "x", 1);
	client_option_reply(fd, NBD_OPT_LIST, NBD_REP_ERR_INVALID, NULL, 0);
	client_option(fd, NBD_OPT_ABORT, NULL, 0);
	client_option_reply(fd, NBD_OPT_ABORT, NBD_REP_ACK, NULL, 0);
	client_expect_end(fd);
	close(fd);
}

static void unknown_options_are_refused_and_skipped(void **state)
{
	static const uint32_t options[] = { NBD_OPT_STARTTLS, 4, 11, 12, 0x12345678, 0 };
	uint8_t data[600] = { 0 };
	int fd = connect_greeted();

	for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
		client_option(fd, options[i], data, i * 100);
		client_option_reply(fd, options[i], NBD_REP_ERR_UNSUP, NULL, 0);
	}
	client_option(fd, NBD_OPT_ABORT, data, 5);
	client_option_reply(fd, NBD_OPT_ABORT, NBD_REP_ACK, NULL, 0);
	client_expect_end(fd);
	close(fd);
}

/* Builds a meta context option; returns its length. */
static uint32_t make_meta(uint8_t *data, const char *name, unsigned n, const char *const *queries)
{
	uint8_t *p = data;

	be32_store(p, (uint32_t)strlen(name));
	memcpy(p + 4, name, strlen(name));
	p += 4 + strlen(name);
	be32_store(p, n);
	p += 4;
	for (unsigned i = 0; i < n; i++) {
		be32_store(p, (uint32_t)strlen(queries[i]));
		memcpy(p + 4, queries[i], strlen(queries[i]));
		p += 4 + strlen(queries[i]);
	}
	return (uint32_t)(p - data);
}

/* Sends a meta context option; is base:allocation in the answer? */
static bool meta(int fd, uint32_t option, const char *name, unsigned n, const char *const *queries)
{
	uint8_t data[256], reply[64];
	struct nbd_option_reply head;

	client_option(fd, option, data, make_meta(data, name, n, queries));
	client_receive(fd, &head, sizeof(head));
	if (be32_get(head.type) == NBD_REP_ACK)
		return false;
	assert_int_equal(be32_get(head.type), NBD_REP_META_CONTEXT);
	assert_int_equal(be32_get(head.len), 19);
	client_receive(fd, reply, 19);
	assert_memory_equal(reply + 4, NBD_BASE_ALLOCATION, 15);
	assert_int_equal(be32_load(reply) != 0, option == NBD_OPT_SET_META_CONTEXT);
	client_option_reply(fd, option, NBD_REP_ACK, NULL, 0);
	return true;
}

static void meta_contexts_are_listed_and_set(void **state)
{
	static const char *const base[] = { "base:" };
	static const char *const both[] = { "x-other:", NBD_BASE_ALLOCATION, NBD_BASE_ALLOCATION };
	static const char *const other[] = { "qemu:dirty-bitmap:b", "base:nothing" };
	uint8_t data[256];
	uint32_t n = make_meta(data, "disk", 1, base);
	int fd = connect_greeted();

	client_option(fd, NBD_OPT_SET_META_CONTEXT, data, n);
	client_option_reply(fd, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID, NULL, 0);
	client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	client_option_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NULL, 0);

	assert_true(meta(fd, NBD_OPT_LIST_META_CONTEXT, "disk", 0, NULL));
	assert_true(meta(fd, NBD_OPT_LIST_META_CONTEXT, "disk", 1, base));
	assert_true(meta(fd, NBD_OPT_LIST_META_CONTEXT, "disk", 3, both));
	assert_false(meta(fd, NBD_OPT_LIST_META_CONTEXT, "disk", 2, other));
	assert_false(meta(fd, NBD_OPT_SET_META_CONTEXT, "disk", 0, NULL));
	assert_false(meta(fd, NBD_OPT_SET_META_CONTEXT, "disk", 1, base));
	assert_false(meta(fd, NBD_OPT_SET_META_CONTEXT, "disk", 2, other));
	assert_true(meta(fd, NBD_OPT_SET_META_CONTEXT, "disk", 3, both));

	client_option(fd, NBD_OPT_SET_META_CONTEXT, data, make_meta(data, "nothing", 1, base));
	client_option_reply(fd, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_UNKNOWN, NULL, 0);
	make_meta(data, "disk", 1, base);
	for (uint32_t cut = 0; cut < n; cut++) {        /* truncated anywhere */
		client_option(fd, NBD_OPT_LIST_META_CONTEXT, data, cut);
		client_option_reply(fd, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_INVALID, NULL, 0);
	}
	data[n] = 0;                            /* and too long */
	client_option(fd, NBD_OPT_LIST_META_CONTEXT, data, n + 1);
	client_option_reply(fd, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_INVALID, NULL, 0);
	be32_store(data + 8, 0xffffffff);       /* a hostile number of queries */
	client_option(fd, NBD_OPT_LIST_META_CONTEXT, data, n);
	client_option_reply(fd, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_INVALID, NULL, 0);
	close(fd);
}

/* A context that was set for another export does not hold for this one. */
static void meta_context_belongs_to_its_export(void **state)
{
	static const char *const base[] = { NBD_BASE_ALLOCATION };
	static const uint8_t go[] = { 0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 0 };
	uint8_t data[64];
	int fd = connect_greeted();

	client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	client_option_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NULL, 0);
	assert_true(meta(fd, NBD_OPT_SET_META_CONTEXT, "second", 1, base));
	client_option(fd, NBD_OPT_GO, go, sizeof(go));
	client_option_reply(fd, NBD_OPT_GO, NBD_REP_INFO, data, 12);
	client_option_reply(fd, NBD_OPT_GO, NBD_REP_ACK, NULL, 0);
	client_ask(fd, NBD_CMD_BLOCK_STATUS, 0, 5, 0, 65536);
	client_expect_error(fd, 5, NBD_EINVAL);
	client_disconnect(fd);
}

static void malformed_go_is_refused(void **state)
{
	static const uint8_t good[] = { 0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 1, 0, 3 };
	uint8_t bad[sizeof(good) + 1];
	int fd = connect_greeted();

	memcpy(bad, good, sizeof(good));
	for (uint32_t n = 0; n <= sizeof(bad); n++) {
		if (n == sizeof(good))
			continue;
		client_option(fd, NBD_OPT_GO, bad, n);
		client_option_reply(fd, NBD_OPT_GO, NBD_REP_ERR_INVALID, NULL, 0);
	}
	bad[0] = 0xff;
	client_option(fd, NBD_OPT_GO, bad, sizeof(good));
	client_option_reply(fd, NBD_OPT_GO, NBD_REP_ERR_INVALID, NULL, 0);
	close(fd);
}

static void violations_end_the_handshake(void **state)
{
	const be64_t bad_magic[2] = { be64_make(1), be64_make(0) };
	int fd = client_connect(&peer);

	client_greet(fd, 4);                    /* a flag that was not offered */
	client_expect_end(fd);
	close(fd);

	fd = connect_greeted();
	client_send(fd, bad_magic, sizeof(bad_magic));
	client_expect_end(fd);
	close(fd);

	fd = client_connect(&peer);             /* not fixed: would not understand a reply */
	client_greet(fd, 0);
	client_option(fd, NBD_OPT_LIST, NULL, 0);
	client_expect_end(fd);
	close(fd);

	fd = connect_greeted();                 /* gone in the middle of an option */
	client_send(fd, "IHAVEOPT\0\0\0\1\0\0\0\4di", 18);
	close(fd);
	peer_await_connections(&peer, 0);
}

/* N7: long options cost no memory and leave the stream in step. */
static void n7_long_options_are_read_away(void **state)
{
	uint32_t n = 1 << 20;
	void *data = calloc(1, n);
	int fd = connect_greeted();

	client_option(fd, NBD_OPT_INFO, data, n);
	client_option_reply(fd, NBD_OPT_INFO, NBD_REP_ERR_TOO_BIG, NULL, 0);
	client_option(fd, 77, data, 65536);
	client_option_reply(fd, 77, NBD_REP_ERR_UNSUP, NULL, 0);
	client_option(fd, NBD_OPT_LIST, NULL, 0);
	client_option_reply(fd, NBD_OPT_LIST, NBD_REP_SERVER, data, 64);
	close(fd);

	fd = connect_greeted();
	for (unsigned i = 0; i < 4096; i++) {
		client_option(fd, 77, NULL, 0);
		client_option_reply(fd, 77, NBD_REP_ERR_UNSUP, NULL, 0);
	}
	client_expect_end(fd);
	close(fd);
	free(data);
}

/* N7: whoever does not choose in time is cut, wherever it stopped. */
static void n7_handshake_is_bounded_in_time(void **state)
{
	/* Long enough for a handshake on any machine: one is served, and one gets half way. */
	const struct nbd_server_opts opts = { .handshake_ns = 3 * NS_PER_SEC };
	struct nbd_server_stats stats;
	struct peer p;

	peer_start(&p, backend, 1, &opts);

	int silent = client_connect(&p), halfway = client_connect(&p);
	int served = client_open(&p, "", 0);

	client_greet(halfway, NBD_FLAG_FIXED_NEWSTYLE);
	client_send(halfway, "IHAVEOPT\0", 9);
	client_expect_end(halfway);
	client_receive(silent, (char[18]){ 0 }, 18);
	client_expect_end(silent);
	client_ask(served, NBD_CMD_FLUSH, 0, 1, 0, 0);
	client_expect_simple(served, 1, NBD_OK);
	client_disconnect(served);
	nbd_server_get_stats(p.server, &stats);
	assert_int_equal(stats.cut, 2);
	close(silent);
	close(halfway);
	peer_end(&p);
}

static void connections_beyond_the_limit_are_closed(void **state)
{
	const struct nbd_server_opts opts = { .max_connections = 2 };
	struct nbd_server_stats stats;
	struct peer p;

	peer_start(&p, backend, 1, &opts);

	int one = client_open(&p, "", 0), two = client_connect(&p), three = client_connect(&p);

	client_expect_end(three);
	close(three);
	client_disconnect(one);
	peer_await_connections(&p, 1);
	three = client_open(&p, "", 0);
	client_disconnect(three);
	close(two);
	nbd_server_get_stats(p.server, &stats);
	assert_int_equal(stats.refused, 1);
	peer_end(&p);
}

/* ---- listening ---- */

static void check_served_at(struct peer *p, const struct sockaddr *sa, socklen_t len)
{
	int fd = socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, sa, len), 0);
	client_greet(fd, NBD_FLAG_FIXED_NEWSTYLE);
	client_option(fd, NBD_OPT_ABORT, NULL, 0);
	client_option_reply(fd, NBD_OPT_ABORT, NBD_REP_ACK, NULL, 0);
	client_expect_end(fd);
	close(fd);
}

/* Nor is a loop to wait for what they are when the kernel closes them. */
static void check_descriptors_are_refused(const struct sockaddr_un *sa)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { .align = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
				 .cmsg_type = SCM_RIGHTS } };
	struct iovec iov = { (char[]){ "x" }, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
	bool can_refuse = !setsockopt(fd, SOL_SOCKET, NBD_SO_PASSRIGHTS, &on, sizeof(on));

	memcpy(CMSG_DATA(&control.align), &fd, sizeof(fd));
	assert_int_equal(connect(fd, (const struct sockaddr *)sa, sizeof(*sa)), 0);
	if (can_refuse) {
		assert_int_equal(sendmsg(fd, &msg, MSG_NOSIGNAL), -1);
		assert_int_equal(errno, EPERM);
	}
	close(fd);
}

static void unix_socket_of_a_dead_server_is_replaced(void **state)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct nbd_server_opts opts = { .nlisten = 1 };
	struct stat st;
	struct peer p;
	struct err err = { 0 };

	snprintf(sa.sun_path, sizeof(sa.sun_path), "/tmp/nbd-test-%d.sock", (int)getpid());

	int dead = nbd_listen_unix(sa.sun_path, 0, &err);

	assert_true(dead >= 0);
	assert_int_equal(nbd_listen_unix(sa.sun_path, 0, &err), -EADDRINUSE);
	close(dead);                            /* without a farewell */

	int fd = nbd_listen_unix(sa.sun_path, 0, &err);

	assert_true(fd >= 0);
	assert_int_equal(stat(sa.sun_path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	opts.listen_fds = &fd;
	peer_start(&p, backend, 1, &opts);
	check_served_at(&p, (struct sockaddr *)&sa, sizeof(sa));
	check_served_at(&p, (struct sockaddr *)&sa, sizeof(sa));
	check_descriptors_are_refused(&sa);
	peer_end(&p);
	close(fd);
	unlink(sa.sun_path);

	fd = open(sa.sun_path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);   /* not a socket: not ours */
	assert_int_equal(nbd_listen_unix(sa.sun_path, 0, &err), -EADDRINUSE);
	close(fd);
	unlink(sa.sun_path);
	assert_int_equal(nbd_listen_unix("", 0, &err), -EINVAL);
	assert_int_equal(nbd_listen_unix(strcat(memset((char[200]){ 0 }, 'x', 150), ""), 0, &err),
			 -ENAMETOOLONG);
}

static void tcp_listens_where_it_is_told(void **state)
{
	static const char *const hosts[] = { "127.0.0.1", "[::1]", "localhost", NULL };
	struct err err = { 0 };

	for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++) {
		struct sockaddr_storage sa;
		socklen_t len = sizeof(sa);
		struct nbd_server_opts opts = { 0 };
		struct peer p;
		int fds[4], n = nbd_listen_tcp(hosts[i], "0", fds, 4, &err);

		if (n == -EADDRNOTAVAIL || n == -EAFNOSUPPORT)
			continue;               /* no IPv6 here */
		assert_in_range(n, 1, 4);
		assert_int_equal(getsockname(fds[0], (struct sockaddr *)&sa, &len), 0);
		opts.listen_fds = fds;
		opts.nlisten = (unsigned)n;
		peer_start(&p, backend, 1, &opts);
		check_served_at(&p, (struct sockaddr *)&sa, len);
		peer_end(&p);
		while (n)
			close(fds[--n]);
	}
	assert_int_equal(nbd_listen_tcp("127.0.0.1", "no port", (int[1]){ 0 }, 1, &err), -EINVAL);
	assert_int_equal(err.code, EINVAL);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(export_name_ends_the_handshake),
		TEST(info_and_go_tell_the_same),
		TEST(list_names_all_exports),
		TEST(unknown_options_are_refused_and_skipped),
		TEST(meta_contexts_are_listed_and_set),
		TEST(meta_context_belongs_to_its_export),
		TEST(malformed_go_is_refused),
		TEST(violations_end_the_handshake),
		TEST(n7_long_options_are_read_away),
		cmocka_unit_test(n7_handshake_is_bounded_in_time),
		cmocka_unit_test(connections_beyond_the_limit_are_closed),
		cmocka_unit_test(unix_socket_of_a_dead_server_is_replaced),
		cmocka_unit_test(tcp_listens_where_it_is_told),
	};

	/* One backend a run: a failure names it, and protocols of test runs stay simple. */
	const char *name = getenv("BYRE_LOOP");

	backend = name && !strcmp(name, "posix") ? LOOP_POSIX : LOOP_AUTO;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
