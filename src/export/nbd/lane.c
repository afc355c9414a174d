/* SPDX-License-Identifier: MIT */
/* export/nbd/lane.c - what the server has on one loop: requests, memory, and who waits for it.
 *
 * Requests come in chunks and are reused; buffers come from the loop's iobuf pool, of which the
 * lane takes a bounded part, so that drivers below always find some left for their own work.
 *
 * N5: what fits into a connection's share it gets at once, whatever others hold or wait for: a
 * client of small requests never feels one that asks for much and reads its replies slowly.
 * Beyond that, memory is handed out in the order in which it was asked for: while somebody
 * waits, whoever comes later queues behind. A waiting connection has nothing but its unparsed
 * header, so every byte that is held belongs to a request that the drivers will finish, to a
 * reply that a peer should read, or to a write whose payload should come; for the last two
 * there is the stall timer. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "export/nbd/nbd_impl.h"

struct nbd_chunk_of_reqs {
	struct nbd_chunk_of_reqs *next;
	struct nbd_req reqs[LANE_REQS_CHUNK];
};

/* What a buffer of @size bytes takes from the pool. */
static size_t charge(const struct nbd_lane *lane, uint32_t size)
{
	return size ? iobuf_bytes(loop_iobufs(lane->loop), size) : 0;
}

static bool add_chunk(struct nbd_lane *lane)
{
	struct nbd_chunk_of_reqs *chunk;

	if (lane->reqs >= LANE_REQS_MAX)
		return false;
	chunk = calloc(1, sizeof(*chunk));
	if (!chunk)
		return false;
	chunk->next = lane->chunks;
	lane->chunks = chunk;
	for (unsigned i = 0; i < LANE_REQS_CHUNK; i++) {
		chunk->reqs[i].next = lane->free_reqs;
		lane->free_reqs = &chunk->reqs[i];
	}
	lane->reqs += LANE_REQS_CHUNK;
	return true;
}

static enum nbd_got wait_self(struct nbd_conn *c)
{
	c->rx_wait = NBD_WAIT_SELF;
	return NBD_GOT_LATER;
}

static enum nbd_got wait_lane(struct nbd_conn *c)
{
	struct nbd_lane *lane = c->lane;

	c->rx_wait = NBD_WAIT_LANE;
	if (lane->served == c)
		list_add_head(&lane->waiting, &c->mem_link);    /* it keeps its turn */
	else
		list_add_tail(&lane->waiting, &c->mem_link);
	if (!lane->stall_timer.is_set)
		timer_set(lane->loop, &lane->stall_timer,
			  loop_now(lane->loop) + lane->server->opts.stall_ns);
	return NBD_GOT_LATER;
}

/* The pool has nothing although the lane's part is not used up: the lane waits in the pool's
 * line. */
static enum nbd_got wait_pool(struct nbd_conn *c)
{
	struct nbd_lane *lane = c->lane;

	if (!lane->notify_is_set) {
		lane->notify_is_set = true;
		iobuf_notify(lane->loop, loop_iobufs(lane->loop), &lane->notify_task);
	}
	return wait_lane(c);
}

/* May @c, whose turn it is or not, have @bytes more of the lane's memory? */
static bool lane_has(const struct nbd_conn *c, size_t bytes)
{
	const struct nbd_lane *lane = c->lane;
	const struct nbd_server_opts *opts = &lane->server->opts;
	size_t nconns = atomic_load_explicit(&lane->nconns, memory_order_relaxed);
	size_t shares = MIN(nconns * opts->connection_share, opts->loop_memory / 2);

	if (c->memory_used + bytes <= opts->connection_share)
		return lane->memory_used + bytes <= opts->loop_memory;
	if (!list_is_empty(&lane->waiting) && lane->served != c)
		return false;
	return !lane->memory_used || lane->memory_used + bytes <= opts->loop_memory - shares;
}

enum nbd_got nbd_lane_get_req(struct nbd_conn *c, uint32_t size, struct nbd_req **ret)
{
	struct nbd_lane *lane = c->lane;
	const struct nbd_server_opts *opts = &lane->server->opts;
	size_t bytes = charge(lane, size);
	void *buf = NULL;

	if (c->live >= opts->max_requests ||
	    (c->memory_used && c->memory_used + bytes > opts->connection_memory))
		return wait_self(c);
	if (!lane_has(c, bytes))
		return wait_lane(c);
	if (!lane->free_reqs && !add_chunk(lane))
		return lane->reqs_used ? wait_lane(c) : NBD_GOT_NEVER;
	if (size) {
		buf = iobuf_get(loop_iobufs(lane->loop), size);
		if (!buf)
			return wait_pool(c);
	}

	struct nbd_req *nr = lane->free_reqs;

	lane->free_reqs = nr->next;
	lane->reqs_used++;
	lane->memory_used += bytes;
	c->live++;
	c->memory_used += bytes;
	nr->conn = c;
	nr->next = NULL;
	nr->buf = buf;
	nr->buf_size = size;
	*ret = nr;
	return NBD_GOT;
}

static void queue_wake(struct nbd_lane *lane)
{
	if (list_is_empty(&lane->waiting) || lane->wake_is_queued)
		return;
	lane->wake_is_queued = true;
	loop_defer(lane->loop, &lane->wake_task);
}

void nbd_lane_put_req(struct nbd_req *nr)
{
	struct nbd_conn *c = nr->conn;
	struct nbd_lane *lane = c->lane;
	size_t bytes = charge(lane, nr->buf_size);

	assert(c->live > 0 && c->memory_used >= bytes && lane->memory_used >= bytes);
	if (nr->buf)
		iobuf_put(loop_iobufs(lane->loop), nr->buf, nr->buf_size);
	lane->memory_used -= bytes;
	lane->reqs_used--;
	c->memory_used -= bytes;
	c->live--;
	nr->conn = NULL;
	nr->next = lane->free_reqs;
	lane->free_reqs = nr;

	if (c->rx_wait == NBD_WAIT_SELF)
		nbd_receive_resume(c);
	queue_wake(lane);
	nbd_conn_check_end(c);
}

void nbd_lane_forget(struct nbd_conn *c)
{
	if (c->rx_wait == NBD_WAIT_LANE) {
		list_del(&c->mem_link);
		queue_wake(c->lane);            /* it may have been the first */
	}
	c->rx_wait = NBD_WAIT_NOT;
}

/* Serves those who wait, in order, until one of them has to wait again. */
static void serve(struct nbd_lane *lane)
{
	struct list_node *n;

	while ((n = list_pop(&lane->waiting))) {
		struct nbd_conn *c = list_entry(n, struct nbd_conn, mem_link);

		c->rx_wait = NBD_WAIT_NOT;
		lane->served = c;
		nbd_receive(c);
		lane->served = NULL;
		if (c->rx_wait == NBD_WAIT_LANE)
			break;
	}
	if (lane->stop_waiter)
		fiber_wake(lane->stop_waiter);
}

static void wake(struct task *t)
{
	struct nbd_lane *lane = container_of(t, struct nbd_lane, wake_task);

	lane->wake_is_queued = false;
	if (!lane->notify_is_set)               /* else the pool says when */
		serve(lane);
	else if (lane->stop_waiter)
		fiber_wake(lane->stop_waiter);
}

/* The pool lets only the task at the head of its line have a buffer: now. */
static void notified(struct task *t)
{
	struct nbd_lane *lane = container_of(t, struct nbd_lane, notify_task);

	lane->notify_is_set = false;
	serve(lane);
}

/* Is @c's memory held by its peer: replies that it does not read, payload that it does not send? */
static bool holds_for_peer(const struct nbd_conn *c)
{
	return c->memory_used && (c->tx_busy || c->rx_req);
}

static void stall_check(struct timer *t)
{
	struct nbd_lane *lane = container_of(t, struct nbd_lane, stall_timer);
	uint64_t stall_ns = lane->server->opts.stall_ns, now = loop_now(lane->loop);

	if (list_is_empty(&lane->waiting))
		return;
	list_for_each(n, &lane->conns) {
		struct nbd_conn *c = list_entry(n, struct nbd_conn, link);

		if (holds_for_peer(c) && now - c->moved_ns >= stall_ns) {
			log_limited(&lane->server->log_limit, LOG_LEVEL_WARN,
				    "nbd: cut a client that held memory which others wait for: it "
				    "did not read or send for %.1f s",
				    (double)stall_ns / NS_PER_SEC);
			nbd_count(&lane->counters.cut, 1);
			nbd_conn_kill(c);
		}
	}
	timer_set(lane->loop, t, now + MAX(stall_ns / 4, (uint64_t)NS_PER_MS));
}

void nbd_lane_init(struct nbd_lane *lane, struct nbd_server *s, struct loop *loop)
{
	lane->server = s;
	lane->loop = loop;
	list_init(&lane->conns);
	list_init(&lane->waiting);
	lane->wake_task.fn = wake;
	lane->notify_task.fn = notified;
	lane->stall_timer.fn = stall_check;
}

void nbd_lane_fini(struct nbd_lane *lane)
{
	assert(!lane->reqs_used && !lane->memory_used && !atomic_load(&lane->nconns));
	while (lane->chunks) {
		struct nbd_chunk_of_reqs *chunk = lane->chunks;

		lane->chunks = chunk->next;
		free(chunk);
	}
}

/* ---- the stop ---- */

static void stop_cut(struct timer *t)
{
	struct nbd_lane *lane = container_of(t, struct nbd_lane, stop_timer);

	list_for_each(n, &lane->conns) {
		nbd_count(&lane->counters.cut, 1);
		nbd_conn_kill(list_entry(n, struct nbd_conn, link));
	}
}

void nbd_lane_stop(struct nbd_lane *lane)
{
	lane->is_stopping = true;
	lane->stop_timer.fn = stop_cut;
	timer_set(lane->loop, &lane->stop_timer,
		  loop_now(lane->loop) + lane->server->opts.stop_ns);
	list_for_each(n, &lane->conns)
		nbd_conn_stop(list_entry(n, struct nbd_conn, link));
}

void nbd_lane_stopped_wait(struct nbd_lane *lane)
{
	lane->stop_waiter = fiber_self();
	while (atomic_load_explicit(&lane->nconns, memory_order_acquire) || lane->notify_is_set ||
	       lane->wake_is_queued)
		fiber_park();
	lane->stop_waiter = NULL;
	timer_cancel(lane->loop, &lane->stop_timer);
	timer_cancel(lane->loop, &lane->stall_timer);
}

void nbd_lane_conn_gone(struct nbd_lane *lane)
{
	atomic_fetch_sub_explicit(&lane->nconns, 1, memory_order_release);
	if (lane->stop_waiter)
		fiber_wake(lane->stop_waiter);
}
