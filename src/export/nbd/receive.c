/* SPDX-License-Identifier: MIT */
/* export/nbd/receive.c - bytes to requests.
 *
 * One recv brings as many requests as the client has sent, up to RX_BYTES; all of them are
 * taken and started before the next recv. The payload of a write is copied from there to the
 * request's buffer; where RX_DIRECT_MIN or more of it is missing, the rest is received in
 * place. After a write of RX_BULK_MIN or more only a header is received, since what follows is
 * likely to be another such write: then nothing is copied.
 *
 * Where memory or another limit forbids the next request, its header stays in the buffer and
 * nothing is received until nbd_receive_resume() or the lane's turn (N4, N5). */
#include <assert.h>
#include <string.h>

#include "export/nbd/nbd_impl.h"

enum step {
	STEP_AGAIN,                     /* something was taken: look again */
	STEP_RECEIVE,                   /* more bytes are needed */
	STEP_WAIT,                      /* for memory: it will be resumed */
};

static uint32_t buffered(const struct nbd_conn *c)
{
	return c->rx_tail - c->rx_head;
}

static void violation(struct nbd_conn *c)
{
	nbd_count(&c->lane->counters.cut, 1);
	nbd_conn_kill(c);
}

/* All of @nr is there, or what was refused of it is gone. */
static void arrived(struct nbd_req *nr)
{
	if (nr->refusal.error)
		nbd_reply_error(nr, nr->refusal.error, nr->refusal.why);
	else
		nbd_request_start(nr);
}

static enum step take_payload(struct nbd_conn *c)
{
	struct nbd_req *nr = c->rx_req;
	uint32_t n = MIN(c->rx_left, buffered(c));

	if (nr->buf)
		memcpy((uint8_t *)nr->buf + (nr->ask.len - c->rx_left), c->rx_buf + c->rx_head, n);
	c->rx_head += n;
	c->rx_left -= n;
	if (c->rx_left)
		return STEP_RECEIVE;
	c->rx_req = NULL;
	arrived(nr);
	return STEP_AGAIN;
}

static struct nbd_ask parse(const struct nbd_request *wire)
{
	return (struct nbd_ask){
		.cookie = wire->cookie,
		.off = be64_get(wire->off),
		.len = be32_get(wire->len),
		.type = be16_get(wire->type),
		.flags = be16_get(wire->flags),
	};
}

static enum step take_request(struct nbd_conn *c)
{
	const struct nbd_request *wire = (const void *)(c->rx_buf + c->rx_head);
	struct nbd_req *nr;

	if (buffered(c) < sizeof(*wire))
		return STEP_RECEIVE;
	if (be32_get(wire->magic) != NBD_REQUEST_MAGIC) {
		violation(c);
		return STEP_WAIT;
	}

	struct nbd_ask ask = parse(wire);

	if (ask.type == NBD_CMD_DISC) {
		nbd_receive_end(c);
		return STEP_WAIT;
	}

	struct nbd_refusal no = nbd_request_check(c, &ask);

	switch (nbd_lane_get_req(c, no.error ? 0 : nbd_request_buffer(&ask), &nr)) {
	case NBD_GOT:
		break;
	case NBD_GOT_LATER:
		return STEP_WAIT;
	case NBD_GOT_NEVER:
		violation(c);
		return STEP_WAIT;
	}
	nr->ask = ask;
	nr->refusal = no;
	nbd_count(&c->lane->counters.requests, 1);
	c->rx_head += sizeof(*wire);
	c->rx_is_bulk = ask.type == NBD_CMD_WRITE && ask.len >= RX_BULK_MIN;
	if (ask.type == NBD_CMD_WRITE && ask.len) {
		c->rx_req = nr;
		c->rx_left = ask.len;
	} else {
		arrived(nr);
	}
	return STEP_AGAIN;
}

static void receive(struct nbd_conn *c)
{
	struct nbd_req *nr = c->rx_req;

	if (c->rx_head) {
		memmove(c->rx_buf, c->rx_buf + c->rx_head, buffered(c));
		c->rx_tail -= c->rx_head;
		c->rx_head = 0;
	}
	c->rx_is_direct = nr && nr->buf && (c->rx_left >= RX_DIRECT_MIN || c->rx_is_bulk);
	if (c->rx_is_direct) {
		c->rx_io.buf = (uint8_t *)nr->buf + (nr->ask.len - c->rx_left);
		c->rx_io.len = c->rx_left;
	} else {
		c->rx_io.buf = c->rx_buf + c->rx_tail;
		c->rx_io.len = c->rx_is_bulk && !nr ? sizeof(struct nbd_request) - c->rx_tail
						    : RX_BYTES - c->rx_tail;
	}
	c->rx_busy = true;
	nbd_count(&c->lane->counters.receives, 1);
	loop_submit(c->loop, &c->rx_io);
}

void nbd_receive(struct nbd_conn *c)
{
	while (!c->rx_ended) {
		enum step step = c->rx_req ? take_payload(c) : take_request(c);

		if (step == STEP_WAIT)
			return;
		if (step == STEP_RECEIVE) {
			receive(c);
			return;
		}
	}
}

static void received(struct io *io, int res)
{
	struct nbd_conn *c = container_of(io, struct nbd_conn, rx_io);

	c->rx_busy = false;
	if (res < 0 && !c->is_stopping)
		nbd_conn_kill(c);
	if (res <= 0 || c->is_stopping || c->is_dead) {
		nbd_receive_end(c);
		return;
	}
	c->moved_ns = loop_now(c->loop);
	nbd_count(&c->lane->counters.bytes_in, (uint64_t)res);
	if (c->rx_is_direct)
		c->rx_left -= (uint32_t)res;
	else
		c->rx_tail += (uint32_t)res;
	nbd_receive(c);
}

static void resume(struct task *t)
{
	struct nbd_conn *c = container_of(t, struct nbd_conn, rx_task);

	c->rx_is_queued = false;
	nbd_receive(c);
	nbd_conn_check_end(c);
}

void nbd_receive_resume(struct nbd_conn *c)
{
	c->rx_wait = NBD_WAIT_NOT;
	if (c->rx_is_queued || c->rx_ended)
		return;
	c->rx_is_queued = true;
	loop_defer(c->loop, &c->rx_task);
}

void nbd_receive_end(struct nbd_conn *c)
{
	struct nbd_req *nr = c->rx_req;

	assert(!c->rx_busy);
	c->rx_ended = true;
	nbd_lane_forget(c);
	c->rx_req = NULL;
	if (nr)                                 /* its payload will never come */
		nbd_lane_put_req(nr);
	nbd_conn_check_end(c);
}

void nbd_receive_init(struct nbd_conn *c)
{
	c->rx_task.fn = resume;
	c->rx_io.op = IO_RECV;
	c->rx_io.fd = c->fd;
	c->rx_io.done = received;
}
