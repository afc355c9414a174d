/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/write.c - requests that change the image.
 *
 * A write that hits, one run of clusters that are the image's own, is translated and forwarded on
 * its own loop, like a read. Everything else goes to the home loop and back: the request stays
 * counted at its port, and the fiber that serves it there sends its data straight from its memory.
 *
 * The fiber cuts it into parts. What may be written in place by now is; the rest goes to new
 * clusters, or to subclusters of own ones that were not there: neighbours in the guest become
 * neighbours in the file as far as the reserve allows, and one write takes them all. Up to
 * WRITE_PARTS_MAX parts are under way.
 *
 * A COPY goes the same way: the file that holds the guest's data gets a COPY for each part.
 *
 * Two gates bound the fibers: one for those that write, another for those that wait for a commit,
 * so that as many as possible share it. A write in place that must be durable is so by itself if no
 * entry is volatile (pending.h); else it needs the commit, too.
 *
 * Invariants:
 *	X3  a request that is answered with an error leaves each of its sectors old or new, and no
 *	    cluster of it half mapped;
 *	X4  a write, zero or discard with FUA, and any in writethrough mode, is durable when it is
 *	    answered: its data and what maps it;
 *	X5  requests with REQ_IN_ORDER get new clusters, and tables, in the order in which they
 *	    came, however many are under way: one begins when the one before has all it needs,
 *	    and each cluster that is to be compressed has its turn among them (pack_jobs.c). Nor
 *	    does it matter when commits come: what they do ahead changes nobody's place, nor does
 *	    what they make free, unless room is short (alloc.h, refs.h, quarantine.h). */
#include "fmt/qcow2/write.h"

#include <errno.h>

#include "fmt/qcow2/l2.h"
#include "fmt/qcow2/writer.h"

struct frame;

/* A part under way. */
struct part {
	struct req req;
	struct frame *frame;
	uint64_t off, len;              /* of the guest; len 0: in place */
	struct pending *joined;         /* what it joined, and */
	struct span first[2];           /* was the first to cover there */
	bool is_busy;
};

/* A request that is served: the fiber's own, on its stack. */
struct frame {
	struct writer *w;
	const struct req *from;
	struct fiber *fiber;
	unsigned busy;
	int res;                        /* the first error */
	struct part parts[WRITE_PARTS_MAX];
};

void writes_init(struct writes *ws)
{
	fiber_gate_init(&ws->gate, WRITE_GATE);
	fiber_gate_init(&ws->commit_gate, WRITE_COMMIT_GATE);
}

/* ---- parts ---- */

static void part_done(struct req *req, int res)
{
	struct part *p = container_of(req, struct part, req);
	struct frame *f = p->frame;
	int told = f->w->broken & BREAK_X3_MAPPED ? 0 : res;

	if (p->joined)
		pending_joined(p->joined, p->first, told);
	else if (p->len)
		pendings_written(&f->w->pendings, p->off, p->len, told);
	else
		commit_note(&f->w->commit);
	if (res && !f->res)
		f->res = res;
	p->is_busy = false;
	f->busy--;
	fiber_wake(f->fiber);
}

static struct part *part_get_wait(struct frame *f)
{
	unsigned i = 0;

	while (f->busy == WRITE_PARTS_MAX)
		fiber_park();
	while (f->parts[i].is_busy)
		i++;
	return &f->parts[i];
}

/* Writes @len bytes from @at of the request on to @host_off of the file. */
static void part_send(struct part *p, uint64_t at, uint64_t len, uint64_t host_off)
{
	struct frame *f = p->frame;

	p->is_busy = true;
	f->busy++;
	req_part(f->from, at, len, &p->req);
	p->req.kind = f->from->kind == REQ_COPY ? REQ_COPY : REQ_WRITE;
	/* A commit follows where it is to be durable. */
	p->req.flags = f->from->flags & REQ_SHARE;
	p->req.off = host_off;
	p->req.done = part_done;
	chan_submit(writer_data(f->w), &p->req);
}

/* ---- new clusters ---- */

/* What fault() could not do, or what has to be waited for first. */
enum fault { FAULT_SENT, FAULT_MERGE, FAULT_CLOSE, FAULT_ROOM, FAULT_FILL, FAULT_MARK };

/* One step of a request. */
struct step {
	uint64_t at;                    /* in the request */
	uint64_t off, len;              /* of the guest: what is left */
	uint64_t done;                  /* bytes that are taken care of */
	struct pending *merge;          /* FAULT_MERGE */
};

int write_corrupt(struct writer *w, struct l2_pair pair, uint64_t off)
{
	return writer_latch(w, qcow2_corrupt(w->q, "L2 entry %#llx of guest offset %#llx is "
					     "invalid", (unsigned long long)pair.entry,
					     (unsigned long long)off));
}

/* What a write does to a cluster. */
struct effect {
	struct units old;
	bool is_hit;                    /* all that it touches is data in its own place */
	bool is_kept;                   /* the place is its own, but not all is there */
	bool is_zero;                   /* all that has to be data, and is not there, shows zeros */
	bool is_fresh;                  /* is_kept, and what is not there was never written */
};

static struct effect effect_on(const struct writer *w, const struct l2_at *at,
			       const struct step *s, uint64_t guest)
{
	uint64_t lo = MAX(s->off, guest) - guest;
	uint64_t hi = MIN(s->off + s->len, guest + w->cluster) - guest;
	struct effect e = { .old = units_of(w->q, l2_pair(w, at, guest), guest) };
	uint32_t wanted = units_to_fill(&e.old, units_touched(w->q, lo, hi));

	e.is_hit = e.old.is_own && !wanted;
	e.is_kept = e.old.is_own;
	e.is_zero = !(wanted & ~fill_zero_units(w, &e.old, guest));
	e.is_fresh = e.is_kept && (w->broken & BREAK_Q2_KEPT_FRESH ||
		!(wanted & ~fresh_units(&w->pendings.fresh, e.old.host / w->cluster)));
	return e;
}

/* How many clusters from @run->guest on, where @first happens, want new places in the same way. */
static unsigned count_run(const struct writer *w, const struct l2_at *at, const struct step *s,
			  const struct pending_run *run, const struct effect *first, unsigned max)
{
	uint64_t end = MIN(s->off + s->len, at->end);
	unsigned n = 1;

	for (; n < max; n++) {
		uint64_t guest = run->guest + n * w->cluster;
		struct effect e;

		if (guest >= end || pending_find(&w->pendings, guest))
			break;
		e = effect_on(w, at, s, guest);
		if (e.old.is_bad || e.is_hit || e.is_zero != first->is_zero ||
		    e.is_kept != first->is_kept || e.is_fresh != first->is_fresh ||
		    !guard_allows(w, e.old.pair.entry))
			break;
		if (e.is_kept && e.old.host != run->host + n * w->cluster)
			break;
	}
	return n;
}

/* Is it cheaper to write all of @p's cluster at once than to wait for more writes to it? */
static bool shall_merge(const struct frame *f, const struct pending *p)
{
	const struct writer *w = f->w;
	bool is_durable = w->writethrough || f->from->flags & REQ_FUA;

	if (f->from->kind == REQ_COPY || f->from->len != p->covered.hi - p->covered.lo)
		return false;
	/* A stream comes from one of the edges, or goes to one. */
	if (!is_durable && (!p->covered.lo || p->covered.hi == w->cluster))
		return false;
	return pending_can_merge(p, f->from);
}

/* New places for the clusters at s->off. Never waits. An enum fault, or -errno. */
static int fault_new(struct frame *f, struct part *part, struct l2_at *at, struct step *s)
{
	struct writer *w = f->w;
	struct pendings *ps = &w->pendings;
	struct pending_run run = { .guest = align_down(s->off, w->cluster) };
	uint64_t lo = s->off - run.guest, hi;
	uint64_t max = MIN((unsigned)PENDING_RUN_MAX, PENDING_MAX - ps->n);
	struct effect e = effect_on(w, at, s, run.guest);
	struct alloc_run taken;
	int rc;

	if (e.old.is_bad)
		return write_corrupt(w, e.old.pair, s->off);
	if (guard_entry(w, e.old.pair.entry, s->off))
		return -EUCLEAN;
	if (ps->n == PENDING_MAX)
		return FAULT_ROOM;
	run.is_kept = e.is_kept;
	run.host = e.old.host;
	run.is_fresh = e.is_fresh && e.is_zero;
	if (!run.is_kept)
		max = MIN(max, alloc_next(&w->alloc));
	if (!max)
		return FAULT_FILL;
	run.n = count_run(w, at, s, &run, &e, (unsigned)max);
	if (!run.is_kept) {
		alloc_take(&w->alloc, run.n, &taken);
		run.host = taken.first * w->cluster;
		run.n = (unsigned)taken.n;
		run.is_fresh = taken.is_fresh;
	}
	hi = MIN(lo + s->len, run.n * w->cluster);
	s->done = hi - lo;
	if (e.is_zero && run.is_fresh) {
		pendings_map_zero(ps, at, &run, lo, hi);
		part_send(part, s->at, s->done, run.host + lo);
		return FAULT_SENT;
	}
	rc = pendings_open(ps, at, &run, lo, hi);
	if (rc) {
		if (!run.is_kept)
			alloc_untake(&w->alloc, taken.first, taken.n, taken.is_fresh);
		return rc;
	}
	s->merge = pending_find(ps, run.guest);
	if (shall_merge(f, s->merge))
		return FAULT_MERGE;
	part->off = s->off;
	part->len = s->done;
	part_send(part, s->at, s->done, run.host + lo);
	return FAULT_SENT;
}

/* Another write to a cluster that is pending. */
static int fault_join(const struct frame *f, struct part *part, struct pending *p, struct step *s)
{
	uint64_t lo = s->off - p->guest;
	struct span span = { lo, MIN(lo + s->len, f->w->cluster) };

	if (!pending_join(p, span, part->first))
		return FAULT_CLOSE;
	part->joined = p;
	s->done = span.hi - span.lo;
	part_send(part, s->at, s->done, p->host + lo);
	return FAULT_SENT;
}

/* The slice of s->off is in @at and may be changed. */
static int fault(struct frame *f, struct part *part, struct l2_at *at, struct step *s)
{
	struct writer *w = f->w;
	struct pending *p = pending_find(&w->pendings, align_down(s->off, w->cluster));
	struct ext e;

	if (w->dead)
		return w->dead;
	if (p)
		return fault_join(f, part, p, s);
	pendings_cache_slice(&w->pendings, at);
	e = map_write_run(w->q, s->off, s->len);
	if (e.kind != EXT_DATA)
		return w->mark.is_set ? fault_new(f, part, at, s) : FAULT_MARK;
	s->done = e.len;
	part_send(part, s->at, e.len, e.host_off);
	return FAULT_SENT;
}

/* One step, from where the mapping cache could not tell. *@s: what was done, if anything. */
static int fault_wait(struct frame *f, struct part *part, struct step *s)
{
	struct writer *w = f->w;
	struct l2_at at;
	int rc = l2_get_wait(w, s->off, true, &at);

	if (rc)
		return rc;
	rc = fault(f, part, &at, s);
	l2_put(w, &at);
	switch (rc) {
	case FAULT_MARK:
		return mark_set_wait(w);
	case FAULT_MERGE:
		return pending_merge_wait(s->merge, f->from);
	case FAULT_CLOSE:
		return pendings_close_wait(&w->pendings, s->off, 1);
	case FAULT_ROOM:
		return pendings_room_wait(&w->pendings);
	case FAULT_FILL:
		alloc_expect(&w->alloc);
		w->alloc.is_dense = false;
		return alloc_fill_wait(&w->alloc);
	default:
		return rc;
	}
}

static void frame_init(struct frame *f, struct writer *w, const struct req *req)
{
	f->w = w;
	f->from = req;
	f->fiber = fiber_self();
	f->busy = 0;
	f->res = 0;
	for (unsigned i = 0; i < WRITE_PARTS_MAX; i++) {
		f->parts[i].frame = f;
		f->parts[i].is_busy = false;
	}
}

/* Sends all parts of the request, or those before an error. */
static void send_parts_wait(struct frame *f)
{
	struct writer *w = f->w;
	const struct req *req = f->from;
	struct step s = { .at = 0 };

	for (; s.at < req->len && !f->res; s.at += s.done) {
		struct part *part = part_get_wait(f);
		struct ext e = map_write_run(w->q, req->off + s.at, req->len - s.at);

		part->len = 0;
		part->joined = NULL;
		s.off = req->off + s.at;
		s.len = req->len - s.at;
		s.done = 0;
		if (e.kind == EXT_DATA) {
			s.done = e.len;
			part_send(part, s.at, e.len, e.host_off);
		} else {
			int rc = fault_wait(f, part, &s);

			f->res = f->res ? f->res : rc;
		}
	}
}

static int frame_end_wait(struct frame *f)
{
	while (f->busy)
		fiber_park();
	return f->res;
}

int write_range_wait(struct writer *w, const struct req *req)
{
	struct frame f;

	frame_init(&f, w, req);
	send_parts_wait(&f);
	return frame_end_wait(&f);
}

/* ---- requests on the home loop ---- */

static struct writer *writer_of(const struct req *req)
{
	return qcow2_of(req->ch->node)->writer;
}

void write_answer(struct req *req, int res)
{
	struct chan *ch = req->ch;

	if (loop_is_current(ch->loop))
		req_finish(ch, req, res);
	else
		req_post_finish(ch, req, res);
}

/* What was done before is durable. */
static int durable_wait(struct writer *w)
{
	struct pendings *ps = &w->pendings;
	uint64_t nmapped = ps->nmapped;
	int rc;

	/* Other loops write in place and do not tell. */
	commit_note(&w->commit);
	rc = (w->broken & BREAK_Z8_NO_PUSH ? commit_metadata_wait : commit_wait)(&w->commit);
	/* Pending ones that the commit closed count as well: only none means none. */
	if (!rc && nmapped == ps->nmapped)
		atomic_store_explicit(&ps->is_volatile, false, memory_order_relaxed);
	return rc;
}

static void commit_fiber(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct writer *w = writer_of(req);
	int rc = durable_wait(w);

	fiber_gate_leave(w->home, &w->writes.commit_gate);
	write_answer(req, rc);
}

/* @req is done but for its being durable, where it shall be (X4). */
static void end(struct writer *w, struct req *req, int res)
{
	if (res || !(w->writethrough || req->flags & REQ_FUA)) {
		write_answer(req, res);
		return;
	}
	req->task.fn = commit_fiber;
	fiber_gate_start(w->home, &w->writes.commit_gate, &req->task);
}

int write_begin_wait(struct writer *w)
{
	int rc = w->dead;

	if (rc || atomic_load_explicit(&w->writes.may_write, memory_order_relaxed))
		return rc;
	/* Q5: what a write makes untrue, even one in place. */
	if (w->q->header.version >= 3 &&
	    (w->q->header.autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_KNOWN))
		rc = mark_set_wait(w);
	if (!rc)
		rc = track_begin_wait(&w->track);
	if (!rc)
		atomic_store_explicit(&w->writes.may_write, true, memory_order_release);
	return rc;
}

int write_throttle_wait(struct writer *w)
{
	return w->meta.ndirty > 2 * META_DIRTY_MAX ? commit_metadata_wait(&w->commit) : 0;
}

/* What comes before any change. */
static int begin_wait(struct writer *w, const struct req *req)
{
	int rc = write_begin_wait(w);

	if (!rc)
		rc = write_throttle_wait(w);
	if (!rc && !(w->broken & BREAK_T32_LATE))
		track_change(&w->track, req->off, req->len);
	return rc;
}

static int change_wait(struct writer *w, const struct req *req)
{
	switch ((enum req_kind)req->kind) {
	case REQ_WRITE:
	case REQ_COPY:
		return write_range_wait(w, req);
	case REQ_ZERO:
		return zero_range_wait(w, req->off, req->len, req->flags);
	case REQ_DISCARD:
		return discard_range_wait(w, req->off, req->len);
	default:
		return -EINVAL;
	}
}

static int serve_in_order_wait(struct writer *w, const struct req *req)
{
	struct pack_turn turn;
	struct frame f;
	int rc;

	/* Until all that came before have their places, compressed ones among them (X5). */
	pack_turn_wait(&w->pack, &turn, req->off, req->len);
	rc = begin_wait(w, req);
	frame_init(&f, w, req);
	if (!rc && (req->kind == REQ_WRITE || req->kind == REQ_COPY))
		send_parts_wait(&f);
	else if (!rc)
		rc = change_wait(w, req);
	pack_turn_end(&w->pack, &turn);
	return rc ? rc : frame_end_wait(&f);
}

static int serve_wait(struct writer *w, const struct req *req)
{
	bool is_in_order = req->flags & REQ_IN_ORDER;
	int rc;

	if (is_in_order && !(w->broken & BREAK_X5_ANY_ORDER))
		return serve_in_order_wait(w, req);
	if (is_in_order && w->writes.nin_order++ % 2)
		fiber_yield_wait();
	rc = begin_wait(w, req);
	return rc ? rc : change_wait(w, req);
}

static void serve_fiber(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct writer *w = writer_of(req);
	int rc;

	if (req->flags & REQ_IN_ORDER && !(w->broken & BREAK_X5_ANY_GROWTH))
		w->alloc.is_in_order = true;
	if (req->flags & REQ_IN_ORDER && !(w->broken & BREAK_X5_ANY_REUSE))
		quarantine_hold(&w->alloc.quarantine);
	rc = pack_wants(&w->pack, req) ? pack_write_wait(&w->pack, req) : serve_wait(w, req);
	if (w->broken & BREAK_T32_LATE)
		track_change(&w->track, req->off, req->len);
	fiber_gate_leave(w->home, &w->writes.gate);
	end(w, req, rc);
}

/* On the home loop: where a request that came by post begins. */
static void arrive(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct writer *w = writer_of(req);

	if (req->kind == REQ_FLUSH) {
		t->fn = commit_fiber;
		fiber_gate_start(w->home, &w->writes.commit_gate, t);
	} else {
		t->fn = serve_fiber;
		fiber_gate_start(w->home, &w->writes.gate, t);
	}
}

static void send_home(struct chan *ch, struct req *req)
{
	struct loop *home = ch->node->home;

	req->ch = ch;
	req->task.fn = arrive;
	if (ch->loop == home)
		arrive(&req->task);
	else
		loop_post(home, &req->task);
}

static void submit_write(struct chan *ch, struct req *req)
{
	const struct qcow2 *q = qcow2_of(ch->node);
	struct writer *w = q->writer;
	struct ext e = map_write_run(q, req->off, req->len);

	if (e.kind != EXT_DATA || e.len < req->len || req->flags & REQ_COMPRESSED ||
	    !atomic_load_explicit(&w->writes.may_write, memory_order_acquire) ||
	    atomic_load_explicit(&w->dead, memory_order_relaxed)) {
		send_home(ch, req);
		return;
	}
	if (w->writethrough || req->flags & REQ_FUA) {
		if (atomic_load_explicit(&w->pendings.is_volatile, memory_order_relaxed)) {
			send_home(ch, req);
			return;
		}
		req->flags |= REQ_FUA;
	}
	track_change(&w->track, req->off, req->len);
	req->off = e.host_off;          /* the hot path: forward, and forget */
	chan_submit(ch->child[q->data_child], req);
}

void qcow2_submit_write(struct chan *ch, struct req *req)
{
	const struct writer *w = qcow2_of(ch->node)->writer;

	if (!w)
		req_finish(ch, req, req->kind == REQ_FLUSH ? 0 : -EROFS);
	else if (req->kind == REQ_COPY && w->pack.is_for_all)
		req_finish(ch, req, -ENOTSUP);  /* nothing is compressed on that way */
	else if (req->kind == REQ_WRITE || req->kind == REQ_COPY)
		submit_write(ch, req);
	else
		send_home(ch, req);
}
