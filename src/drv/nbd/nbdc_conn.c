/* SPDX-License-Identifier: MIT */
/* drv/nbd/nbdc_conn.c - a connection: commands out, replies in, and what becomes of its loss.
 *
 * Requests wait in one queue, in order of arrival, while as many commands are under way as may be,
 * or while there is no server. libnbd sends at once what the socket takes; the poll for more room,
 * and for replies, is put right at the end of the turn.
 *
 * A lost connection is noticed where libnbd has nothing to wait for any more; it has answered all
 * commands with ENOTCONN before. Without reconnect_delay_s this is the end: a node that has lost
 * requests once is reopened by who knows what they were. With it, the requests under way wait and
 * are sent again, as a whole, when a fiber has found the server again (N11). */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "drv/nbd/nbdc_impl.h"

#define LOST ENOTCONN                   /* what libnbd answers for commands of a lost connection */

static void pump(struct nbdc_conn *c);

/* ---- requests ---- */

void nbdc_finish(struct nbdc_conn *c, struct req *req, int res)
{
	if (nbdc_req(req)->is_write)
		nbdc_write_end(c, req);
	if (req->ch->loop == c->loop)
		req_finish(req->ch, req, res);
	else
		req_post_finish(req->ch, req, res);
}

static void enqueue(struct nbdc_conn *c, struct req *req)
{
	req->next = NULL;
	*c->queue_tail = req;
	c->queue_tail = &req->next;
}

static void dequeue(struct nbdc_conn *c)
{
	c->queue = c->queue->next;
	if (!c->queue)
		c->queue_tail = &c->queue;
}

/* What libnbd answers, as an errno that may be told. */
static uint16_t known_error(int error)
{
	return error > 0 && error < 4096 ? (uint16_t)error : EIO;
}

static void restart(struct nbdc_req *nr)
{
	nr->rel = 0;
	nr->missing = 0;
	nr->error = 0;
	nr->is_sent = false;
}

/* May @c's requests wait for the server? */
static bool may_wait(const struct nbdc_conn *c)
{
	return c->state != NBDC_GONE && !c->has_given_up && c->nn->server.reconnect_delay_s;
}

/* Can the server not do what the request asked for, though another way leads there? */
static bool wants_zeros_written(struct req *req, int error)
{
	return req->kind == REQ_ZERO && error == ENOTSUP && !(req->flags & REQ_FAST_ONLY) &&
	       !nbdc_req(req)->is_inner;
}

static bool needs_sync(const struct nbdc_conn *c, const struct req *req)
{
	const struct nbdc_node *nn = c->nn;

	return (req->kind == REQ_WRITE || req->kind == REQ_ZERO || req->kind == REQ_DISCARD) &&
	       ((req->flags & REQ_FUA) || (nn->is_writethrough && req->kind != REQ_DISCARD)) &&
	       !nn->no_flush && nn->info.can_flush && !nn->info.can_fua;
}

/* All of @req, the queue's head, is about to be sent: it leaves the queue first, for it may come
 * back to it while libnbd sends. */
static void all_sent(struct nbdc_conn *c, struct req *req)
{
	assert(c->queue == req);
	nbdc_req(req)->is_sent = true;
	dequeue(c);
}

/* All that was sent of @req is answered. Nothing is asked of libnbd here. */
static void end(struct nbdc_conn *c, struct req *req)
{
	struct nbdc_req *nr = nbdc_req(req);

	if (nr->error == LOST && may_wait(c)) {
		restart(nr);
		enqueue(c, req);
	} else if (nr->error == LOST) {
		nbdc_finish(c, req, -EIO);
	} else if (nr->stage == NBDC_DATA && wants_zeros_written(req, nr->error)) {
		nbdc_write_zeros(c, req);
	} else if (!nr->error && nr->stage == NBDC_DATA && needs_sync(c, req)) {
		restart(nr);
		nr->stage = NBDC_SYNC;
		enqueue(c, req);
	} else {
		nbdc_finish(c, req, -nr->error);
	}
}

/* libnbd's callback. */
static int command_done(void *data, int *error)
{
	struct req *req = data;
	struct nbdc_req *nr = nbdc_req(req);
	struct nbdc_conn *c = nr->conn;

	assert(nr->missing > 0 && c->in_flight > 0);
	c->in_flight--;
	nr->missing--;
	/* What is lost goes again as a whole, whatever else was wrong. */
	if (*error && (!nr->error || *error == LOST))
		nr->error = known_error(*error);
	if (!nr->error && req->kind == REQ_MAP && !req->map.len)
		nr->error = EIO;                /* a reply without an extent */
	if (!nr->missing && nr->is_sent)
		end(c, req);
	return 1;                               /* libnbd need not remember it */
}

/* ---- commands ---- */

/* libnbd's callback: the run at the beginning of what was asked for. */
static int extent_done(void *data, const char *context, uint64_t off, uint32_t *entries, size_t n,
		       int *error)
{
	struct req *req = data;
	uint64_t align = nbdc_req(req)->align;
	unsigned flags = 0;

	if (n < 2 || off != req->off - align || entries[0] <= align) {
		*error = EIO;
		return -1;
	}
	if (!(entries[1] & LIBNBD_STATE_HOLE))
		flags |= MAP_DATA;
	if (entries[1] & LIBNBD_STATE_ZERO)
		flags |= MAP_ZERO;
	if (flags)
		flags |= MAP_PRESENT;
	req->map = (struct map_run){
		.len = MIN(entries[0] - align, req->len),
		.host_off = req->off,
		.file = req->ch->node,
		.flags = flags | MAP_HOST,
	};
	return 0;
}

static int64_t send_map(struct nbdc_conn *c, struct req *req, nbd_completion_callback done)
{
	struct nbdc_req *nr = nbdc_req(req);
	uint32_t block = c->nn->info.block;
	uint64_t off = align_down(req->off, block);
	uint64_t len = MIN(align_up(req->off + req->len, block) - off, (uint64_t)NBDC_EXTENT_MAX);
	nbd_extent_callback extent = { .callback = extent_done, .user_data = req };

	nr->align = req->off - off;
	req->map.len = 0;
	all_sent(c, req);
	return c->nn->lib->aio_block_status(c->h, len, off, extent, done, LIBNBD_CMD_FLAG_REQ_ONE);
}

/* The next piece of a READ or WRITE: as much as lies in one iovec and the server takes. */
static void *next_piece(const struct nbdc_conn *c, const struct req *req, uint64_t rel,
			uint64_t *ret_len)
{
	struct iovec piece;

	req_iov_cut(req, rel, MIN(req->len - rel, (uint64_t)c->nn->info.data_max), &piece, 1,
		    ret_len);
	return piece.iov_base;
}

static uint32_t write_flags(const struct nbdc_conn *c, const struct req *req)
{
	const struct nbdc_node *nn = c->nn;
	bool is_fua = (req->flags & REQ_FUA) ||
		      (nn->is_writethrough && req->kind != REQ_DISCARD);
	uint32_t flags = 0;

	if (is_fua && nn->info.can_fua && !nn->no_flush)
		flags |= LIBNBD_CMD_FLAG_FUA;
	if (req->kind == REQ_ZERO) {
		if (!(req->flags & REQ_MAY_UNMAP) || !nn->node.can_discard)
			flags |= LIBNBD_CMD_FLAG_NO_HOLE;
		if (req->flags & REQ_FAST_ONLY)
			flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
	}
	return flags;
}

/* Sends the next command of @req. Negative where libnbd does not take it. */
static int64_t send_data(struct nbdc_conn *c, struct req *req, nbd_completion_callback done)
{
	const struct nbdc_lib *lib = c->nn->lib;
	struct nbdc_req *nr = nbdc_req(req);
	uint64_t off = req->off + nr->rel, n = MIN(req->len - nr->rel, (uint64_t)NBDC_EXTENT_MAX);
	uint32_t flags = write_flags(c, req);
	void *data = NULL;

	if (req->kind == REQ_READ || req->kind == REQ_WRITE)
		data = next_piece(c, req, nr->rel, &n);
	nr->rel += n;
	if (nr->rel == req->len)
		all_sent(c, req);
	switch (req->kind) {
	case REQ_READ:
		return lib->aio_pread(c->h, data, n, off, done, 0);
	case REQ_WRITE:
		return lib->aio_pwrite(c->h, data, n, off, done, flags);
	case REQ_ZERO:
		return lib->aio_zero(c->h, n, off, done, flags);
	default:
		return lib->aio_trim(c->h, n, off, done, flags);
	}
}

static int64_t send_command(struct nbdc_conn *c, struct req *req)
{
	nbd_completion_callback done = { .callback = command_done, .user_data = req };
	struct nbdc_req *nr = nbdc_req(req);

	if (req->kind == REQ_MAP)
		return send_map(c, req, done);
	if (req->kind != REQ_FLUSH && nr->stage == NBDC_DATA)
		return send_data(c, req, done);
	all_sent(c, req);
	return c->nn->lib->aio_flush(c->h, done, 0);
}

/* ---- loss ---- */

/* Has libnbd ended the connection? */
static bool is_lost(const struct nbdc_conn *c)
{
	return !c->nn->lib->aio_get_direction(c->h);
}

static void fail_queue(struct nbdc_conn *c)
{
	while (c->queue) {
		struct req *req = c->queue;

		dequeue(c);
		nbdc_finish(c, req, -EIO);
	}
}

static void give_up(struct timer *t)
{
	struct nbdc_conn *c = container_of(t, struct nbdc_conn, timer);

	c->has_given_up = true;
	log_limited(&c->nn->log_limit, LOG_LEVEL_ERROR,
		    "'%s' did not come back within %u s: requests fail until it does",
		    c->nn->node.name, c->nn->server.reconnect_delay_s);
	fail_queue(c);
}

static void unpoll(struct nbdc_conn *c)
{
	if (c->is_in)
		loop_cancel(c->loop, &c->in);
	if (c->is_out)
		loop_cancel(c->loop, &c->out);
}

static void unpoll_wait(struct nbdc_conn *c)
{
	unpoll(c);
	c->waiter = fiber_self();
	while (c->is_in || c->is_out)
		fiber_park();
	c->waiter = NULL;
}

/* Nothing is under way any more: libnbd has answered it. */
static void lose(struct nbdc_conn *c)
{
	const char *name = c->nn->node.name;
	uint32_t delay_s = c->nn->server.reconnect_delay_s;

	unpoll(c);
	if (!delay_s) {
		log_error("the connection to '%s' is lost: requests fail until it is opened again",
			  name);
		c->state = NBDC_GONE;
		fail_queue(c);
		return;
	}
	log_limited(&c->nn->log_limit, LOG_LEVEL_WARN,
		    "the connection to '%s' is lost: looking for it", name);
	c->state = NBDC_DOWN;
	/* A request that was sent in part. */
	for (struct req *req = c->queue; req; req = req->next)
		restart(nbdc_req(req));
	timer_set(c->loop, &c->timer, loop_now(c->loop) + delay_s * NS_PER_SEC);
	c->is_reconnecting = true;
	fiber_start(c->loop, &c->reconnect);
}

/* Has the server changed what was built upon? */
static bool is_same(const struct nbdc_node *nn, const struct nbdc_info *now)
{
	const struct nbdc_info *was = &nn->info;

	return now->size == was->size && now->block <= was->block &&
	       now->data_max >= was->data_max &&
	       (!now->is_read_only || nn->node.read_only) && now->can_flush >= was->can_flush &&
	       now->can_fua >= was->can_fua && now->can_trim >= was->can_trim &&
	       now->can_zero >= was->can_zero && now->can_fast_zero >= was->can_fast_zero &&
	       now->can_multi_conn >= was->can_multi_conn && now->can_map >= was->can_map;
}

static void nap_end(struct timer *t)
{
	struct nbdc_conn *c = container_of(t, struct nbdc_conn, nap);

	if (c->waiter)
		fiber_wake(c->waiter);
}

static void nap_wait(struct nbdc_conn *c, uint64_t ns)
{
	c->waiter = fiber_self();
	timer_set(c->loop, &c->nap, loop_now(c->loop) + ns);
	while (c->nap.is_set && !c->is_closing)
		fiber_park();
	timer_cancel(c->loop, &c->nap);
	c->waiter = NULL;
}

/* The server is there again. False: it is another one (N14). */
static bool come_back(struct nbdc_conn *c, struct nbd_handle *h, const struct nbdc_info *info)
{
	timer_cancel(c->loop, &c->timer);
	if (!is_same(c->nn, info)) {
		nbdc_hang_up(c->nn->lib, h);
		log_error("'%s' has come back as another disk: requests fail until it is opened "
			  "again", c->nn->node.name);
		c->state = NBDC_GONE;
		fail_queue(c);
		return false;
	}
	log_limited(&c->nn->log_limit, LOG_LEVEL_INFO, "'%s' is connected again",
		    c->nn->node.name);
	c->h = h;
	c->has_given_up = false;
	c->state = NBDC_UP;
	pump(c);
	return true;
}

static void reconnect(struct task *t)
{
	enum { NAP_MAX_S = 16 };
	struct nbdc_conn *c = container_of(t, struct nbdc_conn, reconnect);
	struct nbd_handle *h = c->h;
	struct nbdc_info info;

	unpoll_wait(c);
	c->h = NULL;
	c->nn->lib->close(h);
	assert(!c->in_flight);
	for (uint64_t nap_s = 1; !c->is_closing; nap_s = MIN(2 * nap_s, (uint64_t)NAP_MAX_S)) {
		if (!nbdc_dial_wait(c->nn, &c->dial, &h, &info, NULL)) {
			come_back(c, h, &info);
			break;
		}
		nap_wait(c, nap_s * NS_PER_SEC);
	}
	c->is_reconnecting = false;
	fiber_queue_wake(&c->reconnected);
}

/* ---- the socket ---- */

/* Sends the next command of the queue's head. */
static void send_next(struct nbdc_conn *c)
{
	struct req *req = c->queue;
	struct nbdc_req *nr = nbdc_req(req);
	unsigned in_flight = ++c->in_flight;

	nr->missing++;
	/* If it is taken @req may be answered already; so it is, with all others, where the
	 * connection was lost while it was sent, whatever is returned then. */
	if (send_command(c, req) >= 0 || c->in_flight != in_flight)
		return;
	nr->missing--;
	c->in_flight--;
	if (!nr->is_sent)
		all_sent(c, req);
	if (is_lost(c)) {
		nr->error = LOST;
		lose(c);
	} else if (!nr->error) {
		nr->error = known_error(c->nn->lib->get_errno());
	}
	if (!nr->missing)
		end(c, req);
}

static void turn_end(struct task *t)
{
	struct nbdc_conn *c = container_of(t, struct nbdc_conn, turn_end);
	unsigned direction;

	c->is_due = false;
	if (c->state != NBDC_UP)
		return;
	direction = c->nn->lib->aio_get_direction(c->h);
	if (!direction) {
		lose(c);
		return;
	}
	if ((direction & LIBNBD_AIO_DIRECTION_READ) && !c->is_in) {
		c->is_in = true;
		c->in.fd = c->nn->lib->aio_get_fd(c->h);
		loop_submit(c->loop, &c->in);
	}
	if ((direction & LIBNBD_AIO_DIRECTION_WRITE) && !c->is_out) {
		c->is_out = true;
		c->out.fd = c->nn->lib->aio_get_fd(c->h);
		loop_submit(c->loop, &c->out);
	}
}

/* Sends what may be sent, and has the socket looked at. */
static void pump(struct nbdc_conn *c)
{
	while (c->queue && c->state == NBDC_UP && c->in_flight < NBDC_IN_FLIGHT_MAX)
		send_next(c);
	if (c->state == NBDC_UP && !c->is_due) {
		c->is_due = true;
		loop_at_turn_end(c->loop, &c->turn_end);
	}
}

/* One of the polls has ended. */
static void polled(struct nbdc_conn *c, unsigned direction)
{
	const struct nbdc_lib *lib = c->nn->lib;

	if (c->waiter)
		fiber_wake(c->waiter);
	if (c->state != NBDC_UP || c->is_closing)
		return;
	direction &= lib->aio_get_direction(c->h);
	/* What goes wrong there ends the connection, which turn_end() sees. */
	if (direction & LIBNBD_AIO_DIRECTION_READ)
		(void)lib->aio_notify_read(c->h);
	else if (direction & LIBNBD_AIO_DIRECTION_WRITE)
		(void)lib->aio_notify_write(c->h);
	pump(c);
}

static void in_done(struct io *io, int res)
{
	struct nbdc_conn *c = container_of(io, struct nbdc_conn, in);

	c->is_in = false;
	polled(c, LIBNBD_AIO_DIRECTION_READ);
}

static void out_done(struct io *io, int res)
{
	struct nbdc_conn *c = container_of(io, struct nbdc_conn, out);

	c->is_out = false;
	polled(c, LIBNBD_AIO_DIRECTION_WRITE);
}

void nbdc_conn_send(struct nbdc_conn *c, struct req *req)
{
	struct nbdc_req *nr = nbdc_req(req);

	restart(nr);
	nr->stage = NBDC_DATA;
	if (c->state == NBDC_GONE || (c->state == NBDC_DOWN && !may_wait(c))) {
		nbdc_finish(c, req, -EIO);
		return;
	}
	enqueue(c, req);
	pump(c);
}

/* ---- its life ---- */

int nbdc_conn_new(struct chan *ch, struct nbd_handle *h, struct nbdc_conn **ret)
{
	struct nbdc_conn *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->nn = nbdc_node(ch);
	c->chan = ch;
	c->loop = ch->loop;
	c->queue_tail = &c->queue;
	c->in = (struct io){ .done = in_done, .op = IO_POLL, .mode = POLLIN };
	c->out = (struct io){ .done = out_done, .op = IO_POLL, .mode = POLLOUT };
	c->turn_end.fn = turn_end;
	c->reconnect.fn = reconnect;
	c->timer.fn = give_up;
	c->nap.fn = nap_end;
	c->dial.loop = ch->loop;
	if (nbdc_align_init(c)) {
		free(c);
		return -ENOMEM;
	}
	c->h = h;
	pump(c);                                /* a server that goes away is noticed */
	*ret = c;
	return 0;
}

void nbdc_conn_free_wait(struct nbdc_conn *c)
{
	if (!c)
		return;
	assert(!c->queue && !c->in_flight);
	c->is_closing = true;
	nbdc_dial_cancel(&c->dial);
	if (c->waiter)
		fiber_wake(c->waiter);  /* it naps */
	while (c->is_reconnecting)
		fiber_queue_wait(&c->reconnected);
	timer_cancel(c->loop, &c->timer);
	while (c->is_due)
		fiber_yield_wait();
	unpoll_wait(c);
	nbdc_hang_up(c->nn->lib, c->h);
	nbdc_align_fini(c);
	free(c);
}
