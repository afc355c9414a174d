/* SPDX-License-Identifier: MIT */
/* export/nbd/reply.c - replies to bytes.
 *
 * A reply is a header in its request's struct and a body in place: the read data, the extents, or
 * a constant text. Replies queue on the connection; at the end of the turn one sendmsg takes as
 * many as TX_IOV_MAX and TX_BYTES_MAX allow. While it is in flight others gather for the next
 * (N3). A short sendmsg leaves the rest of the first unsent reply, from which the next goes on. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "export/nbd/nbd_impl.h"

static size_t reply_size(const struct nbd_req *nr)
{
	return (size_t)nr->head_len + nr->body_len;
}

/* ---- the queue ---- */

static void queue_send(struct nbd_conn *c)
{
	if (c->tx_busy || c->tx_is_queued)
		return;
	c->tx_is_queued = true;
	loop_at_turn_end(c->loop, &c->tx_task);
}

static void queue_reply(struct nbd_req *nr, size_t head_len, const void *body, uint32_t body_len)
{
	struct nbd_conn *c = nr->conn;

	if (c->is_dead) {
		nbd_lane_put_req(nr);
		return;
	}
	nr->head_len = (uint32_t)head_len;
	nr->body = body;
	nr->body_len = body_len;
	nr->next = NULL;
	*c->tx_last = nr;
	c->tx_last = &nr->next;
	queue_send(c);
}

static void drop_first(struct nbd_conn *c)
{
	struct nbd_req *nr = c->tx_first;

	c->tx_first = nr->next;
	if (!c->tx_first)
		c->tx_last = &c->tx_first;
	c->tx_skip = 0;
	nbd_lane_put_req(nr);
}

void nbd_reply_drop_all(struct nbd_conn *c)
{
	assert(!c->tx_busy);
	while (c->tx_first)
		drop_first(c);
}

/* ---- sending ---- */

/* Adds [@base, @base + @len) without its first *@skip bytes, which are used up. */
static unsigned add_iov(struct iovec *iov, const void *base, size_t len, size_t *skip)
{
	size_t n = MIN(*skip, len);

	*skip -= n;
	if (n == len)
		return 0;
	iov->iov_base = (uint8_t *)(uintptr_t)base + n;
	iov->iov_len = len - n;
	return 1;
}

static unsigned fill_iov(struct nbd_conn *c)
{
	size_t skip = c->tx_skip, bytes = 0;
	unsigned n = 0;

	for (struct nbd_req *nr = c->tx_first; nr; nr = nr->next) {
		if (n + 2 > TX_IOV_MAX || bytes >= TX_BYTES_MAX)
			break;
		n += add_iov(&c->tx_iov[n], &nr->head, nr->head_len, &skip);
		n += add_iov(&c->tx_iov[n], nr->body, nr->body_len, &skip);
		bytes += reply_size(nr);
	}
	return n;
}

static void send_all(struct task *t)
{
	struct nbd_conn *c = container_of(t, struct nbd_conn, tx_task);

	c->tx_is_queued = false;
	if (!c->tx_first || c->tx_busy) {       /* dropped meanwhile */
		nbd_conn_check_end(c);
		return;
	}
	c->tx_msg.msg_iovlen = fill_iov(c);
	c->tx_busy = true;
	c->moved_ns = loop_now(c->loop);
	nbd_count(&c->lane->counters.sends, 1);
	loop_submit(c->loop, &c->tx_io);
}

static void sent(struct io *io, int res)
{
	struct nbd_conn *c = container_of(io, struct nbd_conn, tx_io);

	c->tx_busy = false;
	if (res <= 0)
		nbd_conn_kill(c);
	if (c->is_dead) {
		nbd_reply_drop_all(c);
		nbd_conn_check_end(c);
		return;
	}
	c->moved_ns = loop_now(c->loop);
	nbd_count(&c->lane->counters.bytes_out, (uint64_t)res);
	c->tx_skip += (size_t)res;
	while (c->tx_first && c->tx_skip >= reply_size(c->tx_first)) {
		size_t rest = c->tx_skip - reply_size(c->tx_first);

		drop_first(c);
		c->tx_skip = rest;
	}
	if (c->tx_first)
		queue_send(c);
	nbd_conn_check_end(c);
}

void nbd_reply_init(struct nbd_conn *c)
{
	c->tx_last = &c->tx_first;
	c->tx_task.fn = send_all;
	c->tx_msg.msg_iov = c->tx_iov;
	c->tx_io.op = IO_SENDMSG;
	c->tx_io.fd = c->fd;
	c->tx_io.msg = &c->tx_msg;
	c->tx_io.done = sent;
}

/* ---- the replies ---- */

static void make_chunk(struct nbd_req *nr, enum nbd_reply_type type, size_t len)
{
	nr->head.chunk = (struct nbd_chunk){
		.magic = be32_make(NBD_STRUCTURED_REPLY_MAGIC),
		.flags = be16_make(NBD_REPLY_FLAG_DONE),
		.type = be16_make((uint16_t)type),
		.cookie = nr->ask.cookie,
		.len = be32_make((uint32_t)len),
	};
}

static void make_simple(struct nbd_req *nr, uint32_t error)
{
	nr->head.simple = (struct nbd_simple_reply){
		.magic = be32_make(NBD_SIMPLE_REPLY_MAGIC),
		.error = be32_make(error),
		.cookie = nr->ask.cookie,
	};
}

void nbd_reply_ok(struct nbd_req *nr)
{
	make_simple(nr, NBD_OK);
	queue_reply(nr, sizeof(nr->head.simple), NULL, 0);
}

/* The data is all there, so that the one chunk with it is also the last. */
void nbd_reply_read(struct nbd_req *nr)
{
	uint32_t len = nr->ask.len;

	if (!nr->conn->is_structured) {
		make_simple(nr, NBD_OK);
		queue_reply(nr, sizeof(nr->head.simple), nr->buf, len);
	} else if (!len) {                      /* a data chunk may not be empty */
		make_chunk(nr, NBD_REPLY_TYPE_NONE, 0);
		queue_reply(nr, sizeof(nr->head.chunk), NULL, 0);
	} else {
		make_chunk(nr, NBD_REPLY_TYPE_OFFSET_DATA, sizeof(nr->head.data.off) + len);
		nr->head.data.off = be64_make(nr->ask.off);
		queue_reply(nr, sizeof(nr->head.data), nr->buf, len);
	}
}

void nbd_reply_status(struct nbd_req *nr, uint32_t body_len)
{
	make_chunk(nr, NBD_REPLY_TYPE_BLOCK_STATUS, sizeof(nr->head.status.context) + body_len);
	nr->head.status.context = be32_make(NBD_CONTEXT_ALLOCATION);
	queue_reply(nr, sizeof(nr->head.status), nr->buf, body_len);
}

void nbd_reply_error(struct nbd_req *nr, uint32_t error, const char *text)
{
	size_t text_len = strlen(text);

	nbd_count(&nr->conn->lane->counters.request_errors, 1);
	if (!nr->conn->is_structured) {
		make_simple(nr, error);
		queue_reply(nr, sizeof(nr->head.simple), NULL, 0);
		return;
	}
	make_chunk(nr, NBD_REPLY_TYPE_ERROR,
		   sizeof(nr->head.fail) - sizeof(struct nbd_chunk) + text_len);
	nr->head.fail.error = be32_make(error);
	nr->head.fail.text_len = be16_make((uint16_t)text_len);
	queue_reply(nr, sizeof(nr->head.fail), text, (uint32_t)text_len);
}

/* The protocol knows eight errors; whatever it does not know is an I/O error. */
static uint32_t wire_error(int code)
{
	switch (code) {
	case EPERM:
	case EACCES:
	case EROFS:
		return NBD_EPERM;
	case ENOMEM:
		return NBD_ENOMEM;
	case EINVAL:
		return NBD_EINVAL;
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return NBD_ENOSPC;
	case EOVERFLOW:
		return NBD_EOVERFLOW;
	case EOPNOTSUPP:
		return NBD_ENOTSUP;
	case ESHUTDOWN:
		return NBD_ESHUTDOWN;
	default:
		return NBD_EIO;
	}
}

void nbd_reply_errno(struct nbd_req *nr, int res)
{
	const char *text = strerrordesc_np(-res);

	nbd_reply_error(nr, wire_error(-res), text ? text : "");
}
