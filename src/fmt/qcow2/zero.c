/* SPDX-License-Identifier: MIT */
/* fmt/qcow2/zero.c - requests that zero and discard.
 *
 * Whole clusters, and whole subclusters where there are some (units.h), get the zero flag; a
 * cluster keeps its place in the file unless the request allows to unmap and no data is left in
 * it. What reads as zeros anyway is left alone, and no table is made for it. Less than a unit is
 * written, where it does not read as zeros, and so are subclusters of a compressed cluster, which
 * has none. Version 2 has no zero flag: zeros are written where there is a backing file, and
 * clusters unmapped where there is none.
 *
 * A discard frees whole clusters and sets the zero flag, so that nothing of a backing file shows
 * through. In version 2 it can only unmap, and only without a backing file. Parts of clusters are
 * left alone, but for the last one of a disk that does not end with a cluster.
 *
 * Ranges are worked off a slice of an L2 table at a time.
 *
 * Invariants:
 *	Y4  a zero leaves the range reading as zeros, and nothing else changed; one that may only
 *	    be fast, and cannot, changes nothing;
 *	Y5  nothing of a range that needs no change costs more than a look at its slice. */
#include <errno.h>

#include "fmt/qcow2/writer.h"

enum { SLICES_IN_A_ROW = 256 };

/* What look_at() finds. */
enum need { NEED_NOTHING, NEED_CHANGE, NEED_DATA };

struct change {
	struct writer *w;
	bool unmap;                     /* clusters lose their place in the file */
};

/* What @old of the cluster at @guest becomes when @units of it are zeroed. */
static struct l2_pair changed(const struct change *c, const struct units *old, uint64_t guest,
			      uint32_t units)
{
	const struct qcow2 *q = c->w->q;
	uint32_t data, zero = old->zero;
	bool is_kept;

	if (q->has_raw_data)            /* it is zeroed there already */
		units &= ~(old->data | old->zero);
	data = old->data & ~units;
	is_kept = old->has_host && (data || !c->unmap || q->has_raw_data);
	/* What is nowhere and shows zeros already may stay so. */
	zero |= units & (old->data | ~fill_zero_units(c->w, old, guest));
	if (!q->has_zero_flag)
		zero = 0;
	if (is_kept == old->has_host && data == old->data && zero == old->zero)
		return old->pair;
	return units_pair(q, is_kept ? old->host | (old->pair.entry & QCOW2_COPIED) : 0, data,
			  zero);
}

/* The units of the cluster at @guest that are in [@off, @end). */
static uint32_t units_in(const struct writer *w, uint64_t guest, uint64_t off, uint64_t end)
{
	return units_touched(w->q, MAX(off, guest) - guest, MIN(end, guest + w->cluster) - guest);
}

/* Is there something to change in [@off, @end) of the slice @at? NEED_DATA: the table cannot say
 * it: a part of a compressed cluster. -EUCLEAN: an entry that cannot be is among them. */
static int look_at(const struct change *c, const struct l2_at *at, uint64_t off, uint64_t end)
{
	struct writer *w = c->w;
	int need = pendings_any(&w->pendings, off, end - off) ? NEED_CHANGE : NEED_NOTHING;

	for (uint64_t guest = align_down(off, w->cluster); guest < end; guest += w->cluster) {
		struct units u = units_of(w->q, l2_pair(w, at, guest), guest);
		uint32_t units = units_in(w, guest, off, end);

		if (u.is_bad)
			return write_corrupt(w, u.pair, guest);
		if (guard_entry(w, u.pair.entry, guest))
			return -EUCLEAN;
		if (u.is_compressed && units != units_all(w->q))
			return NEED_DATA;
		if (!l2_pair_is(changed(c, &u, guest, units), u.pair))
			need = NEED_CHANGE;
		if (!at->page)          /* all are alike, but for the end of the backing file */
			break;
	}
	return need;
}

/* Changes [@off, @end) of the slice @at. What is pending there lies wholly within. Never waits. */
static void change(const struct change *c, struct l2_at *at, uint64_t off, uint64_t end)
{
	struct writer *w = c->w;

	for (uint64_t guest = align_down(off, w->cluster); guest < end; guest += w->cluster) {
		struct units old;
		struct l2_pair new;

		pendings_zero(&w->pendings, guest, w->q->has_zero_flag && !c->unmap);
		old = units_of(w->q, l2_pair(w, at, guest), guest);
		new = changed(c, &old, guest, units_in(w, guest, off, end));
		if (l2_pair_is(new, old.pair))
			continue;
		l2_set(w, at, guest, new, false);
		if (!(new.entry & QCOW2_OFFSET_MASK))
			pendings_free_old(&w->pendings, old.pair.entry);
	}
}

/* Must those of [@off, @end) that are pending be closed? What was written to one of which all is
 * zeroed is nobody's any more, but in a data file it has its place for good. */
static bool must_close(const struct writer *w, uint64_t off, uint64_t end)
{
	if (!w->q->has_data_file && is_aligned(off | end, w->cluster))
		return pendings_busy(&w->pendings, off, end - off);
	return pendings_any(&w->pendings, off, end - off);
}

/* Gives back what a data file holds of [@off, @end), which nothing names any more. Whatever becomes
 * of it, the range reads as zeros: a crash may bring back the names, so the file must show zeros,
 * too. Who writes there meanwhile races with the request that is served. */
static void unmap_data_wait(struct writer *w, uint64_t off, uint64_t end)
{
	struct req req = { .kind = REQ_ZERO, .flags = REQ_FAST_ONLY | REQ_MAY_UNMAP, .off = off };

	if (!w->q->has_data_file || !w->discard)
		return;
	end = MIN(end, atomic_load_explicit(&w->q->node.size, memory_order_relaxed));
	req.len = end - off;
	chan_submit_wait(writer_data(w), &req);
}

/* Does what is to be done from @off on, up to @end or the end of its slice: *@ret. 0, NEED_DATA if
 * that cannot be done here, or -errno. */
static int slice_wait(const struct change *c, uint64_t off, uint64_t end, uint64_t *ret)
{
	struct writer *w = c->w;
	struct l2_at at = { .page = NULL };
	bool make = false, is_changed;
	int rc;

	for (;;) {
		rc = l2_get_wait(w, off, make, &at);
		if (rc)
			return rc;
		*ret = MIN(end, at.end);
		if (must_close(w, off, *ret)) {
			l2_put(w, &at);
			rc = pendings_close_wait(&w->pendings, off, *ret - off);
			if (rc)
				return rc;
			continue;
		}
		rc = w->dead ? w->dead : look_at(c, &at, off, *ret);
		if (rc != NEED_CHANGE || make)
			break;
		l2_put(w, &at);
		rc = mark_set_wait(w);
		if (rc)
			return rc;
		make = true;
	}
	is_changed = rc == NEED_CHANGE;
	if (is_changed) {
		change(c, &at, off, *ret);
		rc = 0;
	}
	l2_put(w, &at);
	if (is_changed && c->unmap)
		unmap_data_wait(w, off, *ret);
	return rc;
}

/* @off and @end are multiples of a cluster. */
static int clusters_wait(const struct change *c, uint64_t off, uint64_t end)
{
	int rc = 0;

	for (unsigned n = 1; off < end && !rc; n++) {
		rc = slice_wait(c, off, end, &off);
		if (!rc)
			rc = write_throttle_wait(c->w);
		if (n % SLICES_IN_A_ROW == 0)
			fiber_yield_wait();
	}
	return rc;
}

/* ---- writing zeros ---- */

/* @len is a cluster's at most. */
static int write_zeros_wait(struct writer *w, uint64_t off, uint64_t len)
{
	struct iovec iov[FILL_ZERO_IOVS];
	struct req req = { .kind = REQ_WRITE, .off = off, .len = len, .iov = iov };

	req.iovcnt = fill_zero_iov(iov, len);
	return write_range_wait(w, &req);
}

/* Zeros [@off, @off + @len) of one cluster without its table. */
static int part_wait(struct writer *w, uint64_t off, uint64_t len, unsigned flags)
{
	uint64_t guest = align_down(off, w->cluster);
	uint32_t touched = units_in(w, guest, off, off + len);
	struct req below = { .kind = REQ_ZERO, .flags = REQ_FAST_ONLY, .len = len };
	struct units u;
	struct l2_at at;
	int rc;

	if (!(flags & REQ_FAST_ONLY) && pending_find(&w->pendings, guest))
		return write_zeros_wait(w, off, len);   /* it joins */
	do {
		rc = pendings_close_wait(&w->pendings, off, len);
		if (!rc)
			rc = l2_get_wait(w, off, false, &at);
		if (rc)
			return rc;
		u = units_of(w->q, l2_pair(w, &at, guest), guest);
		l2_put(w, &at);
	} while (pending_find(&w->pendings, guest));
	/* Nothing gives way until something is sent. */
	if (u.is_bad)
		return write_corrupt(w, u.pair, off);
	if (guard_entry(w, u.pair.entry, off))
		return -EUCLEAN;
	if (!(touched & ~fill_zero_units(w, &u, guest)) ||
	    (w->q->has_raw_data && !(touched & ~(u.data | u.zero))))
		return 0;
	if (u.is_own && !(touched & ~u.data) &&
	    (flags & REQ_FAST_ONLY || len > FILL_ZERO_WRITE_MAX)) {
		below.off = u.host + (off - guest);
		commit_note(&w->commit);
		rc = chan_submit_wait(writer_data(w), &below);
		if (rc != -ENOTSUP)
			return rc;
	}
	return flags & REQ_FAST_ONLY ? -ENOTSUP : write_zeros_wait(w, off, len);
}

/* The same for many units, one by one: what of them shows zeros stays what it is. */
static int parts_wait(struct writer *w, uint64_t off, uint64_t end, unsigned flags)
{
	uint64_t unit = 1ULL << w->q->unit_bits;
	int rc = 0;

	while (off < end && !rc) {
		uint64_t next = MIN(end, align_down(off, unit) + unit);

		rc = part_wait(w, off, next - off, flags);
		if (!rc)
			rc = write_throttle_wait(w);
		off = next;
	}
	return rc;
}

static uint64_t disk_end(const struct writer *w)
{
	return atomic_load_explicit(&w->q->node.size, memory_order_relaxed);
}

/* Some units of one cluster. Where the table cannot say it, zeros are written. */
static int few_units_wait(const struct change *c, uint64_t off, uint64_t end, unsigned flags)
{
	uint64_t done;
	int rc = slice_wait(c, off, end, &done);

	return rc == NEED_DATA ? part_wait(c->w, off, MIN(end, disk_end(c->w)) - off, flags) : rc;
}

/* @off and @end are multiples of a unit. */
static int units_wait(const struct change *c, uint64_t off, uint64_t end, unsigned flags)
{
	uint64_t cluster = c->w->cluster, first = align_up(off, cluster);
	uint64_t last = align_down(end, cluster);
	int rc = 0;

	if (first > last)
		return few_units_wait(c, off, end, flags);
	if (off < first)
		rc = few_units_wait(c, off, first, flags);
	if (!rc && last < end)
		rc = few_units_wait(c, last, end, flags);
	return rc ? rc : clusters_wait(c, first, last);
}

/* What counts as the end of the last whole @unit bytes: all of the last cluster. */
static uint64_t whole_end(const struct writer *w, uint64_t end, uint64_t unit)
{
	return end == disk_end(w) ? align_up(end, w->cluster) : align_down(end, unit);
}

/* Does what is nowhere show zeros at guest cluster @guest, and behind? */
static bool shows_zeros(const struct writer *w, uint64_t guest)
{
	struct units nowhere = { .data = 0 };

	return fill_zero_units(w, &nowhere, guest) == units_all(w->q);
}

/* Is there no backing file? */
static bool nowhere_is_zero(const struct writer *w)
{
	return !w->q->node.child[CHILD_BACKING];
}

/* Version 2. A range that is nowhere is passed over as fast as with the flag. */
static int zero_v2_wait(struct writer *w, uint64_t off, uint64_t end, unsigned flags)
{
	int rc = 0;

	if (flags & REQ_FAST_ONLY)
		return -ENOTSUP;
	while (off < end && !rc) {
		uint64_t next = end;
		struct l2_at at;

		rc = l2_get_wait(w, off, false, &at);
		if (rc)
			break;
		next = MIN(end, at.end);
		if (at.page || !shows_zeros(w, align_down(off, w->cluster))) {
			l2_put(w, &at);
			rc = parts_wait(w, off, next, flags);
		}
		off = next;
	}
	return rc;
}

/* A raw data file is what the guest sees, whoever looks: zeros are written to it first. What it
 * holds counts wherever L2 says that it does. */
static int zero_raw_wait(struct writer *w, uint64_t off, uint64_t len, unsigned flags)
{
	struct req req = { .kind = REQ_ZERO, .flags = (uint8_t)(flags & ~REQ_FUA), .off = off,
			   .len = len };
	int rc = pendings_close_wait(&w->pendings, off, len);

	commit_note(&w->commit);
	return rc ? rc : chan_submit_wait(writer_data(w), &req);
}

/* Some parts of the range may be zeroed fast and others not: whole units, parts of units, parts of
 * compressed clusters. Whether all of it can be is known beforehand only where that is one part. */
static bool may_fail_halfway(const struct writer *w, uint64_t off, uint64_t end)
{
	uint64_t unit = 1ULL << w->q->unit_bits, cluster = w->cluster;
	bool has_part = !is_aligned(off, unit) || whole_end(w, end, unit) < end;
	uint64_t place = has_part ? unit : cluster;

	if (off / place == (end - 1) / place)
		return false;
	return has_part || !is_aligned(off, cluster) || whole_end(w, end, cluster) < end;
}

int zero_range_wait(struct writer *w, uint64_t off, uint64_t len, unsigned flags)
{
	struct change c = { .w = w, .unmap = flags & REQ_MAY_UNMAP };
	uint64_t unit = 1ULL << w->q->unit_bits, end = off + len;
	uint64_t first = align_up(off, unit), last = whole_end(w, end, unit);
	int rc = 0;

	if (w->q->has_raw_data)
		rc = zero_raw_wait(w, off, len, flags);
	else if (flags & REQ_FAST_ONLY && may_fail_halfway(w, off, end))
		rc = -ENOTSUP;          /* or it fails before anything is changed */
	if (rc)
		return rc;
	if (!w->q->has_zero_flag && !nowhere_is_zero(w))
		return zero_v2_wait(w, off, end, flags);
	c.unmap |= !w->q->has_zero_flag;
	if (first >= MIN(last, end))    /* units behind the end of the disk are nobody's */
		return parts_wait(w, off, end, flags);
	rc = parts_wait(w, off, first, flags);
	if (!rc && last < end)
		rc = parts_wait(w, last, end, flags);
	return rc ? rc : units_wait(&c, first, last, flags);
}

int discard_range_wait(struct writer *w, uint64_t off, uint64_t len)
{
	struct change c = { .w = w, .unmap = true };
	uint64_t first = align_up(off, w->cluster), last = whole_end(w, off + len, w->cluster);

	if (first >= last)
		return 0;
	if (w->q->has_raw_data) {       /* its clusters stay what they are */
		int rc = w->discard ? zero_raw_wait(w, off, len, REQ_MAY_UNMAP | REQ_FAST_ONLY) : 0;

		return rc == -ENOTSUP ? 0 : rc;
	}
	if (!w->q->has_zero_flag && !nowhere_is_zero(w))
		return 0;               /* the backing file would show through */
	return clusters_wait(&c, first, last);
}
