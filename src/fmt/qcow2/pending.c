/* SPDX-License-Identifier: MIT */
#include "fmt/qcow2/pending.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/prng.h"
#include "base/zero.h"
#include "fmt/qcow2/writer.h"

enum { CLOSINGS_MAX = 32, MERGE_IOVS_MAX = 64, FEW_CLUSTERS = 16 };

void pendings_init(struct pendings *ps, struct writer *w)
{
	ps->w = w;
	for (unsigned i = 0; i < PENDING_BUCKETS; i++)
		list_init(&ps->buckets[i]);
	list_init(&ps->all);
	list_init(&ps->open);
	fiber_gate_init(&ps->gate, CLOSINGS_MAX);
	fiber_gate_init(&ps->read_gate, PENDING_READS_MAX);
	fills_init(&ps->fills, w);
}

static struct list_node *bucket_of(const struct pendings *ps, uint64_t guest)
{
	uint64_t hash = mix64(guest >> ps->w->q->cluster_bits);

	return (struct list_node *)(uintptr_t)&ps->buckets[hash % PENDING_BUCKETS];
}

struct pending *pending_find(const struct pendings *ps, uint64_t guest)
{
	list_for_each(n, bucket_of(ps, guest)) {
		struct pending *p = list_entry(n, struct pending, bucket);

		if (p->guest == guest)
			return p;
	}
	return NULL;
}

/* One of [@off, @off + @len) that was opened when ps->seq was @seq or before; or NULL. */
static struct pending *first_in(const struct pendings *ps, uint64_t off, uint64_t len, uint64_t seq)
{
	uint64_t cluster = ps->w->cluster, guest = align_down(off, cluster);
	struct pending *p;

	if (!ps->n)
		return NULL;
	if ((off + len - guest) / cluster <= FEW_CLUSTERS) {
		for (; guest < off + len; guest += cluster) {
			p = pending_find(ps, guest);
			if (p && p->seq <= seq)
				return p;
		}
		return NULL;
	}
	list_for_each(n, &ps->all) {
		p = list_entry(n, struct pending, link);
		if (p->seq > seq)
			break;
		if (p->guest >= guest && p->guest < off + len)
			return p;
	}
	return NULL;
}

bool pendings_any(const struct pendings *ps, uint64_t guest_off, uint64_t len)
{
	return first_in(ps, guest_off, len, UINT64_MAX);
}

/* ---- what becomes of the units ---- */

/* Those that are data when it is mapped: what writes touched, and what was data. */
static uint32_t data_units(const struct pending *p)
{
	if (p->ps->w->broken & BREAK_U12_ALL)
		return units_all(p->ps->w->q);
	return units_touched(p->ps->w->q, p->covered.lo, p->covered.hi) | p->old.data;
}

/* Those of them whose bytes have to be written, by the guest or by filling. */
static uint32_t units_wanted(const struct pending *p)
{
	const struct qcow2 *q = p->ps->w->q;

	return units_to_fill(&p->old, units_touched(q, p->covered.lo, p->covered.hi));
}

/* Are all of them known to show zeros? */
static bool is_zero(const struct pending *p)
{
	return !(units_wanted(p) & ~fill_zero_units(p->ps->w, &p->old, p->guest));
}

/* Where @p's cluster ends. A data file has nothing behind the end of the disk. */
static uint64_t end_of(const struct pending *p)
{
	const struct qcow2 *q = p->ps->w->q;
	uint64_t size = atomic_load_explicit(&q->node.size, memory_order_relaxed);

	return q->has_data_file ? MIN(p->ps->w->cluster, size - p->guest) : p->ps->w->cluster;
}

/* What is covered and what has to be filled: *@ret, if that is one interval. */
static bool is_one_piece(const struct pending *p, struct span *ret)
{
	const struct qcow2 *q = p->ps->w->q;
	uint32_t wanted = units_wanted(p), touched;
	uint64_t lo, hi;

	touched = units_touched(q, p->covered.lo, p->covered.hi) | wanted;
	lo = (uint64_t)__builtin_ctz(touched) << q->unit_bits;
	hi = (uint64_t)(log2_floor(touched) + 1) << q->unit_bits;
	if (touched != units_touched(q, lo, hi))
		return false;
	/* Next to what is covered, units in place are left alone. */
	if (!(wanted & units_touched(q, lo, lo + 1)))
		lo = p->covered.lo;
	if (!(wanted & units_touched(q, hi - 1, hi)))
		hi = p->covered.hi;
	*ret = (struct span){ lo, MIN(hi, end_of(p)) };
	return true;
}

/* Is there nothing to fill? */
static bool is_whole(const struct pending *p)
{
	struct span s;

	return is_one_piece(p, &s) && s.lo == p->covered.lo && s.hi == p->covered.hi;
}

static struct l2_pair new_pair(const struct pending *p)
{
	uint32_t data = data_units(p);

	return units_pair(p->ps->w->q, p->host | QCOW2_COPIED, data, p->old.zero & ~data);
}

/* ---- opening ---- */

static struct pending *pending_new(struct pendings *ps, const struct l2_at *at,
				   const struct pending_run *run, unsigned i)
{
	uint64_t in_run = i * ps->w->cluster;
	struct pending *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->ps = ps;
	p->guest = run->guest + in_run;
	p->host = run->host + in_run;
	assert(!run->is_kept || !run->is_fresh);
	p->is_fresh = run->is_fresh;
	p->is_kept = run->is_kept;
	p->at = *at;
	p->at.page = meta_try_get(&ps->w->meta, at->page->off);
	assert(p->at.page == at->page);
	p->old = units_of(ps->w->q, l2_pair(ps->w, at, p->guest), p->guest);
	list_init(&p->open_link);
	list_add_tail(&ps->all, &p->link);
	list_add_head(bucket_of(ps, p->guest), &p->bucket);
	ps->n++;
	return p;
}

/* Out of all lists: whoever waits looks again. */
static void pending_end(struct pending *p)
{
	struct pendings *ps = p->ps;

	assert(!p->writes && list_is_empty(&p->open_link));
	fiber_queue_wake(&p->waiting);
	list_del(&p->link);
	list_del(&p->bucket);
	l2_put(ps->w, &p->at);
	ps->n--;
	fiber_queue_wake(&ps->room);
	free(p);
}

void pendings_fini(struct pendings *ps)
{
	if (!ps->w)
		return;
	list_for_each(n, &ps->all) {
		struct pending *p = list_entry(n, struct pending, link);

		list_del(&p->open_link);
		p->writes = 0;          /* packed ones wait in memory, for good */
		pending_end(p);
	}
	fills_fini(&ps->fills);
	fresh_fini(&ps->fresh);
}

int pendings_open(struct pendings *ps, const struct l2_at *at, const struct pending_run *run,
		  uint64_t lo, uint64_t hi)
{
	uint64_t cluster = ps->w->cluster;
	struct pending *p[PENDING_RUN_MAX];
	unsigned i;

	assert(run->n && run->n <= PENDING_RUN_MAX && lo < hi && hi <= run->n * cluster);
	ps->seq++;
	for (i = 0; i < run->n; i++) {
		assert(!pending_find(ps, run->guest + i * cluster));            /* W5 */
		p[i] = pending_new(ps, at, run, i);
		if (!p[i])
			break;
		p[i]->seq = ps->seq;
	}
	if (i < run->n) {
		while (i--)
			pending_end(p[i]);
		return -ENOMEM;
	}
	for (i = 0; i < run->n; i++) {
		uint64_t start = i * cluster;

		p[i]->covered = (struct span){ MAX(lo, start) - start,
					       MIN(hi, start + cluster) - start };
		p[i]->writes = 1;
		if (ps->w->broken & BREAK_Q2_EARLY_MAP)
			l2_set(ps->w, &p[i]->at, p[i]->guest, new_pair(p[i]), false);
	}
	ps->nopened += run->n;
	pendings_show(ps, at, run->guest, run->n, NULL);
	return 0;
}

/* ---- mapping ---- */

void pendings_free_old(struct pendings *ps, uint64_t entry)
{
	struct writer *w = ps->w;
	unsigned bits = w->q->cluster_bits, off_bits = 62 - (bits - 8);
	uint64_t host = entry & QCOW2_OFFSET_MASK, end;

	if (w->q->has_data_file)
		return;                 /* there, clusters are not counted */
	if (entry & QCOW2_COMPRESSED) {
		host = entry & ((1ULL << off_bits) - 1);
		end = (((entry & (QCOW2_COMPRESSED - 1)) >> off_bits) + 1) * 512 - (host & 511);
		end = (host + end - 1) >> bits;
		alloc_free(&w->alloc, host >> bits, end - (host >> bits) + 1);
		if (w->broken & BREAK_Q1_PACKED)
			alloc_free(&w->alloc, host >> bits, end - (host >> bits) + 1);
	} else if (host) {
		alloc_free(&w->alloc, host >> bits, 1);
	}
}

/* The cluster at @guest is what @new says from now on. */
static void set_pair(struct pendings *ps, struct l2_at *at, uint64_t guest, struct l2_pair new,
		     bool needs_a)
{
	ps->nmapped++;
	/* Whoever sees the entry sees this, too: the entry is stored with release later. */
	if (!(ps->w->broken & BREAK_X4_VOLATILE))
		atomic_store_explicit(&ps->is_volatile, true, memory_order_relaxed);
	/* A data file is synced before B in any case. */
	l2_set(ps->w, at, guest, new, needs_a && !ps->w->q->has_data_file);
}

/* What of the new place of @host's cluster is known to be zeros, when @data are units that are not:
 * U13. */
static void note_fresh(struct pendings *ps, uint64_t host, bool is_kept, bool is_fresh,
		       uint32_t data)
{
	uint64_t cluster = host / ps->w->cluster;

	if (is_kept)
		fresh_written(&ps->fresh, cluster, data);
	else
		fresh_set(&ps->fresh, cluster, is_fresh ? units_all(ps->w->q) & ~data : 0);
}

/* All that is to be data is written (W6). */
static void pending_map(struct pending *p)
{
	struct pendings *ps = p->ps;

	note_fresh(ps, p->host, p->is_kept, p->is_fresh, data_units(p));
	set_pair(ps, &p->at, p->guest, new_pair(p), true);
	if (!p->is_kept)
		pendings_free_old(ps, p->old.pair.entry);
	pending_end(p);
}

void pendings_map_zero(struct pendings *ps, struct l2_at *at, const struct pending_run *run,
		       uint64_t lo, uint64_t hi)
{
	const struct qcow2 *q = ps->w->q;

	for (unsigned i = 0; i < run->n; i++) {
		uint64_t in_run = i * ps->w->cluster, guest = run->guest + in_run;
		struct units old = units_of(q, l2_pair(ps->w, at, guest), guest);
		uint32_t data = units_touched(q, MAX(lo, in_run) - in_run,
					      MIN(hi, in_run + ps->w->cluster) - in_run);

		data |= old.data;
		note_fresh(ps, run->host + in_run, run->is_kept, true, data);
		set_pair(ps, at, guest, units_pair(q, (run->host + in_run) | QCOW2_COPIED, data,
						   old.zero & ~data), false);
		if (!run->is_kept)
			pendings_free_old(ps, old.pair.entry);
	}
}

struct pending *pending_open_packed(struct pendings *ps, const struct l2_at *at, uint64_t guest)
{
	struct pending_run run = { .guest = guest, .n = 1 };
	struct pending *p = pending_new(ps, at, &run, 0);

	assert(!pending_find(ps, guest) || pending_find(ps, guest) == p);       /* W5 */
	if (!p)
		return NULL;
	p->seq = ++ps->seq;
	p->is_packed = true;
	p->writes = 1;
	p->covered = (struct span){ 0, ps->w->cluster };
	ps->nopened++;
	pendings_show(ps, at, guest, 1, NULL);
	return p;
}

void pending_packed(struct pending *p)
{
	p->writes = 0;
	set_pair(p->ps, &p->at, p->guest, p->packed, true);
	pendings_free_old(p->ps, p->old.pair.entry);
	pending_end(p);
}

void pending_stored(struct pending *p, uint64_t host)
{
	p->writes = 0;
	p->host = host;
	pending_map(p);
}

void pending_not_packed(struct pending *p)
{
	p->writes = 0;
	pendings_show(p->ps, &p->at, p->guest, 1, &p->old.pair);
	pending_end(p);
}

/* Nothing of @p was written well, or matters any more: as if it had never been. */
static void pending_drop(struct pending *p)
{
	struct pendings *ps = p->ps;

	pendings_show(ps, &p->at, p->guest, 1, &p->old.pair);
	note_fresh(ps, p->host, p->is_kept, false, data_units(p));
	if (!p->is_kept)
		alloc_untake(&ps->w->alloc, p->host / ps->w->cluster, 1, false);
	pending_end(p);
}

/* ---- closing ---- */

/* Writes what @p->old shows of [@lo, @hi). */
static int fill_copy_wait(struct pending *p, uint64_t lo, uint64_t hi)
{
	struct fills *f = &p->ps->fills;
	uint8_t *buf = fill_buf_wait(f);
	int rc;

	if (!buf)
		return -ENOMEM;
	rc = fill_read_wait(f, &p->old, p->guest, buf, lo, hi);
	/* What is fresh reads as zeros; a failed write may have been there. */
	if (!rc && !(p->is_fresh && !p->nfailed && bytes_are_zero(buf + lo, hi - lo))) {
		f->bytes += hi - lo;
		rc = chan_write_wait(writer_data(p->ps->w), p->host + lo, buf + lo, hi - lo);
	}
	fill_buf_put(f, buf);
	return rc;
}

/* Fills what of [@lo, @hi) has to be. */
static int fill_range_wait(struct pending *p, uint64_t lo, uint64_t hi)
{
	const struct writer *w = p->ps->w;
	uint32_t wanted = units_wanted(p), zero = fill_zero_units(w, &p->old, p->guest);
	int rc = 0;

	while (lo < hi && !rc) {
		uint64_t end = MIN(hi, units_alike_end(w->q, wanted, zero, lo));
		unsigned i = (unsigned)(lo >> w->q->unit_bits);

		if (!(wanted >> i & 1))
			rc = 0;
		else if (!(zero >> i & 1))
			rc = fill_copy_wait(p, lo, end);
		else if (!p->is_fresh || p->nfailed)
			rc = fill_zero_wait(&p->ps->fills, p->host + lo, end - lo);
		lo = end;
	}
	return rc;
}

/* Fills what no write has covered with the old content. */
static int fill_wait(struct pending *p)
{
	const struct writer *w = p->ps->w;
	int rc = fill_range_wait(p, 0, p->covered.lo);

	if (!rc)
		rc = fill_range_wait(p, p->covered.hi, end_of(p));
	for (unsigned i = 0; i < p->nfailed && !rc && !(w->broken & BREAK_W7_NO_FILL); i++)
		rc = fill_range_wait(p, p->failed[i].lo, p->failed[i].hi);
	return rc;
}

static void open_add(struct pending *p)
{
	list_add_tail(&p->ps->open, &p->open_link);
	p->ps->nopen++;
}

static void open_del(struct pending *p)
{
	if (list_is_empty(&p->open_link))
		return;
	list_del(&p->open_link);
	p->ps->nopen--;
}

/* It cannot be closed now: those that wait get @res, and it goes on as it was (W7). */
static void close_failed(struct pending *p, int res)
{
	p->is_closing = false;
	p->close_res = res;
	open_add(p);
	fiber_queue_wake(&p->waiting);
	commit_note(&p->ps->w->commit);
}

void pending_pack_failed(struct pending *p, int res)
{
	p->close_res = res;
	if (!p->is_closing)
		return;
	p->is_closing = false;
	fiber_queue_wake(&p->waiting);
	commit_note(&p->ps->w->commit);
}

static void close_fiber(struct task *t)
{
	struct pending *p = container_of(t, struct pending, task);
	struct pendings *ps = p->ps;
	int rc;

	p->closer = fiber_self();
	while (p->writes)
		fiber_park();
	p->closer = NULL;
	/* In a raw data file somebody else sees what a failed write has left. */
	if (!p->is_acked && (!ps->w->q->has_raw_data || ps->w->broken & BREAK_W7_RAW)) {
		pending_drop(p);
	} else {
		rc = p->is_lost ? -EIO : fill_wait(p);
		if (rc)
			close_failed(p, rc);
		else
			pending_map(p);
	}
	fiber_gate_leave(ps->w->home, &ps->gate);
}

void pending_close_start(struct pending *p)
{
	if (p->is_closing)
		return;
	p->is_closing = true;
	if (p->is_packed) {             /* it ends when it is written */
		pack_push(&p->ps->w->pack);
		return;
	}
	open_del(p);
	p->task.fn = close_fiber;
	fiber_gate_start(p->ps->w->home, &p->ps->gate, &p->task);
}

static int close_one_wait(struct pending *p)
{
	const struct pendings *ps = p->ps;
	uint64_t guest = p->guest, seq = p->seq;

	pending_close_start(p);
	do {
		fiber_queue_wait(&p->waiting);
		p = pending_find(ps, guest);
	} while (p && p->seq == seq && p->is_closing);
	return p && p->seq == seq ? p->close_res : 0;
}

int pendings_room_wait(struct pendings *ps)
{
	const struct pending *oldest;

	if (!ps->nopen) {
		pack_push(&ps->w->pack);
		fiber_queue_wait(&ps->room);
		return 0;
	}
	oldest = list_entry(ps->open.next, struct pending, open_link);
	return pendings_close_wait(ps, oldest->guest, 1);
}

bool pendings_busy(const struct pendings *ps, uint64_t guest_off, uint64_t len)
{
	if (!pendings_any(ps, guest_off, len))
		return false;
	list_for_each(n, &ps->all) {
		const struct pending *p = list_entry(n, struct pending, link);

		if ((p->writes || p->is_closing) &&
		    ranges_overlap(p->guest, ps->w->cluster, guest_off, len))
			return true;
	}
	return false;
}

void pendings_zero(struct pendings *ps, uint64_t guest, bool keep)
{
	const struct qcow2 *q = ps->w->q;
	struct pending *p = pending_find(ps, guest);

	if (!p)
		return;
	assert(!p->writes && !p->is_closing);
	open_del(p);
	if (!keep) {
		pending_drop(p);
		return;
	}
	note_fresh(ps, p->host, p->is_kept, false, units_all(q));
	set_pair(ps, &p->at, p->guest, units_pair(q, p->host | QCOW2_COPIED, 0, units_all(q)),
		 false);
	if (!p->is_kept)
		pendings_free_old(ps, p->old.pair.entry);
	pending_end(p);
}

/* Why it could not be closed the last time, as is known without another try, or 0. */
static int stuck_res(const struct pending *p)
{
	if (p->is_closing)
		return 0;
	if (!p->close_res && (p->gathered || p->parts))
		return pack_failure(&p->ps->w->pack);   /* it would be no better */
	return p->close_res;
}

/* @is_read: W9. */
static int close_range_wait(struct pendings *ps, uint64_t guest_off, uint64_t len, bool is_read)
{
	uint64_t seq = ps->seq;
	struct pending *p;
	int rc = 0;

	if (!first_in(ps, guest_off, len, seq))
		return 0;
	list_for_each(n, &ps->all) {
		p = list_entry(n, struct pending, link);
		if (ranges_overlap(p->guest, ps->w->cluster, guest_off, len) &&
		    !(is_read && stuck_res(p)))
			pending_close_start(p);
	}
	while (!rc && (p = first_in(ps, guest_off, len, seq))) {
		rc = is_read ? stuck_res(p) : 0;
		if (!rc)
			rc = close_one_wait(p);
	}
	return rc;
}

int pendings_close_wait(struct pendings *ps, uint64_t guest_off, uint64_t len)
{
	return close_range_wait(ps, guest_off, len, false);
}

int pendings_close_to_read_wait(struct pendings *ps, uint64_t guest_off, uint64_t len)
{
	return close_range_wait(ps, guest_off, len, !(ps->w->broken & BREAK_W9_RETRY));
}

/* The oldest that holds what was answered, and is not younger than @seq. */
static struct pending *first_acked(const struct pendings *ps, uint64_t seq, bool is_flush)
{
	list_for_each(n, &ps->all) {
		struct pending *p = list_entry(n, struct pending, link);

		if (p->seq > seq)
			break;
		if (p->is_acked && (is_flush || !p->is_packed))
			return p;
	}
	return NULL;
}

int pendings_close_all_wait(struct pendings *ps, bool is_flush)
{
	uint64_t seq = ps->seq;
	struct pending *p;
	int rc = 0;

	list_for_each(n, &ps->all) {
		p = list_entry(n, struct pending, link);
		if (p->is_acked && (is_flush || !p->is_packed))
			pending_close_start(p);
	}
	while (!rc && (p = first_acked(ps, seq, is_flush)))
		rc = close_one_wait(p);
	pendings_restore_wait(ps);
	return rc;
}

void pendings_stop_wait(struct pendings *ps)
{
	struct list_node *n = ps->all.next;

	while (n != &ps->all) {
		struct pending *p = list_entry(n, struct pending, link);

		n = n->next;
		if (!p->is_closing)
			continue;
		fiber_queue_wait(&p->waiting);
		n = ps->all.next;
	}
}

/* ---- writes ---- */

/* Is it covered? Or nothing of it is to be filled, and no stream comes from an edge or goes to
 * one. */
static bool is_complete(const struct pending *p)
{
	bool has_start = !p->covered.lo, has_end = p->covered.hi >= end_of(p);

	return (has_start && has_end) || (!has_start && !has_end && is_whole(p));
}

/* A write that was the first to cover @first has ended. */
static void written(struct pending *p, const struct span *first, unsigned n, int res)
{
	struct pendings *ps = p->ps;

	commit_note(&ps->w->commit);
	p->writes--;
	if (!res)
		p->is_acked = true;
	for (unsigned i = 0; i < n && res; i++) {
		if (first[i].lo >= first[i].hi)
			continue;
		if (p->nfailed < PENDING_FAILED_MAX)
			p->failed[p->nfailed++] = first[i];
		else
			p->is_lost = true;
	}
	if (p->is_closing) {
		if (!p->writes && p->closer)
			fiber_wake(p->closer);
		return;
	}
	if (p->nfailed || (res && !p->is_acked)) {
		pending_close_start(p); /* nobody shall write there again before it is filled */
	} else if (!p->writes && is_complete(p)) {
		open_del(p);
		pending_map(p);
	} else if (!p->writes) {
		open_del(p);
		open_add(p);
		if (ps->nopen > PENDING_OPEN_MAX)
			pending_close_start(list_entry(ps->open.next, struct pending, open_link));
	}
}

void pendings_written(struct pendings *ps, uint64_t off, uint64_t len, int res)
{
	uint64_t cluster = ps->w->cluster, guest = align_down(off, cluster);

	for (; guest < off + len; guest += cluster) {
		struct span s = { MAX(off, guest) - guest,
				  MIN(off + len, guest + cluster) - guest };

		written(pending_find(ps, guest), &s, 1, res);
	}
}

bool pending_join(struct pending *p, struct span s, struct span ret[2])
{
	/* What failed is filled first, or that would fill what comes now (W7). */
	if (p->is_packed || p->is_closing || p->nfailed || s.lo > p->covered.hi ||
	    s.hi < p->covered.lo)
		return false;
	ret[0] = (struct span){ s.lo, MIN(s.hi, p->covered.lo) };
	ret[1] = (struct span){ MAX(s.lo, p->covered.hi), s.hi };
	p->covered.lo = MIN(p->covered.lo, s.lo);
	p->covered.hi = MAX(p->covered.hi, s.hi);
	p->writes++;
	p->ps->njoined++;
	return true;
}

void pending_joined(struct pending *p, const struct span first[2], int res)
{
	written(p, first, 2, res);
}

bool pending_can_merge(const struct pending *p, const struct req *req)
{
	struct span s;
	uint64_t more;

	/* What has failed may have to be filled: not in one go. */
	if (p->ps->w->q->has_raw_data || req->iovcnt > MERGE_IOVS_MAX || !is_one_piece(p, &s))
		return false;
	more = s.hi - s.lo - req->len;
	return more && (more <= FILL_ZERO_WRITE_MAX || !is_zero(p));
}

/* The iovecs of one write of bytes @s of @p's cluster: old content around the data of @req. */
static int merged_iov_wait(struct pending *p, const struct req *req, struct span s,
			   struct iovec *iov, unsigned *ret_n, uint8_t **ret_buf)
{
	struct fills *f = &p->ps->fills;
	uint64_t before = p->covered.lo - s.lo, behind = s.hi - p->covered.hi, got;
	unsigned n;
	int rc;

	*ret_buf = NULL;
	if (is_zero(p)) {
		n = fill_zero_iov(iov, before);
		n += req_iov_cut(req, 0, req->len, iov + n, MERGE_IOVS_MAX, &got);
		*ret_n = n + fill_zero_iov(iov + n, behind);
		return 0;
	}
	*ret_buf = fill_buf_wait(f);
	if (!*ret_buf)
		return -ENOMEM;
	rc = fill_read_wait(f, &p->old, p->guest, *ret_buf, s.lo, s.hi);
	iov[0] = (struct iovec){ *ret_buf + s.lo, before };
	n = 1 + req_iov_cut(req, 0, req->len, iov + 1, MERGE_IOVS_MAX, &got);
	iov[n] = (struct iovec){ *ret_buf + p->covered.hi, behind };
	*ret_n = n + 1;
	return rc;
}

int pending_merge_wait(struct pending *p, const struct req *req)
{
	struct pendings *ps = p->ps;
	struct iovec iov[MERGE_IOVS_MAX + FILL_ZERO_IOVS];
	struct req all = { .kind = REQ_WRITE, .iov = iov };
	struct span s = { 0, 0 };
	uint8_t *buf;
	int rc;

	assert(p->writes == 1 && !p->is_closing);
	is_one_piece(p, &s);
	all.off = p->host + s.lo;
	all.len = s.hi - s.lo;
	p->is_closing = true;           /* nobody joins */
	ps->nmerged++;
	rc = merged_iov_wait(p, req, s, iov, &all.iovcnt, &buf);
	if (!rc && buf && p->is_fresh && bytes_are_zero(buf + s.lo, s.hi - s.lo)) {
		req_part(req, 0, req->len, &all);       /* it is what the new place shows, too */
		all.flags = 0;
		all.off = p->host + p->covered.lo;
	}
	if (!rc) {
		ps->fills.bytes += all.len - req->len;
		rc = chan_submit_wait(writer_data(ps->w), &all);
	}
	if (buf)
		fill_buf_put(&ps->fills, buf);
	commit_note(&ps->w->commit);
	p->writes--;
	if (rc)
		pending_drop(p);
	else
		pending_map(p);
	return rc;
}
