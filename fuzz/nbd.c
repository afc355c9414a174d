/* SPDX-License-Identifier: MIT */
/* fuzz/nbd.c - a client that says anything: handshake and transmission, over a socket pair, the
 * server on the same thread's loop.
 *
 * An input is the client's flags (a byte), then records, each a kind (a byte) and:
 *	OPTION   option, added length, bytes, that many bytes of payload
 *	GOOD     which of the options, and which variant of it: well-formed
 *	REQUEST  type, flags (a byte each), off (be64), len (be32); its payload follows by itself
 *	RAW      bytes, that many bytes as they are
 *	PUMP     lets the server run and reads what it says
 *	SHUT     says no more
 *
 * Also held: what the server says is well-formed; a request whose header was in step with the
 * stream is answered once at most, with as many bytes as it asked for; in the end the connection is
 * gone, and so are its requests. */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/log.h"
#include "blk/port.h"
#include "export/nbd/nbd.h"
#include "export/nbd/proto.h"
#include "fuzz/fuzz.h"
#include "loop/work.h"

enum {
	DISK_BYTES = 256 << 10,
	SAID_MAX = 8 << 20,             /* of replies; more are only counted */
	PAYLOAD_MAX = 64 << 10,
	REQUESTS_MAX = 256,
	PATIENCE = 20000,               /* turns */
	ZEROES_BYTES = 124,             /* behind the reply to EXPORT_NAME */
};

enum record { OPTION, GOOD, REQUEST, RAW, PUMP, SHUT, RECORDS };

/* ---- the disk ---- */

static uint8_t content[DISK_BYTES];

static void submit(struct chan *ch, struct req *req)
{
	FUZZ_CHECK(range_within(req->off, req->len, DISK_BYTES), "off %llu, len %llu",
		   (unsigned long long)req->off, (unsigned long long)req->len);
	switch (req->kind) {
	case REQ_READ: req_copy_to(req, 0, content + req->off, req->len); break;
	case REQ_WRITE: req_copy_from(req, 0, content + req->off, req->len); break;
	case REQ_ZERO: memset(content + req->off, 0, req->len); break;
	case REQ_MAP:
		req->map = (struct map_run){
			.len = MIN(req->len, 512 - req->off % 512),
			.flags = content[req->off] ? MAP_DATA | MAP_PRESENT : MAP_ZERO,
		};
		break;
	default: break;
	}
	req_finish(ch, req, req->off == 66 * KiB ? -EIO : 0);
}

static void disk_free(struct node *n)
{
	free(n);
}

static const struct node_ops ops = {
	.name = "mem", .chan_size = sizeof(struct chan), .submit = submit, .free = disk_free,
};

/* ---- the server, made once ---- */

static struct loop *loop;
static struct nbd_server *server;
static struct node *disk;
static struct port *ports[2];

static void be_silent(enum log_level level, const char *line)
{
}

static int start(void *arg)
{
	static const char *const names[] = { "disk", "second" };

	disk = calloc(1, sizeof(*disk));
	FUZZ_CHECK(disk && !node_init(disk, &ops, "disk", loop), "no memory");
	atomic_store(&disk->size, DISK_BYTES);
	disk->align = 1;
	disk->can_discard = true;
	FUZZ_CHECK(!node_open_home_wait(disk, NULL), "disk");
	for (unsigned i = 0; i < 2; i++) {
		struct nbd_export e = { .name = names[i], .description = i ? NULL : "a disk" };

		FUZZ_CHECK(!port_new(disk, i, &ports[i], NULL), "port");
		FUZZ_CHECK(!port_open_wait(ports[i], NULL), "port");
		e.port = ports[i];
		FUZZ_CHECK(!nbd_server_add(server, &e, NULL), "export");
	}
	return nbd_server_start_wait(server, NULL);
}

static int stop(void *arg)
{
	nbd_server_stop_wait(server);
	for (unsigned i = 0; i < 2; i++) {
		port_close_wait(ports[i]);
		port_free(ports[i]);
	}
	node_put_wait(disk);
	return 0;
}

static void end_server(void)
{
	static struct workers *workers;

	workers = loop_workers(loop);
	loop_call(loop, stop, NULL);
	nbd_server_free(server);
	loop_free(loop);
	workers_free(workers);
}

static void start_server(void)
{
	struct loop_opts lo = { .backend = LOOP_POSIX };
	struct nbd_server_opts so = { .loops = &loop, .nloops = 1, .max_requests = 64,
				      .loop_memory = 4 << 20, .connection_memory = 1 << 20 };

	log_set_sink(be_silent);
	FUZZ_CHECK(!workers_new(1, &lo.workers, NULL), "workers");
	FUZZ_CHECK(!loop_new(&lo, &loop, NULL), "loop");
	FUZZ_CHECK(!nbd_server_new(&so, &server, NULL), "server");
	FUZZ_CHECK(!loop_call(loop, start, NULL), "start");
	atexit(end_server);
}

/* ---- the client ---- */

struct client {
	int fd;
	bool is_closed;                 /* by the server */
	bool is_shut;                   /* by this side */
	bool in_step;                   /* every request so far began where the server looks */
	uint8_t flags;
	unsigned nrequests;
	uint8_t types[REQUESTS_MAX];
	uint32_t lens[REQUESTS_MAX];
	uint8_t *said;                  /* what the server said */
	size_t nsaid;
};

static void listen_to(struct client *c)
{
	static uint8_t rest[PAYLOAD_MAX];

	while (!c->is_closed) {
		bool fits = c->nsaid < SAID_MAX;
		ssize_t n = recv(c->fd, fits ? c->said + c->nsaid : rest,
				 fits ? SAID_MAX - c->nsaid : sizeof(rest), MSG_DONTWAIT);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0)
			c->is_closed = true;
		else if (fits)
			c->nsaid += (size_t)n;
	}
}

static void pump(struct client *c)
{
	for (unsigned i = 0; i < 6; i++)
		loop_turn(loop, false);
	listen_to(c);
}

static void say(struct client *c, const void *bytes, size_t n)
{
	const uint8_t *at = bytes;

	for (unsigned i = 0; n && !c->is_closed && !c->is_shut; i++) {
		ssize_t sent = send(c->fd, at, n, MSG_NOSIGNAL | MSG_DONTWAIT);

		FUZZ_CHECK(i < PATIENCE, "the server takes nothing");
		if (sent < 0 && errno != EAGAIN)
			return;
		if (sent > 0) {
			at += sent;
			n -= (size_t)sent;
		} else {
			pump(c);
		}
	}
}

static void say_option(struct client *c, uint32_t option, uint32_t len, const void *data, size_t n)
{
	struct nbd_option o = { be64_make(NBD_IHAVEOPT), be32_make(option), be32_make(len) };

	say(c, &o, sizeof(o));
	say(c, data, n);
}

/* An export's name with its length before it. */
static size_t put_name(uint8_t *out, const char *name)
{
	be32_store(out, (uint32_t)strlen(name));
	memcpy(out + 4, name, strlen(name));
	return 4 + strlen(name);
}

static void say_good_option(struct client *c, uint8_t which, uint8_t variant)
{
	static const uint8_t options[] = {
		NBD_OPT_GO, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_SET_META_CONTEXT, NBD_OPT_INFO,
		NBD_OPT_LIST_META_CONTEXT, NBD_OPT_LIST, NBD_OPT_EXPORT_NAME, NBD_OPT_STARTTLS,
		NBD_OPT_ABORT,
	};
	static const char *const names[] = { "disk", "", "second", "none" };
	uint8_t option = options[which % sizeof(options)], data[256];
	const char *name = names[variant % 4];
	size_t n = put_name(data, name);

	switch (option) {
	case NBD_OPT_GO:
	case NBD_OPT_INFO:
		be16_store(data + n, (variant >> 2) % 4);
		n += 2;
		for (uint16_t i = 0; i < (variant >> 2) % 4; i++, n += 2)
			be16_store(data + n, (uint16_t)(i + (variant >> 4) % 3));
		break;
	case NBD_OPT_SET_META_CONTEXT:
	case NBD_OPT_LIST_META_CONTEXT:
		be32_store(data + n, (variant >> 2) % 4);
		n += 4;
		for (unsigned i = 0; i < (variant >> 2) % 4; i++)
			n += put_name(data + n, i ? "base:" : NBD_BASE_ALLOCATION);
		break;
	case NBD_OPT_EXPORT_NAME:
		memmove(data, data + 4, n - 4);
		n -= 4;
		break;
	default:
		n = 0;
	}
	say_option(c, option, (uint32_t)n, data, n);
}

static void say_request(struct client *c, const uint8_t *r)
{
	static const uint8_t payload[PAYLOAD_MAX] = { 1, 2, 3 };
	uint32_t len = be32_load(r + 10);
	struct nbd_request q = {
		be32_make(NBD_REQUEST_MAGIC), be16_make(r[1]), be16_make(r[0]),
		be64_make(c->nrequests), be64_make(be64_load(r + 2)), be32_make(len),
	};

	if (c->nrequests == REQUESTS_MAX)
		return;
	c->types[c->nrequests] = r[0];
	c->lens[c->nrequests++] = len;
	say(c, &q, sizeof(q));
	if (r[0] == NBD_CMD_WRITE) {
		say(c, payload, MIN(len, (uint32_t)PAYLOAD_MAX));
		c->in_step &= len <= PAYLOAD_MAX;
	}
}

/* Says one record of @data; returns its length, 0 at the end. */
static size_t say_record(struct client *c, const uint8_t *data, size_t size)
{
	uint32_t len;
	size_t n;

	if (size < 15)                          /* the longest head */
		return 0;
	switch (data[0] % RECORDS) {
	case OPTION:
		n = MIN((size_t)data[3], size - 4);
		len = (uint32_t)n + ((uint32_t)data[2] << data[2] % 25);
		say_option(c, data[1], len, data + 4, n);
		c->in_step &= !data[2];
		return 4 + n;
	case GOOD:
		say_good_option(c, data[1], data[2]);
		return 3;
	case REQUEST:
		say_request(c, data + 1);
		return 15;
	case RAW:
		n = MIN((size_t)data[1], size - 2);
		say(c, data + 2, n);
		c->in_step &= !n;
		return 2 + n;
	case SHUT:
		shutdown(c->fd, SHUT_WR);
		c->is_shut = true;
		return 1;
	default:
		pump(c);
		return 1;
	}
}

/* ---- what the server said ---- */

struct reader {
	const uint8_t *at, *end;
	bool is_structured;
	bool is_open;                   /* transmission has begun */
};

/* The next @n bytes, or NULL: cut off. */
static const uint8_t *take(struct reader *r, size_t n)
{
	const uint8_t *at = r->at;

	if ((size_t)(r->end - at) < n)
		return NULL;
	r->at += n;
	return at;
}

/* One reply of the handshake. */
static bool read_option_reply(const struct client *c, struct reader *r)
{
	const uint8_t *p = take(r, 8);
	uint32_t option, type, len;

	if (!p)
		return false;
	if (be64_load(p) == DISK_BYTES) {               /* EXPORT_NAME */
		r->is_open = true;
		return take(r, c->flags & NBD_FLAG_NO_ZEROES ? 2 : 2 + ZEROES_BYTES);
	}
	FUZZ_CHECK(be64_load(p) == NBD_REP_MAGIC, "not a reply");
	p = take(r, 12);
	if (!p)
		return false;
	option = be32_load(p);
	type = be32_load(p + 4);
	len = be32_load(p + 8);
	FUZZ_CHECK(type != NBD_REP_ACK || !len, "an ACK with %u bytes", len);
	FUZZ_CHECK(len <= 3 * NBD_STRING_MAX, "a reply of %u bytes", len);
	r->is_open = option == NBD_OPT_GO && type == NBD_REP_ACK;
	r->is_structured |= option == NBD_OPT_STRUCTURED_REPLY && type == NBD_REP_ACK;
	return take(r, len);
}

static uint64_t known(const struct client *c, uint64_t cookie, const bool *is_answered)
{
	FUZZ_CHECK(cookie < c->nrequests, "an answer to %llu", (unsigned long long)cookie);
	FUZZ_CHECK(!is_answered[cookie], "another answer to %llu", (unsigned long long)cookie);
	return cookie;
}

/* One reply of the transmission; *@is_answered counts the bytes and answers. */
static bool read_reply(const struct client *c, struct reader *r, bool *is_answered, uint64_t *bytes)
{
	const uint8_t *p = take(r, 16);
	uint64_t cookie;
	uint32_t len;

	if (!p)
		return false;
	if (be32_load(p) == NBD_SIMPLE_REPLY_MAGIC) {
		cookie = known(c, be64_load(p + 8), is_answered);
		is_answered[cookie] = true;
		if (c->types[cookie] != NBD_CMD_READ || be32_load(p + 4))
			return true;
		FUZZ_CHECK(!r->is_structured, "a simple reply to a read");
		return take(r, c->lens[cookie]);
	}
	FUZZ_CHECK(be32_load(p) == NBD_STRUCTURED_REPLY_MAGIC && r->is_structured, "no reply");
	cookie = known(c, be64_load(p + 8), is_answered);
	is_answered[cookie] = be16_load(p + 4) & NBD_REPLY_FLAG_DONE;
	r->at = p + 20;
	if (r->at > r->end)
		return false;
	len = be32_load(p + 16);
	if (be16_load(p + 6) == NBD_REPLY_TYPE_OFFSET_DATA) {
		FUZZ_CHECK(len > 8, "data of %u bytes", len);
		bytes[cookie] += len - 8;
	}
	FUZZ_CHECK(bytes[cookie] <= c->lens[cookie], "more data than was asked for");
	return take(r, len);
}

static void check_said(const struct client *c)
{
	bool is_answered[REQUESTS_MAX] = { 0 };
	uint64_t bytes[REQUESTS_MAX] = { 0 };
	struct reader r = { .at = c->said, .end = c->said + c->nsaid };
	const uint8_t *p = take(&r, sizeof(struct nbd_greeting));

	if (!p)
		return;
	FUZZ_CHECK(be64_load(p) == NBD_INIT_PASSWD && be64_load(p + 8) == NBD_IHAVEOPT, "greeting");
	while (!r.is_open)
		if (!read_option_reply(c, &r))
			return;
	while (c->in_step && read_reply(c, &r, is_answered, bytes))
		;
}

/* ---- a session ---- */

static void run(const uint8_t *data, size_t size)
{
	static uint8_t said[SAID_MAX];
	struct client c = { .in_step = true };
	struct nbd_server_stats st;
	struct port_stats ps;
	int fds[2];
	size_t n;

	if (!size)
		return;
	if (!server)
		start_server();
	for (size_t i = 0; i < sizeof(content); i += 4096)
		memset(content + i, i >> 12 & 1 ? (int)(i >> 12) : 0, 4096);
	FUZZ_CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), "socketpair");
	c.fd = fds[0];
	c.said = said;
	c.flags = data[0];
	FUZZ_CHECK(!nbd_server_serve(server, fds[1]), "serve");
	say(&c, &(be32_t){ { data[0] >> 7, 0, 0, data[0] & 0x7f } }, sizeof(be32_t));
	for (data++, size--; (n = say_record(&c, data, size)); data += n, size -= n)
		;
	pump(&c);
	shutdown(c.fd, SHUT_WR);
	for (unsigned i = 0; !c.is_closed; i++) {
		FUZZ_CHECK(i < PATIENCE, "the connection does not end");
		pump(&c);
	}
	close(c.fd);
	for (unsigned i = 0; nbd_server_get_stats(server, &st), st.connections; i++) {
		FUZZ_CHECK(i < PATIENCE, "the connection is not gone");
		loop_turn(loop, false);
	}
	port_get_stats(ports[0], &ps);
	FUZZ_CHECK(!ps.in_flight, "%llu requests are left",
		   (unsigned long long)ps.in_flight);
	check_said(&c);
}

/* ---- mutations ---- */

static size_t random_record(uint8_t *out, struct prng *p)
{
	static const uint32_t lens[] = { 0, 1, 512, 4096, 65536, DISK_BYTES, 1 << 20, 32 << 20,
					 (32 << 20) + 1, 0xffffffff };

	memset(out, 0, 16);
	out[0] = (uint8_t)prng_below(p, RECORDS - (prng_below(p, 8) != 0));
	switch (out[0]) {
	case OPTION:
		out[1] = (uint8_t)prng_below(p, 13);
		out[2] = prng_below(p, 4) ? 0 : (uint8_t)prng_next(p);
		out[3] = (uint8_t)prng_below(p, 12);
		return 4U + out[3];
	case GOOD:
		out[1] = (uint8_t)prng_below(p, prng_below(p, 2) ? 3 : 9);
		out[2] = (uint8_t)prng_next(p);
		return 3;
	case REQUEST:
		out[1] = (uint8_t)prng_below(p, prng_below(p, 8) ? 8 : 256);
		out[2] = prng_below(p, 2) ? 0 : (uint8_t)prng_below(p, 32);
		be64_store(out + 3, prng_below(p, 8) ? prng_below(p, DISK_BYTES) & ~511ULL
						     : fuzz_number(p, DISK_BYTES, 8));
		be32_store(out + 11, lens[prng_below(p, prng_below(p, 4) ? 5 : ARRAY_SIZE(lens))]);
		return 15;
	case RAW:
		out[1] = (uint8_t)prng_below(p, 14);
		return 2U + out[1];
	default:
		return 1;
	}
}

/* How long the record is that begins with @data. */
static size_t record_len(const uint8_t *data, size_t size)
{
	size_t n = 1;

	switch (data[0] % RECORDS) {
	case OPTION: n = size > 3 ? 4U + data[3] : 1; break;
	case GOOD: n = 3; break;
	case REQUEST: n = 15; break;
	case RAW: n = size > 1 ? 2U + data[1] : 1; break;
	default: break;
	}
	return MIN(n, size);
}

static size_t mutate(uint8_t *data, size_t size, size_t max, struct prng *p)
{
	size_t at = 1, n, starts[64], nstarts = 0;
	uint8_t rec[300];

	if (size < 2 || prng_below(p, 3) == 0)
		return fuzz_mutate_bytes(data, size, max, p);
	while (at < size && nstarts < ARRAY_SIZE(starts)) {
		starts[nstarts++] = at;
		at += record_len(data + at, size - at);
	}
	at = starts[prng_below(p, nstarts)];
	n = record_len(data + at, size - at);
	switch (prng_below(p, 3)) {
	case 0:                                 /* one less */
		memmove(data + at, data + at + n, size - at - n);
		return size - n;
	case 1:                                 /* one twice */
		n = MIN(n, sizeof(rec));
		memcpy(rec, data + at, n);
		break;
	default:
		n = random_record(rec, p);
	}
	if (size + n > max)
		return size;
	memmove(data + at + n, data + at, size - at);
	memcpy(data + at, rec, n);
	return size + n;
}

const struct fuzz_target fuzz_target = { "nbd", 4096, run, mutate };
