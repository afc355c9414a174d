/* SPDX-License-Identifier: MIT */
/* export/nbd/conn.c - a connection's life.
 *
 *	nbd_conn_new()          on the loop that accepts
 *	nbd_conn_begin()        posted to the connection's own loop
 *	negotiate()             a fiber: the handshake; where it succeeds, nbd_receive()
 *	(transmission)          callbacks alone
 *	nbd_conn_check_end()    the last thing that was in flight has ended
 *	close_run(), destroy()  gone
 *
 * There are three ways to the end. The peer stops sending (NBD_CMD_DISC, end of stream):
 * nothing more is taken, what is in flight is finished and answered. The connection is killed
 * (violation, error, stall): the socket is shut down, which ends the recv and the sendmsg in
 * flight, and replies are dropped; requests in flight at the drivers are waited for all the
 * same (N3). The server stops: as the first, but then the sending side is closed and what the
 * peer had still sent is read away for a moment: closing a TCP socket with unread data would
 * throw away the replies on their way. Such unread requests get no answer: to a client they are
 * lost with the connection, which it may make again, while an error would be passed on to the
 * guest. */
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "export/nbd/nbd_impl.h"

#define LINGER_NS NS_PER_SEC

static void destroy(struct nbd_conn *c)
{
	struct nbd_lane *lane = c->lane;

	assert(!c->live && !c->memory_used && !c->rx_busy && !c->tx_busy);
	timer_cancel(c->loop, &c->timer);
	if (c->fixed >= 0)
		loop_fd_unregister(c->loop, c->fixed);
	close(c->fd);
	list_del(&c->link);
	free(c->rx_buf);
	free(c);
	nbd_lane_conn_gone(lane);
}

/* ---- the linger at a stop ---- */

static void linger_done(struct io *io, int res)
{
	struct nbd_conn *c = container_of(io, struct nbd_conn, rx_io);

	if (res > 0 && !c->is_dead)
		loop_submit(c->loop, io);
	else {
		c->rx_busy = false;
		destroy(c);
	}
}

static void linger_over(struct timer *t)
{
	nbd_conn_kill(container_of(t, struct nbd_conn, timer));
}

static void linger(struct nbd_conn *c)
{
	c->timer.fn = linger_over;
	shutdown(c->fd, SHUT_WR);
	timer_set(c->loop, &c->timer, loop_now(c->loop) + LINGER_NS);
	c->rx_busy = true;
	c->rx_io.done = linger_done;
	c->rx_io.buf = c->rx_buf;
	c->rx_io.len = RX_BYTES;
	loop_submit(c->loop, &c->rx_io);
}

static void close_run(struct task *t)
{
	struct nbd_conn *c = container_of(t, struct nbd_conn, close_task);

	if (c->is_stopping && !c->is_dead)
		linger(c);
	else
		destroy(c);
}

void nbd_conn_check_end(struct nbd_conn *c)
{
	if (!c->rx_ended || c->live || c->tx_busy)
		return;
	if (c->rx_is_queued || c->tx_is_queued || c->is_closing)
		return;
	c->is_closing = true;
	loop_defer(c->loop, &c->close_task);
}

void nbd_conn_kill(struct nbd_conn *c)
{
	if (c->is_dead)
		return;
	c->is_dead = true;
	shutdown(c->fd, SHUT_RDWR);
	if (!c->pc)
		return;                         /* the handshake's fiber sees the end */
	if (!c->tx_busy)
		nbd_reply_drop_all(c);
	if (!c->rx_busy)
		nbd_receive_end(c);
}

void nbd_conn_stop(struct nbd_conn *c)
{
	if (c->is_stopping)
		return;
	if (!c->pc) {
		nbd_conn_kill(c);
		return;
	}
	c->is_stopping = true;
	if (c->rx_busy)
		loop_cancel(c->loop, &c->rx_io);
	else
		nbd_receive_end(c);
}

/* ---- the beginning ---- */

static void timed_out(struct timer *t)
{
	struct nbd_conn *c = container_of(t, struct nbd_conn, timer);

	nbd_count(&c->lane->counters.cut, 1);
	nbd_conn_kill(c);
}

/* A fiber. */
static void negotiate(struct task *t)
{
	struct nbd_conn *c = container_of(t, struct nbd_conn, begin_task);
	int rc = nbd_handshake_wait(c);

	timer_cancel(c->loop, &c->timer);
	if (rc < 0 || c->is_dead) {
		if (rc != -ECANCELED)           /* the client's own wish */
			nbd_count(&c->lane->counters.handshake_failed, 1);
		destroy(c);
		return;
	}
	c->port = c->export->port;
	c->pc = port_here(c->port);
	assert(c->pc);
	nbd_receive(c);
}

static void begin(struct task *t)
{
	struct nbd_conn *c = container_of(t, struct nbd_conn, begin_task);
	struct nbd_lane *lane = c->lane;

	list_add_tail(&lane->conns, &c->link);
	c->fixed = loop_fd_register(c->loop, c->fd);
	c->rx_io.fixed = c->tx_io.fixed = c->fixed;
	c->moved_ns = loop_now(c->loop);
	if (lane->is_stopping) {
		destroy(c);
		return;
	}
	timer_set(c->loop, &c->timer, c->moved_ns + lane->server->opts.handshake_ns);
	c->begin_task.fn = negotiate;
	fiber_start(c->loop, &c->begin_task);
}

static void tune_socket(int fd)
{
	static const int on = 1;
	int domain;
	socklen_t len = sizeof(domain);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0)
		return;
	if (domain != AF_INET && domain != AF_INET6)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));      /* peers vanish */
}

int nbd_conn_new(struct nbd_lane *lane, int fd, struct nbd_conn **ret)
{
	struct nbd_conn *c = calloc(1, sizeof(*c));

	if (c)
		c->rx_buf = malloc(RX_BYTES);
	if (!c || !c->rx_buf) {
		free(c);
		return -ENOMEM;
	}
	tune_socket(fd);
	c->lane = lane;
	c->loop = lane->loop;
	c->fd = fd;
	c->fixed = -1;
	list_init(&c->link);
	list_init(&c->mem_link);
	c->timer.fn = timed_out;
	c->begin_task.fn = begin;
	c->close_task.fn = close_run;
	nbd_receive_init(c);
	nbd_reply_init(c);
	*ret = c;
	return 0;
}

void nbd_conn_begin(struct nbd_conn *c)
{
	atomic_fetch_add_explicit(&c->lane->nconns, 1, memory_order_relaxed);
	loop_post(c->loop, &c->begin_task);
}
