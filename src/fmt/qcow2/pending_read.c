/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/pending_read.c - reads of pending clusters that cannot be closed (W8).
 *
 * A cluster that is read is closed first, and after that it is like any other. But closing writes,
 * and the disk may be full. Then it stays as it is, and what it holds is put together for the
 * reader from where it is, which is what a closing that works will leave there:
 *	- one that gathers is in memory whole;
 *	- one that is packed is in buffers, parts of it perhaps in the file;
 *	- of any other, what was written is at its new place, but for what a failed write was the
 *	  first to cover (W7); the rest is what it replaces.
 * What this begins with is still there when it ends: what a closing frees meanwhile rests in
 * quarantine, for the request counts at its port. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/writer.h"

enum { ALIGN = 4096 };

/* Bytes [@lo, @hi) of a cluster go to @buf + @lo. */
struct reading {
	struct pendings *ps;
	uint64_t guest;
	uint64_t lo, hi;
	uint8_t *buf;
};

/* Is what it holds at rest? */
static bool is_readable(const struct pending *p)
{
	if (p->is_packed)
		return p->gathered || p->parts;
	return !p->writes && !p->is_closing;
}

static int read_packed_wait(const struct reading *r, const struct pending *p)
{
	const uint8_t *bytes = pack_gathered_bytes(p);

	if (!bytes)
		return inflate_packed_wait(&r->ps->w->pack, p->packed.entry, r->buf);
	memcpy(r->buf + r->lo, bytes + r->lo, r->hi - r->lo);
	return 0;
}

/* What @p's writes were the first to cover and wrote, from @at on: a part of it, without what
 * failed; or nothing. */
static struct span written_from(const struct pending *p, uint64_t at)
{
	struct span s = { MAX(at, p->covered.lo), p->covered.hi };
	bool is_failed;

	if (p->ps->w->broken & BREAK_W8_AS_WRITTEN)
		return s;
	do {
		is_failed = false;
		for (unsigned i = 0; i < p->nfailed; i++) {
			if (p->failed[i].lo > s.lo || p->failed[i].hi <= s.lo)
				continue;
			s.lo = p->failed[i].hi;
			is_failed = true;
		}
	} while (is_failed);
	for (unsigned i = 0; i < p->nfailed; i++)
		if (p->failed[i].lo > s.lo)
			s.hi = MIN(s.hi, p->failed[i].lo);
	return s;
}

static int read_plain_wait(const struct reading *r, const struct pending *p)
{
	/* It may end, or more may be written to it, while the file is read. */
	const struct pending was = *p;
	int rc = was.is_lost ? -EIO : 0;
	struct span s;

	if (!rc)
		rc = fill_read_wait(&r->ps->fills, &was.old, r->guest, r->buf, r->lo, r->hi);
	for (uint64_t at = r->lo; at < r->hi && !rc; at = s.hi) {
		s = written_from(&was, at);
		s.hi = MIN(s.hi, r->hi);
		if (s.lo >= s.hi)
			break;
		rc = chan_read_wait(writer_data(r->ps->w), was.host + s.lo, r->buf + s.lo,
				    s.hi - s.lo);
	}
	return rc;
}

/* It is not pending any more: as its entry says. -EAGAIN: it is again. */
static int read_entry_wait(const struct reading *r)
{
	struct writer *w = r->ps->w;
	struct units u;
	struct l2_at at;
	int rc = l2_get_wait(w, r->guest, false, &at);

	if (rc)
		return rc;
	u = units_of(w->q, l2_pair(w, &at, r->guest), r->guest);
	l2_put(w, &at);
	if (pending_find(&w->pendings, r->guest))
		return -EAGAIN;
	return fill_read_wait(&w->pendings.fills, &u, r->guest, r->buf, r->lo, r->hi);
}

static int read_wait(const struct reading *r)
{
	int rc;

	do {
		const struct pending *p = pending_find(r->ps, r->guest);

		if (!p) {
			rc = read_entry_wait(r);
		} else if (is_readable(p)) {
			rc = (p->is_packed ? read_packed_wait : read_plain_wait)(r, p);
		} else {
			/* Whatever comes of it: then it is at rest. */
			pendings_close_wait(r->ps, r->guest, 1);
			rc = -EAGAIN;
		}
	} while (rc == -EAGAIN);
	return rc;
}

static void read_fiber(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct writer *w = qcow2_of(req->ch->node)->writer;
	struct reading r = { .ps = &w->pendings, .guest = align_down(req->off, w->cluster) };
	int rc = -ENOMEM;

	r.lo = req->off - r.guest;
	r.hi = r.lo + req->len;
	r.buf = aligned_alloc(ALIGN, align_up(w->cluster, ALIGN));
	if (r.buf)
		rc = read_wait(&r);
	if (!rc)
		req_copy_to(req, 0, r.buf + r.lo, req->len);
	free(r.buf);
	fiber_gate_leave(w->home, &w->pendings.read_gate);
	write_answer(req, rc);
}

/* On the home loop. */
static void arrive(struct task *t)
{
	struct req *req = container_of(t, struct req, task);
	struct writer *w = qcow2_of(req->ch->node)->writer;

	t->fn = read_fiber;
	fiber_gate_start(w->home, &w->pendings.read_gate, t);
}

void pendings_submit_read(struct chan *ch, struct req *req)
{
	struct loop *home = ch->node->home;

	req->ch = ch;
	req->task.fn = arrive;
	if (ch->loop == home)
		arrive(&req->task);
	else
		loop_post(home, &req->task);
}
