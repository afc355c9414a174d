/* SPDX-License-Identifier: MIT */
#include "sim/disk.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/err.h"

struct sim_disk {
	struct node node;
	struct sim_disk_opts o;
	struct prng prng;
	int failed_sync;
};

/* A request on its way, in the world's queue. */
struct on_way {
	struct world_item item;
	struct sim_disk *d;
	struct req *req;
	uint32_t op;                    /* in the log; SIM_NEVER: none */
	bool took_effect;
	int res;
};

/* ---- the log ---- */

void sim_log_init(struct sim_log *log)
{
	*log = (struct sim_log){ 0 };
}

void sim_log_fini(struct sim_log *log)
{
	for (uint32_t i = 0; i < log->nops; i++)
		free(log->ops[i].bytes);
	free(log->ops);
	free(log->events);
}

static uint32_t log_event(struct sim_log *log, enum sim_event_kind kind, uint32_t op)
{
	if (log->nevents == log->events_room) {
		log->events_room = MAX(2 * log->events_room, 1024u);
		log->events = realloc(log->events, log->events_room * sizeof(*log->events));
		assert(log->events);
	}
	log->events[log->nevents++] = (struct sim_event){ .kind = kind, .op = op };
	if (log->probe)
		log->probe(log->probe_arg);
	return log->nevents - 1;
}

/* Where the disk begins in the medium. */
static uint64_t base_of(const struct sim_disk *d)
{
	return d->o.number ? SIM_SECOND : 0;
}

static enum sim_op_kind op_kind(const struct req *req)
{
	switch ((enum req_kind)req->kind) {
	case REQ_ZERO:
		return SIM_ZERO;
	case REQ_DISCARD:
		return SIM_DISCARD;
	case REQ_FLUSH:
		return SIM_SYNC;
	default:
		return SIM_WRITE;
	}
}

static uint32_t log_add(struct sim_log *log, struct sim_op op)
{
	if (log->nops == log->ops_room) {
		log->ops_room = MAX(2 * log->ops_room, 512u);
		log->ops = realloc(log->ops, log->ops_room * sizeof(op));
		assert(log->ops);
	}
	op.effect = SIM_NEVER;
	op.done = SIM_NEVER;
	log->ops[log->nops] = op;
	return log->nops++;
}

static void log_submit(struct on_way *w)
{
	struct sim_log *log = w->d->o.log;
	struct req *req = w->req;
	struct sim_op *op;

	w->op = log_add(log, (struct sim_op){ .kind = op_kind(req),
		.is_fua = req->flags & REQ_FUA, .disk = (uint8_t)w->d->o.number,
		.off = base_of(w->d) + req->off,
		.len = req->kind == REQ_FLUSH ? 0 : req->len });
	op = &log->ops[w->op];
	if (op->kind == SIM_WRITE) {
		op->wide_off = op->off;
		op->wide_len = op->len;
		op->bytes = malloc(op->len);
		assert(op->bytes);
		req_copy_from(req, 0, op->bytes, op->len);
		op->is_data = w->d->o.is_data && w->d->o.is_data(op->bytes, op->len);
	}
	if (op->kind == SIM_DISCARD && w->d->o.is_device)
		op->garbage = prng_next(&w->d->prng) | 1;
	op->submit = log_event(log, SIM_SUBMIT, w->op);
}

/* ---- effects ---- */

static bool strikes(struct sim_disk *d, const struct req *req, const struct sim_op *op)
{
	struct sim_fault *f = d->o.fault;
	unsigned kind = req->kind == REQ_READ ? (unsigned)SIM_READS : 1u << op_kind(req);

	if (op && op->kind == SIM_WRITE && !op->is_data)
		kind |= SIM_METADATA;
	if (!f || !(f->kinds & kind))
		return false;
	f->seen++;
	if (!f->nth || f->seen < f->nth || f->seen >= f->nth + f->count)
		return false;
	f->struck++;
	return true;
}

static void grown(struct sim_disk *d, uint64_t end)
{
	assert(!d->o.number || end <= atomic_load(&d->node.size));
	if (!d->o.is_device && end > atomic_load(&d->node.size))
		atomic_store(&d->node.size, end);
}

/* Lets [@off, @off + @len) of the medium become what @req says. */
static void change(struct sim_disk *d, const struct req *req, uint64_t len, uint64_t garbage)
{
	uint64_t end = req->off + len, base = base_of(d), at, n;
	uint8_t *flat = req_flat(req), buf[SIM_PAGE];

	if (d->o.is_device)
		assert(end <= atomic_load(&d->node.size));
	if (req->kind != REQ_WRITE) {
		sim_pages_fill(d->o.pages, base + req->off, len, garbage);
		if (req->kind == REQ_ZERO)
			grown(d, end);
		return;
	}
	for (at = 0; !flat && at < len; at += n) {
		n = MIN(len - at, sizeof(buf));
		req_copy_from(req, at, buf, n);
		sim_pages_write(d->o.pages, base + req->off + at, buf, n);
	}
	if (flat)
		sim_pages_write(d->o.pages, base + req->off, flat, len);
	grown(d, end);
}

/* The log keeps whole sectors, with all that was in them then. */
static void widen(struct sim_disk *d, struct sim_op *op)
{
	uint64_t off = align_down(op->off, SIM_SECTOR);
	uint64_t end = align_up(op->off + op->len, SIM_SECTOR);

	if (off == op->off && end == op->off + op->len)
		return;
	op->wide_off = off;
	op->wide_len = end - off;
	free(op->bytes);
	op->bytes = malloc(op->wide_len);
	assert(op->bytes);
	sim_pages_read(d->o.pages, off, op->bytes, op->wide_len);
}

static void read_effect(struct sim_disk *d, const struct req *req)
{
	uint64_t size = atomic_load(&d->node.size);
	uint64_t in = req->off < size ? MIN(req->len, size - req->off) : 0, n;
	uint64_t base = base_of(d);
	uint8_t *flat = req_flat(req), buf[SIM_PAGE];

	if (flat)
		sim_pages_read(d->o.pages, base + req->off, flat, in);
	for (uint64_t at = 0; !flat && at < in; at += n) {
		n = MIN(in - at, sizeof(buf));
		sim_pages_read(d->o.pages, base + req->off + at, buf, n);
		req_copy_to(req, at, buf, n);
	}
	req_zero_part(req, in, req->len - in);
}

static int sync_effect(struct sim_disk *d, bool fails)
{
	if (fails && !d->failed_sync)
		d->failed_sync = -d->o.fault->error;
	return d->failed_sync;
}

/* How much of a failing request happens: whole sectors from its start. */
static uint64_t part_of(struct sim_disk *d, const struct req *req)
{
	uint64_t end = align_down(req->off + prng_below(&d->prng, req->len + 1), SIM_SECTOR);

	return end > req->off ? end - req->off : 0;
}

static int effect(struct on_way *w)
{
	struct sim_disk *d = w->d;
	struct sim_op *op = w->op == SIM_NEVER ? NULL : &d->o.log->ops[w->op];
	bool fails = strikes(d, w->req, op);
	uint64_t len = w->req->len;

	if (w->req->kind == REQ_READ) {
		if (!fails)
			read_effect(d, w->req);
		return fails ? -d->o.fault->error : 0;
	}
	if (op)
		op->effect = log_event(d->o.log, SIM_EFFECT, w->op);
	if (w->req->kind == REQ_FLUSH)
		return sync_effect(d, fails);
	if (fails)
		len = part_of(d, w->req);
	change(d, w->req, len, op ? op->garbage : 0);
	if (op && op->len != len) {
		op->len = len;
		op->wide_len = len;
	}
	if (op && op->kind == SIM_WRITE && len)
		widen(d, op);
	return fails ? -d->o.fault->error : 0;
}

/* ---- requests ---- */

static void answer(struct task *t)
{
	struct req *req = container_of(t, struct req, task);

	req_complete(req, req->res);
}

static bool step(struct world_item *it)
{
	struct on_way *w = container_of(it, struct on_way, item);
	struct sim_disk *d = w->d;
	struct req *req = w->req;

	if (!w->took_effect) {
		w->res = effect(w);
		w->took_effect = true;
		if (prng_below(&d->prng, 2))
			return false;
	}
	if (w->op != SIM_NEVER) {
		d->o.log->ops[w->op].res = w->res;
		d->o.log->ops[w->op].done = log_event(d->o.log, SIM_DONE, w->op);
	}
	req->res = w->res;
	req->task.fn = answer;
	loop_post(req->ch->loop, &req->task);
	free(w);
	return true;
}

static void send(struct sim_disk *d, struct req *req)
{
	struct on_way *w = calloc(1, sizeof(*w));

	assert(w);
	*w = (struct on_way){ .item.step = step, .d = d, .req = req, .op = SIM_NEVER };
	if (d->o.log && req->kind != REQ_READ)
		log_submit(w);
	world_add(d->o.world, &w->item);
}

static void send_now(struct sim_disk *d, struct req *req)
{
	struct on_way w = { .d = d, .req = req, .op = SIM_NEVER };

	assert(!d->o.log);
	req_finish(req->ch, req, effect(&w));
}

static void become_write(struct req *req)
{
	const struct sim_source *source = (const struct sim_source *)(const void *)req->from;

	req->kind = REQ_WRITE;
	req->iov = &source->iov;
	req->iovcnt = 1;
	assert(req->iov_skip + req->len <= source->iov.iov_len);
}

static void disk_submit(struct chan *ch, struct req *req)
{
	struct sim_disk *d = container_of(ch->node, struct sim_disk, node);

	req->ch = ch;
	if (req->kind == REQ_COPY)
		become_write(req);
	if (req->kind == REQ_MAP) {
		req->map = (struct map_run){ .len = req->len, .host_off = req->off,
					     .file = ch->node,
					     .flags = MAP_DATA | MAP_HOST | MAP_PRESENT };
		req_finish(ch, req, 0);
	} else if (d->o.read_only && req->kind != REQ_READ) {
		req_finish(ch, req, req->kind == REQ_FLUSH ? 0 : -EROFS);
	} else if (req->kind != REQ_FLUSH && !req->len) {
		req_finish(ch, req, 0);
	} else if (d->o.is_device && req->kind != REQ_FLUSH &&
		   !range_within(req->off, req->len, atomic_load(&ch->node->size))) {
		req_finish(ch, req, req->kind == REQ_READ ? -EIO : -ENOSPC);
	} else if (d->o.world) {
		send(d, req);
	} else {
		send_now(d, req);
	}
}

/* What changes the file's length happens at once. */
static void log_length(struct sim_log *log, enum sim_op_kind kind, uint64_t off, uint64_t len)
{
	uint32_t i;

	if (!log)
		return;
	i = log_add(log, (struct sim_op){ .kind = kind, .off = off, .len = len });
	log->ops[i].submit = log_event(log, SIM_SUBMIT, i);
	log->ops[i].effect = log_event(log, SIM_EFFECT, i);
	log->ops[i].done = log_event(log, SIM_DONE, i);
}

static int disk_grow_wait(struct node *n, uint64_t size, bool is_dense)
{
	struct sim_disk *d = container_of(n, struct sim_disk, node);
	uint64_t was = atomic_load(&n->size);

	/* Some file systems must be written to. */
	if (d->o.is_device || d->o.number || d->o.seed % 4 == 0)
		return -ENOTSUP;
	log_length(d->o.log, SIM_GROW, was, size - was);
	atomic_store(&n->size, size);
	return 0;
}

static int disk_truncate_wait(struct node *n, uint64_t size)
{
	struct sim_disk *d = container_of(n, struct sim_disk, node);
	uint64_t len = atomic_load(&n->size) - size;

	if (d->o.is_device)
		return -ENOTSUP;
	log_length(d->o.log, SIM_TRUNCATE, size, len);
	sim_pages_fill(d->o.pages, size, len, 0);
	atomic_store(&n->size, size);
	return 0;
}

static int disk_allocated_wait(struct node *n, uint64_t *ret)
{
	const struct sim_disk *d = container_of(n, struct sim_disk, node);

	*ret = 0;
	for (const struct sim_pages *p = d->o.pages; p; p = p->below)
		*ret += (uint64_t)p->n * SIM_PAGE;
	return 0;
}

/* As drv/file. */
static int disk_settle_wait(struct node *n, struct err *err)
{
	int rc = n->read_only ? 0 : chan_flush_wait(n->home_chan);

	return rc ? err_set_errno(err, -rc, "'%s'", n->name) : 0;
}

static void disk_free(struct node *n)
{
	free(container_of(n, struct sim_disk, node));
}

static const struct node_ops disk_ops = {
	.name = "sim", .chan_size = sizeof(struct chan), .submit = disk_submit, .free = disk_free,
	.settle_wait = disk_settle_wait, .allocated_wait = disk_allocated_wait,
	.truncate_wait = disk_truncate_wait, .grow_wait = disk_grow_wait,
};

int sim_disk_open_wait(const struct sim_disk_opts *opts, struct node **ret)
{
	struct sim_disk *d = calloc(1, sizeof(*d));
	int rc;

	assert(d);
	d->o = *opts;
	d->prng.state = opts->seed;
	rc = node_init(&d->node, &disk_ops, opts->name, opts->home);
	assert(rc == 0);
	atomic_store(&d->node.size, opts->size);
	d->node.read_only = opts->read_only;
	d->node.can_discard = !opts->read_only;
	d->node.zero_is_fast = !opts->read_only;
	d->node.holes_read_zero = !opts->is_device;
	*ret = &d->node;
	return node_open_home_wait(&d->node, NULL);
}
