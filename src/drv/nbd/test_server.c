/* SPDX-License-Identifier: MIT */
#include "drv/nbd/test_server.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bits.h"
#include "base/prng.h"

#define MAGIC_GREETING 0x4e42444d41474943ULL
#define MAGIC_OPTION 0x49484156454f5054ULL
#define MAGIC_OPTION_REPLY 0x3e889045565a9ULL
#define MAGIC_REQUEST 0x25609513U
#define MAGIC_SIMPLE 0x67446698U
#define MAGIC_CHUNK 0x668e33efU

enum {
	OPT_ABORT = 2, OPT_GO = 7, OPT_STRUCTURED = 8, OPT_SET_META = 10,
	REP_ACK = 1, REP_INFO = 3, REP_META = 4,
	INFO_EXPORT = 0, INFO_BLOCKS = 3,
	CMD_READ = 0, CMD_WRITE = 1, CMD_DISC = 2, CMD_FLUSH = 3, CMD_TRIM = 4, CMD_ZERO = 6,
	CMD_STATUS = 7,
	CHUNK_DONE = 1, CHUNK_NONE = 0, CHUNK_DATA = 1, CHUNK_STATUS = 5, CHUNK_ERROR = 32769,
	CONTEXT = 1, GRANULE = 4096, DATA_MAX = 64 << 20,
};

struct wire_request {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, off;
	uint32_t len;
} __attribute__((packed));

struct wire_chunk {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie;
	uint32_t len;
} __attribute__((packed));

struct connection {
	struct test_server *s;
	int fd;
	bool is_structured, has_map;
};

static bool get(int fd, void *data, size_t n)
{
	char *at = data;

	while (n) {
		ssize_t got = recv(fd, at, n, 0);

		if (got <= 0)
			return false;
		at += got;
		n -= (size_t)got;
	}
	return true;
}

static bool put(int fd, const void *data, size_t n)
{
	const char *at = data;

	while (n) {
		ssize_t sent = send(fd, at, n, MSG_NOSIGNAL);

		if (sent <= 0)
			return false;
		at += sent;
		n -= (size_t)sent;
	}
	return true;
}

/* ---- negotiation ---- */

static bool option_reply(int fd, uint32_t option, uint32_t type, const void *data, uint32_t n)
{
	struct {
		uint64_t magic;
		uint32_t option, type, len;
	} __attribute__((packed)) head = { htobe64(MAGIC_OPTION_REPLY), htobe32(option),
					   htobe32(type), htobe32(n) };

	return put(fd, &head, sizeof(head)) && put(fd, data, n);
}

static bool go(const struct connection *c, uint32_t option)
{
	const struct test_server *s = c->s;
	struct {
		uint16_t type;
		uint64_t size;
		uint16_t flags;
	} __attribute__((packed)) info = { htobe16(INFO_EXPORT), htobe64(s->size),
					   htobe16(s->flags | 1) };
	struct {
		uint16_t type;
		uint32_t min, preferred, max;
	} __attribute__((packed)) blocks = { htobe16(INFO_BLOCKS), htobe32(s->block),
					     htobe32(MAX(s->block, 4096U)),
					     htobe32(s->data_max ? s->data_max : 32 << 20) };

	if (!option_reply(c->fd, option, REP_INFO, &info, sizeof(info)))
		return false;
	if (s->block && !option_reply(c->fd, option, REP_INFO, &blocks, sizeof(blocks)))
		return false;
	return option_reply(c->fd, option, REP_ACK, NULL, 0);
}

/* One option. False: the phase is over, for good or (c->fd shut down) not. */
static bool take_option(struct connection *c, bool *ret_is_ready)
{
	static const char context[] = "\0\0\0\1base:allocation";
	struct {
		uint64_t magic;
		uint32_t option, len;
	} __attribute__((packed)) head;
	char data[4096];

	if (!get(c->fd, &head, sizeof(head)) || be64toh(head.magic) != MAGIC_OPTION ||
	    be32toh(head.len) > sizeof(data) || !get(c->fd, data, be32toh(head.len)))
		return false;
	switch (be32toh(head.option)) {
	case OPT_GO:
		*ret_is_ready = go(c, OPT_GO);
		return false;
	case OPT_STRUCTURED:
		if (c->s->is_simple)
			break;
		c->is_structured = true;
		return option_reply(c->fd, OPT_STRUCTURED, REP_ACK, NULL, 0);
	case OPT_SET_META:
		c->has_map = !c->s->has_no_map;
		return (!c->has_map || option_reply(c->fd, OPT_SET_META, REP_META, context,
						    sizeof(context) - 1)) &&
		       option_reply(c->fd, OPT_SET_META, REP_ACK, NULL, 0);
	case OPT_ABORT:
		option_reply(c->fd, OPT_ABORT, REP_ACK, NULL, 0);
		return false;
	}
	return option_reply(c->fd, be32toh(head.option), 1U << 31 | 1, NULL, 0);
}

static bool negotiate(struct connection *c)
{
	struct {
		uint64_t magic, option;
		uint16_t flags;
	} __attribute__((packed)) greeting = { htobe64(MAGIC_GREETING), htobe64(MAGIC_OPTION),
					       htobe16(3) };
	bool is_ready = false;
	uint32_t flags;

	if (c->s->greets_wrong)
		memset(&greeting, 0x5a, sizeof(greeting));
	if (!put(c->fd, &greeting, sizeof(greeting)) || !get(c->fd, &flags, sizeof(flags)))
		return false;
	while (take_option(c, &is_ready))
		continue;
	return is_ready;
}

/* ---- replies ---- */

static bool put_chunk(const struct connection *c, uint64_t cookie, unsigned flags, unsigned type,
		      const void *data, uint32_t n)
{
	struct wire_chunk head = { htobe32(MAGIC_CHUNK), htobe16((uint16_t)flags),
				   htobe16((uint16_t)type), cookie, htobe32(n) };

	return put(c->fd, &head, sizeof(head)) && put(c->fd, data, n);
}

static bool put_simple(const struct connection *c, uint64_t cookie, uint32_t error)
{
	struct {
		uint32_t magic, error;
		uint64_t cookie;
	} __attribute__((packed)) head = { htobe32(MAGIC_SIMPLE), htobe32(error), cookie };

	return put(c->fd, &head, sizeof(head));
}

static bool put_error(const struct connection *c, uint64_t cookie, uint32_t error)
{
	struct {
		uint32_t error;
		uint16_t len;
	} __attribute__((packed)) data = { htobe32(error), 0 };

	return put_chunk(c, cookie, CHUNK_DONE, CHUNK_ERROR, &data, sizeof(data));
}

/* A chunk of data of [@off, @off + @len) that says it is from @said on. */
static bool put_data(const struct connection *c, uint64_t cookie, uint64_t off, uint64_t said,
		     uint32_t len, uint32_t more)
{
	uint8_t *data = calloc(1, 8 + (size_t)len + more);
	uint64_t be = htobe64(said);
	bool ok;

	assert_non_null(data);
	memcpy(data, &be, sizeof(be));
	memcpy(data + 8, c->s->disk + off, len);
	ok = put_chunk(c, cookie, CHUNK_DONE, CHUNK_DATA, data, 8 + len + more);
	free(data);
	return ok;
}

/* Granules of zeros are holes. */
static bool is_hole(const struct test_server *s, uint64_t off)
{
	static const uint8_t zeros[GRANULE];
	uint64_t at = align_down(off, GRANULE);

	return !memcmp(s->disk + at, zeros, MIN((uint64_t)GRANULE, s->size - at));
}

static bool put_status(const struct connection *c, uint64_t cookie, uint64_t off, uint32_t len,
		       enum server_wrong wrong)
{
	struct {
		uint32_t context, len, flags;
	} __attribute__((packed)) status = { htobe32(CONTEXT), 0, 0 };
	uint64_t end = align_down(off, GRANULE) + GRANULE;
	bool hole = is_hole(c->s, off);

	while (end < off + len && is_hole(c->s, end) == hole)
		end += GRANULE;
	end = MIN(end, off + len);
	status.len = htobe32((uint32_t)(end - off));
	status.flags = htobe32(hole ? 3 : 0);
	if (wrong == WRONG_EXTENT_NONE)
		return put_chunk(c, cookie, CHUNK_DONE, CHUNK_NONE, NULL, 0);
	if (wrong == WRONG_EXTENT_EMPTY)
		status.len = 0;
	if (wrong == WRONG_EXTENT_LONG)
		status.len = UINT32_MAX;
	return put_chunk(c, cookie, CHUNK_DONE, CHUNK_STATUS, &status, sizeof(status));
}

static void put_noise(const struct connection *c)
{
	struct prng p = { c->s->noise++ };
	uint8_t noise[256];

	for (unsigned i = 0; i < sizeof(noise); i++)
		noise[i] = (uint8_t)prng_next(&p);
	put(c->fd, noise, 1 + prng_below(&p, sizeof(noise)));
}

/* True: it went on as if nothing were wrong. */
static bool misbehave(const struct connection *c, const struct wire_request *r,
		      enum server_wrong wrong, bool *ret_goes_on)
{
	uint64_t off = be64toh(r->off);
	uint32_t len = be32toh(r->len);

	*ret_goes_on = false;
	switch (wrong) {
	case WRONG_CLOSE:
		return true;
	case WRONG_MAGIC:
		return put(c->fd, "0123456789abcdef0123", 20);
	case WRONG_COOKIE:
		*ret_goes_on = put_simple(c, r->cookie + 12345, 0);
		return true;
	case WRONG_RANGE:
		*ret_goes_on = put_data(c, r->cookie, 0, off + len, len, 0);
		return true;
	case WRONG_LONG:
		*ret_goes_on = put_data(c, r->cookie, 0, off, len, 4096);
		return true;
	case WRONG_SHORT:
		*ret_goes_on = put_chunk(c, r->cookie, CHUNK_DONE, CHUNK_NONE, NULL, 0);
		return true;
	case WRONG_TWICE:
		*ret_goes_on = put_data(c, r->cookie, off, off, len, 0) &&
			       put_data(c, r->cookie, off, off, len, 0);
		return true;
	case WRONG_SIMPLE:
		*ret_goes_on = put_simple(c, r->cookie, 0) && put(c->fd, c->s->disk, len);
		return true;
	case WRONG_NOISE:
		put_noise(c);
		return true;
	case WRONG_ERROR:
		*ret_goes_on = put_error(c, r->cookie, c->s->error);
		return true;
	default:
		return false;
	}
}

/* ---- commands ---- */

static bool answer(const struct connection *c, const struct wire_request *r, uint32_t error)
{
	uint64_t off = be64toh(r->off);
	uint32_t len = be32toh(r->len);

	if (be16toh(r->type) == CMD_READ && !error) {
		if (c->is_structured)
			return put_data(c, r->cookie, off, off, len, 0);
		return put_simple(c, r->cookie, 0) && put(c->fd, c->s->disk + off, len);
	}
	return put_simple(c, r->cookie, error);
}

static bool is_wrong_now(struct test_server *s)
{
	return s->wrong && atomic_load(&s->wrong_after) >= 0 &&
	       atomic_fetch_sub(&s->wrong_after, 1) <= 0;
}

static void change(struct test_server *s, unsigned type, uint64_t off, uint32_t len,
		   const uint8_t *data)
{
	pthread_mutex_lock(&s->lock);
	if (type == CMD_WRITE)
		memcpy(s->disk + off, data, len);
	else if (type == CMD_ZERO || type == CMD_TRIM)
		memset(s->disk + off, 0, len);
	pthread_mutex_unlock(&s->lock);
}

static void note(struct test_server *s, const struct wire_request *r)
{
	unsigned type = be16toh(r->type), flags = be16toh(r->flags);

	if (type < ARRAY_SIZE(s->commands))
		atomic_fetch_add(&s->commands[type], 1);
	if (flags & 1)
		atomic_fetch_add(&s->fuas, 1);
	if (s->block && ((be64toh(r->off) | be32toh(r->len)) & (s->block - 1)))
		atomic_fetch_add(&s->misaligned, 1);
	if (s->data_max && type <= CMD_WRITE && be32toh(r->len) > s->data_max)
		atomic_fetch_add(&s->misaligned, 1);
}

static bool serve_one(struct connection *c, uint8_t *data)
{
	struct test_server *s = c->s;
	struct wire_request r;
	bool goes_on;

	if (!get(c->fd, &r, sizeof(r)) || be32toh(r.magic) != MAGIC_REQUEST)
		return false;

	unsigned type = be16toh(r.type);
	uint64_t off = be64toh(r.off);
	uint32_t len = be32toh(r.len);

	note(s, &r);
	if (type == CMD_WRITE && (len > DATA_MAX || !get(c->fd, data, len)))
		return false;
	if (type == CMD_DISC)
		return false;

	enum server_wrong wrong = is_wrong_now(s) ? s->wrong : WRONG_NOTHING;

	if (misbehave(c, &r, wrong, &goes_on))
		return goes_on;
	if (!range_within(off, len, s->size))
		return answer(c, &r, EINVAL);
	change(s, type, off, len, data);
	if (type == CMD_STATUS)
		return put_status(c, r.cookie, off, len, wrong);
	return answer(c, &r, 0);
}

static void *serve(void *arg)
{
	struct connection *c = arg;
	uint8_t *data = malloc(DATA_MAX);

	assert_non_null(data);
	if (negotiate(c))
		while (serve_one(c, data))
			continue;
	shutdown(c->fd, SHUT_RDWR);
	free(data);
	free(c);
	return NULL;
}

/* ---- its life ---- */

static void *listen_thread(void *arg)
{
	struct test_server *s = arg;
	int fd;

	while ((!s->accept_max || s->n < s->accept_max) &&
	       (fd = accept(s->listen_fd, NULL, NULL)) >= 0) {
		struct connection *c = calloc(1, sizeof(*c));

		assert_non_null(c);
		*c = (struct connection){ .s = s, .fd = fd };
		pthread_mutex_lock(&s->lock);
		assert_true(s->n < SERVER_CONNECTIONS_MAX);
		s->fds[s->n] = fd;
		assert_int_equal(pthread_create(&s->threads[s->n++], NULL, serve, c), 0);
		pthread_mutex_unlock(&s->lock);
		atomic_fetch_add(&s->connections, 1);
	}
	return NULL;
}

void test_server_start(struct test_server *s)
{
	static unsigned serial;
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (!s->path[0])
		snprintf(s->path, sizeof(s->path), "nbdc_test.%u.%u", (unsigned)getpid(), serial++);
	memcpy(a.sun_path, s->path, sizeof(a.sun_path));
	unlink(s->path);
	pthread_mutex_init(&s->lock, NULL);
	s->n = 0;
	s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(s->listen_fd >= 0);
	assert_int_equal(bind(s->listen_fd, (void *)&a, sizeof(a)), 0);
	assert_int_equal(listen(s->listen_fd, 16), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, listen_thread, s), 0);
}

void test_server_stop(struct test_server *s)
{
	shutdown(s->listen_fd, SHUT_RDWR);
	pthread_join(s->thread, NULL);
	close(s->listen_fd);
	unlink(s->path);
	for (unsigned i = 0; i < s->n; i++) {
		shutdown(s->fds[i], SHUT_RDWR);
		pthread_join(s->threads[i], NULL);
		close(s->fds[i]);
	}
	pthread_mutex_destroy(&s->lock);
}
