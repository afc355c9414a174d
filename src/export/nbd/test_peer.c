/* SPDX-License-Identifier: MIT */
#include "export/nbd/test_peer.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "loop/iobuf.h"
#include "loop/work.h"

enum { PATIENCE_S = 120 };               /* with what hangs; the machine may be busy */

/* ---- the disk ---- */

struct mem_chan {
	struct chan chan;
	struct req *held;               /* newest first */
};

static struct mem_disk *disk_of(const struct chan *ch)
{
	return container_of(ch->node, struct mem_disk, node);
}

static int map(const struct mem_disk *d, struct req *req)
{
	uint64_t rest = GRANULE - req->off % GRANULE;

	req->map = (struct map_run){
		.len = MIN(rest, req->len),
		.flags = d->granule_flags(req->off / GRANULE),
	};
	return 0;
}

static int transfer(struct mem_disk *d, const struct req *req)
{
	pthread_mutex_lock(&d->lock);
	if (req->kind == REQ_READ)
		req_copy_to(req, 0, d->data + req->off, req->len);
	else if (req->kind == REQ_WRITE)
		req_copy_from(req, 0, d->data + req->off, req->len);
	else
		memset(d->data + req->off, 0, req->len);
	pthread_mutex_unlock(&d->lock);
	return 0;
}

static int perform(struct mem_disk *d, struct req *req)
{
	int fail = atomic_load(&d->fail_errno);
	uint64_t len = req->kind == REQ_MAP ? GRANULE - req->off % GRANULE : req->len;

	if (fail && (req->kind == REQ_FLUSH || range_within(d->fail_off - req->off, 1, len)))
		return -fail;
	if (req->flags & REQ_FUA)
		atomic_fetch_add(&d->fuas, 1);
	switch (req->kind) {
	case REQ_FLUSH:
		atomic_fetch_add(&d->flushes, 1);
		return 0;
	case REQ_DISCARD:
		atomic_fetch_add(&d->discards, 1);
		return 0;
	case REQ_MAP:
		return map(d, req);
	case REQ_ZERO:
		atomic_fetch_add(&d->zeros, 1);
		atomic_store(&d->zero_req_flags, req->flags);
		if (req->flags & REQ_FAST_ONLY)
			return -ENOTSUP;
	}
	return transfer(d, req);
}

static void submit(struct chan *ch, struct req *req)
{
	struct mem_disk *d = disk_of(ch);
	struct mem_chan *mc = container_of(ch, struct mem_chan, chan);

	if (atomic_load(&d->is_holding)) {
		req->next = mc->held;
		mc->held = req;
		atomic_fetch_add(&d->held, 1);
		return;
	}
	req_finish(ch, req, perform(d, req));
}

static void disk_free(struct node *n)
{
	struct mem_disk *d = container_of(n, struct mem_disk, node);

	pthread_mutex_destroy(&d->lock);
	free(d->data);
}

static const struct node_ops mem_ops = {
	.name = "mem",
	.chan_size = sizeof(struct mem_chan),
	.submit = submit,
	.free = disk_free,
};

static int release(void *arg)
{
	struct mem_disk *d = arg;
	struct mem_chan *mc = container_of(d->node.chans[loop_id(loop_current())], struct mem_chan,
					   chan);

	while (mc->held) {
		struct req *req = mc->held;

		mc->held = req->next;
		atomic_fetch_sub(&d->held, 1);
		req_finish(&mc->chan, req, perform(d, req));
	}
	return 0;
}

void mem_disk_release(struct peer *p, struct mem_disk *d)
{
	atomic_store(&d->is_holding, false);
	for (unsigned i = 0; i < p->nloops; i++)
		run_on_peer(p, i, release, d);
}

static unsigned all_data(uint64_t granule)
{
	return MAP_DATA;
}

static void disk_init(struct mem_disk *d, const char *name, struct loop *home)
{
	assert_int_equal(node_init(&d->node, &mem_ops, name, home), 0);
	atomic_store(&d->node.size, DISK_BYTES);
	d->node.align = 1;
	d->node.can_discard = true;
	d->data = calloc(1, DISK_BYTES);
	assert_non_null(d->data);
	d->granule_flags = all_data;
	pthread_mutex_init(&d->lock, NULL);
	for (size_t i = 0; i < PATTERN_BYTES; i += 8) {
		uint64_t v = pattern_at(i);

		memcpy(d->data + i, &v, 8);
	}
}

/* ---- the server ---- */

void run_on_peer(struct peer *p, unsigned loop, int (*fn)(void *arg), void *arg)
{
	assert_int_equal(loop_call(p->loops[loop], fn, arg), 0);
}

static int open_ports(void *arg)
{
	struct peer *p = arg;
	int rc = port_open_wait(p->port, NULL);

	return rc ? rc : port_open_wait(p->second_port, NULL);
}

static int make_disks(void *arg)
{
	struct peer *p = arg;

	disk_init(&p->disk, "disk", p->loops[0]);
	disk_init(&p->second, "second", p->loops[0]);
	assert_int_equal(port_new(&p->disk.node, false, &p->port, NULL), 0);
	assert_int_equal(port_new(&p->second.node, true, &p->second_port, NULL), 0);
	return 0;
}

static int start_server(void *arg)
{
	struct peer *p = arg;

	return nbd_server_start_wait(p->server, NULL);
}

void peer_start(struct peer *p, enum loop_backend backend, unsigned nloops,
		const struct nbd_server_opts *limits)
{
	struct nbd_server_opts opts = limits ? *limits : (struct nbd_server_opts){ 0 };
	struct nbd_export e = { .name = "disk", .description = "a test disk" };
	struct err err = { 0 };

	memset(p, 0, sizeof(*p));
	p->nloops = nloops;
	assert_int_equal(workers_new(0, &p->workers, &err), 0);
	for (unsigned i = 0; i < nloops; i++) {
		struct loop_opts lo = { .backend = backend, .workers = p->workers };

		if (loop_new(&lo, &p->loops[i], &err) < 0)
			fail_msg("%s", err.text);
		assert_int_equal(loop_thread_start(&p->threads[i], p->loops[i], "test", &err), 0);
	}
	run_on_peer(p, 0, make_disks, p);
	for (unsigned i = 0; i < nloops; i++)
		run_on_peer(p, i, open_ports, p);

	opts.loops = p->loops;
	opts.nloops = nloops;
	assert_int_equal(nbd_server_new(&opts, &p->server, &err), 0);
	e.port = p->port;
	assert_int_equal(nbd_server_add(p->server, &e, &err), 0);
	e = (struct nbd_export){ .name = "second", .port = p->second_port };
	assert_int_equal(nbd_server_add(p->server, &e, &err), 0);
	assert_int_equal(nbd_server_add(p->server, &e, &err), -EEXIST);
	run_on_peer(p, 0, start_server, p);
}

static int stop_server(void *arg)
{
	nbd_server_stop_wait(arg);
	return 0;
}

void peer_stop(struct peer *p)
{
	run_on_peer(p, 0, stop_server, p->server);
	p->is_stopped = true;
}

static int close_ports(void *arg)
{
	struct peer *p = arg;

	port_close_wait(p->port);
	port_close_wait(p->second_port);
	return 0;
}

static int put_disks(void *arg)
{
	struct peer *p = arg;

	port_free(p->port);
	port_free(p->second_port);
	node_put_wait(&p->disk.node);
	node_put_wait(&p->second.node);
	return 0;
}

static int memory_used(void *arg)
{
	struct loop *l = loop_current();

	*(size_t *)arg = iobuf_used(loop_iobufs(l));
	return 0;
}

size_t peer_memory_used(struct peer *p)
{
	size_t used;

	run_on_peer(p, 0, memory_used, &used);
	return used;
}

static int take_memory(void *arg)
{
	struct peer *p = arg;
	struct iobufs *pool = loop_iobufs(loop_current());

	for (unsigned i = 0; i < ARRAY_SIZE(p->taken); i++)
		p->taken[i] = iobuf_get(pool, IOBUF_MAX);
	return iobuf_get(pool, IOBUF_ALIGN) ? -EBUSY : 0;
}

void peer_take_memory(struct peer *p)
{
	_Static_assert(IOBUF_BUDGET_DEFAULT / IOBUF_MAX == ARRAY_SIZE(p->taken), "all of it");
	run_on_peer(p, 0, take_memory, p);
}

static int give_memory(void *arg)
{
	struct peer *p = arg;

	for (unsigned i = 0; i < ARRAY_SIZE(p->taken); i++)
		iobuf_put(loop_iobufs(loop_current()), p->taken[i], IOBUF_MAX);
	return 0;
}

void peer_give_memory(struct peer *p)
{
	run_on_peer(p, 0, give_memory, p);
}

void peer_end(struct peer *p)
{
	struct nbd_server_stats stats;

	if (!p->is_stopped)
		peer_stop(p);
	nbd_server_get_stats(p->server, &stats);
	assert_int_equal(stats.connections, 0);
	assert_int_equal(peer_memory_used(p), 0);
	nbd_server_free(p->server);
	for (unsigned i = p->nloops; i-- > 0; )
		run_on_peer(p, i, close_ports, p);
	run_on_peer(p, 0, put_disks, p);
	for (unsigned i = 0; i < p->nloops; i++)
		loop_thread_stop(&p->threads[i]);
	workers_free(p->workers);
}

void peer_await_connections(struct peer *p, unsigned n)
{
	struct nbd_server_stats stats;

	for (unsigned i = 0; i < PATIENCE_S * 1000; i++) {
		nbd_server_get_stats(p->server, &stats);
		if (stats.connections == n)
			return;
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
	fail_msg("%u connections, not %u", (unsigned)stats.connections, n);
}

/* ---- the client ---- */

struct serve_arg {
	struct nbd_server *server;
	int fd;
};

static int serve(void *arg)
{
	struct serve_arg *a = arg;

	nbd_server_serve(a->server, a->fd);
	return 0;
}

int client_connect(struct peer *p)
{
	const struct timeval patience = { .tv_sec = PATIENCE_S };
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fds[0], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));

	struct serve_arg arg = { p->server, fds[1] };

	run_on_peer(p, 0, serve, &arg);
	return fds[0];
}

void client_send(int fd, const void *data, size_t n)
{
	while (n) {
		ssize_t done = send(fd, data, n, MSG_NOSIGNAL);

		if (done < 0 && errno == EINTR)
			continue;
		assert_true(done > 0);
		data = (const char *)data + done;
		n -= (size_t)done;
	}
}

void client_receive(int fd, void *data, size_t n)
{
	while (n) {
		ssize_t done = recv(fd, data, n, 0);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			fail_msg("%zu bytes missing: %s", n, done ? strerror(errno) : "the end");
		data = (char *)data + done;
		n -= (size_t)done;
	}
}

void client_expect_end(int fd)
{
	char c;
	ssize_t n;

	do
		n = recv(fd, &c, 1, 0);
	while (n < 0 && errno == EINTR);
	if (n > 0 || (n < 0 && errno != ECONNRESET))
		fail_msg("not the end: %zd %s", n, n < 0 ? strerror(errno) : "");
}

void client_greet(int fd, uint32_t flags)
{
	struct nbd_greeting g;
	const be32_t wire = be32_make(flags);

	client_receive(fd, &g, sizeof(g));
	assert_int_equal(be64_get(g.passwd), NBD_INIT_PASSWD);
	assert_int_equal(be64_get(g.magic), NBD_IHAVEOPT);
	assert_int_equal(be16_get(g.flags), NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	client_send(fd, &wire, sizeof(wire));
}

void client_option(int fd, uint32_t option, const void *data, uint32_t n)
{
	const struct nbd_option head = {
		be64_make(NBD_IHAVEOPT), be32_make(option), be32_make(n),
	};

	client_send(fd, &head, sizeof(head));
	client_send(fd, data, n);
}

uint32_t client_option_reply(int fd, uint32_t option, uint32_t type, void *data, uint32_t n)
{
	struct nbd_option_reply head;

	client_receive(fd, &head, sizeof(head));
	assert_int_equal(be64_get(head.magic), NBD_REP_MAGIC);
	assert_int_equal(be32_get(head.option), option);
	assert_int_equal(be32_get(head.type), type);

	uint32_t len = be32_get(head.len);
	char text[4096];

	if (type & 0x80000000u) {               /* errors may say something */
		assert_true(len <= sizeof(text));
		client_receive(fd, text, len);
		return 0;
	}
	assert_true(len <= n);
	client_receive(fd, data, len);
	return len;
}

int client_open(struct peer *p, const char *name, unsigned what)
{
	int fd = client_connect(p);
	uint8_t data[256];
	uint32_t n = (uint32_t)strlen(name);

	client_greet(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	if (what & CLIENT_STRUCTURED) {
		client_option(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
		client_option_reply(fd, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NULL, 0);
	}
	be32_store(data, n);
	memcpy(data + 4, name, n);
	if (what & CLIENT_ALLOCATION) {
		be32_store(data + 4 + n, 1);
		be32_store(data + 8 + n, 15);
		memcpy(data + 12 + n, NBD_BASE_ALLOCATION, 15);
		client_option(fd, NBD_OPT_SET_META_CONTEXT, data, n + 27);
		assert_int_equal(client_option_reply(fd, NBD_OPT_SET_META_CONTEXT,
						     NBD_REP_META_CONTEXT, data + 100, 100), 19);
		client_option_reply(fd, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK, NULL, 0);
	}
	be16_store(data + 4 + n, 0);
	client_option(fd, NBD_OPT_GO, data, n + 6);
	assert_int_equal(client_option_reply(fd, NBD_OPT_GO, NBD_REP_INFO, data, 12), 12);
	client_option_reply(fd, NBD_OPT_GO, NBD_REP_ACK, NULL, 0);
	return fd;
}

struct nbd_request client_request(unsigned type, unsigned flags, uint64_t cookie, uint64_t off,
				  uint32_t len)
{
	return (struct nbd_request){
		.magic = be32_make(NBD_REQUEST_MAGIC),
		.flags = be16_make((uint16_t)flags),
		.type = be16_make((uint16_t)type),
		.cookie = be64_make(cookie),
		.off = be64_make(off),
		.len = be32_make(len),
	};
}

void client_ask(int fd, unsigned type, unsigned flags, uint64_t cookie, uint64_t off, uint32_t len)
{
	struct nbd_request wire = client_request(type, flags, cookie, off, len);

	client_send(fd, &wire, sizeof(wire));
}

void client_expect_simple(int fd, uint64_t cookie, uint32_t error)
{
	struct nbd_simple_reply reply;

	client_receive(fd, &reply, sizeof(reply));
	assert_int_equal(be32_get(reply.magic), NBD_SIMPLE_REPLY_MAGIC);
	assert_int_equal(be64_get(reply.cookie), cookie);
	assert_int_equal(be32_get(reply.error), error);
}

uint32_t client_expect_chunk(int fd, uint64_t cookie, unsigned type)
{
	struct nbd_chunk chunk;

	client_receive(fd, &chunk, sizeof(chunk));
	assert_int_equal(be32_get(chunk.magic), NBD_STRUCTURED_REPLY_MAGIC);
	assert_int_equal(be16_get(chunk.type), type);
	assert_int_equal(be16_get(chunk.flags), NBD_REPLY_FLAG_DONE);
	assert_int_equal(be64_get(chunk.cookie), cookie);
	return be32_get(chunk.len);
}

void client_expect_error(int fd, uint64_t cookie, uint32_t error)
{
	uint32_t len = client_expect_chunk(fd, cookie, NBD_REPLY_TYPE_ERROR);
	uint8_t body[4096];

	assert_true(len >= 6 && len <= sizeof(body));
	client_receive(fd, body, len);
	assert_int_equal(be32_load(body), error);
	assert_int_equal(be16_load(body + 4), len - 6);
}

void client_disconnect(int fd)
{
	client_ask(fd, NBD_CMD_DISC, 0, 0, 0, 0);
	client_expect_end(fd);
	close(fd);
}

void client_check_pattern(const uint8_t *data, uint64_t off, size_t n)
{
	for (size_t i = 0; i < n; i += 8) {
		uint64_t v;

		memcpy(&v, data + i, 8);
		assert_int_equal(v, pattern_at(off + i));
	}
}

void pause_ms(unsigned ms)
{
	nanosleep(&(struct timespec){ .tv_nsec = ms * 1000000L }, NULL);
}

void mem_disk_await_held(struct mem_disk *d, unsigned n)
{
	for (unsigned i = 0; i < PATIENCE_S * 1000 && atomic_load(&d->held) != n; i++)
		pause_ms(1);
	assert_int_equal(atomic_load(&d->held), n);
}
